"""
Voxel grids in millimetres and solid shapes that can be drawn on them with soft edges.

World axes are RAS+: x grows to the patient's right, y to the front, z to the top. Point arrays have shape ``(3, ...)``
with the rows in the order x, y, z; image arrays have shape ``(D, H, W)``, so ``array[k, j, i]`` lies at z(k), y(j), x(i).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

FIELD_OF_VIEW = (128.0, 192.0, 192.0)
"""Default extent of the imaged box in mm, depth first."""


@dataclass(frozen=True)
class Grid:
    """
    A voxel grid centred on the world's origin.

    Args:
        shape: number of voxels, ``(D, H, W)``.
        spacing: voxel size in mm, depth first.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @classmethod
    def covering(cls, shape: tuple[int, ...], spacing: tuple[float, ...] | None = None) -> Grid:
        """Make a grid of ``shape``; without ``spacing`` (mm, depth first) it covers `FIELD_OF_VIEW`."""
        shape = tuple(int(n) for n in shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape must be three positive numbers (D, H, W), got {shape}")
        if spacing is None:
            spacing = tuple(extent / n for extent, n in zip(FIELD_OF_VIEW, shape))
        spacing = tuple(float(step) for step in spacing)
        if len(spacing) != 3 or min(spacing) <= 0:
            raise ValueError(f"spacing must be three positive numbers (mm, depth first), got {spacing}")
        return cls(shape, spacing)

    @property
    def voxel(self) -> np.ndarray:
        """Voxel size in mm in the order x, y, z."""
        return np.array(self.spacing[::-1], dtype=np.float32)

    @property
    def affine(self) -> np.ndarray:
        """The 4x4 map from NIfTI voxel indices (i, j, k) to RAS+ mm, for the array transposed to (x, y, z)."""
        affine = np.diag([*self.spacing[::-1], 1.0])
        affine[:3, 3] = [-step * (n - 1) / 2 for n, step in zip(self.shape[::-1], self.spacing[::-1])]
        return affine

    def points(self) -> np.ndarray:
        """World positions of the voxel centres in mm, ``(3, D, H, W)`` float32 (read-only, cached)."""
        return _grid_points(self)


@lru_cache(maxsize=4)
def _grid_points(grid: Grid) -> np.ndarray:
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n, step in zip(grid.shape, grid.spacing)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    points = np.stack([x, y, z]).astype(np.float32)
    points.setflags(write=False)
    return points


class Shape(Protocol):
    """A solid in head coordinates (mm)."""

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Tell which of ``points`` (3, ...) the solid contains; bool, ``(...)``."""

    def coverage(self, points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
        """
        Estimate the fraction of each voxel that the solid fills.

        Args:
            points: voxel centres in mm, ``(3, ...)``.
            voxel: voxel size in mm in the order x, y, z.

        Returns:
            float32 in [0, 1], ``(...)``.
        """


@dataclass(frozen=True)
class Ellipsoid:
    """
    An ellipsoid that may be turned in-plane, bent and lobulated.

    Args:
        centre: mm, in the order x, y, z.
        semi_axes: mm, in the order x, y, z.
        angle: in-plane rotation in radians.
        bend: sideways bend in 1/mm: the centre line moves by ``bend * y**2`` along x.
        ripple: relative amplitude of the surface's waves.
        ripple_frequency: waves per semi-axis, in radians.
        ripple_phase: phase of the waves in radians.
    """

    centre: tuple[float, float, float]
    semi_axes: tuple[float, float, float]
    angle: float = 0.0
    bend: float = 0.0
    ripple: float = 0.0
    ripple_frequency: float = 3.0
    ripple_phase: float = 0.0

    def _local(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y, z = (points[axis] - np.float32(self.centre[axis]) for axis in range(3))
        if self.angle:
            cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
            x, y = cos * x + sin * y, cos * y - sin * x
        if self.bend:
            x = x - np.float32(self.bend) * y * y
        a, b, c = (np.float32(1.0 / axis) for axis in self.semi_axes)
        return x * a, y * b, z * c

    def _radius(self, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        radius = np.sqrt(u * u + v * v + w * w)
        if self.ripple:
            frequency, phase = np.float32(self.ripple_frequency), np.float32(self.ripple_phase)
            waves = np.sin(frequency * (u + w) + phase) * np.cos(frequency * (v - w) + phase)
            radius *= 1 + np.float32(self.ripple) * waves
        return radius

    def inside(self, points: np.ndarray) -> np.ndarray:
        """See `Shape.inside`."""
        return self._radius(*self._local(points)) < 1

    def coverage(self, points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
        """See `Shape.coverage`."""
        u, v, w = self._local(points)
        radius = self._radius(u, v, w)
        # The radius changes by about `edge / radius` across a voxel, which makes the edge one voxel wide in every
        # direction, thick slices included.
        du, dv, dw = (np.float32(step / axis) for step, axis in zip(voxel, self.semi_axes))
        edge = np.sqrt((u * du) ** 2 + (v * dv) ** 2 + (w * dw) ** 2) + np.float32(1e-6)
        return np.clip((1 - radius) * radius / edge + np.float32(0.5) * (radius < 1e-3) + np.float32(0.5), 0, 1)


@dataclass(frozen=True)
class Difference:
    """What `whole` contains and `removed` does not."""

    whole: Shape
    removed: Shape

    def inside(self, points: np.ndarray) -> np.ndarray:
        """See `Shape.inside`."""
        return self.whole.inside(points) & ~self.removed.inside(points)

    def coverage(self, points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
        """See `Shape.coverage`."""
        return self.whole.coverage(points, voxel) * (1 - self.removed.coverage(points, voxel))


@dataclass(frozen=True)
class Intersection:
    """What both `first` and `second` contain."""

    first: Shape
    second: Shape

    def inside(self, points: np.ndarray) -> np.ndarray:
        """See `Shape.inside`."""
        return self.first.inside(points) & self.second.inside(points)

    def coverage(self, points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
        """See `Shape.coverage`."""
        return self.first.coverage(points, voxel) * self.second.coverage(points, voxel)


@dataclass(frozen=True)
class Union:
    """What any of `parts` contains."""

    parts: tuple[Shape, ...]

    def inside(self, points: np.ndarray) -> np.ndarray:
        """See `Shape.inside`."""
        return np.logical_or.reduce([part.inside(points) for part in self.parts])

    def coverage(self, points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
        """See `Shape.coverage`."""
        return np.maximum.reduce([part.coverage(points, voxel) for part in self.parts])
