"""A protocol from images to figures: scores kept in a file, figures with intervals, and all that it takes to repeat them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data.layout import Layout, only_picture, require_one_scan
from ..data.studies.storage import check_prepared
from ..data.studies.training_ids import warn_of_training
from ..provenance import hash_json, hash_model, hash_processor, installed_versions
from . import bootstrap as boot
from .encode import Closed
from .metrics import require_sklearn
from .protocols.images import Protocol, ProtocolStudies, Truth, as_published, find_list, read_truth
from .protocols.summary import choose_thresholds, columns_of, summarize
from .quantity import DEFAULT
from .score_file import ScoreFile
from .zero_shot import score_studies

logger = logging.get_logger(__name__)


def hash_images(studies: ProtocolStudies) -> str:
    """SHA-256 of ids, and of names and sizes of image files; not of their content."""
    return hash_json([[study, studies.size_of(number)] for number, study in enumerate(studies.ids)])


def hash_truth(truths: Mapping[str, Truth]) -> str:
    """SHA-256 of ids and labels."""
    tables = [[name, truth.ids, truth.labels, truth.classes] for name, truth in sorted(truths.items())]
    return hash_json([[None if x is None else x.tolist() if hasattr(x, "tolist") else x for x in t] for t in tables])


def as_json(value):
    """The same for JSON, which has no NaN: None."""
    if isinstance(value, Mapping):
        return {str(key): as_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    return None if isinstance(value, float) and value != value else value


@dataclass
class Evaluation:
    """
    What a run found.

    Args:
        results: figures and what they rest on, ready for JSON.
        truths: table -> truth of the studies that have scores.
        scores: table -> (S, M) scores of these studies.
        studies: where their images are.
    """

    results: dict
    truths: dict[str, Truth]
    scores: dict[str, np.ndarray]
    studies: ProtocolStudies


def open_record(record: dict, layout: Layout | None = None):
    """Images of a study: paths of volumes are read; `layout` says what a study is in a folder."""
    from ..data.readers.read import read_study
    from ..processing.pictures_itemized_clip import PICTURE_SUFFIXES

    images = record["images"]
    if images is None:
        raise ValueError("it has no images")
    layout = layout or Layout()
    require_one_scan(images, layout)
    if isinstance(images, str) and (picture := only_picture(Path(images), layout)):
        return str(picture)
    leaves = images.values() if isinstance(images, dict) else images if isinstance(images, list) else [images]
    if all(isinstance(leaf, str) and not leaf.lower().endswith(PICTURE_SUFFIXES) for leaf in leaves):
        study = read_study(images, record["id"], skip_unreadable=True, layout=layout)
        if not study.scans:
            raise ValueError("; ".join(map(str, study.skipped)) or "it holds no scan")
        return study
    return images


def evaluate_protocol(
    model,
    processor,
    protocol: Protocol,
    data: str | os.PathLike,
    labels: Mapping[str, str] | str | None = None,
    prompts: Mapping[str, Any] | None = None,
    id_column: str | None = None,
    validation: str | os.PathLike | None = None,
    validation_labels: str | None = None,
    skip_missing: bool = False,
    scores_file: str | os.PathLike | None = None,
    batch_size: int = 8,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    progress: bool = False,
    open_study: Callable[[dict], Any] | None = None,
    opened_with: Mapping[str, Any] | None = None,
    num_workers: int = 0,
    trained_on: str | os.PathLike | None = None,
) -> Evaluation:
    """
    Runs a protocol.

    Args:
        data, labels, id_column: see `read_truth` and `ProtocolStudies`.
        prompts: name -> prompt or prompts, instead of the protocol's.
        validation, validation_labels: data of a split that thresholds are chosen on, instead of the test labels.
        skip_missing: evaluate without the studies that have no images.
        scores_file: keeps every study's scores; a run that was killed goes on from there.
        resamples, seed: of the bootstrap.
        open_study: record with `id` and `images` -> what the processor takes; `open_record` if None.
        opened_with: settings of `open_study`, which scores of a file depend on.
        num_workers: see `encode_studies`.
        trained_on: folder that tells which studies the model was trained on, and that are noted here; where it was loaded from
            if None.

    Raises:
        ValueError: what `read_truth` and `ProtocolStudies` raise, or no study can be read.
    """
    require_sklearn()
    if validation is not None and protocol.findings is None:
        raise ValueError(f"protocol {protocol.name} chooses among classes: there are no thresholds to choose.")
    wanted = protocol.choose_prompts(prompts)
    if protocol.domain and model.config.domain and model.config.domain != protocol.domain:
        logger.warning(f"protocol {protocol.name} is for {protocol.domain}, the model for {model.config.domain}.")
    open_study = open_study or partial(open_record, layout=Layout.of_processor(processor))
    about = {
        "model": hash_model(model),
        "processor": hash_processor(processor),
        "prompts": list(columns_of(protocol, wanted).items()),
        "scans": [protocol.scan_name, protocol.array_spacing],
        "opened_with": dict(opened_with or {}),
    }
    score = partial(
        _score,
        model,
        processor,
        protocol,
        about=about,
        open_study=open_study,
        id_column=id_column,
        skip_missing=skip_missing,
        batch_size=batch_size,
        progress=progress,
        num_workers=num_workers,
    )
    truths, scores, studies = score(data, labels, scores_file)
    thresholds = None
    if validation is not None:
        file = None if scores_file is None else Path(scores_file).with_suffix(".validation.jsonl")
        own_truths, own_scores, _ = score(validation, validation_labels, file)
        thresholds = choose_thresholds(protocol, wanted, *_known(next(iter(own_truths.values())), own_scores))
    figures, tables, kept = {}, {}, {}
    for name, truth in truths.items():
        tables[name], kept[name] = _known(truth, scores)
        found = summarize(protocol, wanted, tables[name], kept[name], resamples, seed, thresholds)
        figures[name] = found | {"left_out": truth.left_out}
    results = {
        "protocol": protocol.name,
        "title": protocol.title,
        "quantity": DEFAULT,
        "headline": _headline(protocol, figures),
        "tables": figures,
        "missing": studies.missing,
        "unreadable": [{"id": study, "reason": reason} for study, reason in sorted(scores.errors.items())],
        "notes": [*_notes(protocol, thresholds, figures), *trained_on_notes(model, trained_on, studies.ids)],
        "model": {
            "name": str(model.config.name_or_path or ""),
            "domain": model.config.domain,
            "sha256": about["model"],
        },
        "processor": {"sha256": about["processor"]},
        "data": {"studies": len(studies), "sha256": hash_images(studies), "labels_sha256": hash_truth(truths)},
        "prompts": wanted,
        "settings": {
            k: v
            for k, v in asdict(protocol).items()
            if k not in ("variants", "findings", "classes", "prompts", "published")
        },
        "intervals": {"level": 0.95, "resamples": resamples, "seed": seed, "over": "studies"},
        "versions": installed_versions(),
    }
    return Evaluation(as_json(results), kept, tables, studies)


def _score(
    model,
    processor,
    protocol,
    data,
    labels,
    file,
    about,
    open_study,
    id_column,
    skip_missing,
    **scoring,
) -> tuple[dict[str, Truth], ScoreFile, ProtocolStudies]:
    check_prepared(data, processor.image_processor)
    truths = read_truth(protocol, data, labels, id_column)
    ids = list(dict.fromkeys(study for truth in truths.values() for study in truth.ids))
    studies = ProtocolStudies(find_list(protocol, data), ids, skip_missing, id_column)
    kept = ScoreFile(file, {**about, "images": hash_images(studies)})
    left = [number for number, study in enumerate(studies.ids) if study not in kept]
    names = [studies.ids[number] for number in left]

    def open_one(number):
        return as_published(protocol, open_study(studies[number]))

    def on_bad_scan(number, scan, error):
        logger.warning(f"{names[number]}, scan {scan} left out: {error}")

    def on_scores(number, row):
        if np.isnan(row).any():
            kept.refuse(names[number], ValueError("the model gave scores that are not numbers"))
        else:
            kept.add(names[number], row)

    if left:
        score_studies(
            model,
            processor,
            [Closed(partial(open_one, number)) for number in left],
            dict(about["prompts"]),
            **scoring,
            on_error=lambda number, error: kept.refuse(names[number], error),
            on_bad_scan=on_bad_scan,
            on_scores=on_scores,
        )
    if not kept.scores:
        tried = "; ".join(f"{study}: {reason}" for study, reason in list(kept.errors.items())[:3])
        raise ValueError(f"none of the {len(studies)} studies of {data} can be scored: {tried}")
    return truths, kept, studies


def _known(truth: Truth, scores: ScoreFile) -> tuple[np.ndarray, Truth]:
    """Scores and truth of the studies that have both."""
    rows = [number for number, study in enumerate(truth.ids) if study in scores.scores]
    if not rows:
        raise ValueError("none of the studies of this label table has scores.")
    kept = Truth([truth.ids[number] for number in rows])
    kept.labels = None if truth.labels is None else truth.labels[rows]
    kept.classes = None if truth.classes is None else truth.classes[rows]
    return np.stack([scores.scores[study] for study in kept.ids]), kept


def _headline(protocol: Protocol, figures: dict) -> dict:
    """The figure that stands for the whole; of several tables their mean, whose interval is not known."""
    name = f"mean {protocol.headline}" if protocol.findings is not None or protocol.tasks else str(protocol.headline)
    missing = {"value": float("nan")}
    found = [table["mean"].get(protocol.headline, missing) for table in figures.values()]
    if len(found) == 1:
        return {"name": name, **found[0]}
    return {"name": f"{name} over {', '.join(figures)}", "value": float(np.mean([figure["value"] for figure in found]))}


def trained_on_notes(model, folder: str | os.PathLike | None, ids: list[str]) -> list[str]:
    """A note, and a warning, where studies of the evaluation were trained on."""
    note = warn_of_training(folder or model.config.name_or_path, ids)
    if note is not None:
        logger.warning(note)
    return [note] if note is not None else []


def _notes(protocol: Protocol, thresholds, figures: dict) -> list[str]:
    notes = []
    if protocol.findings is not None:
        chosen = "on a validation split" if thresholds is not None else "on the test labels, as the reference does"
        kind = (
            f"a grid of {protocol.threshold_points} points"
            if protocol.threshold_points
            else "all that tell scores apart"
        )
        notes.append(f"Thresholds next to the ROC corner among {kind}, chosen {chosen}.")
    if protocol.best_prompt and thresholds is None:
        notes.append("The prompt of a finding was selected by its AUC on the test labels: its figures are too good.")
    published = protocol.published.get("studies")
    largest = max(table["studies"] for table in figures.values())
    if published and largest != published:
        notes.append(f"{largest} studies; the published data set has {published}.")
    return notes
