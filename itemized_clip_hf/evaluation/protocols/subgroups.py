"""For whom a model works less well: its headline figure in every group of a label table's column, and the largest gap."""

from __future__ import annotations

import numpy as np

from .. import bootstrap as boot
from ..estimates import Estimate, unit_of
from ..results import GroupResult, Subgroups
from .labels import Truth
from .schema import Prompts, Protocol
from .summary import Thresholds, summarize_drawn

MIN_GROUP = 20
"""Studies from which a group counts for the gap; smaller ones are shown and marked."""
MIN_OF_KIND = 5
"""Positives, and negatives, that every counted group needs of a finding, for the finding to count."""


def compare_groups(
    protocol: Protocol,
    prompts: Prompts,
    scores: np.ndarray,
    truth: Truth,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    thresholds: Thresholds | None = None,
) -> dict[str, Subgroups]:
    """
    Column of `truth.groups` -> its groups and their largest gap.

    Of findings those count that every counted group has 5 positives and 5 negatives of, so that groups are compared by the same
    findings. A gap is the difference between two groups, the higher one first. Its interval holds for all pairs of groups at
    once (the 95 % quantile of the largest deviation of any pair, in its standard errors), since the pair is chosen by the
    result: with two groups it is the ordinary one, with more it is wider.

    Args:
        thresholds, others: as of `summarize`.
    """
    counts = boot.study_counts(len(scores), resamples, seed)
    return {
        column: _compare(protocol, prompts, scores, truth, np.asarray(values), counts, thresholds)
        for column, values in truth.groups.items()
    }


def _compare(
    protocol: Protocol,
    prompts: Prompts,
    scores: np.ndarray,
    truth: Truth,
    values: np.ndarray,
    counts: np.ndarray | None,
    thresholds: Thresholds | None,
) -> Subgroups:
    metric = str(protocol.headline)
    names, sizes = np.unique(values, return_counts=True)
    counted = [str(name) for name, size in zip(names, sizes) if size >= MIN_GROUP]
    compared = _common_findings(truth, values, counted)
    groups, drawn = {}, {}
    for name in map(str, names):
        rows = values == name
        own = Truth([study for study, inside in zip(truth.ids, rows) if inside])
        own.labels = (
            None if truth.labels is None or compared is None else np.where(compared, truth.labels[rows], np.nan)
        )
        own.classes = None if truth.classes is None else truth.classes[rows]
        own_counts = None if counts is None else counts[:, rows]
        table, means = summarize_drawn(protocol, prompts, scores[rows], own, own_counts, thresholds)
        estimate = table.mean.get(metric, Estimate(float("nan"), unit=unit_of(metric), count=int(rows.sum())))
        groups[name] = GroupResult(int(rows.sum()), estimate, name not in counted)
        if name in counted and estimate.is_known:
            drawn[name] = estimate.value, means.get(metric)
    left_out = [] if compared is None else [name for name, keep in zip(protocol.names, compared) if not keep]
    return Subgroups(metric, groups, *largest_gap(drawn, metric), left_out)


def _common_findings(truth: Truth, values: np.ndarray, counted: list[str]) -> np.ndarray | None:
    """Which findings (F,) every counted group has enough positives and negatives of; None of classes."""
    if truth.labels is None:
        return None
    enough = np.ones(truth.labels.shape[1], dtype=bool)
    for name in counted:
        labels = truth.labels[values == name]
        enough &= ((labels == 1).sum(0) >= MIN_OF_KIND) & ((labels == 0).sum(0) >= MIN_OF_KIND)
    return enough


def largest_gap(
    groups: dict[str, tuple[float, np.ndarray | None]], metric: str = ""
) -> tuple[Estimate | None, tuple[str, str] | None]:
    """
    The largest difference between two groups, with its interval, and which they are, the higher figure first.

    Args:
        groups: name -> figure, and the same in every resample (R,).
    """
    if len(groups) < 2:
        return None, None
    names = sorted(groups, key=lambda name: -groups[name][0])
    first, last = names[0], names[-1]
    value = groups[first][0] - groups[last][0]
    if any(drawn is None for _, drawn in groups.values()):
        return Estimate(value, unit=unit_of(metric)), (first, last)
    deviations, errors = [], {}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            difference = np.asarray(groups[one][1]) - np.asarray(groups[other][1])
            error = float(np.nanstd(difference, ddof=1)) or 1e-12
            errors[one, other] = error
            deviations.append(np.abs(difference - (groups[one][0] - groups[other][0])) / error)
    largest = np.stack(deviations).max(0)
    half = float(np.quantile(largest[~np.isnan(largest)], 0.95)) * errors[first, last]
    return Estimate(value, value - half, value + half, unit_of(metric)), (first, last)
