"""Calibrate a model on the studies of a protocol: a validation split, never the studies that it is then evaluated on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..provenance import installed_versions
from . import bootstrap as boot
from .calibration import CalibratedFinding, Calibration
from .operating_points import DEFAULT_POINTS, check_point, choose_points
from .outliers import Distance
from .protocols.labels import Truth
from .protocols.run import Scored, hash_images, hash_truth, known_scores, make_scorer
from .protocols.schema import Protocol, require_findings
from .protocols.summary import choose_prompt, scores_by_finding
from .scaling import MIN_CLASS, choose_scaling
from .training_notes import trained_on_notes


@dataclass
class Calibrated:
    """
    A calibration, and what else is to be said.

    Args:
        missing: ids of studies that have no images.
        unreadable: `{"id", "reason"}` of studies that could not be read.
        notes: sentences for people.
    """

    calibration: Calibration
    missing: list[str]
    unreadable: list[dict[str, str]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        findings = {
            name: {part: value for part, value in finding.to_dict().items() if part not in _LONG}
            for name, finding in self.calibration.findings.items()
        }
        return {
            **self.calibration.describe(),
            "findings": findings,
            "distance": self.calibration.distance is not None,
            "missing": self.missing,
            "unreadable": self.unreadable,
            "notes": self.notes,
        }


_LONG = ("refits", "knots", "probabilities", "low", "high")


def calibrate(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    protocol: Protocol,
    data: str | os.PathLike,
    labels: Mapping[str, str] | str | None = None,
    points: Sequence[str] = DEFAULT_POINTS,
    point: str | None = None,
    scores_file: str | os.PathLike | None = None,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    trained_on: str | os.PathLike | None = None,
    **scoring: Any,
) -> Calibrated:
    """
    Calibrates every finding of a protocol; `calibration.save(folder)` keeps it beside the model.

    Args:
        data, labels, scores_file, seed, trained_on: see `evaluate_protocol`; validation studies.
        points: names of operating points, see `check_point`.
        point: of these the one that says yes or no; the first if None.
        resamples: of the operating points' intervals.
        scoring: `prompts`, `id_column`, `skip_missing`, `batch_size`, `progress`, `open_study`, `opened_with` and
            `num_workers` of `evaluate_protocol`.

    Raises:
        ValueError: the protocol chooses among classes or has several label tables, there is no such operating point, no finding
            has enough studies, or no study can be read.
    """
    names = list(dict.fromkeys(check_point(name) for name in points))
    point = check_point(point) if point is not None else names[0]
    names = [*names, *([] if point in names else [point])]
    require_findings(protocol)
    scorer = make_scorer(model, processor, protocol, with_embeds=True, **scoring)
    scored = scorer.score(data, labels, scores_file)
    if len(scored.truths) != 1:
        raise ValueError(
            f"protocol {protocol.name} has the label tables {sorted(scored.truths)}: pass one, --labels FILE."
        )
    rows, truth = known_scores(next(iter(scored.truths.values())), scored.scores)
    width = len(scorer.columns)
    findings = fit_findings(protocol, scorer.prompts, rows[:, :width], truth, names, resamples, seed)
    calibration = Calibration(
        scorer.about["model"],
        scorer.about["processor"],
        protocol.name,
        protocol.title,
        _describe_data(scored, truth),
        findings,
        point,
        Distance.fit(rows[:, width:], seed),
        installed_versions(),
    )
    unreadable = [{"id": study, "reason": reason} for study, reason in sorted(scored.scores.errors.items())]
    notes = _notes(calibration) + trained_on_notes(model, trained_on, scored.studies.ids)
    return Calibrated(calibration, scored.studies.missing, unreadable, notes)


def fit_findings(
    protocol: Protocol,
    prompts: Mapping[str, list[str]],
    scores: np.ndarray,
    truth: Truth,
    points: Sequence[str] = DEFAULT_POINTS,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
) -> dict[str, CalibratedFinding]:
    """
    Every finding calibrated on the studies whose label of it is known; where the best of several prompts counts, that one.

    Args:
        scores: (S, M) as of `summarize`.

    Raises:
        ValueError: no finding has enough positives and negatives.
    """
    findings = {}
    for name, labels, columns, _ in scores_by_finding(protocol, dict(prompts), scores, truth):
        best = choose_prompt(labels, columns)
        own, positive = columns[:, best], int(labels.sum())
        texts = [prompts[name][best]] if protocol.best_prompt else list(prompts[name])
        finding = CalibratedFinding(texts, positive, len(labels) - positive, len(scores) - len(labels))
        finding.scaling, finding.reason, finding.log_loss = choose_scaling(labels, own, seed=seed)
        if min(positive, len(labels) - positive) >= MIN_CLASS:
            counts = boot.study_counts(len(labels), resamples, seed)
            finding.points = {one.name: one for one in choose_points(labels, own, points, counts)}
        findings[name] = finding
    if all(finding.scaling is None for finding in findings.values()):
        reasons = "; ".join(f"{name}: {finding.reason}" for name, finding in list(findings.items())[:3])
        raise ValueError(f"no finding can be calibrated: {reasons}.")
    return findings


def _describe_data(scored: Scored, truth: Truth) -> dict[str, Any]:
    return {
        "studies": len(truth.ids),
        "sha256": hash_images(scored.studies),
        "labels_sha256": hash_truth({"": truth}),
    }


def _notes(calibration: Calibration) -> list[str]:
    notes = [
        "Probabilities hold for studies like these, with the same share of positives. Operating points were chosen on them: "
        "their sensitivity and specificity are a little too good; `itemized-clip evaluate` on other studies tells."
    ]
    if calibration.distance is None:
        notes.append("Too few studies to tell which others lie far from them.")
    return notes
