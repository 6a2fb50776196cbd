"""Voxel values -> [0, 1]: windows of HU, percentiles, factors, and the normalization of channels."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .scans_itemized_clip import is_scan

logger = logging.get_logger(__name__)

Limits = Sequence[float]
"""Lowest and highest value of a window."""
Rescale = Callable[[np.ndarray], torch.Tensor]

NO_WINDOWS: Mapping[str, Limits | None] = {"": None}
"""Nothing is left to be windowed after the resampling."""

COUNTED_VALUES = 1 << 20
"""Integer volumes of fewer different values have their percentiles by counting."""


def plan_intensities(
    volume: np.ndarray, label: str, scan: Any, settings: Mapping[str, Any]
) -> tuple[dict[str, Rescale], Mapping[str, Limits | None]]:
    """
    How the voxels of a volume become [0, 1].

    Args:
        volume: (D, H, W).
        label: what messages call it.
        scan: what the volume was taken from; an 8-bit array shows a window already, an 8-bit file does not.
        settings: of the image processor.

    Returns:
        window name -> function that brings voxels to [0, 1], or leaves them in HU where windows come after the resampling;
        and those windows, name -> limits.

    Raises:
        ValueError: a file of 8-bit values where HU are expected.
    """
    windows = dict(settings["windows"] or {})
    shows_window = volume.dtype == np.uint8 and (not is_scan(scan) or getattr(scan, "prepared", False))
    multiply = partial(_multiply, factor=settings["rescale_factor"])
    if not settings["do_rescale"]:
        return {"": to_float}, NO_WINDOWS
    if shows_window:
        return {"": multiply}, NO_WINDOWS
    if windows and volume.dtype == np.uint8:
        raise ValueError(
            f"{label} holds 8-bit values, which cannot be Hounsfield units. If it shows a window already, pass it as an array; "
            "else convert the original series again."
        )
    if windows or settings["percentiles"] is None:
        taken = "taken for HU" if windows else "multiplied by rescale_factor as if they were 0 to 255"
        warn_of_unit_interval(volume, label, taken)
    if windows and settings["fit"] != "slices":
        return {"": to_float}, windows
    if windows:
        return {name: partial(apply_window, limits=limits) for name, limits in windows.items()}, NO_WINDOWS
    if settings["percentiles"] is not None:
        # In the order of the memory: the depth-first view may run backwards.
        low, high = percentiles(np.asarray(scan.array) if is_scan(scan) else volume, settings["percentiles"])
        if high <= low:
            low, high = float(volume.min()), float(volume.max())
        return {"": partial(apply_window, limits=(low, high), epsilon=1e-8)}, NO_WINDOWS
    return {"": multiply}, NO_WINDOWS


def warn_of_unit_interval(values: np.ndarray | torch.Tensor, label: str, taken: str) -> None:
    """Warns of values in [0, 1], which have been scaled before and are about to be scaled again."""
    if values.min() >= 0 and 0 < values.max() <= 1:
        logger.warning(f"{label} holds values in [0, 1], which are {taken}; do_rescale=False leaves them as they are.")


def to_float(voxels: np.ndarray) -> torch.Tensor:
    """float32 copy."""
    return torch.from_numpy(np.array(voxels, dtype=np.float32, order="C"))


def _multiply(voxels: np.ndarray, factor: float) -> torch.Tensor:
    return to_float(voxels).mul_(factor)


def apply_window(voxels: np.ndarray | torch.Tensor, limits: Limits, epsilon: float = 0.0) -> torch.Tensor:
    """Voxels cut to the limits and brought to [0, 1], in a copy."""
    low, high = limits
    values = voxels.clone() if isinstance(voxels, torch.Tensor) else to_float(voxels)
    return values.clamp_(low, high).sub_(low).div_(high - low + epsilon)


def normalize_channels(
    pixel_values: torch.Tensor, mean: float | Sequence[float], std: float | Sequence[float]
) -> torch.Tensor:
    """
    (x - mean) / std with the constants of each channel.

    Args:
        pixel_values: (C, ...).
        mean, std: one value, or one per channel.

    Raises:
        ValueError: another number of values.
    """

    def per_channel(constants: float | Sequence[float]) -> torch.Tensor:
        values = torch.as_tensor(constants, dtype=torch.float32).flatten()
        if len(values) not in (1, len(pixel_values)):
            raise ValueError(
                f"image_mean or image_std holds {len(values)} values for {len(pixel_values)} channels: pass one value, or one "
                "per channel."
            )
        return values.view(-1, *[1] * (pixel_values.ndim - 1))

    return (pixel_values - per_channel(mean)) / per_channel(std)


def percentiles(volume: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Percentiles (shares from 0 to 100) with linear interpolation, by counting where voxels are integers of few values."""
    if volume.dtype.kind in "iu":
        lowest, highest = int(volume.min()), int(volume.max())
        if highest - lowest < COUNTED_VALUES:
            counts = np.bincount(np.subtract(volume.ravel(order="K"), lowest, dtype=np.int64))
            cumulative = np.cumsum(counts)
            return [_percentile_from_counts(lowest, cumulative, share) for share in shares]
    return [_percentile_from_tail(volume.reshape(-1), share) for share in shares]


def _percentile_from_counts(lowest: int, cumulative: np.ndarray, share: float) -> float:
    """A percentile of whole numbers, of which `cumulative` are at most `lowest`, `lowest + 1`, ..."""
    size = int(cumulative[-1])
    position = share / 100 * (size - 1)
    ranks = [int(position), min(int(position) + 1, size - 1)]
    left, right = np.searchsorted(cumulative, ranks, side="right").tolist()
    return float(lowest + left + (position - int(position)) * (right - left))


def _percentile_from_tail(values: np.ndarray, share: float) -> float:
    """A percentile near either end by sorting that end only, which a sample bounds."""
    position = share / 100 * (values.size - 1)
    rank = int(position)
    low_end = share < 50
    sample = values[:: max(values.size // 20_000, 1)]
    guess = np.percentile(sample, share, method="nearest")
    if (sample == guess).mean() > 0.01:  # background of one value
        below = int((values < guess).sum())
        if below <= rank and rank + 1 < below + int((values == guess).sum()):
            return float(guess)
    bound = np.percentile(sample, min(2 * share + 0.5, 100) if low_end else max(2 * share - 100.5, 0))
    tail = values[values <= bound] if low_end else values[values >= bound]
    first = rank if low_end else rank - (values.size - tail.size)
    if not 0 <= first < tail.size - 1:
        return float(np.percentile(values, share))
    left, right = np.partition(tail, [first, first + 1])[first : first + 2].astype(float)
    return float(left + (position - rank) * (right - left))
