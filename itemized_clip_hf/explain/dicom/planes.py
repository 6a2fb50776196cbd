"""Voxels of a heat map as frames in patient coordinates."""

from typing import Any

import numpy as np
from highdicom import PixelMeasuresSequence, PlaneOrientationSequence, PlanePositionSequence

from .author import LPS

MOST_SKEW = 0.05
"""mm that rows and columns may be off a right angle at the far corner: frames of DICOM cannot be skew."""


def describe_planes(affine: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """
    Orientation, position and spacing of frames, as the constructors of image objects take them.

    Each frame has a position of its own: slices need not lie behind each other along their normal.

    Args:
        affine: (4, 4), indices (d, h, w) -> mm in RAS+ scanner space.
        shape: (D, H, W).

    Raises:
        ValueError: rows and columns are not at right angles.
    """
    lps = LPS @ np.asarray(affine, float)
    slices, down, along = lps[:3, :3].T  # rows run along the last axis, columns down the one before
    spacing = [float(np.linalg.norm(down)), float(np.linalg.norm(along))]
    down, along = down / spacing[0], along / spacing[1]
    upright = down - (down @ along) * along
    upright /= np.linalg.norm(upright)
    skew = float(np.linalg.norm(upright - down)) * spacing[0] * shape[1]
    if skew > MOST_SKEW:
        raise ValueError(
            f"the rows and columns of a scan are not at right angles, off by {skew:.2f} mm at its corner: DICOM frames cannot "
            "hold that. Its heat maps are written as NIfTI."
        )
    positions = [lps[:3, 3] + number * slices for number in range(shape[0])]
    thickness = float(abs(slices @ np.cross(along, upright)))
    return {
        "pixel_measures": PixelMeasuresSequence(spacing, slice_thickness=thickness),
        "plane_orientation": PlaneOrientationSequence("PATIENT", [*along, *upright]),
        "plane_positions": [PlanePositionSequence("PATIENT", position) for position in positions],
    }
