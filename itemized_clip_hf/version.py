"""The version of the package, also in saved files."""

__version__ = "0.1.0"
