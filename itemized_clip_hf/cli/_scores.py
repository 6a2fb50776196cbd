"""Scores of `predict`: as they come, in a file that a stopped run goes on with; as a table; against labels."""

import math
from pathlib import Path

import click
import numpy as np

from itemized_clip_hf.cli._studies import Inputs, Opener, OpenOneByOne
from itemized_clip_hf.data.files import whole_file
from itemized_clip_hf.data.tables import write_csv
from itemized_clip_hf.data.truth_values import read_truth_value
from itemized_clip_hf.evaluation.evaluate import hash_model, hash_processor, hash_text
from itemized_clip_hf.evaluation.metrics import auroc, classification_summary
from itemized_clip_hf.evaluation.score_file import ScoreFile
from itemized_clip_hf.evaluation.text_table import format_table
from itemized_clip_hf.evaluation.zero_shot import match_class, score_studies

MOST_COLUMNS = 10
"""Studies side by side; more get a line each."""


class Scoring:
    """
    Scores of all studies of the inputs.

    Args:
        target: CSV file; scores are kept beside it while they are made, and nowhere if it is None.
    """

    def __init__(self, model, processor, records: Inputs, prompts: dict, opener: Opener, target: Path | None):
        self.model, self.processor, self.prompts, self.opener = model, processor, prompts, opener
        self.records = records
        self.labels = list(prompts)
        self.seen: list[dict] = []
        described = {}
        if target is not None:
            described = {
                "model": hash_model(model),
                "processor": hash_processor(processor),
                "prompts": list(prompts.items()),
                "studies": hash_text(records.fingerprint()),
                "opened_with": {"volume_index": opener.volume_index, "accept": sorted(opener.accept)},
            }
        self.kept = ScoreFile(None if target is None else target.with_name(f"{target.name}.scores.jsonl"), described)

    def run(self, batch_size: int, progress: bool) -> None:
        """Scores what has no scores yet."""
        studies = OpenOneByOne(self.records, self.opener, self.kept.scores)
        names, self.seen = studies.names, studies.seen

        def on_error(number, error):
            self.kept.refuse(names[number], error)
            click.echo(f"{names[number]}: {error}", err=True)

        def on_scores(number, row):
            if np.isnan(row).any():
                on_error(number, ValueError("the model gave scores that are not numbers: its weights are damaged."))
            else:
                self.kept.add(names[number], row)

        score_studies(
            self.model,
            self.processor,
            studies,
            self.prompts,
            batch_size=batch_size,
            progress=progress,
            on_error=on_error,
            on_bad_scan=lambda number, scan, error: click.echo(
                f"{names[number]}, scan {scan} left out: {error}", err=True
            ),
            on_scores=on_scores,
        )

    def table(self) -> np.ndarray:
        """(S, M) scores in the order of the inputs, NaN where there are none."""
        nothing = np.full(len(self.labels), np.nan, dtype=np.float32)
        return np.stack([self.kept.scores.get(name, nothing) for name in self.records.ids])

    def as_rows(self) -> list[dict]:
        """`{"id", "scores"}` or `{"id", "error"}` of every study."""
        return [
            {"id": name, "scores": dict(zip(self.labels, self.kept.scores[name].tolist()))}
            if name in self.kept
            else {"id": name, "error": self.kept.errors.get(name, "")}
            for name in self.records.ids
        ]

    def write(self, target: Path) -> None:
        """The CSV file; the scores beside it are then not needed any more."""
        rows = [[name, *row] for name, row in zip(self.records.ids, self.table().tolist())]
        with whole_file(target) as temporary:
            write_csv(temporary, [["id", *self.labels], *rows])
        if self.kept.path is not None:
            self.kept.path.unlink(missing_ok=True)


def print_scores(scoring: Scoring, metrics: dict, output: str | None) -> None:
    ids, scores, labels = scoring.records.ids, scoring.table(), scoring.labels
    if len(ids) <= MOST_COLUMNS:
        rows = [[label, *(float(row[j]) for row in scores)] for j, label in enumerate(labels)]
        click.echo(format_table(["prompt", *ids], rows))
    elif output:
        click.echo(f"{len(ids)} studies scored: {output}")
    else:
        click.echo(format_table(["study", *labels], [[name, *map(float, row)] for name, row in zip(ids, scores)]))
    if metrics:
        click.echo(format_table(["metric", "value"], [[name, value] for name, value in metrics.items()]))


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


def _finding_metrics(records, labels, scores, seen) -> tuple[dict[str, float | None], list[str]]:
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
