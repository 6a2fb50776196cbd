"""A study as it comes from disk: named scans with their geometry."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..processing.image_processing_itemized_clip import PICTURE_SUFFIXES

NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass
class Scan:
    """
    One volume.

    Args:
        array: voxels in the order of the file.
        affine: (4, 4), voxel indices of `array` -> mm in RAS+ scanner space.
        name: sequence name; the file's name without suffix where nothing better is known.
        path: where it was read from.
    """

    array: np.ndarray
    affine: np.ndarray
    name: str | None = None
    path: str | None = None


@dataclass
class Study:
    """Scans of one visit by sequence name, in the order of reading; `skipped` holds (file name, reason)."""

    scans: dict[str, Scan]
    id: str | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


def strip_suffix(path: str | os.PathLike) -> str:
    """File name without `.nii.gz` and the like."""
    name = Path(path).name
    for suffix in (".gz", ".nii", *PICTURE_SUFFIXES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def is_nifti(path: Path) -> bool:
    """A visible file with a NIfTI suffix."""
    return path.is_file() and path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def read_file(path: str | os.PathLike, volume_index: int | None = None) -> Scan | Study:
    """
    A NIfTI file as a scan, or a folder of them as a study.

    Args:
        path: file or folder; in a folder every NIfTI file is a scan, hidden files and sub-folders are left out.
        volume_index: which volume of a 4-D file to take.

    Raises:
        FileNotFoundError, ValueError: with what was found and what to do.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    if path.is_dir():
        return read_folder(path, volume_index)
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        from .nifti import read_nifti

        return read_nifti(path, volume_index)
    raise ValueError(
        f"{path.name} is not a known kind of image file; known: {', '.join((*NIFTI_SUFFIXES, *PICTURE_SUFFIXES))}, or a "
        "folder of NIfTI files."
    )


def read_folder(path: Path, volume_index: int | None = None) -> Study:
    """All NIfTI files of a folder, by name; one that cannot be read is left out and listed in `skipped`."""
    files = sorted(file for file in path.iterdir() if is_nifti(file))
    if not files:
        raise ValueError(f"the folder {path} holds no NIfTI file ({', '.join(NIFTI_SUFFIXES)}).")
    study = Study({}, id=path.name)
    for file in files:
        try:
            scan: Any = read_file(file, volume_index)
        except (OSError, ValueError) as error:
            study.skipped.append((file.name, str(error)))
            continue
        if scan.name in study.scans:
            scan.name = file.name  # the same name with another suffix
        study.scans[scan.name] = scan
    if not study.scans:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in study.skipped)
        raise ValueError(f"none of the {len(files)} files of {path} could be read: {reasons}")
    return study
