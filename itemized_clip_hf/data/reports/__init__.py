"""Reports and captions -> items: lists, sentences, negation (method 7.1 to 7.3)."""

from .sources import read_sources

__all__ = ["read_sources"]
