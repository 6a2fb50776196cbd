"""Slices at uneven distances or under a tilted gantry -> an even, upright grid."""

import numpy as np
import torch
from torch.nn import functional as F

TILTED_DEPTH, TILTED_PLANE = 2.5, 1.0
"""mm between voxels of a tilted stack made upright: at most, and at least."""


def resample_upright(
    volume: np.ndarray,
    positions: np.ndarray,
    rows_along: np.ndarray,
    columns_along: np.ndarray,
    pixel_spacing: tuple[float, float],
    fill: float,
    max_bytes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Linear interpolation between the two slices on either side of a point, along their common normal.

    Args:
        volume: (slices, rows, columns), ordered along the normal.
        positions: (slices, 3), center of each slice's first voxel in mm; each slice keeps its own place in the plane.
        rows_along: unit vector along which the column index grows; `columns_along`: along which the row index grows.
        pixel_spacing: mm between rows, and between columns.
        fill: value outside of the slices, which reach half a distance beyond the first and the last center.
        max_bytes: limit of the bytes of the result.

    Returns:
        the volume (D, H, W) in float32: D along the line of the slices, W along the rows, H at right angles to both; voxels as
        wide as before and as deep as `regular_distance`, or about 1 mm wide and at most 2.5 mm deep where the stack is tilted;
        and its (4, 4) index -> mm transform, in the frame of `positions`.

    Raises:
        ValueError: the result would take more than `max_bytes`.
    """
    stack = _Stack(volume, positions, rows_along, columns_along, pixel_spacing)
    shape, affine = _upright_grid(stack)
    if 4 * float(np.prod(shape.astype(float))) > max_bytes:
        raise ValueError(f"upright it would have {' x '.join(map(str, shape))} voxels, more than memory allows")
    plane = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij"), axis=-1) @ affine[:3, 1:3].T
    resampled = np.empty(shape, dtype=np.float32)
    for index in range(shape[0]):  # one plane at a time: coordinates take far more memory than voxels
        values, inside = stack.interpolate(plane + index * affine[:3, 0] + affine[:3, 3])
        resampled[index] = np.where(inside, values, fill)
    return resampled, affine


class _Stack:
    """Slices where they lie; arguments as of `resample_upright`."""

    def __init__(
        self,
        volume: np.ndarray,
        positions: np.ndarray,
        rows_along: np.ndarray,
        columns_along: np.ndarray,
        pixel_spacing: tuple[float, float],
    ):
        self.positions, self.pixel_spacing = positions, pixel_spacing
        self.rows_along, self.columns_along = rows_along, columns_along
        self.normal = np.cross(rows_along, columns_along)
        self.heights = positions @ self.normal
        self.size = np.array(volume.shape)
        self.reach = 0.5 * np.array([self.heights[1] - self.heights[0], self.heights[-1] - self.heights[-2]])
        self.voxels = torch.from_numpy(np.asarray(volume, dtype=np.float32))[None, None]

    def corners(self) -> np.ndarray:
        """(4 * slices, 3): centers of the first and last voxels of all slices in mm."""
        _, rows, columns = (int(count) for count in self.size)
        along = [
            position + i * self.pixel_spacing[0] * self.columns_along + j * self.pixel_spacing[1] * self.rows_along
            for position in self.positions
            for i in (0, rows - 1)
            for j in (0, columns - 1)
        ]
        return np.stack(along)

    def interpolate(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values at points (..., 3) in mm between the two slices on either side, and whether they lie inside of the stack."""
        heights = self.heights
        height = points @ self.normal
        below = np.clip(np.searchsorted(heights, height, side="right") - 1, 0, len(heights) - 2)
        share = np.clip((height - heights[below]) / (heights[below + 1] - heights[below]), 0, 1).astype(np.float32)
        lower, inside_lower = self._sample(points, below)
        upper, inside_upper = self._sample(points, below + 1)
        inside = (height >= heights[0] - self.reach[0]) & (height <= heights[-1] + self.reach[1])
        return lower + share * (upper - lower), np.asarray(inside & inside_lower & inside_upper)

    def _sample(self, points: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bilinear values of each point's own slice, and whether the point lies in its plane."""
        offset = points - self.positions[indices]
        rows = offset @ self.columns_along / self.pixel_spacing[0]
        places = np.stack([indices, rows, offset @ self.rows_along / self.pixel_spacing[1]], axis=-1)
        inside = ((places >= -0.5) & (places <= self.size - 0.5)).all(axis=-1)
        grid = torch.from_numpy(places[..., ::-1] / (self.size[::-1] - 1) * 2 - 1).float()
        values = F.grid_sample(
            self.voxels, grid[None, None], mode="bilinear", padding_mode="border", align_corners=True
        )
        return values[0, 0, 0].numpy(), np.asarray(inside)


def _upright_grid(stack: _Stack) -> tuple[np.ndarray, np.ndarray]:
    """Shape and (4, 4) index -> mm transform of the grid along the line of the slices that holds all of them."""
    line = stack.positions[-1] - stack.positions[0]
    depth_axis = line / np.linalg.norm(line)
    width_axis = stack.rows_along - (stack.rows_along @ depth_axis) * depth_axis
    width_axis /= np.linalg.norm(width_axis)
    height_axis = np.cross(depth_axis, width_axis)
    if height_axis @ stack.columns_along < 0:
        height_axis = -height_axis
    axes = np.stack([depth_axis, height_axis, width_axis])
    corners = stack.corners() @ axes.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    spacing = stack.pixel_spacing
    steps = np.array([regular_distance(stack.heights), *spacing])
    if np.linalg.norm(line - (line @ stack.normal) * stack.normal) > max(spacing):
        # A plane upright to a tilted stack cuts through many slices: it needs them close, and cannot show finer detail.
        steps = np.array([min(steps[0], TILTED_DEPTH), *(step * max(int(TILTED_PLANE / step), 1) for step in spacing)])
    affine = np.eye(4)
    affine[:3, :3] = (axes * steps[:, None]).T
    affine[:3, 3] = axes.T @ low
    return np.ceil((high - low) / steps - 1e-6).astype(int) + 1, affine


def regular_distance(along: np.ndarray) -> float:
    """The smallest distance in mm that at least a tenth of the gaps have, to a tenth of a millimetre."""
    gaps = np.sort(np.diff(along))
    return float(gaps[min(int(np.ceil(len(gaps) * 0.1)), len(gaps) - 1)])


def is_even(along: np.ndarray) -> bool:
    """Whether distances between slices agree within 2 % or 0.02 mm."""
    gaps = np.diff(along)
    return bool(np.abs(gaps - np.median(gaps)).max() <= max(0.02 * np.median(gaps), 0.02))
