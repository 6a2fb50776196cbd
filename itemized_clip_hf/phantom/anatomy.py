"""The healthy head: scalp, skull, eyes, cerebrospinal fluid, folded cortex, white matter, ventricles, cerebellum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from .cortex import Cortex, sample_cortex
from .geometry import Difference, Ellipsoid, Grid, HeadGrid, Shape, Union

TISSUES = ("fat", "muscle", "bone", "marrow", "csf", "grey", "white", "deep_grey", "calcification")
"""Order of the first axis of `tissue_fractions`."""

SCALP = 4.5
"""Thickness of the skin and the fat under it, mm."""
EYE, SOCKET = 12.0, 18.0
"""Radius of an eye and of the fat around it, mm."""


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

    def to_head(self) -> np.ndarray:
        """The 3x4 map from world positions (RAS+ mm) to head coordinates, in mm."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) / self.scale
        return np.column_stack([turn, -turn @ np.array(self.shift)])


@dataclass(frozen=True)
class Anatomy:
    """One head without findings; all shapes are in head coordinates (mm)."""

    pose: Pose
    head: Ellipsoid
    face: Ellipsoid
    skull: Ellipsoid
    intracranial: Ellipsoid
    brain: Ellipsoid
    cortex: Cortex
    ventricles: Union
    inclusions: tuple[tuple[str, Shape], ...]
    calcification: Ellipsoid

    def enlarged_ventricles(self, factor: float) -> Union:
        """Return the ventricles grown by ``factor`` (1 leaves them as they are), mostly in width."""
        return Union(tuple(_grow_ventricle(cast(Ellipsoid, part), factor) for part in self.ventricles.parts))

    def in_grid(self, grid: Grid) -> HeadGrid:
        """Return the voxels of a grid in head coordinates."""
        pose, affine = self.pose.to_head(), grid.affine
        turn = (pose[:, :3] @ grid.rotation).astype(np.float32)
        points = turn @ grid.upright_points().reshape(3, -1)
        points += pose[:, 3:].astype(np.float32)
        return HeadGrid(pose @ affine, points.reshape(3, *grid.shape))


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a random healthy head."""
    pose = Pose(
        shift=tuple(rng.uniform(-6, 6, 3).tolist()),
        angle=float(rng.uniform(-0.14, 0.14)),
        scale=float(rng.uniform(0.93, 1.04)),
    )
    axes = np.array(_jitter(rng, (62.0, 78.0, 64.0), 0.04))
    scalp, bone = rng.uniform(7, 10), rng.uniform(6, 9)
    head, skull, intracranial, brain = (
        Ellipsoid((0.0, 0.0, 0.0), tuple((axes + extra).tolist())) for extra in (scalp + bone, bone, 0.0, -3.0)
    )
    face = Ellipsoid((0.0, 26.0, -66.0), _jitter(rng, (64.0, 70.0, 56.0), 0.04))
    size = rng.uniform(0.85, 1.12)
    y, z = rng.uniform(-6, 6), rng.uniform(2, 10)
    ventricles = tuple(
        _ventricle(side, _jitter(rng, (6.0 * size, 25.0 * size, 13.0 * size), 0.1), y, z, rng.uniform(0.004, 0.010))
        for side in (-1, 1)
    )
    pineal = Ellipsoid((0.0, rng.uniform(-26, -22), -6.0), _jitter(rng, (4.0, 4.0, 7.0), 0.2))
    return Anatomy(
        pose=pose,
        head=head,
        face=face,
        skull=skull,
        intracranial=intracranial,
        brain=brain,
        cortex=sample_cortex(rng),
        ventricles=Union(ventricles),
        inclusions=_sample_inclusions(rng),
        calcification=pineal,
    )


def _sample_inclusions(rng: np.random.Generator) -> tuple[tuple[str, Shape], ...]:
    """What lies inside the layers, and of which tissue it is; later ones cover earlier ones."""
    callosum = Ellipsoid((0.0, 4.0, 4.0), _jitter(rng, (30.0, 40.0, 26.0), 0.08))
    width = rng.uniform(1.2, 2.2)
    nuclei = [
        Ellipsoid((side * rng.uniform(24, 28), 4.0, -2.0), _jitter(rng, (7.0, 17.0, 11.0), 0.1), angle=side * 0.25)
        for side in (-1, 1)
    ]
    thalami = [
        Ellipsoid((side * 9.5, -13.0, 0.0), _jitter(rng, (8.0, 13.0, 9.0), 0.1), angle=side * -0.3) for side in (-1, 1)
    ]
    cerebellum = Ellipsoid((0.0, -44.0, -42.0), _jitter(rng, (42.0, 25.0, 20.0), 0.06))
    stem = Ellipsoid((0.0, -18.0, -50.0), _jitter(rng, (13.0, 11.0, 32.0), 0.08))
    return (
        ("grey", Difference(Ellipsoid((0.0, 0.0, 4.0), (width + 3.5, 74.0, 60.0)), callosum)),
        ("csf", Difference(Ellipsoid((0.0, 0.0, 4.0), (width, 75.0, 61.0)), callosum)),
        ("deep_grey", Union(tuple(nuclei + thalami))),
        ("csf", Ellipsoid((0.0, -10.0, -3.0), (rng.uniform(1.8, 3.2), 13.0, 9.0))),
        ("csf", Union((_grown(cerebellum, 2.5), _grown(stem, 4.0)))),
        ("grey", _folded(cerebellum, rng.uniform(0, 6))),
        ("white", _folded(_grown(cerebellum, -8.0), rng.uniform(0, 6), ripple=0.25)),
        ("white", stem),
        ("csf", Ellipsoid((0.0, -31.0, -42.0), (5.0, 4.0, 8.0))),
    )


def tissue_fractions(anatomy: Anatomy, ventricles: Shape, grid: HeadGrid) -> np.ndarray:
    """
    Work out how much of every voxel each tissue fills.

    Args:
        anatomy: the head.
        ventricles: the ventricles to draw, normal or enlarged.
        grid: from `Anatomy.in_grid`.

    Returns:
        float32 ``(len(TISSUES), D, H, W)``; what is left to 1 is air.
    """
    fractions = np.zeros((len(TISSUES), *grid.shape), dtype=np.float32)
    skull, cavity = anatomy.skull, anatomy.intracranial
    shells = (anatomy.head, _grown(anatomy.head, -SCALP), skull, _grown(skull, -1.8), _grown(cavity, 1.8), cavity)
    head, soft, bone, marrow, inner_bone, inside, brain = grid.shells([*shells, anatomy.brain])
    for layer, face in ((head, anatomy.face), (soft, _grown(anatomy.face, -SCALP))):
        box, covered = grid.coverage(face)
        np.maximum(layer[box], covered, out=layer[box])
    layers = (head, soft), (soft, bone), (bone, inside), (marrow, inner_bone), (inside, brain)
    for layer, (outer, inner) in zip(fractions, layers):
        np.subtract(outer, inner, out=layer)
    fractions[2] -= fractions[3]
    np.maximum(fractions, 0, out=fractions)
    around = head - bone
    _fill(fractions, "fat", grid, _orbits(anatomy, SOCKET), around)
    _fill(fractions, "csf", grid, _orbits(anatomy, EYE), around)
    box = grid.box(anatomy.brain)
    csf, grey = anatomy.cortex.fractions(anatomy.brain, grid.points[(slice(None), *box)], grid.voxel)
    cerebrum = brain[box]
    for name, share in (("csf", csf), ("grey", grey), ("white", 1 - csf - grey)):
        fractions[TISSUES.index(name)][box] += cerebrum * share
    for name, shape in anatomy.inclusions:
        _fill(fractions, name, grid, shape, brain)
    _fill(fractions, "csf", grid, ventricles)
    _fill(fractions, "calcification", grid, anatomy.calcification)
    return fractions


def _fill(fractions: np.ndarray, tissue: str, grid: HeadGrid, shape: Shape, within: np.ndarray | None = None) -> None:
    """Fill a shape with one tissue, in place, where the voxels are `within` (D, H, W) something."""
    parts = shape.parts if isinstance(shape, Union) else (shape,)
    for part in parts:
        box, covered = grid.coverage(part)
        if within is not None:
            covered = covered * within[box]
        view = fractions[(slice(None), *box)]
        view *= 1 - covered
        view[TISSUES.index(tissue)] += covered


def _orbits(anatomy: Anatomy, radius: float) -> Union:
    """Two balls where the eyes are; `radius` in mm."""
    depth = anatomy.skull.semi_axes[1] - 22
    return Union(tuple(Ellipsoid((side * 32.0, depth, -41.0), (radius, radius, radius)) for side in (-1, 1)))


def _jitter(rng: np.random.Generator, values: tuple[float, float, float], spread: float) -> tuple[float, float, float]:
    return tuple((np.array(values) * rng.uniform(1 - spread, 1 + spread, 3)).tolist())


def _grown(shape: Ellipsoid, extra: float) -> Ellipsoid:
    """The ellipsoid with semi-axes longer by `extra` mm."""
    return Ellipsoid(shape.centre, tuple((np.array(shape.semi_axes) + extra).tolist()))


def _folded(shape: Ellipsoid, phase: float, ripple: float = 0.05) -> Ellipsoid:
    """The ellipsoid with the fine waves of the cerebellum."""
    return Ellipsoid(shape.centre, shape.semi_axes, ripple=ripple, ripple_frequency=11.0, ripple_phase=phase)


def _ventricle(side: int, semi_axes: tuple[float, float, float], y: float, z: float, bend: float) -> Ellipsoid:
    return Ellipsoid((side * (2.0 + semi_axes[0]), y, z), semi_axes, angle=-0.05 * side, bend=side * bend)


def _grow_ventricle(ventricle: Ellipsoid, factor: float) -> Ellipsoid:
    a, b, c = ventricle.semi_axes
    grown = (a * factor, b * (1 + 0.35 * (factor - 1)), c * (1 + 0.6 * (factor - 1)))
    side = 1 if ventricle.centre[0] > 0 else -1
    return _ventricle(side, grown, *ventricle.centre[1:], abs(ventricle.bend))
