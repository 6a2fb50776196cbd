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
        positions: (slices, 3), centre of each slice's first voxel in mm; each slice keeps its own place in the plane.
        rows_along: unit vector along which the column index grows; `columns_along`: along which the row index grows.
        pixel_spacing: mm between rows, and between columns.
        fill: value outside of the slices, which reach half a distance beyond the first and the last centre.
        max_bytes: most bytes of the result.

    Returns:
        the volume (D, H, W) in float32: D along the line of the slices, W along the rows, H at right angles to both; voxels as
        wide as before and as deep as `regular_distance`, or about 1 mm wide and at most 2.5 mm deep where the stack is tilted;
        and its (4, 4) index -> mm transform, in the frame of `positions`.

    Raises:
        ValueError: the result would take more than `max_bytes`.
    """
    normal = np.cross(rows_along, columns_along)
    line = positions[-1] - positions[0]
    depth_axis = line / np.linalg.norm(line)
    width_axis = rows_along - (rows_along @ depth_axis) * depth_axis
    width_axis /= np.linalg.norm(width_axis)
    height_axis = np.cross(depth_axis, width_axis)
    if height_axis @ columns_along < 0:
        height_axis = -height_axis
    axes = np.stack([depth_axis, height_axis, width_axis])

    num_slices, rows, columns = volume.shape
    heights = positions @ normal
    extent = [
        position + i * pixel_spacing[0] * columns_along + j * pixel_spacing[1] * rows_along
        for position in positions
        for i in (0, rows - 1)
        for j in (0, columns - 1)
    ]
    corners = np.stack(extent) @ axes.T
    low, high = corners.min(axis=0), corners.max(axis=0)
    steps = np.array([regular_distance(heights), *pixel_spacing])
    if np.linalg.norm(line - (line @ normal) * normal) > max(pixel_spacing):
        # A plane upright to a tilted stack cuts through many slices: it needs them close, and cannot show finer detail.
        steps = np.array([min(steps[0], TILTED_DEPTH), *(s * max(int(TILTED_PLANE / s), 1) for s in pixel_spacing)])
    shape = np.ceil((high - low) / steps - 1e-6).astype(int) + 1
    if 4 * float(np.prod(shape.astype(float))) > max_bytes:
        raise ValueError(f"upright it would have {' x '.join(map(str, shape))} voxels, more than memory allows")
    affine = np.eye(4)
    affine[:3, :3] = (axes * steps[:, None]).T
    affine[:3, 3] = axes.T @ low

    source = torch.from_numpy(np.asarray(volume, dtype=np.float32))[None, None]
    size = np.array([num_slices, rows, columns])
    reach = 0.5 * np.array([heights[1] - heights[0], heights[-1] - heights[-2]])

    def sample(points: np.ndarray, indices: np.ndarray):
        """Bilinear values of each point's own slice, and where the point lies in its plane."""
        offset = points - positions[indices]
        places = np.stack(
            [indices, offset @ columns_along / pixel_spacing[0], offset @ rows_along / pixel_spacing[1]], axis=-1
        )
        inside = ((places >= -0.5) & (places <= size - 0.5)).all(axis=-1)
        grid = torch.from_numpy(places[..., ::-1] / (size[::-1] - 1) * 2 - 1).float()
        values = F.grid_sample(source, grid[None, None], mode="bilinear", padding_mode="border", align_corners=True)
        return values[0, 0, 0].numpy(), inside

    plane = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij"), axis=-1) @ affine[:3, 1:3].T
    resampled = np.empty(shape, dtype=np.float32)
    for index in range(shape[0]):  # one plane at a time: coordinates take far more memory than voxels
        points = plane + index * affine[:3, 0] + affine[:3, 3]
        height = points @ normal
        below = np.clip(np.searchsorted(heights, height, side="right") - 1, 0, num_slices - 2)
        share = np.clip((height - heights[below]) / (heights[below + 1] - heights[below]), 0, 1).astype(np.float32)
        lower, inside_lower = sample(points, below)
        upper, inside_upper = sample(points, below + 1)
        values = lower + share * (upper - lower)
        inside = (height >= heights[0] - reach[0]) & (height <= heights[-1] + reach[1]) & inside_lower & inside_upper
        resampled[index] = np.where(inside, values, fill)
    return resampled, affine


def regular_distance(along: np.ndarray) -> float:
    """The smallest distance in mm that at least a tenth of the gaps have, to a tenth of a millimetre."""
    gaps = np.sort(np.diff(along))
    return float(gaps[min(int(np.ceil(len(gaps) * 0.1)), len(gaps) - 1)])


def is_even(along: np.ndarray) -> bool:
    """Whether distances between slices agree within 2 % or 0.02 mm."""
    gaps = np.diff(along)
    return bool(np.abs(gaps - np.median(gaps)).max() <= max(0.02 * np.median(gaps), 0.02))
