"""A volume as it stands on the screen: its plane, sides and slice positions, and where the body is."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..processing.geometry_itemized_clip import axis_spacing, reorient

BODY_LEVEL = 0.15
"""Between air (0) and bright tissue (1), what is taken for the body."""
THIN = 15.0
"""mm around a place, half of which has to be tissue for it to be body: noise, head rest and table top are not."""

_PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}
_DIRECTIONS = {2: "SI", 1: "AP", 0: "RL"}
_ROWS_COLUMNS = {2: (1, 0), 1: (2, 0), 0: (2, 1)}
_SIDES = {2: "ALPR", 1: "SLIR", 0: "SPIA"}


@dataclass(frozen=True)
class View:
    """
    Slices across the axis of a volume with the largest spacing, the usual way round.

    Args:
        plane: `"axial"`, `"coronal"`, `"sagittal"`, or `""` for arrays without geometry, which are shown as they are.
        sides: letters at the top, right, bottom and left of a slice; patient's left is on the right of an axial one.
        positions: mm of every slice in RAS+ scanner space, along the axis that the slices follow.
        pixel: mm of a pixel, rows and columns; 1 without geometry.
        affine: of the volume.
        through: axis of the volume in LPS orientation that the slices follow.
    """

    plane: str
    sides: str
    positions: tuple[float, ...]
    pixel: tuple[float, float]
    affine: np.ndarray | None
    through: int = 0

    @classmethod
    def of(cls, shape: tuple[int, ...], affine: np.ndarray | None) -> "View":
        """
        Args:
            shape: of the volume (D, H, W).
            affine: (4, 4), its voxel indices -> mm in RAS+ scanner space.
        """
        if affine is None:
            return cls("", "", (), (1.0, 1.0), None)
        _, transform = reorient(np.broadcast_to(False, shape), affine, "LPS")
        spacing = np.abs(transform[:3, :3].T) @ axis_spacing(affine)
        through = max((2, 1, 0), key=lambda axis: round(float(spacing[axis]), 3))
        rows, columns = _ROWS_COLUMNS[through]
        size = np.abs(transform[:3, :3].T) @ np.asarray(shape)
        places = np.tile([*((size - 1) / 2), 1.0], (int(size[through]), 1))
        places[:, through] = np.arange(int(size[through]))
        positions = places @ (affine @ transform).T[:, through]
        pixel = float(spacing[rows]), float(spacing[columns])
        return cls(_PLANES[through], _SIDES[through], tuple(positions.tolist()), pixel, affine, through)

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width."""
        return self.pixel[0] / self.pixel[1]

    def slices(self, volume: np.ndarray) -> np.ndarray:
        """(slices, rows, columns) of a volume of that shape."""
        if self.affine is None:
            return volume
        volume, _ = reorient(volume, self.affine, "LPS")
        rows, columns = _ROWS_COLUMNS[self.through]
        slices = volume.transpose(self.through, rows, columns)
        return slices[:, ::-1] if rows == 2 else slices

    def name_slice(self, number: int) -> str:
        """`S 12.5 mm`, or `slice 3` without geometry."""
        if not self.positions:
            return f"slice {number}"
        position = self.positions[number]
        return f"{_DIRECTIONS[self.through][position < 0]} {abs(position):.1f} mm"


def find_body(slices: np.ndarray, pixel: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """
    Where the body is, roughly: what is not air, with all that it surrounds (lungs, ventricles). For pictures only.

    Args:
        slices: (slices, rows, columns), any intensities in which air is dark.
        pixel: mm of rows and columns.

    Returns:
        bool of the same shape; all True where no body can be told from air.
    """
    values, level = _above_air(np.asarray(slices, dtype=np.float32))
    body = _fill((_average(torch.from_numpy(values > level), pixel) > 0.5).numpy())
    return body if body.mean() > 0.01 else np.ones(slices.shape, dtype=bool)


def _average(slices: torch.Tensor, pixel: tuple[float, float]) -> torch.Tensor:
    """Of squares of about `THIN` mm around each pixel."""
    rows, columns = (2 * min(int(THIN / step / 2), 15) + 1 for step in pixel)
    averaged = F.avg_pool2d(slices.float()[:, None], (rows, 1), 1, (rows // 2, 0), count_include_pad=False)
    return F.avg_pool2d(averaged, (1, columns), 1, (0, columns // 2), count_include_pad=False)[:, 0]


def _above_air(slices: np.ndarray) -> tuple[np.ndarray, float]:
    """Values that are high in tissue, and the level above which they are taken for it."""
    sample = slices[:, ::2, ::2]
    low, high = np.percentile(sample, [1, 99])
    values, counts = np.unique(sample, return_counts=True)
    common = values[counts.argmax()]
    # Background cut out of normalized intensities lies between dark and bright tissue.
    if counts.max() > 0.1 * sample.size and common > low + 0.02 * (high - low):
        return (slices != common).astype(np.float32), 0.5
    return np.ascontiguousarray(slices), float(low + BODY_LEVEL * (high - low))


def _fill(inside: np.ndarray) -> np.ndarray:
    """What has something on all four sides of it in its slice."""
    filled = np.ones_like(inside)
    for axis in (1, 2):
        filled &= np.logical_or.accumulate(inside, axis=axis)
        filled &= np.flip(np.logical_or.accumulate(np.flip(inside, axis), axis=axis), axis)
    return filled
