"""Stored arrays: `.pt`, `.npy` and `.npz` files of one volume each, without geometry."""

import os
import zipfile
from pathlib import Path

import numpy as np

from ..files import open_bounded
from ..study import Scan
from . import nifti

SUFFIXES = (".pt", ".npy", ".npz")


def read(path: str | os.PathLike[str], volume_index: int | None = None) -> Scan:
    """
    A stored volume (D, H, W) without geometry: a tensor saved by torch (read with `weights_only=True`), a numpy array, or an
    archive that holds one (Rad-ChestCT).

    8-bit volumes are taken as windowed already, as the reference stores them. `volume_index` is of no use here.

    Raises:
        ValueError: damaged, not one volume of numbers, or larger than `nifti.MAX_BYTES`.
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
                raise _UnusableError(f"it holds a {type(loaded).__name__}, expected one tensor")
            _refuse_size(loaded.numel() * loaded.element_size())
            array = (loaded.float() if loaded.dtype == torch.bfloat16 else loaded).detach().resolve_neg().numpy()
    except _UnusableError as error:
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


class _UnusableError(ValueError):
    """Why a file is not read, in words that quote nothing of it."""


def _refuse_size(size: int) -> None:
    """Small files can promise any size: tensors by strides of 0, compressed ones by what they inflate to."""
    if size > nifti.MAX_BYTES:
        raise _UnusableError(
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
            raise _UnusableError("its version of the format is unknown")
        shape, _, dtype = read(file)
        if dtype.kind not in "iuf":
            raise _UnusableError(f"it holds values of type {dtype}, expected one number per voxel")
        size = dtype.itemsize * int(np.prod([float(count) for count in shape]))
        _refuse_size(size)
        if os.fstat(file.fileno()).st_size - file.tell() != size:
            raise _UnusableError(f"its voxels do not fill the shape {shape} of its header")
    return np.load(path, allow_pickle=False)


def _load_npz(path: Path) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        raise _UnusableError("it is damaged or no archive of numpy")
    _refuse_bomb(path)
    with np.load(path, allow_pickle=False) as archive:
        if len(archive.files) != 1:
            raise _UnusableError(f"it holds {len(archive.files)} arrays ({', '.join(archive.files[:5])}), expected one")
        return archive[archive.files[0]]
