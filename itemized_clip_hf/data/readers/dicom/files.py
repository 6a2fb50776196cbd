"""The files of a DICOM folder or zip, read no further than asked for."""

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


@dataclass
class DicomFile:
    """A file of the folder or zip: its name, what reads its first bytes, its header and where its pixels start."""

    name: str
    read: Callable[[int], bytes]
    header: Any = None
    pixels_at: int = 0
    excess: int = 0
    """Bytes beyond the pixels, which are dropped."""


class UnusableFileError(ValueError):
    """A file or series that is left out, and why, in words without values of the header."""


def list_files(path: Path, stack: contextlib.ExitStack, below: bool = True) -> Iterator[DicomFile]:
    """
    Files in the order of their names; those of a zip stay readable until the stack is closed.

    Args:
        below: those of sub-folders, too.
    """
    if path.is_file() and path.suffix.lower() == ".zip":
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except Exception:  # a damaged directory surfaces in many ways
            raise ValueError(f"{path.name} cannot be read: it is damaged or no zip file.") from None
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            name = Path(info.filename).name
            if not info.is_dir() and not name.startswith(".") and name != "DICOMDIR":
                read = _zip_reader(archive, info)
                yield DicomFile(name, read)
        return
    for member in sorted(path.rglob("*") if below else path.iterdir()) if path.is_dir() else [path]:
        if member.is_file() and not member.name.startswith(".") and member.name != "DICOMDIR":
            yield DicomFile(member.name, partial(_read_bounded, member))


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        try:
            with archive.open(info) as member:
                return member.read(limit)
        except NotImplementedError:
            raise UnusableFileError("the zip is compressed in a way that Python cannot read") from None
        except RuntimeError:
            raise UnusableFileError("the zip is encrypted") from None

    return read


def _read_bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(min(limit, os.fstat(file.fileno()).st_size))
