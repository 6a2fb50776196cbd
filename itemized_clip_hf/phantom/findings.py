"""The kinds of finding: what they look like, how often they occur and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from .anatomy import Anatomy
from .geometry import Difference, Ellipsoid, Intersection, Shape

SIDES = ("left", "right")
LOBES = {
    "frontal": (0.45, 0.48, 0.15),
    "parietal": (0.45, -0.20, 0.48),
    "temporal": (0.60, 0.05, -0.38),
    "occipital": (0.38, -0.58, -0.05),
}
"""Centre of each lobe (distance from the midline, y, z) as a fraction of the brain's semi-axes."""

MAX_FINDINGS = 4
"""Largest number of findings in one study."""

_CANDIDATES = 32
_MAX_OVERLAP = 0.02
_MAX_OUTSIDE = 0.15


@dataclass(frozen=True)
class Placement:
    """
    One finding as it lies in one head.

    Args:
        finding: name of the finding.
        shape: the solid it fills, in head coordinates (mm).
        size: word for its size.
        side: "left" or "right", or None for a finding of both sides.
        lobe: a key of `LOBES`, or None for a finding that is not in a lobe.
    """

    finding: str
    shape: Shape
    size: str
    side: str | None = None
    lobe: str | None = None

    @property
    def attributes(self) -> dict[str, str]:
        """The words that the report states: "size" and, where they apply, "side" and "lobe"."""
        words = {"size": self.size, "side": self.side, "lobe": self.lobe}
        return {key: word for key, word in words.items() if word is not None}


Placer = Callable[[np.random.Generator, Anatomy, list], Placement]


@dataclass(frozen=True)
class Finding:
    """
    A kind of finding.

    Args:
        name: identifier, as in `FINDINGS`.
        prevalence: probability that a study has it.
        prompt: canonical zero-shot text.
        intensity: intensity of the lesion in each sequence that shows it, on the scale of
            `sequences.TISSUE_INTENSITY`; empty for a finding that changes the anatomy itself.
        visible_in: names of the sequences that show it.
        mottle: relative amplitude of the patches inside it.
        place: draws where it lies, given the placements that are already there.
    """

    name: str
    prevalence: float
    prompt: str
    place: Placer = field(repr=False)
    visible_in: tuple[str, ...]
    intensity: dict[str, float] = field(default_factory=dict)
    mottle: float = 0.0


def draw_findings(rng: np.random.Generator) -> list[str]:
    """Draw each finding with its own prevalence; draws with more than `MAX_FINDINGS` are repeated."""
    while True:
        present = rng.random(len(FINDINGS)) < [finding.prevalence for finding in FINDINGS.values()]
        if present.sum() <= MAX_FINDINGS:
            return [name for name, here in zip(FINDINGS, present) if here]


def place_findings(
    names: Iterable[str], anatomy: Anatomy, make_rng: Callable[[int], np.random.Generator]
) -> list[Placement]:
    """
    Place findings so that they hardly overlap.

    Args:
        names: keys of `FINDINGS`, without repetition.
        anatomy: the head they lie in.
        make_rng: gives the random generator of a finding's position in `FINDINGS`.

    Returns:
        one placement a name, in the order of `FINDINGS`.
    """
    names = list(names)
    unknown = [name for name in names if name not in FINDINGS]
    if unknown:
        raise ValueError(f"unknown findings {unknown}; choose from {list(FINDINGS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a study has at most one finding of each kind, got {names}")
    placements: list[Placement] = []
    for index, (name, finding) in enumerate(FINDINGS.items()):
        if name in names:
            placements.append(finding.place(make_rng(index), anatomy, placements))
    return placements


def _ventricles(rng: np.random.Generator, anatomy: Anatomy, others: list[Placement]) -> Placement:
    factor = float(rng.uniform(1.75, 2.5))
    size = "mildly" if factor < 2.1 else "markedly"
    return Placement("enlarged_ventricles", anatomy.enlarged_ventricles(factor), size)


def _subdural(rng: np.random.Generator, anatomy: Anatomy, others: list[Placement]) -> Placement:
    side = SIDES[rng.integers(2)]
    thickness = float(rng.uniform(10, 21))
    away = (-thickness if side == "right" else thickness, float(rng.uniform(-0.3, 0.3)) * thickness, 0.0)
    crescent = Difference(anatomy.intracranial, replace(anatomy.intracranial, centre=away))
    return Placement("subdural_collection", crescent, "thin" if thickness < 15.5 else "thick", side)


def _focal(name: str, radii: tuple[float, float], ripple: float = 0.0) -> Placer:
    """Make the placer of a lesion in a lobe with a radius (mm) between ``radii``; it draws many and keeps the best."""

    def place(rng: np.random.Generator, anatomy: Anatomy, others: list[Placement]) -> Placement:
        sides = rng.integers(2, size=_CANDIDATES)
        lobes = rng.integers(len(LOBES), size=_CANDIDATES)
        radius = rng.uniform(*radii, _CANDIDATES)
        centres = np.array(list(LOBES.values()))[lobes] + rng.uniform(-0.1, 0.1, (_CANDIDATES, 3))
        centres[:, 0] *= np.where(sides == SIDES.index("right"), 1, -1)
        centres *= anatomy.brain.semi_axes
        axes = radius[:, None] * rng.uniform(0.88, 1.12, (_CANDIDATES, 3))
        angle, phase = rng.uniform(0, np.pi, 2).tolist()

        points = (centres[:, None] + axes[:, None] * _BALL).transpose(2, 0, 1).astype(np.float32)
        outside = 1 - anatomy.brain.inside(points).mean(axis=1)
        obstacles = [anatomy.ventricles, *(other.shape for other in others)]
        overlap = np.logical_or.reduce([shape.inside(points) for shape in obstacles]).mean(axis=1)
        cost = np.maximum(outside - _MAX_OUTSIDE, 0) + np.maximum(overlap - _MAX_OVERLAP, 0)
        best = int(np.argmin(cost))

        shape = Ellipsoid(
            tuple(centres[best].tolist()), tuple(axes[best].tolist()), angle=angle, ripple=ripple, ripple_phase=phase
        )
        size = "small" if radius[best] < sum(radii) / 2 else "large"
        lobe = list(LOBES)[lobes[best]]
        return Placement(name, Intersection(shape, anatomy.brain), size, SIDES[sides[best]], lobe)

    return place


def _ball(count: int) -> np.ndarray:
    """Spread ``count`` points evenly over the unit ball, ``(count, 3)``."""
    index = np.arange(count) + 0.5
    height, turn = 1 - 2 * index / count, index * np.pi * (1 + 5**0.5)
    ring = np.sqrt(1 - height**2)
    radius = (index * 0.7548776662 % 1) ** (1 / 3)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1) * radius[:, None]


_BALL = _ball(48)

FINDINGS: dict[str, Finding] = {
    finding.name: finding
    for finding in (
        Finding(
            "enlarged_ventricles",
            0.26,
            "enlarged ventricles of the brain",
            _ventricles,
            visible_in=("T1", "T2", "FLAIR", "SWI"),
        ),
        Finding(
            "subdural_collection",
            0.26,
            "subdural collection along the brain",
            _subdural,
            visible_in=("T1", "T2", "FLAIR"),
            intensity={"T1": 0.95, "T2": 0.92, "FLAIR": 1.0},
        ),
        Finding(
            "mass",
            0.30,
            "mass in the brain",
            _focal("mass", (16.0, 28.0), ripple=0.12),
            visible_in=("T1", "T2", "FLAIR"),
            intensity={"T1": 0.36, "T2": 0.84, "FLAIR": 0.88},
            mottle=0.3,
        ),
        Finding(
            "cyst",
            0.26,
            "cyst in the brain",
            _focal("cyst", (15.0, 25.0)),
            visible_in=("T1", "T2", "FLAIR"),
            intensity={"T1": 0.14, "T2": 1.05, "FLAIR": 0.10},
        ),
        Finding(
            "bleed",
            0.27,
            "bleed in the brain",
            _focal("bleed", (15.0, 25.0), ripple=0.06),
            visible_in=("SWI",),
            intensity={"SWI": 0.06},
        ),
        Finding(
            "white_matter_lesion",
            0.27,
            "white matter lesion in the brain",
            _focal("white_matter_lesion", (15.0, 25.0), ripple=0.15),
            visible_in=("FLAIR",),
            intensity={"FLAIR": 1.0},
        ),
    )
}
"""Every kind of finding by name, in the order in which they are placed and reported."""
