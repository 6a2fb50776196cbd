"""Public name of `data.readers.read`."""

from .readers.read import read_file, read_study

__all__ = ["read_file", "read_study"]
