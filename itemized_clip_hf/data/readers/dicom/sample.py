"""Which visit the files of one folder or zip are of, by the first that can be used."""

import contextlib
import os
from itertools import islice
from pathlib import Path

from .files import list_files
from .header import read_header, refuse_other_images
from .identity import name_visit
from .slices import list_slices
from .study import quiet

MAX_FILES = 500
"""Files of one folder that are tried."""


def sample_visits(place: Path, known: dict[Path, set[str]] | None = None) -> set[str]:
    """
    Digests of the visits of the DICOM images below a folder or in a zip, one image of each folder being looked at. A digest is
    empty where the header does not say which visit it is.

    Args:
        known: what was found in folders and zips before; what is found now is added.
    """
    known = {} if known is None else known
    folders = [place] if place.is_file() else [Path(folder) for folder, _, _ in os.walk(place)]
    for folder in folders:
        if folder not in known:
            known[folder] = _first_visit(folder)
    return set().union(*(known[folder] for folder in folders))


def _first_visit(place: Path) -> set[str]:
    with contextlib.ExitStack() as stack, contextlib.suppress(ValueError):  # a damaged zip, of which the reader says so
        stack.enter_context(quiet())
        for file in islice(list_files(place, stack, below=False), MAX_FILES):
            with contextlib.suppress(Exception):  # damaged values surface in many ways, and the reader names them
                read_header(file)
                refuse_other_images(file.header)
                list_slices(file.header, file)
                return {name_visit(file.header)}
    return set()
