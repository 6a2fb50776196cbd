"""Public name of `data.studies.records`."""

from .studies.records import read_records

__all__ = ["read_records"]
