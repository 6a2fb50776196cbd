"""
Where a processed voxel came from: axis order, resampling, padding and cropping as index transforms.

Transforms are 4x4 matrices that map homogeneous voxel indices (centres at integers) of what comes out of a step to indices
of what went in, so that steps compose by matrix products.
"""

from collections.abc import Sequence

import numpy as np

_AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def axis_spacing(affine: np.ndarray) -> np.ndarray:
    """
    Voxel spacing in mm along the array's axes.

    >>> axis_spacing(np.diag([0.5, 0.5, 3.0, 1.0])).tolist()
    [0.5, 0.5, 3.0]
    """
    spacing: np.ndarray = np.linalg.norm(affine[:3, :3], axis=0)
    return spacing


def axis_codes(affine: np.ndarray) -> str:
    """
    Direction in which each axis of the array runs, e.g. "RAS": towards Right, Anterior, Superior.

    Args:
        affine: (4, 4), voxel indices -> mm in RAS+ scanner space (NIfTI).

    >>> axis_codes(np.diag([-1.0, -1.0, 2.0, 1.0]))
    'LPS'
    """
    direction = affine[:3, :3] / axis_spacing(affine)
    codes, free = [""] * 3, [0, 1, 2]
    for axis in np.argsort(-np.abs(direction).max(axis=0)):
        world = max(free, key=lambda row: abs(direction[row, axis]))
        free.remove(world)
        codes[axis] = ("RAS" if direction[world, axis] > 0 else "LPI")[world]
    return "".join(codes)


def reorient(array: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Flips and permutes the axes of a volume; voxels are not resampled, oblique angles stay.

    Args:
        array: three axes in any order.
        affine: of that array.
        orientation: directions of the axes wanted, e.g. "RPI".

    Returns:
        the volume with the axes in that order, and its index transform.
    """
    codes = axis_codes(affine)
    world = [_AXES[code][0] for code in codes]
    transform = np.zeros((4, 4))
    transform[3, 3] = 1
    order = []
    for new_axis, code in enumerate(orientation):
        wanted, sign = _AXES[code]
        old_axis = world.index(wanted)
        order.append(old_axis)
        if _AXES[codes[old_axis]][1] == sign:
            transform[old_axis, new_axis] = 1
        else:
            transform[old_axis, new_axis] = -1
            transform[old_axis, 3] = array.shape[old_axis] - 1
    array = array.transpose(order)
    flips = tuple(axis for axis, old in enumerate(order) if transform[old, axis] < 0)
    return np.flip(array, flips), transform


def permutation(order: tuple[int, int, int]) -> np.ndarray:
    """Index transform of `array.transpose(order)`."""
    transform = np.zeros((4, 4))
    transform[3, 3] = 1
    for new_axis, old_axis in enumerate(order):
        transform[old_axis, new_axis] = 1
    return transform


def scaling(old_shape: Sequence[int], new_shape: Sequence[int]) -> np.ndarray:
    """Index transform of a resize whose outer voxel faces stay in place."""
    factors = np.asarray(old_shape, float) / np.asarray(new_shape, float)
    transform = np.diag([*factors, 1.0])
    transform[:3, 3] = 0.5 * factors - 0.5
    return transform


def shift(offsets: Sequence[float]) -> np.ndarray:
    """Index transform of a crop that starts at `offsets` (negative where padding was added in front)."""
    transform = np.eye(4)
    transform[:3, 3] = offsets
    return transform
