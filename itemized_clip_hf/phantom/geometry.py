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
        tilt: radians by which the stack of slices is turned about x and then about y.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    tilt: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def covering(
        cls, shape: tuple[int, ...], spacing: tuple[float, ...] | None = None, tilt: tuple[float, float] = (0.0, 0.0)
    ) -> Grid:
        """Make a grid of ``shape``; without ``spacing`` (mm, depth first) it covers `FIELD_OF_VIEW`."""
        shape = tuple(int(n) for n in shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape must be three positive numbers (D, H, W), got {shape}")
        if spacing is None:
            spacing = tuple(extent / n for extent, n in zip(FIELD_OF_VIEW, shape))
        spacing = tuple(float(step) for step in spacing)
        if len(spacing) != 3 or min(spacing) <= 0:
            raise ValueError(f"spacing must be three positive numbers (mm, depth first), got {spacing}")
        return cls(shape, spacing, tilt)

    @property
    def rotation(self) -> np.ndarray:
        """Direction of the grid's axes x, y, z in the world, one a column, ``(3, 3)``."""
        (cos_x, cos_y), (sin_x, sin_y) = np.cos(self.tilt), np.sin(self.tilt)
        about_x = np.array([[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]])
        about_y = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
        return about_y @ about_x

    @property
    def affine(self) -> np.ndarray:
        """The 4x4 map from NIfTI voxel indices (i, j, k) to RAS+ mm, for the array transposed to (x, y, z)."""
        affine = np.eye(4)
        affine[:3, :3] = self.rotation * self.spacing[::-1]
        affine[:3, 3] = -affine[:3, :3] @ (np.array(self.shape[::-1]) - 1) / 2
        return affine

    def upright_points(self) -> np.ndarray:
        """Positions of the voxel centres along the grid's own axes, mm, ``(3, D, H, W)`` float32 (read-only, cached)."""
        return _upright_points(self.shape, self.spacing)


@lru_cache(maxsize=4)
def _upright_points(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n, step in zip(shape, spacing)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    points = np.stack([x, y, z]).astype(np.float32)
    points.setflags(write=False)
    return points


Box = tuple[slice, slice, slice]
"""Voxels of a grid that hold a shape, depth first."""
Bounds = tuple[np.ndarray, np.ndarray]
"""Lowest and highest x, y, z of a shape in head coordinates, mm."""


class HeadGrid:
    """
    The voxels of a grid as the head lies in them; shapes are drawn where they lie only.

    Args:
        to_head: the 3x4 map from NIfTI voxel indices (i, j, k) to head coordinates, mm.
        points: the voxel centres in head coordinates, ``(3, D, H, W)`` float32.
    """

    def __init__(self, to_head: np.ndarray, points: np.ndarray) -> None:
        self.points = points
        self.shape: tuple[int, ...] = points.shape[1:]
        # How far a voxel reaches along the axes of the head.
        self.voxel = np.sqrt((to_head[:, :3] ** 2).sum(axis=1)).astype(np.float32)
        self._to_voxel = np.linalg.inv(to_head[:, :3])
        self._origin = to_head[:, 3]

    def box(self, shape: Shape) -> Box:
        """The part of the grid that holds the shape and a voxel around it."""
        low, high = shape.bounds()
        middle, half = (low + high) / 2, (high - low) / 2 + self.voxel
        centre = self._to_voxel @ (middle - self._origin)
        reach = np.abs(self._to_voxel) @ half
        first = np.floor(centre - reach).astype(int)[::-1]
        last = np.ceil(centre + reach).astype(int)[::-1] + 1
        depth, height, width = (slice(max(a, 0), max(min(b, n), 0)) for a, b, n in zip(first, last, self.shape))
        return depth, height, width

    def coverage(self, shape: Shape) -> tuple[Box, np.ndarray]:
        """A box that holds the shape, and the fraction of each of its voxels that the shape fills, float32."""
        box = self.box(shape)
        return box, shape.coverage(self.points[(slice(None), *box)], self.voxel)

    def shells(self, ellipsoids: list[Ellipsoid]) -> np.ndarray:
        """
        The fraction of each voxel that each of many plain ellipsoids around the head's origin fills.

        Returns:
            float32 ``(len(ellipsoids), D, H, W)``.
        """
        weights = np.array([shell.semi_axes for shell in ellipsoids], dtype=np.float32) ** -2
        squares = np.square(self.points.reshape(3, -1))
        # As in `Ellipsoid.coverage`; (1 - radius) * radius is (1 - radius**2) / 2 at the surface.
        covered = np.float32(1 + 1e-6) - weights @ squares
        edge = (weights * self.voxel) ** 2 @ squares
        covered /= np.sqrt(edge, out=edge) + np.float32(1e-6)
        covered += 1
        covered *= np.float32(0.5)
        return np.clip(covered, 0, 1, out=covered).reshape(-1, *self.shape)


class Shape(Protocol):
    """A solid in head coordinates (mm)."""

    def bounds(self) -> Bounds:
        """A box that holds the solid."""

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

    def bounds(self) -> Bounds:
        """See `Shape.bounds`."""
        across, along, up = np.array(self.semi_axes) / (1 - self.ripple)
        across += abs(self.bend) * along**2
        cos, sin = abs(np.cos(self.angle)), abs(np.sin(self.angle))
        reach = np.array([cos * across + sin * along, sin * across + cos * along, up])
        return self.centre - reach, self.centre + reach

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

    def bounds(self) -> Bounds:
        """See `Shape.bounds`."""
        return self.whole.bounds()

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

    def bounds(self) -> Bounds:
        """See `Shape.bounds`."""
        (low, high), (other_low, other_high) = self.first.bounds(), self.second.bounds()
        return np.maximum(low, other_low), np.minimum(high, other_high)

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

    def bounds(self) -> Bounds:
        """See `Shape.bounds`."""
        lows, highs = zip(*(part.bounds() for part in self.parts))
        return np.min(lows, axis=0), np.max(highs, axis=0)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """See `Shape.inside`."""
        return np.logical_or.reduce([part.inside(points) for part in self.parts])

    def coverage(self, points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
        """See `Shape.coverage`."""
        return np.maximum.reduce([part.coverage(points, voxel) for part in self.parts])
