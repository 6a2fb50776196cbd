"""Zero-shot segmentation: the tokens of one series that a prompt attends to most, against a mask (spec 8.4)."""

import re
from dataclasses import dataclass

import numpy as np

from ...data.study import Scan
from ...explain.maps import HeatMap, explain_study, paint_tokens
from .. import metrics


@dataclass
class Segmentation:
    """
    What a prompt marks in one scan.

    Args:
        heat: the heat map it comes from.
        tokens: (D, H, W), True for the chosen tokens.
        voxels: the same in the scan's own grid.
    """

    heat: HeatMap
    tokens: np.ndarray
    voxels: np.ndarray


def segment(model, processor, study, prompt: str, series: str, num_tokens: int = 30) -> Segmentation:
    """
    Args:
        study: anything the processor takes as one study.
        series: name of one of its scans, or else a word or part of it, in any case, e.g. `"FLAIR"`.
        num_tokens: of the highest attention within that scan; 30 of 1,176 in the paper.

    Raises:
        ValueError: no scan, or several, have that name.
    """
    maps = explain_study(model, processor, study, [prompt])
    names = [(heat.scan_name or "").lower() for heat in maps]
    parts = [re.split(r"[^a-z0-9]+", name) for name in names]
    wanted = series.lower()
    for matches in ([n == wanted for n in names], [wanted in p for p in parts], [wanted in n for n in names]):
        named = [heat for heat, found in zip(maps, matches) if found]
        if named:
            break
    if len(named) != 1:
        raise ValueError(
            f"{len(named)} of the scans {[heat.scan_name for heat in maps]} are called {series!r}, expected one."
        )
    return mark(named[0], num_tokens)


def mark(heat: HeatMap, num_tokens: int) -> Segmentation:
    """The `num_tokens` highest tokens of a heat map."""
    chosen = np.zeros(heat.tokens.size, dtype=bool)
    chosen[np.argsort(-heat.tokens.ravel(), kind="stable")[:num_tokens]] = True
    tokens = chosen.reshape(heat.tokens.shape)
    return Segmentation(heat, tokens, paint_tokens(tokens, heat.voxel_to_token, heat.values.shape))


def mask_on_scan(mask: Scan, heat: HeatMap) -> np.ndarray:
    """
    A mask, True where it is not 0, in the grid of the scan, by nearest neighbours.

    Raises:
        ValueError: mask and scan cannot be laid over each other: one has no geometry and their shapes differ.
    """
    array = np.asarray(mask.array) > 0
    shapes = f"the mask is {array.shape}, the scan {heat.values.shape}"
    if mask.affine is None or heat.affine is None:
        if array.shape != heat.values.shape:
            raise ValueError(f"{shapes}, and without geometry they cannot be aligned.")
        return array
    if array.shape == heat.values.shape and np.allclose(mask.affine, heat.affine, atol=1e-3):
        return array
    matrix = np.linalg.inv(mask.affine) @ heat.affine
    return paint_tokens(array, matrix, heat.values.shape)


def compare_with_mask(found: Segmentation, mask: np.ndarray, draws: int = 200, seed: int = 0) -> dict[str, float]:
    """
    IoU and Dice in the scan's own grid, and of as many tokens drawn at random.

    Args:
        mask: in the grid of the scan, see `mask_on_scan`.

    Returns:
        `iou`, `dice`, `chance_iou`, `chance_dice` (means over `draws`), and `coverage`, the share of the mask that the model
        sees.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("the mask is empty.")
    generator = np.random.default_rng(seed)
    # Voxels and voxels of the mask per token tell all figures: tokens do not overlap.
    token_of = paint_tokens(
        np.arange(1, found.tokens.size + 1).reshape(found.tokens.shape), found.heat.voxel_to_token, mask.shape
    )
    size = np.bincount(token_of.ravel(), minlength=found.tokens.size + 1)[1:]
    inside = np.bincount(token_of[mask], minlength=found.tokens.size + 1)[1:]
    total, chosen = int(mask.sum()), int(found.tokens.sum())
    drawn = [generator.choice(len(size), chosen, replace=False) for _ in range(draws)]
    overlaps = np.array([(inside[tokens].sum(), size[tokens].sum()) for tokens in drawn], dtype=float)
    return {
        "iou": metrics.iou(found.voxels, mask),
        "dice": metrics.dice(found.voxels, mask),
        "chance_iou": float(np.mean(overlaps[:, 0] / (overlaps[:, 1] + total - overlaps[:, 0]))),
        "chance_dice": float(np.mean(2 * overlaps[:, 0] / (overlaps[:, 1] + total))),
        "coverage": float(inside.sum() / total),
    }
