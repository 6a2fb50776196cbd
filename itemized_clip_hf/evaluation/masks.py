"""Masks that a model draws against those that people drew: Dice and surface distances of MONAI, per finding, with intervals."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.studies.masks import UNKNOWN, StudyMasks, as_binary, on_source, read_mask
from ..explain.masks import DrawnMask, DrawnStudy, MaskOptions, class_names, draw_study
from ..modeling.segmentation_itemized_clip import ItemizedCLIPForSemanticSegmentation
from ..processing.geometry_itemized_clip import axis_spacing
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from . import bootstrap as boot
from .estimates import Estimates
from .results import TaskResult

ALL = "all findings"
DISTANCES = ("surface_distance", "hausdorff_95")


@dataclass(frozen=True)
class ComparedMask:
    """
    One mask against the truth, in the grid of its scan.

    Args:
        study, item, finding, scan: what it is of; `finding` is `"all findings"` where nobody says.
        dice: NaN where the study does not have the finding.
        surface_distance: mean over both surfaces (mm, symmetric); NaN where either is empty or the scan has no geometry.
        hausdorff_95: 95th percentile of the same distances (mm).
        voxels: that the model marks.
        is_present: whether the truth marks any.
    """

    study: str
    item: str
    finding: str
    scan: str | None
    dice: float
    surface_distance: float
    hausdorff_95: float
    voxels: int
    is_present: bool


def compare_masks(drawn: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None = None) -> dict[str, float]:
    """
    Dice and surface distances of two masks in one grid.

    Args:
        drawn: (D, H, W) or (H, W), not 0 inside.
        truth: the same; voxels that hold 255 count nothing.
        spacing: mm along the axes; without it there are no distances.

    Returns:
        `dice`, NaN where the truth is empty; `surface_distance` and `hausdorff_95` in mm, NaN where either is empty.

    Raises:
        ImportError: MONAI is not installed.
    """
    try:
        from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric
    except ImportError:
        raise ImportError("Dice and surface distances need MONAI: pip install 'itemized-clip-hf[monai]'.") from None
    known = truth != UNKNOWN
    pair = [torch.from_numpy(np.ascontiguousarray((mask > 0) & known)).float()[None, None] for mask in (drawn, truth)]
    metric: Any = DiceMetric(reduction="none")
    figures = {"dice": float(metric(*pair))}
    figures |= dict.fromkeys(DISTANCES, float("nan"))
    if spacing is not None and all(mask.any() for mask in pair):
        steps = [float(step) for step in spacing]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a distance of an empty mask is not defined, which is not so here
            symmetric: Any = SurfaceDistanceMetric(include_background=True, symmetric=True, reduction="none")
            percentile: Any = HausdorffDistanceMetric(include_background=True, percentile=95, reduction="none")
            figures["surface_distance"] = float(symmetric(*pair, spacing=steps))
            figures["hausdorff_95"] = float(percentile(*pair, spacing=steps))
    return figures


def compare_study(study: str, drawn: DrawnStudy, known: StudyMasks, items: Sequence[str]) -> list[ComparedMask]:
    """
    Every mask of a study whose truth is known.

    Args:
        drawn: of `items`, or of the model's classes.
        items: the texts that were drawn: the study's own, followed by the absent ones; the names of the classes.

    Raises:
        OSError, ValueError: a mask cannot be read or laid over the scans.
    """
    if known.label_map is not None:
        truth = read_mask(known.label_map)
        layers = [type(truth)((truth.array == n).astype(np.uint8), truth.affine) for n in range(1, len(items) + 1)]
        return [_compare(study, own, known, layer, name) for own, layer, name in zip(drawn.masks, layers, items)]
    rows = []
    for place, own in enumerate(drawn.masks):
        if place >= len(known.items):
            rows.append(_compare(study, own, known, None, ALL))
        elif known.masks[place] is not None:
            finding = known.findings[place] if known.findings else ALL
            rows.append(_compare(study, own, known, as_binary(read_mask(known.masks[place])), finding))
    return rows


def _compare(study: str, masks: list[DrawnMask], known: StudyMasks, truth: Any, finding: str) -> ComparedMask:
    """In the scan that most of the item's score rests on, of those that the truth covers."""
    candidates = [mask for mask in masks if known.scan in (None, mask.scan_name)]
    if not candidates:
        raise ValueError(f"mask_scan is {known.scan!r}, the scans are {[mask.scan_name for mask in masks]}.")
    laid = []
    for mask in candidates:
        if truth is None:
            laid.append((mask, np.zeros(mask.values.shape, np.uint8)))
            continue
        own = on_source(truth, mask.values.shape, mask.affine)
        if (own != UNKNOWN).any():
            laid.append((mask, own))
    if not laid:
        raise ValueError("a mask lies outside of every scan of the study: it is of another study, or in another space.")
    mask, own = max(laid, key=lambda pair: pair[0].share or 0.0)
    spacing = None if mask.affine is None else axis_spacing(np.asarray(mask.affine, float)).tolist()
    figures = compare_masks(mask.values, own, spacing)
    is_present = bool(((own > 0) & (own != UNKNOWN)).any())
    return ComparedMask(
        study, mask.item, finding, mask.scan_name, **figures, voxels=int(mask.values.sum()), is_present=is_present
    )


def summarize_masks(
    rows: Iterable[ComparedMask], resamples: int = boot.RESAMPLES, seed: int = 0
) -> dict[str, Estimates]:
    """
    Figures by finding, with intervals over the studies; of a study with several such items their mean counts.

    Returns:
        finding -> `dice`, `surface_distance`, `hausdorff_95`, `missed` (share of the findings of which nothing is marked) and
        `marked_if_absent` (share of those that the study does not have of which something is); `"all findings"` first.
    """
    rows = list(rows)
    studies = sorted({row.study for row in rows})
    counts = boot.study_counts(len(studies), resamples, seed)
    groups = [ALL, *dict.fromkeys(row.finding for row in rows if row.finding != ALL)]
    summary: dict[str, Estimates] = {}
    for group in groups:
        own = [row for row in rows if group in (ALL, row.finding)]
        figures: dict[str, Callable[[ComparedMask], float]] = {
            **{name: lambda row, name=name: getattr(row, name) for name in ("dice", *DISTANCES)},  # type: ignore[misc]
            "missed": lambda row: float(row.voxels == 0) if row.is_present else float("nan"),
            "marked_if_absent": lambda row: float("nan") if row.is_present else float(row.voxels > 0),
        }
        summary[group] = {}
        for name, figure in figures.items():
            values = [_mean([figure(row) for row in own if row.study == study]) for study in studies]
            if not np.isnan(values).all():
                summary[group][name] = boot.mean_estimate(values, counts, name)
    return summary


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def texts_of(model: ItemizedCLIPForSemanticSegmentation, known: StudyMasks) -> list[str]:
    """What is drawn of a study to be compared: its items and the absent ones, or nothing for a model of classes."""
    return [*known.items, *known.absent] if model.mask_decoder.by_item else []


def compare_records(
    model: ItemizedCLIPForSemanticSegmentation,
    processor: ItemizedCLIPProcessor,
    records: Iterable[dict[str, Any]],
    options: MaskOptions | None = None,
    on_error: Callable[[str, Exception], Any] | None = None,
) -> Iterator[ComparedMask]:
    """
    Draws every study and compares it with its masks.

    Args:
        records: with `id`, `images` and what `StudyMasks` is made of.
        on_error: called with the id of a study that cannot be used, and why; without it the error is raised.
    """
    for record in records:
        try:
            known = StudyMasks.of_record(record)
            texts = texts_of(model, known)
            drawn = draw_study(model, processor, record["images"], texts, options)
            rows = compare_study(str(record["id"]), drawn, known, texts or class_names(model))
        except (OSError, ValueError) as error:
            if on_error is None:
                raise
            on_error(str(record.get("id")), error)
            continue
        yield from rows


def evaluate_masks(
    model: ItemizedCLIPForSemanticSegmentation,
    processor: ItemizedCLIPProcessor,
    records: Iterable[dict[str, Any]],
    options: MaskOptions | None = None,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
) -> TaskResult:
    """
    Dice and surface distance of every finding, over the studies of a list.

    Args:
        records: see `compare_records`; a study that cannot be used is left out and listed.
        options: how masks are made.
        resamples, seed: of the intervals.

    Raises:
        ValueError: none of the studies could be used.
    """
    errors: dict[str, Exception] = {}
    was_training = model.training
    model.eval()
    try:
        rows = list(compare_records(model, processor, records, options, errors.__setitem__))
    finally:
        model.train(was_training)
    return as_result(rows, errors, resamples, seed)


def as_result(
    rows: list[ComparedMask], errors: Mapping[str, Exception], resamples: int = boot.RESAMPLES, seed: int = 0
) -> TaskResult:
    """
    The JSON of figures, as of an evaluation.

    Args:
        errors: id -> why the study could not be used.

    Raises:
        ValueError: none of the studies could be used.
    """
    if not rows:
        tried = "; ".join(f"{study}: {error}" for study, error in list(errors.items())[:3])
        raise ValueError(f"no study could be compared with its masks: {tried or 'there is none'}")
    return TaskResult(
        "masks",
        summarize_masks(rows, resamples, seed),
        {"studies": len({row.study for row in rows}), "masks": sum(row.is_present for row in rows)},
        {"unreadable": [{"id": study, "reason": str(error)} for study, error in errors.items()]},
        "Masks against those of people",
    )
