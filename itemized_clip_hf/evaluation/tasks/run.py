"""Evaluations that need no label table: retrieval, items of reports, segmentation. `itemized-clip evaluate --protocol NAME`."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ...data.layout import Layout
from ...data.studies.records import Records, read_records, refuse_repeats
from ...data.studies.training_ids import ids_of
from ...data.study import Scan
from ...provenance import hash_file, hash_json, hash_model, hash_processor, installed_versions
from .. import bootstrap as boot
from ..evaluate import as_json, open_record, trained_on_notes
from ..protocols import check_task_settings
from ..quantity import DEFAULT, describe
from ..score_file import ScoreFile
from .items import evaluate_items
from .retrieval import evaluate_retrieval, read_captions
from .segmentation import compare_with_mask, mask_on_scan, segment

logger = logging.get_logger(__name__)


def run_retrieval(
    model,
    processor,
    data: str | os.PathLike,
    mode: str = "full",
    top_k: int = 128,
    split: str | None = None,
    image_folder: str | None = None,
    batch_size: int = 32,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    progress: bool = False,
    num_workers: int = 0,
    **unused,
) -> dict:
    """Text to image and image to text: see `retrieval.read_captions` and `retrieval.score_pairs`."""
    pairs = read_captions(data, image_folder, split)
    failed: dict[int, str] = {}
    figures = evaluate_retrieval(
        model,
        processor,
        pairs,
        resamples,
        seed,
        mode=mode,
        top_k=top_k,
        batch_size=batch_size,
        progress=progress,
        on_error=lambda number, error: failed.update({number: str(error)}),
        num_workers=num_workers,
    )
    mode = "global" if model.config.scoring == "global" else mode
    unreadable = [{"number": number, "reason": reason} for number, reason in failed.items()]
    facts = {"images": len(pairs.images), "captions": sum(map(len, pairs.captions)), "mode": mode, "split": split}
    return {
        **facts,
        **({"top_k": top_k} if mode == "accelerated" else {}),
        "figures": figures,
        "unreadable": unreadable,
    }


def run_items(
    model,
    processor,
    data: str | os.PathLike,
    batch_size: int = 8,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    progress: bool = False,
    open_study: Callable[[dict], Any] | None = None,
    num_workers: int = 0,
    trained_on: str | os.PathLike | None = None,
    **unused,
) -> dict:
    """Item retrieval, COMPLETE@k, MLL, mAMS and the share of each series: see `completeness.evaluate_items`."""
    rule = Layout.of_processor(processor)
    open_study = open_study or partial(open_record, layout=rule)
    records = read_records(data, layout=rule)
    if records.items_column is None:
        raise ValueError(f"{data} has no column of items; columns: {records.columns}.")
    rows = [
        {"items": items, "images": lambda number=number: open_study(records[number])}
        for number, items in enumerate(records.items())
    ]
    failed: dict[int, str] = {}
    found = evaluate_items(
        model,
        processor,
        rows,
        batch_size=batch_size,
        progress=progress,
        on_error=lambda number, error: failed.update({number: str(error)}),
        on_bad_scan=lambda number, scan, error: logger.warning(
            f"{records.id_of(number)}, scan {scan} left out: {error}"
        ),
        num_workers=num_workers,
    )
    return {
        "studies": len(found.items),
        "texts": len(found.texts),
        "figures": found.summary(resamples, seed),
        "series": found.series_shares(),
        "unreadable": [{"id": records.id_of(number), "reason": reason} for number, reason in failed.items()],
        **_notes(model, trained_on, records),
    }


def run_segmentation(
    model,
    processor,
    data: str | os.PathLike,
    prompt: str = "Glioma.",
    series: str = "FLAIR",
    num_tokens: int = 30,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    progress: bool = False,
    scores_file: str | os.PathLike | None = None,
    open_study: Callable[[dict], Any] | None = None,
    opened_with: Mapping[str, Any] | None = None,
    trained_on: str | os.PathLike | None = None,
    *,
    about: Mapping[str, str],
    **unused,
) -> dict:
    """
    IoU and Dice of the highest tokens of one series against a mask of each study: see `segmentation.segment`.

    Args:
        data: list of studies with `id`, `images` (sequence name -> file) and `mask` (a file in any geometry).
        about: hashes of model and processor.
    """
    from tqdm.auto import tqdm

    from ...data.readers.nifti import read_nifti

    open_study = open_study or partial(open_record, layout=Layout.of_processor(processor))
    records = read_records(data)
    if "mask" not in records.columns:
        raise ValueError(f"{data} has no column `mask`; columns: {records.columns}.")
    names = ("iou", "dice", "chance_iou", "chance_dice", "coverage")
    ids = [records.id_of(number) for number in range(len(records))]
    refuse_repeats(ids, str(data))
    described = {
        **about,
        "settings": [prompt, series, num_tokens, seed],
        "studies": hash_json([[str(row.get(name)) for name in sorted(row)] for row in map(dict, records.rows)]),
        "opened_with": dict(opened_with or {}),
    }
    kept = ScoreFile(scores_file, described)
    for number, study in enumerate(tqdm(ids, desc="segmenting", unit="study", disable=not progress)):
        if study in kept:
            continue
        try:
            found = segment(model, processor, open_study(records[number]), prompt, series, num_tokens)
            place = Path(str(records.rows[number]["mask"]))
            path = place if place.is_absolute() or records.folder is None else records.folder / place
            mask: Scan = read_nifti(path)
            figures = compare_with_mask(found, mask_on_scan(mask, found.heat), seed=seed)
            kept.add(study, np.array([figures[name] for name in names]))
        except Exception as error:  # one study never ends the run
            kept.refuse(study, error if isinstance(error, (OSError, ValueError)) else ValueError(type(error).__name__))
    if not kept.scores:
        tried = "; ".join(f"{study}: {reason}" for study, reason in list(kept.errors.items())[:3])
        raise ValueError(f"none of the {len(ids)} studies could be segmented: {tried}")
    table = np.stack([kept.scores[study] for study in ids if study in kept.scores])
    counts = boot.study_counts(len(table), resamples, seed)
    summary = {name: boot.mean_figure(column, counts) for name, column in zip(names, table.T)}
    return {
        "studies": len(table),
        "prompt": prompt,
        "series": series,
        "num_tokens": num_tokens,
        "figures": summary,
        "per_study": {study: dict(zip(names, map(float, kept.scores[study]))) for study in ids if study in kept.scores},
        "unreadable": [{"id": study, "reason": reason} for study, reason in kept.errors.items()],
        **_notes(model, trained_on, records),
    }


def _notes(model, trained_on: str | os.PathLike | None, records: Records) -> dict[str, list[str]]:
    notes = trained_on_notes(model, trained_on, ids_of(records))
    return {"notes": notes} if notes else {}


_COMMON = {
    "about",
    "batch_size",
    "num_workers",
    "resamples",
    "seed",
    "progress",
    "scores_file",
    "open_study",
    "opened_with",
    "trained_on",
}
TASKS: dict[str, Callable[..., dict]] = {
    "retrieval": run_retrieval,
    "items": run_items,
    "segmentation": run_segmentation,
}


def run_task(name: str, model, processor, data: str | os.PathLike, **settings) -> dict:
    """
    Results of a task with what they rest on, ready for JSON.

    Args:
        settings: of the task; `trained_on` as in `evaluate_protocol`.

    Raises:
        ValueError: there is no such task, or it has no such setting.
    """
    check_task_settings(name, {key: value for key, value in settings.items() if key not in _COMMON})
    about = {"model": hash_model(model), "processor": hash_processor(processor)}
    found = TASKS[name](model, processor, data, about=about, **settings)
    path = Path(data)
    results = {
        "protocol": name,
        **({} if name == "segmentation" else {"quantity": DEFAULT}),
        **found,
        "model": {
            "name": str(model.config.name_or_path or ""),
            "domain": model.config.domain,
            "sha256": about["model"],
        },
        "processor": {"sha256": about["processor"]},
        "data": {
            "name": path.name,
            "sha256": hash_file(path) if path.is_file() else None,
        },
        "intervals": {
            "level": 0.95,
            "resamples": settings.get("resamples", boot.RESAMPLES),
            "seed": settings.get("seed", 0),
            "over": "studies; T2I@k over texts",
        },
        "versions": installed_versions(),
    }
    return as_json(results)


def format_task(results: dict) -> str:
    """The figures of a task as a table."""
    from ..protocols.report import show
    from ..text_table import format_table

    groups = results["figures"]
    if not all("value" in figure for figure in groups.values()):
        rows = [
            [f"{group}, {name}", show(figure, name)] for group, own in groups.items() for name, figure in own.items()
        ]
    else:
        rows = [[name, show(figure, name)] for name, figure in groups.items()]
    facts = [
        f"{name}: {results[name]}" for name in ("studies", "images", "captions", "texts", "mode") if name in results
    ]
    scores = [f"Figures rest on {describe(results['quantity'])}."] if "quantity" in results else []
    return "\n".join(
        [", ".join(facts), format_table(["", "(95 % interval)"], rows), *scores, *results.get("notes", [])]
    )
