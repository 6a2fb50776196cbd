"""Scores of `predict`: as they come, in a file that a stopped run goes on with; as a table; against labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from itemized_clip_hf.cli._studies import Inputs, Opener, OpenOneByOne
from itemized_clip_hf.data.files import whole_file
from itemized_clip_hf.data.tables import write_csv
from itemized_clip_hf.data.truth_values import read_truth_value
from itemized_clip_hf.evaluation.calibration import far_note
from itemized_clip_hf.evaluation.label_scores import apply_function, score_labels
from itemized_clip_hf.evaluation.metrics import auroc, classification_summary
from itemized_clip_hf.evaluation.probabilities import choose_quantity
from itemized_clip_hf.evaluation.quantity import DEFAULT, convert, describe, normalizes_pool_inputs
from itemized_clip_hf.evaluation.score_file import ScoreFile
from itemized_clip_hf.evaluation.text_table import format_table
from itemized_clip_hf.evaluation.zero_shot import match_class, score_studies
from itemized_clip_hf.models.precision import describe_precision, working_precision
from itemized_clip_hf.provenance import hash_json, hash_model, hash_processor

if TYPE_CHECKING:
    from itemized_clip_hf.evaluation.calibration import Calibration, Judgment
    from itemized_clip_hf.modeling.classification_itemized_clip import ItemizedCLIPForImageClassification
    from itemized_clip_hf.modeling.modeling_itemized_clip import ItemizedCLIPModel
    from itemized_clip_hf.processing.processing_itemized_clip import ItemizedCLIPProcessor


MOST_COLUMNS = 10
"""Studies side by side; more get a line each."""

FIRST_COLUMNS = ("id", "path", "quantity")
"""Of the CSV file, before one column a label."""


class Scoring:
    """
    Scores of all studies of the inputs.

    Similarities are kept beside the CSV file while they are made, whatever is written of them in the end, so that no file mixes
    quantities.

    Args:
        prompts: label -> prompts, whose embeddings are averaged.
        target: CSV file; nothing is kept if it is None.
        quantity: what is written, see `evaluation.quantity`.
        precision: as in `models.precision`.
        num_workers: threads that read ahead.
        calibration: what similarities are worth; other quantities are uncalibrated.
    """

    def __init__(
        self,
        model: ItemizedCLIPModel,
        processor: ItemizedCLIPProcessor,
        records: Inputs,
        prompts: dict,
        opener: Opener,
        target: Path | None,
        quantity: str = DEFAULT,
        precision: str = "auto",
        num_workers: int = 0,
        calibration: Calibration | None = None,
    ):
        self.said, quantity = choose_quantity(calibration, prompts, quantity)
        self.model, self.processor, self.prompts, self.opener = model, processor, prompts, opener
        self.records, self.quantity, self.precision, self.num_workers = records, quantity, precision, num_workers
        self.labels = list(prompts)
        self.seen: list[dict] = []
        described: dict = {}
        if target is not None:
            columns = [*FIRST_COLUMNS, *self.said.columns]
            if taken := [label for label in self.labels if label in columns]:
                raise ValueError(
                    f"{target.name} has columns {', '.join(columns)}: call the label {taken[0]!r} otherwise."
                )
            described = {
                "model": hash_model(model),
                "processor": hash_processor(processor),
                "prompts": list(prompts.items()),
                "studies": hash_json(records.fingerprint()),
                "opened_with": opener.settings(),
                # What is left as it always was is not named: the files of earlier versions go on.
                **({} if normalizes_pool_inputs(quantity) else {"pool_inputs": "not normalized"}),
                **({"precision": "bf16"} if precision == "bf16" else {}),
                **self.said.stated(),
            }
        self.kept = ScoreFile(None if target is None else target.with_name(f"{target.name}.scores.jsonl"), described)

    def run(self, batch_size: int, progress: bool) -> None:
        """Scores what has no scores yet."""
        studies = OpenOneByOne(self.records, self.opener, self.kept.scores)
        names, self.seen = studies.names, studies.seen

        def on_error(number: int, error: Exception):
            self.kept.refuse(names[number], error)
            click.echo(f"{names[number]}: {error}", err=True)

        def on_scores(number: int, row: np.ndarray):
            if np.isnan(row).any():
                on_error(number, ValueError("the model gave scores that are not numbers: its weights are damaged."))
            else:
                self.kept.add(names[number], row)

        with working_precision(self.model, self.precision):
            self.score(
                studies,
                batch_size=batch_size,
                progress=progress,
                on_error=on_error,
                on_bad_scan=lambda number, scan, error: click.echo(
                    f"{names[number]}, scan {scan} left out: {error}", err=True
                ),
                on_scores=on_scores,
                num_workers=self.num_workers,
            )

    def score(self, studies: OpenOneByOne, **settings: Any) -> None:
        """Similarities of the studies, which the callbacks among the settings get."""
        pool = normalizes_pool_inputs(self.quantity)
        more = self.said.append()
        score_studies(
            self.model, self.processor, studies, self.prompts, normalize_pool_inputs=pool, append=more, **settings
        )

    def similarities(self) -> np.ndarray:
        """(S, M) in the order of the inputs, NaN where there are none."""
        return self._kept_rows()[:, : len(self.labels)]

    def percentiles(self) -> list[float | None]:
        """How far every study lies from those of the calibration, in percent of these; None where that is not known."""
        if self.said.append() is None:
            return [None] * len(self.records)
        return [None if np.isnan(value) else float(value) for value in self._kept_rows()[:, len(self.labels)]]

    def _kept_rows(self) -> np.ndarray:
        """What the file holds of each study, (S, M) or (S, M + 1), NaN where there is nothing."""
        nothing = np.full(len(self.labels) + (self.said.append() is not None), np.nan, dtype=np.float32)
        return np.stack([self.kept.scores.get(name, nothing) for name in self.records.ids])

    def probabilities(self) -> list[dict[str, Judgment]]:
        """Of every study label -> probability with interval, and yes or no; empty where there is none."""
        return self.said.of(self.similarities())

    def table(self) -> np.ndarray:
        """(S, M) of the quantity that is written, in the order of the inputs, NaN where there are none."""
        if self.quantity == "probability":
            return self.said.table(self.probabilities())
        return convert(self.model, self.similarities(), self.quantity)

    def describe(self) -> str:
        """What the scores are, for people."""
        most = max(map(len, self.prompts.values()))
        about = f"{describe(self.quantity, most)}. Model in {describe_precision(self.model, self.precision)}."
        return f"{about}\n{self.said.describe()}"

    def as_json(self) -> dict:
        """What the scores are, and `results`: `{"id", "path", "scores"}` or `{"id", "path", "error"}` of every study."""
        facts: dict[str, Any] = {"quantity": self.quantity, "precision": describe_precision(self.model, self.precision)}
        several = {label: len(texts) for label, texts in self.prompts.items() if len(texts) > 1}
        if several:
            facts |= {"prompts_averaged": several, "averaged": "embeddings"}
        facts |= self.said.facts()
        known = zip(
            self.records.ids, self.records.paths, self.table().tolist(), self.probabilities(), self.percentiles()
        )
        results = [
            {"id": name, "path": path, "scores": dict(zip(self.labels, row)), **self.said.as_json(own, far)}
            if name in self.kept
            else {"id": name, "path": path, "error": self.kept.errors.get(name, "")}
            for name, path, row, own, far in known
        ]
        return {**facts, "results": results}

    def write(self, target: Path) -> None:
        """The CSV file; the scores beside it are then not needed any more."""
        known = zip(
            self.records.ids, self.records.paths, self.table().tolist(), self.probabilities(), self.percentiles()
        )
        rows = [[name, path, self.quantity, *row, *self.said.cells(own, far)] for name, path, row, own, far in known]
        with whole_file(target) as temporary:
            write_csv(temporary, [[*FIRST_COLUMNS, *self.labels, *self.said.columns], *rows])
        if self.kept.path is not None:
            self.kept.path.unlink(missing_ok=True)


class LabelScoring(Scoring):
    """
    Scores of a classifier's own labels; what is kept beside the CSV file are its logits.

    Args:
        model: [`ItemizedCLIPForImageClassification`].
        quantity: `"logit"`, or `"sigmoid"` or `"softmax"` as the classifier has it.
        others: of `Scoring`.
    """

    def __init__(self, model: ItemizedCLIPForImageClassification, *args: Any, **others: Any):
        self.classifier = model
        super().__init__(model, *args, prompts={name: [name] for name in model.label_names}, **others)  # type: ignore[arg-type, misc]

    def score(self, studies: OpenOneByOne, **settings: Any) -> None:
        """Logits of the studies, which the callbacks among the settings get."""
        score_labels(self.classifier, self.processor, studies, **settings)

    def table(self) -> np.ndarray:
        """(S, F) of the quantity that is written, in the order of the inputs, NaN where there are none."""
        return apply_function(self.similarities(), "none" if self.quantity == "logit" else self.quantity)

    def describe(self) -> str:
        """What the scores are, for people."""
        meaning = "logit of the classifier"
        if self.quantity != "logit":
            meaning = f"{self.quantity} of the classifier's logits, uncalibrated: not a probability"
        return f"{self.quantity}: {meaning}. Model in {describe_precision(self.model, self.precision)}."


def print_scores(scoring: Scoring, metrics: dict, output: str | None) -> None:
    ids, labels = scoring.records.ids, scoring.labels
    scores = [[_show(value, scoring.quantity) for value in row] for row in scoring.table().tolist()]
    if len(ids) <= MOST_COLUMNS:
        rows = [[label, *(row[j] for row in scores)] for j, label in enumerate(labels)]
        click.echo(format_table(["prompt", *ids], rows))
    elif output:
        click.echo(f"{len(ids)} studies scored: {output}")
    else:
        click.echo(format_table(["study", *labels], [[name, *row] for name, row in zip(ids, scores)]))
    print_probabilities(scoring)
    click.echo(scoring.describe())
    if metrics:
        click.echo(format_table(["metric", "value"], [[name, value] for name, value in metrics.items()]))


def _show(value: float, quantity: str) -> str:
    """Four digits behind the point; of probabilities, which may be tiny, three that count."""
    return f"{value:.4f}" if quantity in ("similarity", "logit") else f"{value:.3g}"


def print_probabilities(scoring: Scoring) -> None:
    """A table of probabilities where there are any."""
    ids, judged = scoring.records.ids, scoring.probabilities()
    labels = scoring.said.labels
    if labels and len(ids) <= MOST_COLUMNS:
        rows = [[label, *(str(own[label]) if own else "-" for own in judged)] for label in labels]
        click.echo(format_table(["probability", *ids], rows))
    elif labels:
        click.echo(f"probabilities of {len(labels)} labels: in the CSV file (-o) or --json")


def warn_of_far(scoring: Scoring) -> None:
    """Warns of every study that lies far from those of the calibration."""
    for name, percentile in zip(scoring.records.ids, scoring.percentiles()):
        if percentile is not None and (note := far_note(name, percentile)) is not None:
            click.echo(note, err=True)


def label_metrics(
    records: list[dict], labels: list[str], scores: np.ndarray
) -> tuple[dict[str, float | None], list[str]]:
    """
    AUC of every finding, or top-1, top-5 and mean rank where each study has one class, and what was left out of them.

    Args:
        records: studies with `labels` (finding -> truth value, unknown where there is none) or `label` (a class).
        labels: findings or classes that were scored.
        scores: (S, M), NaN where a study has none.

    Raises:
        ValueError: a label is no truth value.
    """
    seen = ~np.isnan(scores).any(axis=1)
    if any(isinstance(record.get("labels"), dict) for record in records):
        return _finding_metrics(records, labels, scores, seen)
    if not any(isinstance(record.get("label"), str) for record in records):
        return {}, []
    classes = [
        match_class(str(record.get("label") or ""), labels) if record.get("label") else None for record in records
    ]
    known = [i for i, name in enumerate(classes) if seen[i] and name is not None]
    if not known:
        return {}, []
    summary = classification_summary(scores[known], [labels.index(str(classes[i])) for i in known])
    return {"studies": len(known), "left out (class without a prompt)": int(seen.sum()) - len(known), **summary}, []


def unread_labels(records: Inputs, labels: list[str]) -> list[str]:
    """Columns of the inputs that are called like what is scored, and cannot be taken for labels; why, for people."""
    return [
        f"{path.name}: the column {label!r} holds no labels: {source.nearly_labels[label]} of {len(source)} are not truth "
        "values"
        for path, source in zip(records.inputs, records.sources)
        for label in labels
        if label in source.nearly_labels
    ]


def _finding_metrics(
    records: list[dict], labels: list[str], scores: np.ndarray, seen: np.ndarray
) -> tuple[dict[str, float | None], list[str]]:
    aucs: dict[str, float | None] = {}
    notes = []
    for place, label in enumerate(labels):
        own = [record.get("labels") or {} for record in records]
        if not any(label in one for one in own):
            continue
        truths = [
            read_truth_value(one.get(label), f"{record['id']}: the label {label!r}")
            for one, record in zip(own, records)
        ]
        known = [number for number, truth in enumerate(truths) if truth is not None and seen[number]]
        if len(known) < seen.sum():
            notes.append(
                f"AUC {label}: {int(seen.sum()) - len(known)} of {seen.sum()} studies left out, their label is unknown"
            )
        value = auroc([bool(truths[number]) for number in known], scores[known, place]) if known else math.nan
        if math.isnan(value):
            notes.append(f"AUC {label}: none, its known labels are not of both kinds")
        aucs[f"AUC {label}"] = None if math.isnan(value) else value
    found = [value for value in aucs.values() if value is not None]
    return ({**aucs, "AUC mean": float(np.mean(found)) if found else None} if aucs else {}), notes
