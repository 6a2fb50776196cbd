"""Slices of one volume stacked on an even, upright grid."""

from collections import Counter
from typing import Any

import numpy as np

from ...study import Scan
from .files import UnusableFileError
from .pixels import AIR, MAX_SERIES_BYTES, read_plane
from .resample import is_even, resample_upright
from .slices import Slice

MIN_SLICES = 3
MAX_SHIFT = 10.0
"""mm that a slice may lie beside the line of the others."""


def build_scan(slices: list[Slice], skipped: Counter[tuple[str, str]], name: str) -> Scan:
    """
    The scan of a volume's slices, in RAS+ mm; CT in HU.

    Args:
        slices: of one volume, in any order.
        skipped: (name, reason) -> how often; slices that cannot be read are counted there.
        name: what the scan is called in `skipped`.

    Raises:
        UnusableFileError: too few slices can be read, or they do not make a volume.
    """
    header = slices[0].file.header
    if len(slices) < MIN_SLICES:
        raise UnusableFileError(
            f"it has only {len(slices)} slices of this orientation: a localizer, or most of the series is missing"
        )
    rows, columns = int(header.Rows), int(header.Columns)
    if 4 * rows * columns * len(slices) > MAX_SERIES_BYTES:
        raise UnusableFileError(
            f"its {len(slices)} slices of {rows} x {columns} take more than {MAX_SERIES_BYTES >> 30} GiB"
        )
    modality = str(header.Modality)
    readable, planes = _read_planes(sorted(slices, key=lambda one: one.height), modality, skipped, name)
    notes: dict[str, str] = {}
    history = [f"DICOM series of {len(slices)} slices, {rows} x {columns} pixels, sorted along the slice normal"]
    if padded := sum(one.file.excess > 0 for one in readable):
        history.append(f"bytes after the pixels of {padded} slices dropped")
    if len(readable) < len(slices):
        notes["lost-slices"] = f"{len(slices) - len(readable)} of its {len(slices)} slices are damaged and left out"
    _note_rescale(readable, modality, history, notes)
    volume, affine = place_slices(np.stack(planes), readable, modality, history, notes)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    instances = tuple((str(one.file.header.get("SOPInstanceUID") or ""), one.frame) for one in readable)
    affine = lps_to_ras @ affine
    return Scan(volume, affine, modality=modality, history=history, notes=notes, instances=instances)


def _read_planes(
    slices: list[Slice], modality: str, skipped: Counter[tuple[str, str]], name: str
) -> tuple[list[Slice], list[np.ndarray]]:
    """Slices that can be read, and their pixels."""
    readable, planes, missing_decoder = [], [], None
    opened: dict[int, Any] = {}
    for one in slices:
        try:
            plane = read_plane(one, modality, opened)
        except UnusableFileError as error:
            skipped[name, str(error)] += 1
        except ImportError as error:
            missing_decoder = str(error)
        else:
            readable.append(one)
            planes.append(plane)
    if missing_decoder is not None:
        raise UnusableFileError(missing_decoder)
    if len(readable) < MIN_SLICES:
        raise UnusableFileError(f"only {len(readable)} of its {len(slices)} slices can be read")
    return readable, planes


def _note_rescale(slices: list[Slice], modality: str, history: list[str], notes: dict[str, str]) -> None:
    """Says how values became HU, or that nothing says so; refuses slices of which only some have a slope and intercept."""
    rescales = {one.rescale for one in slices if one.rescale is not None}
    unscaled = sum(one.rescale is None for one in slices)
    if rescales - {(1.0, 0.0)}:
        if unscaled:
            raise UnusableFileError(
                f"{unscaled} of its {len(slices)} slices have no rescale slope and intercept, the others have"
            )
        slope, intercept = min(rescales)
        shown = f"{slope:g} and {intercept:g}" if len(rescales) == 1 else "each slice by its own"
        history.append(f"rescale slope and intercept applied: {shown}")
    elif modality == "CT" and unscaled:
        notes["no-rescale"] = "its header has no rescale slope and intercept"


def place_slices(
    volume: np.ndarray, slices: list[Slice], modality: str, history: list[str], notes: dict[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """The stacked slices on an even, upright grid, and its index -> LPS mm transform."""
    positions = np.stack([one.position for one in slices])
    rows_along, columns_along = slices[0].orientation[:3], slices[0].orientation[3:]
    spacing = slices[0].pixel_spacing
    line = positions[-1] - positions[0]
    normal = slices[0].normal / np.linalg.norm(slices[0].normal)
    tilt = float(np.degrees(np.arccos(np.clip(line @ normal / np.linalg.norm(line), -1, 1))))
    heights = positions @ normal
    gaps = np.diff(heights)
    lateral = positions - positions[0]
    lateral -= (lateral @ normal)[:, None] * normal
    along_line = np.outer((heights - heights[0]) / (heights[-1] - heights[0]), lateral[-1])
    tilted = float(np.linalg.norm(lateral[-1])) > 0.25 * min(spacing)
    shifted = float(np.linalg.norm(lateral - along_line, axis=1).max())
    straight = shifted <= 0.25 * min(spacing)
    even = is_even(heights)
    if not tilted and straight and even:
        affine = np.eye(4)
        affine[:3, 0] = line / (len(slices) - 1)
        affine[:3, 1] = columns_along * spacing[0]
        affine[:3, 2] = rows_along * spacing[1]
        affine[:3, 3] = positions[0]
        return volume, affine
    if not even:
        usual = float(np.median(gaps))
        shown = f"slice distances from {gaps.min():.2f} to {gaps.max():.2f} mm"
        notes["uneven"] = f"{shown} (usually {usual:.2f}), evened out"
        if gaps.max() > 20 or gaps.max() > 5.5 * usual:
            raise UnusableFileError(f"{shown}: too many slices are missing to fill in between")
    if tilted:
        if tilt > 45:
            raise UnusableFileError(
                f"its slices are stacked at {tilt:.0f} degrees to their normal: the positions are wrong"
            )
        notes["tilted"] = f"gantry tilted by {tilt:.1f} degrees, resampled upright"
    if not straight:
        if shifted > MAX_SHIFT:
            raise UnusableFileError(
                f"its slices do not lie behind each other: one is {shifted:.0f} mm beside the others"
            )
        notes["shifted"] = f"slices up to {shifted:.1f} mm beside each other, put in their places"
    fill = AIR if modality == "CT" else 0
    try:
        volume, affine = resample_upright(volume, positions, rows_along, columns_along, spacing, fill, MAX_SERIES_BYTES)
    except ValueError as error:
        raise UnusableFileError(str(error)) from None
    size = " x ".join(map(str, volume.shape))
    history.append(
        f"resampled to an even upright grid of {size} voxels: "
        + "; ".join(notes[key] for key in ("uneven", "tilted", "shifted") if key in notes)
    )
    return volume, affine
