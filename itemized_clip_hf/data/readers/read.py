"""Files and folders of every known kind -> scans and studies; masks are not taken for scans."""

import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ...processing.pictures_itemized_clip import PICTURE_SUFFIXES
from ..files import open_bounded
from ..kinds import (
    ITK_SUFFIXES,
    TENSOR_SUFFIXES,
    VOLUME_SUFFIXES,
    holds_dicom,
    holds_study,
    is_dicom,
    is_volume,
    is_zip,
)
from ..layout import Layout, only_study, require_one_scan
from ..scan_names import is_called_mask
from ..study import Scan, Study, require_scan_of_list
from . import nifti
from .itk import read_itk


def read_file(path: str | os.PathLike, volume_index: int | None = None, layout: Layout | None = None) -> Scan | Study:
    """
    A file as a scan, or a folder or DICOM zip as a study.

    Args:
        path: NIfTI, NRRD, MHA, `.pt`, `.npy` or `.npz` file; DICOM folder, zip or file; folder of volume files.
        volume_index: which volume of a 4-D file to take.
        layout: how files of a folder make studies; those of a study with several scans if None.

    Raises:
        FileNotFoundError, ValueError: with what was found and what to do. A mask (few values, all of them integers) is refused,
            and a folder of several studies.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    if not path.is_dir():
        return _read_file(path, volume_index)
    place = only_study(path, layout)
    if place.is_dir():
        return _read_folder(place, volume_index)
    return _collect(place.parent, [place], partial(_read_file, volume_index=volume_index))


def _read_file(path: Path, volume_index: int | None) -> Scan | Study:
    name = path.name.lower()
    if name.endswith(nifti.SUFFIXES):
        scan = nifti.read_nifti(path, volume_index)
    elif name.endswith(ITK_SUFFIXES):
        scan = read_itk(path)
    elif name.endswith(TENSOR_SUFFIXES):
        scan = read_tensor(path)
    elif name.endswith((".zip", ".dcm")) or is_dicom(path):
        return _read_dicom(path)
    else:
        raise ValueError(
            f"{path.name} is not a known kind of image file; known: {', '.join((*VOLUME_SUFFIXES, *PICTURE_SUFFIXES))}, "
            "a folder of volume files or a DICOM folder."
        )
    reason = mask_reason(scan.array)
    if reason:
        raise ValueError(f"{path.name} is a mask, not a scan: {reason}.")
    return scan


def read_study(
    images,
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
            require_scan_of_list(opened, images)
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
        return _collect(path, tensors, _read_series_tensor) if tensors else _read_dicom(path)
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


def _read_dicom(path: Path) -> Study:
    from .dicom import read_dicom  # with pydicom, which takes its time

    study = read_dicom(path)
    for scan in study.scans.values():
        scan.visits = study.visits
    return study


def mask_reason(array: np.ndarray, most_values: int = 16) -> str | None:
    """Why an array is a mask rather than a scan; None if it is none."""
    sample = array[len(array) // 2, ::4] if array.ndim == 3 else array
    if len(np.unique(sample)) > most_values:  # most scans end here
        return None
    values = np.unique(array)
    if not 2 <= len(values) <= most_values or not np.array_equal(values, np.rint(values)):
        return None
    return (
        f"it holds {len(values)} different values, all of them integers ({', '.join(f'{v:g}' for v in values[:6])} ...)"
    )


def read_tensor(path: str | os.PathLike) -> Scan:
    """
    A stored volume (D, H, W) without geometry: a tensor saved by torch (read with `weights_only=True`), a numpy array, or an
    archive that holds one (Rad-ChestCT).

    8-bit volumes are taken as windowed already, as the reference stores them (spec 7.5).
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            array = _load_npy(path)
        elif path.suffix.lower() == ".npz":
            array = _load_npz(path)
        else:
            import torch

            _refuse_bomb(path)
            with open_bounded(path) as file:
                loaded = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(loaded, torch.Tensor):
                raise _Refused(f"it holds a {type(loaded).__name__}, expected one tensor")
            _refuse_size(loaded.numel() * loaded.element_size())
            array = (loaded.float() if loaded.dtype == torch.bfloat16 else loaded).detach().resolve_neg().numpy()
    except _Refused as error:
        raise ValueError(f"{path.name} cannot be read: {error}.") from None
    except Exception:
        raise ValueError(f"{path.name} cannot be read: it is damaged, or holds more than a tensor.") from None
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path.name} holds values of type {array.dtype}, expected one number per voxel.")
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or min(array.shape) < 2:
        raise ValueError(f"{path.name} has shape {array.shape}; expected a volume (depth, height, width).")
    history = ["array without geometry, taken as it is stored, depth first"]
    return Scan(array, None, path.stem, str(path), history=history, prepared=array.dtype == np.uint8)


class _Refused(ValueError):
    """Why a file is not read, in words of ours."""


def _refuse_size(size: int) -> None:
    """Small files can promise any size: tensors by strides of 0, compressed ones by what they inflate to."""
    if size > nifti.MAX_BYTES:
        raise _Refused(
            f"its voxels would take {size / 2**30:,.1f} GiB, more than the limit of {nifti.MAX_BYTES >> 30} GiB"
        )


def _refuse_bomb(path: Path) -> None:
    """Refuses what inflates beyond the limit, and damage of anything but voxels, which have checksums that torch ignores."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _refuse_size(sum(member.file_size for member in archive.infolist()))
            for member in archive.infolist():
                if "/data/" not in member.filename:
                    archive.read(member)


def _load_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise _Refused("its version of the format is unknown")
        shape, _, dtype = read(file)
        if dtype.kind not in "iuf":
            raise _Refused(f"it holds values of type {dtype}, expected one number per voxel")
        size = dtype.itemsize * int(np.prod([float(count) for count in shape]))
        _refuse_size(size)
        if os.fstat(file.fileno()).st_size - file.tell() != size:
            raise _Refused(f"its voxels do not fill the shape {shape} of its header")
    return np.load(path, allow_pickle=False)


def _load_npz(path: Path) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        raise _Refused("it is damaged or no archive of numpy")
    _refuse_bomb(path)
    with np.load(path, allow_pickle=False) as archive:
        if len(archive.files) != 1:
            raise _Refused(f"it holds {len(archive.files)} arrays ({', '.join(archive.files[:5])}), expected one")
        return archive[archive.files[0]]


def _read_series_tensor(file: Path) -> Scan:
    """The reference's layout: a folder per series that holds `img.pt`; several tensors of a series are told apart by name."""
    scan = read_tensor(file)
    scan.name = file.parent.name if file.stem == "img" else f"{file.parent.name}_{file.stem.removeprefix('img_')}"
    return scan
