"""A protocol from images to figures: scores kept in a file, estimates with intervals, and all that it takes to repeat them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ...data.layout import Layout
from ...data.studies.storage import check_prepared
from ...modeling.modeling_itemized_clip import ItemizedCLIPModel
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from ...provenance import describe_model, hash_json, hash_model, hash_processor, installed_versions
from .. import bootstrap as boot
from ..calibration import Calibration, load_calibration
from ..encode import Closed, EncodedStudies
from ..estimates import Estimate
from ..metrics import require_sklearn
from ..outliers import unit
from ..quantity import DEFAULT
from ..results import ProtocolResult, TableResult
from ..score_file import ScoreFile
from ..text_table import null_for_nan
from ..training_notes import trained_on_notes
from ..zero_shot import score_studies
from .images import ProtocolStudies, as_published, open_record
from .labels import Truth, find_list, read_truth
from .notes import calibration_notes, protocol_notes
from .schema import Prompts, Protocol
from .subgroups import compare_groups
from .summary import Thresholds, choose_thresholds, columns_of, summarize

logger = logging.get_logger(__name__)

NOT_SETTINGS = ("variants", "findings", "classes", "prompts", "published")
"""Keys of a protocol that results do not repeat under `settings`."""


@dataclass
class Evaluation:
    """
    What a run gives.

    Args:
        results: figures and what they rest on, ready for JSON, see `results.ProtocolResult`.
        truths: table -> truth of the studies that have scores.
        scores: table -> (S, M) scores of these studies.
        studies: where their images are.
        calibration: of the model; None where it has none.
    """

    results: dict
    truths: dict[str, Truth]
    scores: dict[str, np.ndarray]
    studies: ProtocolStudies
    calibration: Calibration | None = None


@dataclass
class Scored:
    """Truth of every table, the scores of the studies, and the studies."""

    truths: dict[str, Truth]
    scores: ScoreFile
    studies: ProtocolStudies


def hash_images(studies: ProtocolStudies) -> str:
    """SHA-256 of ids, and of names and sizes of image files; not of their content."""
    return hash_json([[study, studies.size_of(number)] for number, study in enumerate(studies.ids)])


def hash_truth(truths: Mapping[str, Truth]) -> str:
    """SHA-256 of ids and labels."""
    tables = [[name, truth.ids, truth.labels, truth.classes] for name, truth in sorted(truths.items())]
    return hash_json([[None if x is None else x.tolist() if hasattr(x, "tolist") else x for x in t] for t in tables])


def evaluate_protocol(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
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
    by: Sequence[str] = (),
    calibration: Calibration | str | bool | None = None,
    point: str | None = None,
) -> Evaluation:
    """
    Runs a protocol.

    Args:
        data, labels, id_column, skip_missing: see `read_truth` and `ProtocolStudies`.
        prompts: name -> prompt or prompts, instead of the protocol's.
        validation, validation_labels: data of a split that thresholds are chosen on, instead of the test labels.
        scores_file: keeps every study's scores; a run that was killed goes on from there.
        resamples, seed: of the bootstrap.
        open_study: record with `id` and `images` -> what the processor takes; `open_record` if None.
        opened_with: settings of `open_study`, which scores of a file depend on.
        num_workers: see `encode_studies`.
        trained_on: folder that tells which studies the model was trained on, and that are noted here; where it was loaded from
            if None.
        by: columns of the label table, for whose groups the headline figure is compared, see `compare_groups`.
        calibration, point: see `load_calibration`; of findings that it holds for, its error is measured.

    Raises:
        ValueError: what `load_calibration`, `read_truth` and `ProtocolStudies` raise, or no study can be read.
    """
    if validation is not None and protocol.findings is None:
        raise ValueError(f"protocol {protocol.name} chooses among classes: there are no thresholds to choose.")
    scoring: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "num_workers": num_workers}
    opening = (open_study, opened_with, id_column, skip_missing)
    scorer = make_scorer(model, processor, protocol, prompts, *opening, by=by, **scoring)
    known = load_calibration(model, processor, calibration, point, trained_on)
    scored = scorer.score(data, labels, scores_file)
    thresholds = None
    if validation is not None:
        thresholds = scorer.choose_thresholds(validation, validation_labels, scores_file)
    return _summarize_scores(scorer, scored, thresholds, resamples, seed, trained_on, known)


def make_scorer(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    protocol: Protocol,
    prompts: Mapping[str, Any] | None = None,
    open_study: Callable[[dict], Any] | None = None,
    opened_with: Mapping[str, Any] | None = None,
    id_column: str | None = None,
    skip_missing: bool = False,
    by: Sequence[str] = (),
    with_embeds: bool = False,
    **scoring: Any,
) -> ProtocolScorer:
    """A scorer by the arguments of `evaluate_protocol`; `by` and `with_embeds` as of `ProtocolScorer`."""
    return ProtocolScorer(
        model,
        processor,
        protocol,
        protocol.choose_prompts(prompts),
        open_study or partial(open_record, layout=Layout.of_processor(processor)),
        dict(opened_with or {}),
        id_column,
        skip_missing,
        scoring,
        with_embeds,
        by,
    )


def _summarize_scores(
    scorer: ProtocolScorer,
    scored: Scored,
    thresholds: Thresholds | None,
    resamples: int,
    seed: int,
    trained_on: str | os.PathLike | None,
    calibration: Calibration | None,
) -> Evaluation:
    protocol = scorer.protocol
    truths, scores, tables = {}, {}, {}
    for name, truth in scored.truths.items():
        scores[name], truths[name] = known_scores(truth, scored.scores)
        given = (protocol, scorer.prompts, scores[name], truths[name], resamples, seed, thresholds)
        tables[name] = summarize(*given, calibration)
        tables[name].left_out = truth.left_out
        tables[name].by = compare_groups(*given) if truth.groups else None
    notes = [
        *protocol_notes(protocol, thresholds, tables),
        *calibration_notes(calibration, tables, hash_images(scored.studies)),
        *trained_on_notes(scorer.model, trained_on, scored.studies.ids),
    ]
    result = ProtocolResult(
        protocol.name,
        protocol.title,
        _headline(protocol, tables),
        tables,
        scored.studies.missing,
        [{"id": study, "reason": reason} for study, reason in sorted(scored.scores.errors.items())],
        notes,
        DEFAULT,
        {
            **_describe_basis(scorer, scored),
            "calibration": None if calibration is None else calibration.describe(),
            "intervals": {"level": 0.95, "resamples": resamples, "seed": seed, "over": "studies"},
            "versions": installed_versions(),
        },
    )
    return Evaluation(null_for_nan(result.to_dict()), truths, scores, scored.studies, calibration)


def global_embeds(encoded: EncodedStudies) -> np.ndarray:
    """Global embeddings (B, P) of encoded studies, at unit length."""
    return unit(encoded.image_embeds.float().cpu().numpy())


class ProtocolScorer:
    """
    Scores the studies of a protocol, which a file keeps.

    Args:
        prompts: from `Protocol.choose_prompts`.
        open_study, opened_with, id_column, skip_missing: see `evaluate_protocol`.
        scoring: further arguments of `score_studies`.
        by: columns of the label tables whose values group the studies.
        with_embeds: put the global embedding, at unit length, behind the scores of each study.
    """

    def __init__(
        self,
        model: ItemizedCLIPModel,
        processor: ItemizedCLIPProcessor,
        protocol: Protocol,
        prompts: Prompts,
        open_study: Callable[[dict], Any],
        opened_with: dict[str, Any],
        id_column: str | None,
        skip_missing: bool,
        scoring: dict[str, Any],
        with_embeds: bool = False,
        by: Sequence[str] = (),
    ):
        require_sklearn()
        domain = model.config.domain
        if protocol.domain and domain and domain != protocol.domain:
            logger.warning(f"protocol {protocol.name} is for {protocol.domain}, the model for {domain}.")
        self.by = by
        self.model, self.processor, self.protocol, self.prompts = model, processor, protocol, prompts
        self.open_study, self.id_column, self.skip_missing, self.scoring = open_study, id_column, skip_missing, scoring
        self.columns = columns_of(protocol, prompts)
        self.about: dict[str, Any] = {
            "model": hash_model(model),
            "processor": hash_processor(processor),
            "prompts": list(self.columns.items()),
            "scans": [protocol.scan_name, protocol.array_spacing],
            "opened_with": opened_with,
            **({"embeddings": "global"} if with_embeds else {}),
        }
        if with_embeds:
            self.scoring = {**scoring, "append": (model.config.projection_dim, global_embeds)}

    def choose_thresholds(
        self, data: str | os.PathLike, labels: str | None, scores_file: str | os.PathLike | None
    ) -> Thresholds:
        """Those of a validation split, whose scores are kept beside `scores_file`."""
        file = None if scores_file is None else Path(scores_file).with_suffix(".validation.jsonl")
        split = self.score(data, labels, file, by=())
        scores, truth = known_scores(next(iter(split.truths.values())), split.scores)
        return choose_thresholds(self.protocol, self.prompts, scores, truth)

    def score(
        self,
        data: str | os.PathLike,
        labels: Mapping[str, str] | str | None,
        file: str | os.PathLike | None,
        by: Sequence[str] | None = None,
    ) -> Scored:
        """
        Reads the label tables, finds the images and scores what the file does not hold yet.

        Raises:
            ValueError: no study can be scored.
        """
        check_prepared(data, self.processor.image_processor)
        truths = read_truth(self.protocol, data, labels, self.id_column, self.by if by is None else by)
        ids = list(dict.fromkeys(study for truth in truths.values() for study in truth.ids))
        studies = ProtocolStudies(find_list(self.protocol, data), ids, self.skip_missing, self.id_column)
        scores = ScoreFile(file, {**self.about, "images": hash_images(studies)})
        self._score_missing(studies, scores)
        if not scores.scores:
            tried = "; ".join(f"{study}: {reason}" for study, reason in list(scores.errors.items())[:3])
            raise ValueError(f"none of the {len(studies)} studies of {data} can be scored: {tried}")
        return Scored(truths, scores, studies)

    def _score_missing(self, studies: ProtocolStudies, scores: ScoreFile) -> None:
        left = [number for number, study in enumerate(studies.ids) if study not in scores]
        names = [studies.ids[number] for number in left]
        if not left:
            return

        def open_one(number: int):
            return as_published(self.protocol, self.open_study(studies[number]))

        def on_scores(number: int, row: np.ndarray) -> None:
            if np.isnan(row).any():
                scores.refuse(names[number], ValueError("the model gave scores that are not numbers"))
            else:
                scores.add(names[number], row)

        score_studies(
            self.model,
            self.processor,
            [Closed(partial(open_one, number)) for number in left],
            self.columns,
            **self.scoring,
            on_error=lambda number, error: scores.refuse(names[number], error),
            on_bad_scan=lambda number, scan, error: logger.warning(f"{names[number]}, scan {scan} left out: {error}"),
            on_scores=on_scores,
        )


def known_scores(truth: Truth, scores: ScoreFile) -> tuple[np.ndarray, Truth]:
    """Scores and truth of the studies that have both."""
    rows = [number for number, study in enumerate(truth.ids) if study in scores.scores]
    if not rows:
        raise ValueError("none of the studies of this label table has scores.")
    known = truth.of_rows(rows)
    return np.stack([scores.scores[study] for study in known.ids]), known


def _headline(protocol: Protocol, tables: Mapping[str, TableResult]) -> tuple[str, Estimate]:
    """The estimate that stands for all; of several tables their mean, whose interval is not known."""
    metric = str(protocol.headline)
    name = f"mean {metric}" if protocol.findings is not None or protocol.tasks else metric
    estimates = [table.mean.get(metric, boot.estimate(float("nan"), None, metric)) for table in tables.values()]
    if len(estimates) == 1:
        return name, estimates[0]
    mean = float(np.mean([estimate.value for estimate in estimates]))
    return f"{name} over {', '.join(tables)}", boot.estimate(mean, None, metric)


def _describe_basis(scorer: ProtocolScorer, scored: Scored) -> dict[str, Any]:
    """Model, processor, data, prompts and settings that the figures rest on."""
    return {
        **describe_model(scorer.model, scorer.about["model"], scorer.about["processor"]),
        "data": {
            "studies": len(scored.studies),
            "sha256": hash_images(scored.studies),
            "labels_sha256": hash_truth(scored.truths),
        },
        "prompts": scorer.prompts,
        "settings": {key: value for key, value in asdict(scorer.protocol).items() if key not in NOT_SETTINGS},
    }
