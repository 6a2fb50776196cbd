"""Kinds of files, told by their names and first bytes."""

import os
from itertools import islice
from pathlib import Path

from ..processing.pictures_itemized_clip import PICTURE_SUFFIXES
from .readers import readers_by_suffix


def volume_suffixes() -> tuple[str, ...]:
    """What names of volume files end in, one for each entry that a reader declares."""
    return tuple(readers_by_suffix())


def is_volume(path: Path) -> bool:
    """A visible file with the suffix of a volume."""
    name = path.name.lower()
    return (
        path.is_file() and not name.startswith(".") and name.endswith(volume_suffixes()) and not name.endswith(".dcm")
    )


def is_picture(path: Path) -> bool:
    """A visible file with the suffix of a picture."""
    return path.is_file() and path.name.lower().endswith(PICTURE_SUFFIXES) and not path.name.startswith(".")


def is_zip(path: Path) -> bool:
    """A file with the suffix of a zip."""
    return path.suffix.lower() == ".zip" and path.is_file()


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM files do, or as one without preamble may; the DICOM reader has the last word."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    bare = len(start) == 132 and start[:2] in (b"\x02\0", b"\x08\0") and start[3] == 0
    return start[128:] == b"DICM" or bare


def holds_dicom(path: Path, max_files: int = 20, below: bool = True) -> bool:
    """Whether one of the first files of a folder, or below it, is DICOM."""
    listed = sorted(path.rglob("*") if below else path.iterdir())
    files = (file for file in listed if file.name != "DICOMDIR" and not file.name.startswith(".") and file.is_file())
    return any(file.suffix.lower() == ".dcm" or is_dicom(file) for file in islice(files, max_files))


def holds_study(folder: Path) -> bool:
    """Whether a folder holds volume files, the reference's folders of tensors, or DICOM files at any depth."""
    return any(map(is_volume, folder.iterdir())) or any(folder.glob("*/*.pt")) or holds_dicom(folder)


def study_name(path: str | os.PathLike) -> str:
    """File or folder name without `.nii.gz` and the like."""
    name = Path(path).name
    for suffix in (".gz", *volume_suffixes(), *PICTURE_SUFFIXES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name.encode("utf-8", "backslashreplace").decode()  # names of files need not be UTF-8
