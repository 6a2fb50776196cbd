"""Public name of `data.studies.records`."""

from .studies.records import Records, read_records

__all__ = ["Records", "read_records"]
