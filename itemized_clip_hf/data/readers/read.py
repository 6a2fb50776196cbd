"""Files and folders of every known kind -> scans and studies; masks are not taken for scans."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...processing.pictures_itemized_clip import PICTURE_SUFFIXES
from ...processing.scans_itemized_clip import require_single_scans
from ..dicomweb import is_study_url, open_study_url
from ..kinds import holds_dicom, holds_study, is_dicom, is_volume, is_zip, volume_suffixes
from ..layout import Layout, only_study, require_one_scan
from ..masks import mask_reason
from ..scan_names import is_called_mask
from ..study import Scan, Study
from . import dicom, reader_of, tensor


def read_file(path: str | os.PathLike, volume_index: int | None = None, layout: Layout | None = None) -> Scan | Study:
    """
    A file as a scan, or a folder or DICOM zip as a study.

    Args:
        path: NIfTI, NRRD, MHA, `.pt`, `.npy` or `.npz` file; DICOM folder, zip or file; folder of volume files; address of a
            study on a DICOMweb server, `http(s)://HOST/.../studies/UID`.
        volume_index: which volume of a 4-D file to take.
        layout: how files of a folder make studies; those of a study with several scans if None.

    Raises:
        FileNotFoundError, ValueError: with what was found and what to do. A mask (few values, all of them integers) is refused,
            and a folder of several studies.
    """
    if is_study_url(path):
        return open_study_url(str(path))
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path.name}.")
    if not path.is_dir():
        return _read_file(path, volume_index)
    place = only_study(path, layout)
    if place.is_dir():
        return _read_folder(place, volume_index)
    return _collect(place.parent, [place], partial(_read_file, volume_index=volume_index))


def _read_file(path: Path, volume_index: int | None) -> Scan | Study:
    reader = reader_of(path) or (dicom if is_dicom(path) else None)
    if reader is None:
        raise ValueError(
            f"{path.name} is not a known kind of image file; known: {', '.join((*volume_suffixes(), *PICTURE_SUFFIXES))}, "
            "a folder of volume files or a DICOM folder."
        )
    opened = reader.read(path, volume_index)
    reason = mask_reason(opened.array) if isinstance(opened, Scan) else None
    if reason:
        raise ValueError(f"{path.name} is a mask, not a scan: {reason}.")
    return opened


def read_study(
    images: Any,
    study_id: str,
    volume_index: int | None = None,
    skip_unreadable: bool = False,
    layout: Layout | None = None,
) -> Study:
    """
    The images of a list's row as one study.

    Args:
        images: a path or a scan, a list of them, or name -> path or scan; a name given here wins over the file's.
        skip_unreadable: a file that cannot be read is listed in `skipped`, and the study may be empty; else it raises.
        layout: how files of a folder make studies; those of a study with several scans if None.

    Raises:
        ValueError: there is no volume among them, or there are several where studies have one; OSError, ValueError: one cannot
            be read.
    """
    layout = layout or Layout()
    require_one_scan(images, layout)
    named = images if isinstance(images, dict) else {"": images}
    if isinstance(images, (list, tuple)):
        named = dict(enumerate(images))
    study = Study({}, id=study_id)
    for name, image in named.items():
        try:
            if (
                isinstance(image, str)
                and image.lower().endswith(PICTURE_SUFFIXES)
                or not isinstance(image, (str, Scan))
            ):
                raise ValueError("a picture, where a volume is expected.")
            opened = read_file(image, volume_index, layout.inside(images)) if isinstance(image, str) else image
            require_single_scans(opened, images)
        except (OSError, ValueError) as error:
            if not skip_unreadable:
                raise
            study.skip(Path(image).name if isinstance(image, str) else str(name), str(error))
            continue
        if isinstance(opened, Scan) and isinstance(name, str) and name:
            opened.name = name
        study.take(opened)
    return study


def _read_folder(path: Path, volume_index: int | None) -> Study:
    """A study's folder: its volume files by name, or its DICOM series. What cannot be used is listed in `skipped`."""
    files = [file for file in sorted(path.iterdir()) if is_volume(file)]
    if not files:
        tensors = sorted(path.glob("*/*.pt"))
        return _collect(path, tensors, _read_series_tensor) if tensors else dicom.read(path)
    only_zips = all(map(is_zip, files))

    def read(file: Path) -> Scan | Study:
        if is_zip(file) and not only_zips:
            raise ValueError("a zip beside volume files is left alone; name it to read it")
        return _read_file(file, volume_index)

    study = _collect(path, files, read)
    if holds_dicom(path, below=False):
        reason = "they lie beside volume files or zips and are left alone; put them into a folder of their own"
        study.skip("DICOM files", reason)
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        if not is_called_mask(folder.name) and holds_study(folder):
            study.skip(folder.name, "a folder beside volume files is left alone; name it to read it")
    return study


def _collect(folder: Path, files: list[Path], read: Callable[[Path], Scan | Study]) -> Study:
    """What can be read of some files of a folder, and why the rest cannot."""
    study = Study({}, id=folder.name)
    for file in files:
        try:
            opened = read(file)
        except (OSError, ValueError) as error:
            study.skip(str(file.relative_to(folder)), str(error))
            continue
        study.take(opened)
    if not study.scans:
        reasons = "; ".join(map(str, study.skipped))
        raise ValueError(f"none of the {len(files)} files of {folder} could be read: {reasons}")
    return study


def _read_series_tensor(file: Path) -> Scan:
    """The reference's layout: a folder per series that holds `img.pt`; several tensors of a series are told apart by name."""
    scan = tensor.read(file)
    scan.name = file.parent.name if file.stem == "img" else f"{file.parent.name}_{file.stem.removeprefix('img_')}"
    return scan
