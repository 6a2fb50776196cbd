"""Volumes: the depth comes first, spacing and size become those of the model; each step tells where its voxels came from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .geometry_itemized_clip import axis_spacing, permutation, reorient, scaling, shift
from .intensities_itemized_clip import NO_WINDOWS, Limits, Rescale, apply_window, plan_intensities
from .scans_itemized_clip import ProcessedScan, as_array, is_scan, join_names

try:
    from PIL import Image
except ImportError:
    Image = None  # type: ignore[assignment]  # volumes need no Pillow

Store = Callable[[torch.Tensor, bool], torch.Tensor]
"""Turns a volume, told whether it is in HU, into what is kept of it."""
Size = tuple[int, int, int]
Fitted = tuple[torch.Tensor, np.ndarray]
"""A volume (D, H, W) and the index transform of the step that made it."""


def process_volume(
    name: str | None, scan: Any, settings: Mapping[str, Any], generator: torch.Generator | None
) -> list[ProcessedScan]:
    """
    A volume as the model takes it, in each of its windows, before the normalization.

    Args:
        name: sequence name.
        scan: an array or tensor (D, H, W), or a scan with an affine.
        settings: of the image processor.
        generator: draws the crop of `fit="crop"`; centered without it.
    """
    depth, height, width = settings["scan_size"]
    fit = VOLUME_FITS.get(settings["fit"], fit_stretch)
    standardized, windows = standardize_volume(name, scan, settings)
    processed = []
    for standard_window, (volume, to_source) in standardized.items():
        for window, limits in windows.items():
            view, transform = volume if limits is None else apply_window(volume, limits), to_source
            if settings["do_resize"]:
                view, step = fit(view, (depth, height, width), generator)
                transform = transform @ step
            full_name = join_names(join_names(name, standard_window), window)
            processed.append(ProcessedScan(full_name, view[None], transform, scan))
    return processed


def keep_volume(volume: torch.Tensor, in_hu: bool) -> torch.Tensor:
    """A `Store` that changes nothing."""
    return volume


def standardize_volume(
    name: str | None, scan: Any, settings: Mapping[str, Any], store: Store = keep_volume
) -> tuple[dict[str, Fitted], Mapping[str, Limits | None]]:
    """
    What does not depend on a draw: depth first, spacing, intensities and, for `"slices"`, in-plane size and depth.

    Args:
        name, scan, settings: as in `process_volume`.
        store: turns each volume into what is kept.

    Returns:
        window name -> volume (D, H, W) in [0, 1] and its index transform; and `NO_WINDOWS`. Where windows come after the
        resampling (`"crop"`, `"stretch"`): one volume in HU, named "", and window name -> limits.
    """
    label = f"scan {name!r}" if name is not None else "the scan"
    volume, to_source, spacing = depth_first(scan, label, settings)
    rescales, windows = plan_intensities(volume, label, scan, settings)
    if settings["do_resize"] and settings["fit"] == "slices":
        return _standardize_slices(volume, to_source, rescales, settings, store), windows
    target = settings["spacing"] if settings["do_resize"] else None
    standardized = {}
    for window, rescale in rescales.items():
        view, transform = rescale(volume), to_source
        if target is not None and spacing is not None:
            view, step = _resample(view, spacing, target)
            transform = transform @ step
        standardized[window] = store(view, windows != NO_WINDOWS), transform
    return standardized, windows


def _standardize_slices(
    volume: np.ndarray,
    to_source: np.ndarray,
    rescales: Mapping[str, Rescale],
    settings: Mapping[str, Any],
    store: Store,
) -> dict[str, Fitted]:
    """Window name -> the nearest slices to the wanted depth, each padded to a square and resized."""
    chosen = nearest_slices(len(volume), settings["scan_size"][0])
    to_source = to_source @ scaling((len(volume), 1, 1), (len(chosen), 1, 1))
    # Each once, before anything is computed on them: all that follows works on each slice by itself.
    distinct, repeats = np.unique(chosen, return_inverse=True)
    volume = volume if len(distinct) == len(volume) else volume[distinct]
    fitted = {}
    for window, rescale in rescales.items():
        view, step = fit_plane(rescale(volume), settings["in_plane_size"])
        view = store(view, False)
        view = view if len(repeats) == len(distinct) else view[torch.from_numpy(repeats)]
        fitted[window] = view, to_source @ step
    return fitted


def depth_first(
    scan: Any, label: str, settings: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, list[float] | None]:
    """
    The voxels of a scan with the depth first.

    Args:
        scan: an array or tensor (D, H, W), taken as it is, or a scan with an affine, whose axes are brought to
            `orientation`, depth first.
        label: what messages call it.
        settings: of the image processor.

    Returns:
        (D, H, W), its index transform, and its spacing in mm, where known.

    Raises:
        ValueError: it is a picture, or not a volume of finite numbers that differ.
    """
    if Image is not None and isinstance(scan, Image.Image):
        raise ValueError(f"{label} is a picture; this processor takes volumes of {list(settings['scan_size'])} voxels.")
    affine = scan.affine if is_scan(scan) else None
    array = as_array(scan.array if is_scan(scan) else scan)
    if array.ndim == 4 and array.shape[0] == 1 and affine is None:
        array = array[0]
    prepared = getattr(scan, "prepared", False)
    _check_voxels(array, label, prepared)
    if prepared or affine is None:
        return array, np.eye(4), None
    affine = np.asarray(affine, float)
    if settings["orientation"] is not None:
        array, transform = reorient(array, affine, settings["orientation"])
    else:
        array, transform = array.transpose(2, 1, 0), permutation((2, 1, 0))
    spacing = np.abs(transform[:3, :3].T) @ axis_spacing(affine)
    order = (2, 1, 0)
    if settings["thickest_axis_first"]:
        thickest = max((2, 1, 0), key=lambda axis: round(float(spacing[axis]), 3))
        order = {2: (2, 1, 0), 1: (1, 2, 0), 0: (0, 2, 1)}[thickest]
    return array.transpose(order), transform @ permutation(order), [float(spacing[axis]) for axis in order]


def _check_voxels(array: np.ndarray, label: str, prepared: bool) -> None:
    """Refuses what is not a volume of finite numbers; of prepared scans the numbers have been looked at before."""
    if array.ndim != 3:
        raise ValueError(
            f"{label} has shape {array.shape}; expected a volume with three axes (depth, height, width). A series of volumes "
            "has to be split first: choose one of them, or pass a list of scans."
        )
    if min(array.shape) < 1:
        raise ValueError(f"{label} is empty: its shape is {array.shape}.")
    if array.dtype.kind not in "buif":
        raise ValueError(f"{label} holds values of type {array.dtype}, expected numbers.")
    if prepared:
        return
    lowest, highest = array.min(), array.max()
    if not np.isfinite(lowest) or not np.isfinite(highest):
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(
            f"{label} holds {bad} voxels that are NaN or infinite, of {array.size}; replace them first (np.nan_to_num with a "
            "value that means air or background)."
        )
    if lowest == highest:
        raise ValueError(f"{label} is constant (every voxel is {array.flat[0]}): there is nothing to see in it.")


def nearest_slices(count: int, wanted: int) -> np.ndarray:
    """Which of `count` slices stand for `wanted` ones: the nearest to each one's center, as torch's "nearest-exact" takes."""
    positions = torch.arange(count, dtype=torch.float64)[None, None]
    chosen: np.ndarray = F.interpolate(positions, size=wanted, mode="nearest-exact")[0, 0].long().numpy()
    return chosen


def fit_plane(volume: torch.Tensor, side: int) -> Fitted:
    """Slices padded to a square, centered, and resized to `side` (the Pub-Brain-5 recipe)."""
    depth, height, width = volume.shape
    longest = max(height, width)
    top, left = (longest - height) // 2, (longest - width) // 2
    transform = shift((0, -top, -left)) @ scaling((depth, longest, longest), (depth, side, side))
    if height != width:
        volume = F.pad(volume, (left, longest - width - left, top, longest - height - top))
    if longest != side:
        volume = F.interpolate(volume[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    return volume, transform


def fit_slices(volume: torch.Tensor, size: Size, generator: torch.Generator | None = None) -> Fitted:
    """The center of slices that `fit_plane` brought to `in_plane_size`; their number is that of `size` already."""
    _, height, width = size
    top, left = (volume.shape[1] - height) // 2, (volume.shape[2] - width) // 2
    return volume[:, top : top + height, left : left + width], shift((0, top, left))


def fit_crop(
    volume: torch.Tensor,
    size: Size,
    generator: torch.Generator | None = None,
    offsets: list[int] | None = None,
) -> Fitted:
    """
    Zero padding to at least `size`, then a crop of `size`: centered, drawn, or at given offsets.

    Args:
        volume: (D, H, W).
        size: (D, H, W) wanted.
        generator: draws the padding in front and the start of the crop, uniform over the whole free range.
        offsets: the six of them: padding in front along depth, height, width, then start of the crop.
    """
    pads = [max(wanted - length, 0) for wanted, length in zip(size, volume.shape)]
    free = [length + pad - wanted for wanted, length, pad in zip(size, volume.shape, pads)]
    if offsets is None:
        if generator is None:
            offsets = [room // 2 for room in (*pads, *free)]
        else:
            offsets = [int(torch.randint(room + 1, (1,), generator=generator)) for room in (*pads, *free)]
    front, start = offsets[:3], offsets[3:]
    padding = [x for pad, low in zip(pads[::-1], front[::-1]) for x in (low, pad - low)]
    volume = F.pad(volume, padding)
    volume = volume[tuple(slice(first, first + wanted) for first, wanted in zip(start, size))]
    return volume, shift([first - low for first, low in zip(start, front)])


def fit_stretch(volume: torch.Tensor, size: Size, generator: torch.Generator | None = None) -> Fitted:
    """Trilinear resampling to `size`, whatever the proportions."""
    return _trilinear(volume, size), scaling(volume.shape, size)


VOLUME_FITS: Mapping[str, Callable[[torch.Tensor, Size, torch.Generator | None], Fitted]] = {
    "slices": fit_slices,
    "crop": fit_crop,
    "stretch": fit_stretch,
}
"""How a standardized volume reaches the model's size, by the name in the settings."""


def _resample(volume: torch.Tensor, spacing: Sequence[float], target: Sequence[float]) -> Fitted:
    """A volume of one spacing at another, mm depth first, rounded to whole voxels."""
    depth, height, width = (max(int(length * old / new), 1) for length, old, new in zip(volume.shape, spacing, target))
    return fit_stretch(volume, (depth, height, width))


def _trilinear(volume: torch.Tensor, size: Size) -> torch.Tensor:
    """Along the depth and in the plane, the smaller result first: half the time of one step."""
    old_depth, *old_plane = volume.shape
    depth, *plane = size
    if depth < old_depth:
        volume = _resize_depth(volume, depth)
    if plane != old_plane:
        volume = F.interpolate(volume[:, None], size=tuple(plane), mode="bilinear", align_corners=False)[:, 0]
    return _resize_depth(volume, depth) if depth > old_depth else volume


def _resize_depth(volume: torch.Tensor, depth: int) -> torch.Tensor:
    """Linear along the first axis, outer faces in place."""
    old = len(volume)
    resized = volume.new_empty(depth, *volume.shape[1:])
    for index in range(depth):
        position = min(max((index + 0.5) * old / depth - 0.5, 0), old - 1)
        below = int(position)
        torch.lerp(volume[below], volume[min(below + 1, old - 1)], position - below, out=resized[index])
    return resized
