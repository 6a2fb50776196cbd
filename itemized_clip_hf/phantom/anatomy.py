"""The healthy head: scalp, skull, cerebrospinal fluid, grey and white matter, ventricles and deep nuclei."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from .geometry import Ellipsoid, Grid, Shape, Union

TISSUES = ("scalp", "skull", "csf", "grey", "white", "deep_grey", "calcification")
"""Order of the first axis of `tissue_fractions`."""


@dataclass(frozen=True)
class Pose:
    """
    How the head lies in the scanner.

    Args:
        shift: mm, in the order x, y, z.
        angle: in-plane rotation in radians.
        scale: size of the head relative to the average one.
    """

    shift: tuple[float, float, float]
    angle: float
    scale: float

    def to_head(self, points: np.ndarray) -> np.ndarray:
        """Map world positions (3, ...) in mm to head coordinates of the same shape, in mm."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) / self.scale
        flat = turn.astype(np.float32) @ points.reshape(3, -1)
        flat -= (turn @ np.array(self.shift)).astype(np.float32)[:, None]
        return flat.reshape(points.shape)


@dataclass(frozen=True)
class Anatomy:
    """One head without findings; all shapes are in head coordinates (mm)."""

    pose: Pose
    head: Ellipsoid
    skull: Ellipsoid
    intracranial: Ellipsoid
    brain: Ellipsoid
    white: Ellipsoid
    ventricles: Union
    deep_grey: Union
    calcification: Ellipsoid

    def enlarged_ventricles(self, factor: float) -> Union:
        """Return the ventricles grown by ``factor`` (1 leaves them as they are), mostly in width."""
        return Union(tuple(_grow_ventricle(cast(Ellipsoid, part), factor) for part in self.ventricles.parts))

    def head_points(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Return the voxel centres in head coordinates, ``(3, D, H, W)``, and the voxel size (x, y, z), both in mm."""
        return self.pose.to_head(grid.points()), grid.voxel / np.float32(self.pose.scale)


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a random healthy head."""

    def jitter(values: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
        return tuple((np.array(values) * rng.uniform(1 - spread, 1 + spread, 3)).tolist())

    pose = Pose(
        shift=tuple(rng.uniform(-6, 6, 3).tolist()),
        angle=float(rng.uniform(-0.14, 0.14)),
        scale=float(rng.uniform(0.93, 1.04)),
    )
    axes = np.array(jitter((62.0, 78.0, 64.0), 0.04))
    phase, white_phase, tilt = rng.uniform(0, 2 * np.pi, 3).tolist()
    head, skull, intracranial = (
        Ellipsoid((0.0, 0.0, 0.0), tuple((axes + extra).tolist())) for extra in (15.0, 7.0, 0.0)
    )
    brain = Ellipsoid((0.0, 0.0, 0.0), tuple((axes - 3).tolist()), ripple=0.02, ripple_frequency=9, ripple_phase=phase)
    white = Ellipsoid(
        (0.0, 0.0, 0.0), tuple((axes - 13).tolist()), ripple=0.07, ripple_frequency=8, ripple_phase=white_phase
    )
    size = rng.uniform(0.85, 1.12)
    y, z = rng.uniform(-6, 6), rng.uniform(2, 10)
    sides = (-1, 1)
    ventricles = tuple(
        _ventricle(side, jitter((6.0 * size, 25.0 * size, 13.0 * size), 0.1), y, z, rng.uniform(0.004, 0.010))
        for side in sides
    )
    nuclei = tuple(
        Ellipsoid((side * rng.uniform(24, 28), 4.0, -4.0), jitter((8.0, 16.0, 11.0), 0.1), angle=side * 0.25)
        for side in sides
    )
    pineal = Ellipsoid((0.0, -24.0 + 2 * float(np.sin(tilt)), -6.0), jitter((5.0, 5.0, 8.0), 0.2))
    return Anatomy(pose, head, skull, intracranial, brain, white, Union(ventricles), Union(nuclei), pineal)


def tissue_fractions(anatomy: Anatomy, ventricles: Shape, points: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """
    Work out how much of every voxel each tissue fills.

    Args:
        anatomy: the head.
        ventricles: the ventricles to draw, normal or enlarged.
        points: voxel centres in head coordinates (mm), ``(3, D, H, W)``.
        voxel: voxel size in mm in the order x, y, z.

    Returns:
        float32 ``(len(TISSUES), D, H, W)``; what is left to 1 is air.
    """
    fractions = np.empty((len(TISSUES), *points.shape[1:]), dtype=np.float32)
    outer = anatomy.head.coverage(points, voxel)
    shells = (anatomy.skull, anatomy.intracranial, anatomy.brain, anatomy.white)
    for index, shell in enumerate(shells):
        inner = shell.coverage(points, voxel)
        inner = np.minimum(inner, outer)
        fractions[index] = outer - inner
        outer = inner
    fractions[4] = outer
    inclusions = ((anatomy.deep_grey, 5), (ventricles, 2), (anatomy.calcification, 6))
    fractions[5:] = 0
    for shape, index in inclusions:
        part = shape.coverage(points, voxel)
        fractions *= 1 - part
        fractions[index] += part
    return fractions


def _ventricle(side: int, semi_axes: tuple[float, float, float], y: float, z: float, bend: float) -> Ellipsoid:
    return Ellipsoid((side * (2.0 + semi_axes[0]), y, z), semi_axes, angle=-0.05 * side, bend=side * bend)


def _grow_ventricle(ventricle: Ellipsoid, factor: float) -> Ellipsoid:
    a, b, c = ventricle.semi_axes
    grown = (a * factor, b * (1 + 0.35 * (factor - 1)), c * (1 + 0.6 * (factor - 1)))
    side = 1 if ventricle.centre[0] > 0 else -1
    return _ventricle(side, grown, *ventricle.centre[1:], abs(ventricle.bend))
