"""Whole studies: four scans of one head with its items, masks and labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .anatomy import sample_anatomy, tissue_fractions
from .findings import FINDINGS, Placement, draw_findings, place_findings
from .geometry import Grid, HeadGrid
from .reports import NORMAL, write_item, write_normal_item
from .sequences import SEQUENCES, acquire, render_tissues

DEFAULT_SHAPE = (16, 64, 64)
"""Voxels of a scan, depth first: 8 mm x 3 mm x 3 mm each."""
COARSE_SHAPE = (8, 32, 32)
"""Voxels of a scan where time matters more than looks: 16 mm x 6 mm x 6 mm each."""
MAX_TILT = (0.22, 0.07)
"""Radians by which the stack of slices is turned about x and about y at most."""

_ANATOMY, _DRAW, _PLACE, _CONTRAST, _NOISE, _REPORT, _TILT = range(7)
_PATCHES = np.array([[0.31, 0.22, 0.1], [-0.17, 0.36, 0.2], [0.4, -0.13, 0.25]], dtype=np.float32)
"""Waves whose sum makes the patches inside a mottled finding, 1/mm."""


@dataclass
class PhantomStudy:
    """
    A multi-scan study with known truth.

    Args:
        id: name of the study.
        scans: sequence name to float32 ``(D, H, W)`` in arbitrary units, all on one grid.
        affine: 4x4 map from NIfTI voxel indices (i, j, k), of the scan transposed to (x, y, z), to RAS+ mm.
        spacing: voxel size in mm, depth first.
        items: one sentence a finding, or the one sentence of a normal study.
        item_findings: finding of each item; "normal" for the sentence of a normal study.
        masks: bool ``(D, H, W)`` of each item; None for the sentence of a normal study.
        labels: for every finding, whether the study has it.
        is_normal: whether the study has no finding.
        attributes: the words "size", "side" and "lobe" of each item, where they apply.
    """

    id: str
    scans: dict[str, np.ndarray]
    affine: np.ndarray
    spacing: tuple[float, float, float]
    items: list[str]
    item_findings: list[str]
    masks: list[np.ndarray | None]
    labels: dict[str, bool]
    is_normal: bool
    attributes: list[dict[str, str]] = field(default_factory=list)


def generate_study(
    seed: int | np.random.SeedSequence,
    shape: tuple[int, ...] = DEFAULT_SHAPE,
    *,
    spacing: tuple[float, float, float] | None = None,
    findings: Iterable[str] | None = None,
    held_out_templates: bool = False,
    study_id: str | None = None,
) -> PhantomStudy:
    """
    Generate one study; the result depends on the arguments only.

    The same seed at another ``shape`` gives the same head and findings with other noise. The same seed with other
    ``findings`` gives the same head with the same contrast and noise, so ``findings=[]`` shows it without any.

    >>> study = generate_study(3, (4, 16, 16), findings=["cyst"])
    >>> list(study.scans), study.scans["T1"].shape, study.item_findings
    (['T1', 'T2', 'FLAIR', 'SWI'], (4, 16, 16), ['cyst'])

    Args:
        seed: a non-negative number or a `numpy.random.SeedSequence`.
        shape: ``(D, H, W)`` in voxels.
        spacing: voxel size in mm, depth first; by default the grid covers `geometry.FIELD_OF_VIEW`.
        findings: keys of `FINDINGS` that the study has; by default they are drawn by their prevalence.
        held_out_templates: write items with the templates of the test split too.
        study_id: name of the study; by default it is made from the seed.
    """
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)

    def make_rng(*key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(sequence.entropy, spawn_key=(*sequence.spawn_key, *key)))

    name = study_id if study_id is not None else "-".join(map(str, ("study", sequence.entropy, *sequence.spawn_key)))
    grid = Grid.covering(shape, spacing, tuple((make_rng(_TILT).uniform(-1, 1, 2) * MAX_TILT).tolist()))
    anatomy = sample_anatomy(make_rng(_ANATOMY))
    names = draw_findings(make_rng(_DRAW)) if findings is None else findings
    placements = place_findings(names, anatomy, lambda index: make_rng(_PLACE, index))
    voxels = anatomy.in_grid(grid)
    ventricles = next((p.shape for p in placements if p.finding == "enlarged_ventricles"), anatomy.ventricles)
    images = render_tissues(tissue_fractions(anatomy, ventricles, voxels), make_rng(_CONTRAST))
    masks = _paint_findings(images, placements, voxels)
    scans = acquire(images, make_rng(_NOISE))
    rng = make_rng(_REPORT)
    items = [write_item(placement, rng, held_out_templates) for placement in placements]
    item_findings, attributes = [p.finding for p in placements], [p.attributes for p in placements]
    labels = {key: key in item_findings for key in FINDINGS}
    if not placements:
        items, item_findings, masks, attributes = [write_normal_item(rng)], [NORMAL], [None], [{}]
    return PhantomStudy(
        id=name,
        scans=dict(zip(SEQUENCES, scans)),
        affine=grid.affine,
        spacing=grid.spacing,
        items=items,
        item_findings=item_findings,
        masks=masks,
        labels=labels,
        is_normal=not placements,
        attributes=attributes,
    )


def _paint_findings(images: np.ndarray, placements: list[Placement], grid: HeadGrid) -> list[np.ndarray | None]:
    """Draw the findings into the images (4, D, H, W), in place, and return the mask (D, H, W) of each."""
    masks: list[np.ndarray | None] = []
    for placement in placements:
        box, coverage = grid.coverage(placement.shape)
        # On a very coarse grid a finding may fill no voxel by half; it then keeps the voxels it fills most.
        mask = np.zeros(grid.shape, dtype=bool)
        mask[box] = (coverage >= min(0.5, float(coverage.max(initial=0)))) & (coverage > 0)
        masks.append(mask)
        finding = FINDINGS[placement.finding]
        inside: np.ndarray | float = 1.0
        if finding.mottle:
            points = grid.points[(slice(None), *box)]
            inside = 1 + np.float32(finding.mottle) * np.sin(np.tensordot(_PATCHES, points, 1)).mean(axis=0)
        for name, intensity in finding.intensity.items():
            image = images[SEQUENCES.index(name)][box]
            image += coverage * (np.float32(intensity) * inside - image)
    return masks
