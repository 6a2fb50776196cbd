"""Zero-shot segmentation: the tokens of one series that a prompt attends to most, against a mask (method 8.4)."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...data.layout import Layout
from ...data.readers.nifti import read_nifti
from ...data.studies.records import Records, read_records, refuse_repeats
from ...data.study import Scan
from ...explain.maps import HeatMap, explain_study, paint_tokens
from ...modeling.modeling_itemized_clip import ItemizedCLIPModel
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from ...provenance import hash_json
from .. import bootstrap as boot
from .. import metrics
from ..protocols.images import open_record
from ..results import TaskResult
from ..score_file import ScoreFile
from ..training_notes import task_notes
from . import TaskOptions

METRICS = ("iou", "dice", "chance_iou", "chance_dice", "coverage")


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


def segment(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: Any,
    prompt: str,
    series: str,
    num_tokens: int = 30,
) -> Segmentation:
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


def run(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    data: str | os.PathLike,
    options: TaskOptions,
    *,
    prompt: str = "Glioma.",
    series: str = "FLAIR",
    num_tokens: int = 30,
) -> TaskResult:
    """
    IoU and Dice of the highest tokens of one series against a mask of each study: see `segment`.

    Args:
        data: list of studies with `id`, `images` (sequence name -> file) and `mask` (a file in any geometry).
    """
    from tqdm.auto import tqdm

    open_study = options.open_study or partial(open_record, layout=Layout.of_processor(processor))
    records = read_records(data)
    if "mask" not in records.columns:
        raise ValueError(f"{data} has no column `mask`; columns: {records.columns}.")
    ids = [records.id_of(number) for number in range(len(records))]
    refuse_repeats(ids, str(data))
    described = {
        **options.about,
        "settings": [prompt, series, num_tokens, options.seed],
        "studies": hash_json([[str(row.get(name)) for name in sorted(row)] for row in map(dict, records.rows)]),
        "opened_with": dict(options.opened_with or {}),
    }
    kept = ScoreFile(options.scores_file, described)
    compare = partial(_compare_study, model, processor, records, open_study, (prompt, series, num_tokens), options.seed)
    for number, study in enumerate(tqdm(ids, desc="segmenting", unit="study", disable=not options.progress)):
        if study in kept:
            continue
        try:
            kept.add(study, compare(number))
        except Exception as error:  # whatever a reader raises: one study never ends the run
            kept.refuse(study, error if isinstance(error, (OSError, ValueError)) else ValueError(type(error).__name__))
    if not kept.scores:
        tried = "; ".join(f"{study}: {reason}" for study, reason in list(kept.errors.items())[:3])
        raise ValueError(f"none of the {len(ids)} studies could be segmented: {tried}")
    segmented = [study for study in ids if study in kept.scores]
    table = np.stack([kept.scores[study] for study in segmented])
    counts = boot.study_counts(len(table), options.resamples, options.seed)
    return TaskResult(
        "segmentation",
        {"": {name: boot.mean_estimate(column, counts, name) for name, column in zip(METRICS, table.T)}},
        {"studies": len(table), "prompt": prompt, "series": series, "num_tokens": num_tokens},
        {
            "per_study": {study: dict(zip(METRICS, map(float, row))) for study, row in zip(segmented, table)},
            "unreadable": [{"id": study, "reason": reason} for study, reason in kept.errors.items()],
            **task_notes(model, options.trained_on, records),
        },
    )


def _compare_study(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    records: Records,
    open_study: Callable[[dict], Any],
    marked: tuple[str, str, int],
    seed: int,
    number: int,
) -> np.ndarray:
    """`METRICS` of one study; `marked`: prompt, series and number of tokens."""
    segmentation = segment(model, processor, open_study(records[number]), *marked)
    place = Path(str(records.rows[number]["mask"]))
    path = place if place.is_absolute() or records.folder is None else records.folder / place
    mask: Scan = read_nifti(path)
    figures = compare_with_mask(segmentation, mask_on_scan(mask, segmentation.heat), seed=seed)
    return np.array([figures[name] for name in METRICS])
