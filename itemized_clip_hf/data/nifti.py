"""NIfTI files: one checked volume each, and maps written back beside them."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from .study import Scan, strip_suffix

try:
    import nibabel
except ImportError:
    nibabel = None  # type: ignore[assignment]


def _require_nibabel():
    if nibabel is None:
        raise ImportError("NIfTI files need nibabel: pip install 'itemized-clip-hf[volumes]'.")


def read_nifti(path: str | os.PathLike, volume_index: int | None = None) -> Scan:
    """
    One volume with its affine (scl_slope and scl_inter applied once).

    Args:
        path: `.nii` or `.nii.gz`.
        volume_index: which volume of a file with a fourth axis; such a file is refused without it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or broken, not a volume, several volumes, no usable affine.
    """
    _require_nibabel()
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        image: Any = nibabel.load(path)
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel's own errors share no base class
        raise ValueError(f"{path.name} cannot be read: it is truncated, damaged or no NIfTI file ({error}).") from error
    if array.dtype.fields is not None:
        raise ValueError(f"{path.name} holds colours or records ({array.dtype}); expected one number per voxel.")
    if array.dtype.kind == "c":
        raise ValueError(f"{path.name} holds complex numbers; export the magnitude.")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 4:
        if volume_index is None:
            raise ValueError(
                f"{path.name} holds {array.shape[3]} volumes (shape {array.shape}): choose one with volume_index "
                "(--volume-index on the command line; 0 is the first), or split the file into one per volume."
            )
        if not 0 <= volume_index < array.shape[3]:
            raise ValueError(f"{path.name} holds {array.shape[3]} volumes, there is no volume {volume_index}.")
        array = array[..., volume_index]
    if array.ndim != 3 or array.ndim == 3 and min(array.shape) < 2:
        raise ValueError(f"{path.name} has shape {array.shape}: that is a picture, expected a volume with three axes.")
    affine = np.asarray(image.affine, dtype=float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(
            f"{path.name} has no usable geometry (its affine is singular or not finite): orientation and spacing are unknown."
        )
    return Scan(array, affine, strip_suffix(path), str(path))


def write_nifti(path: str | os.PathLike, array: np.ndarray, affine: np.ndarray | None) -> None:
    """A volume with the given affine (voxels of 1 mm if None), as float32."""
    _require_nibabel()
    nibabel.save(nibabel.Nifti1Image(np.asarray(array, dtype=np.float32), affine), path)
