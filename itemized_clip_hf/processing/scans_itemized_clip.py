"""What the image processor takes for a scan or a study, and what it makes of one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch

from .geometry_itemized_clip import scaling


class ScanLike(Protocol):
    """A volume with its place in space: a scan of this package, or somebody else's object with the same two attributes."""

    array: Any
    affine: Any


@dataclass
class ProcessedScan:
    """
    One scan as the model sees it.

    Args:
        name: sequence name, with the window's name appended where a scan is shown in several windows.
        pixel_values: (C, D, H, W) float32.
        to_source: (4, 4), voxel indices (d, h, w) here -> voxel indices of the array that came in.
        source: the scan that came in, for its shape and affine.
    """

    name: str | None
    pixel_values: torch.Tensor
    to_source: np.ndarray | None
    source: Any

    def voxel_affine(self) -> np.ndarray | None:
        """(4, 4), voxel indices (d, h, w) here -> mm in RAS+ scanner space; None without geometry."""
        affine = getattr(self.source, "affine", None)
        if affine is None or self.to_source is None:
            return None
        voxels_to_mm: np.ndarray = np.asarray(affine, float) @ self.to_source
        return voxels_to_mm

    def token_affine(self, grid: tuple[int, int, int]) -> np.ndarray | None:
        """(4, 4), token indices of a grid (D, H, W) over the scan -> mm in RAS+ scanner space; None without geometry."""
        voxels_to_mm = self.voxel_affine()
        if voxels_to_mm is None:
            return None
        tokens_to_mm: np.ndarray = voxels_to_mm @ scaling(self.pixel_values.shape[1:], grid)
        return tokens_to_mm


def is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether it names a file or folder."""
    return isinstance(source, (str, os.PathLike))


def is_scan(source: object) -> TypeGuard[ScanLike]:
    """Whether it is a volume with its place in space, rather than a bare array or a picture."""
    return hasattr(source, "array") and hasattr(source, "affine")


@dataclass
class TensorScan:
    """
    A volume of somebody else's tensor.

    Args:
        array: (D, H, W), depth first.
        affine: (4, 4), indices of `array` -> mm in RAS+ scanner space.
        name: of the series; None where it has none.
    """

    array: np.ndarray
    affine: np.ndarray
    name: str | None = None


def is_meta_tensor(source: object) -> TypeGuard[Any]:
    """Whether it is MONAI's `MetaTensor`: a tensor that knows its affine and what was done to it."""
    return isinstance(source, torch.Tensor) and hasattr(source, "affine") and hasattr(source, "meta")


def scan_of_meta_tensor(tensor: Any) -> TensorScan:
    """
    A volume as MONAI's transforms hold it -> a scan, depth first.

    Args:
        tensor: `MetaTensor` (X, Y, Z) or, channel first, (1, X, Y, Z); its affine maps (x, y, z) to mm in the space that
            `meta["space"]` names, RAS where it names none.

    Raises:
        ValueError: it is a batch, has several channels, another number of axes, another space than RAS and LPS, or no affine of
            its own.
    """
    shape = tuple(tensor.shape)
    if getattr(tensor, "is_batch", False):
        raise ValueError(f"the MetaTensor {shape} is a batch: pass its entries (monai.data.decollate_batch).")
    if len(shape) == 4 and shape[0] != 1:
        raise ValueError(f"the MetaTensor {shape} has {shape[0]} channels, expected 1: pass each channel as a scan.")
    if len(shape) not in (3, 4):
        raise ValueError(f"the MetaTensor {shape} has {len(shape)} axes, expected (X, Y, Z) or (1, X, Y, Z).")
    space = str(getattr(tensor.meta.get("space"), "value", tensor.meta.get("space")) or "RAS")
    if space not in ("RAS", "LPS"):
        raise ValueError(
            f"the MetaTensor is in the space {space!r}, expected RAS or LPS: use monai's Orientation first."
        )
    has_default = np.array_equal(np.asarray(tensor.affine.cpu(), float), np.eye(4))
    if has_default and not any(name in tensor.meta for name in ("original_affine", "filename_or_obj")):
        raise ValueError(
            f"the MetaTensor {shape} has the identity for its affine, as MONAI gives it to tensors without one: pass its "
            "affine, or a plain tensor (depth, height, width) in the model's orientation."
        )
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) if space == "LPS" else np.eye(4)
    affine = to_ras @ np.asarray(tensor.affine.cpu(), float)
    volume = tensor.as_subclass(torch.Tensor).numpy(force=True)
    volume = volume[0] if volume.ndim == 4 else volume
    return TensorScan(volume.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]])


def is_study(images: object) -> bool:
    """Whether it holds scans by itself: a list, a dictionary, a folder or a study object."""
    return (
        (is_path(images) and os.path.isdir(images))
        or isinstance(images, (list, tuple, Mapping))
        or hasattr(images, "scans")
    )


def list_scans(study: Any) -> list[tuple[str | None, Any]]:
    """Name and source of each scan of a study in any form; files are not opened for it."""
    scans = getattr(study, "scans", study)
    if isinstance(scans, Mapping):
        return [(str(name), scan) for name, scan in scans.items()]
    listed = scans if isinstance(scans, (list, tuple)) else [scans]
    return [(getattr(scan, "name", None) if is_scan(scan) else None, scan) for scan in listed]


def join_names(name: str | None, window: str) -> str | None:
    """Name of a scan in one of its windows: "AX" in "bone" is "AX_bone"."""
    return f"{name}_{window}" if name and window else (window or name)


def as_array(values: Any) -> np.ndarray:
    """The numbers of an array, a list or a tensor on any device."""
    array: np.ndarray = values.numpy(force=True) if isinstance(values, torch.Tensor) else np.asarray(values)
    return array


def require_one_file(study: Any, settings: Mapping[str, Any]) -> None:
    """
    Refuses a list of files where the domain's studies have one scan.

    Raises:
        ValueError: how many files there are, and the two ways to pass them.
    """
    if settings.get("multi_scan") or not settings.get("domain") or not isinstance(study, (list, tuple)):
        return
    files = sum(is_path(source) for source in study)
    if files > 1:
        raise ValueError(
            f"the study has {files} files, expected one: studies of {settings['domain']} have one scan. Pass each file as "
            "a study of its own, or a dictionary (name -> file) if they are of one patient."
        )


def require_single_scans(opened: Any, images: Any) -> None:
    """
    Refuses a folder of several scans as an entry of a list, where it may be another study than its neighbors.

    Args:
        opened: the scan or study that the entry held.
        images: the list.

    Raises:
        ValueError: how many scans there are, and the two ways to pass them.
    """
    several = isinstance(images, (list, tuple)) and len(images) > 1
    scans = getattr(opened, "scans", ())
    if several and len(scans) > 1 and not getattr(opened, "visits", None):
        raise ValueError(
            f"an entry of a list of {len(images)} is a folder of {len(scans)} scans, where each is one scan of a study: "
            "pass each study by itself, or list its files."
        )


def require_one_visit(scans: list[ProcessedScan]) -> None:
    """
    Refuses scans of several patients or visits in one study, where their files say whose they are.

    Raises:
        ValueError: as `require_visit_of` of the scans' sources.
    """
    sources = [scan.source for scan in scans if hasattr(scan.source, "require_visit_of")]
    for source in sources[1:]:
        source.require_visit_of(sources[0])
