"""
Readers of volumes, each found by its file.

A reader is a module or package of this folder with

- `SUFFIXES`: what names of its files end in, in lower case;
- `read(path, volume_index=None)`: a file of that kind as a [`Scan`], or as a [`Study`] where it holds several scans.

A reader raises a `ValueError` for whatever is wrong, in words that quote no header, and bounds the memory that a damaged
header can ask for. Libraries are imported inside its functions: what only lists files does not need them.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol

from ..study import Scan, Study

_FIRST = ("nifti", "itk", "tensor", "dicom")
"""What suffixes are taken off a name with two, which ids of studies rest on, follows this order; other readers come behind."""


class Reader(Protocol):
    """A module that reads one kind of file."""

    SUFFIXES: tuple[str, ...]

    def read(self, path: Path, volume_index: int | None = None) -> Scan | Study:
        """The scan or scans of a file."""


@cache
def readers_by_suffix() -> dict[str, Reader]:
    """Suffix -> its reader, of all readers in this folder."""
    names = [module.name for module in iter_modules(__path__) if module.name != "read"]
    names.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    readers = [import_module(f"{__name__}.{name}") for name in names]
    return {suffix: reader for reader in readers for suffix in reader.SUFFIXES}


def reader_of(path: Path) -> Reader | None:
    """The reader of a file, by the longest suffix that its name ends in."""
    name = path.name.lower()
    suffix = max((suffix for suffix in readers_by_suffix() if name.endswith(suffix)), key=len, default=None)
    return None if suffix is None else readers_by_suffix()[suffix]
