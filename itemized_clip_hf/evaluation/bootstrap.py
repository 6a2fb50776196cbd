"""Confidence intervals over studies: percentile bootstrap, many resamples at once."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .estimates import Estimate, unit_of

RESAMPLES = 1000
BLOCK = 50
"""Resamples that are computed at once."""


def draw_counts(num_studies: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often every study is drawn in each resample, (R, S); every row sums to S."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_studies, 1 / num_studies)
    blocks = [generator.multinomial(num_studies, shares, size=n).astype(np.int32) for n in _blocks(resamples)]
    return np.concatenate(blocks) if blocks else np.zeros((0, num_studies), dtype=np.int32)


def _blocks(resamples: int) -> list[int]:
    return [min(BLOCK, resamples - start) for start in range(0, resamples, BLOCK)]


def _by_block(compute: Callable[[np.ndarray], Any], counts: np.ndarray):
    """Resamples in blocks, so that what is made of them on the way stays small."""
    parts = [compute(counts[start : start + BLOCK]) for start in range(0, len(counts), BLOCK)]
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """
    The middle `level` of the resampled values (R,), NaN left out: those of resamples without a class.

    >>> low, high = interval(np.arange(1001))
    >>> round(low, 6), round(high, 6)
    (25.0, 975.0)
    """
    drawn = np.asarray(values, dtype=float)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def study_counts(num_studies: int, resamples: int, seed: int) -> np.ndarray | None:
    """`draw_counts`; None where there is nothing to resample: none are wanted, or there is one study."""
    return draw_counts(num_studies, resamples, seed) if resamples and num_studies > 1 else None


def estimate(value: float, resampled: ArrayLike | None, metric: str = "", count: int | None = None) -> Estimate:
    """
    The value with the 95 % interval of the resampled values (R,), where there are any.

    Args:
        metric: its name, which tells the unit.
        count: studies that it rests on.
    """
    low, high = (None, None) if resampled is None else interval(resampled)
    return Estimate(float(value), low, high, unit_of(metric), count)


def mean_estimate(values: ArrayLike, counts: np.ndarray | None, metric: str = "") -> Estimate:
    """The mean of one value per study; studies without it (NaN) are left out."""
    known = np.asarray(values, dtype=float)
    mean = float(np.nanmean(known)) if not np.isnan(known).all() else float("nan")
    resampled = None if counts is None else resampled_mean(known, counts)
    return estimate(mean, resampled, metric, int((~np.isnan(known)).sum()))


def bootstrap(
    metric: Callable[[np.ndarray], Mapping[str, float]], counts: np.ndarray, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """
    Intervals of any metric.

    Args:
        metric: from study numbers, with repeats, to named figures.
        counts: from `draw_counts`.

    >>> ages = np.arange(40)
    >>> intervals = bootstrap(lambda studies: {"mean age": ages[studies].mean()}, draw_counts(40, resamples=200))
    >>> low, high = intervals["mean age"]
    >>> 14 < low < ages.mean() < high < 25
    True
    """
    drawn: dict[str, list[float]] = {}
    for row in counts:
        for name, value in metric(np.repeat(np.arange(len(row)), row)).items():
            drawn.setdefault(name, []).append(value)
    return {name: interval(values, level) for name, values in drawn.items()}


def resampled_mean(values: ArrayLike, counts: np.ndarray) -> np.ndarray:
    """Mean of one figure per study in every resample, (R,); studies without the figure (NaN) are left out."""
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return counts[:, known] @ values[known] / counts[:, known].sum(1)


def resampled_auroc(labels: ArrayLike, scores: ArrayLike, counts: np.ndarray) -> np.ndarray:
    """AUROC of every resample, (R,): the share of (positive, negative) pairs in the right order, ties by half."""

    def compute(block: np.ndarray):
        positive, negative = _sorted_weights(labels, scores, block)
        below = np.cumsum(negative, 1) - negative
        wins = (positive * (below + negative / 2)).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return wins / (positive.sum(1) * negative.sum(1))

    return _by_block(compute, counts)


def resampled_average_precision(labels: ArrayLike, scores: ArrayLike, counts: np.ndarray) -> np.ndarray:
    """Average precision of every resample, (R,)."""

    def compute(block: np.ndarray):
        positive, negative = _sorted_weights(labels, -np.asarray(scores), block)
        hits = np.cumsum(positive, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(positive > 0, hits / np.maximum(hits + np.cumsum(negative, 1), 1), 0)
            return (positive * precision).sum(1) / positive.sum(1)

    return _by_block(compute, counts)


def resampled_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, counts: np.ndarray, num_bins: int = 10
) -> np.ndarray:
    """
    `metrics.expected_calibration_error` of every resample, (R,), less what resampling adds to it on average: resamples are
    noisier than the studies, and the error of noise is never negative. Not below 0.
    """
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    bins = np.clip((probabilities * num_bins).astype(int), 0, num_bins - 1)
    rest = (probabilities - labels)[:, None] * np.eye(num_bins)[bins]
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.abs(counts @ rest).sum(1) / counts.sum(1)
    return np.maximum(drawn - (np.nanmean(drawn) - np.abs(rest.sum(0)).sum() / len(labels)), 0)


def _sorted_weights(labels: ArrayLike, scores: ArrayLike, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drawn positives and negatives at each distinct score, ascending: (R, V)."""
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    if not len(scores):
        return np.zeros((len(counts), 1)), np.zeros((len(counts), 1))
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) != 0]))
    drawn = counts[:, order].astype(np.float64)
    truth = labels[order]
    return np.add.reduceat(drawn * truth, starts, 1), np.add.reduceat(drawn * ~truth, starts, 1)


def resampled_threshold_metrics(
    labels: ArrayLike, scores: ArrayLike, counts: np.ndarray, thresholds: ArrayLike, choose: bool = True
) -> dict[str, np.ndarray]:
    """
    `metrics.threshold_metrics` of every resample, (R,) each.

    Args:
        thresholds: ascending candidates.
        choose: pick the one next to the ROC corner in every resample anew, the largest among equals; False: there is one.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    thresholds = np.atleast_1d(np.asarray(thresholds))
    return _by_block(lambda block: _threshold_block(labels, scores, block, thresholds, choose), counts)


def _threshold_block(
    labels: np.ndarray, scores: np.ndarray, counts: np.ndarray, thresholds: np.ndarray, choose: bool
) -> dict[str, np.ndarray]:
    cells = []
    for own in (labels, ~labels):
        order = np.argsort(scores[own], kind="stable")
        drawn = counts[:, own][:, order]
        upto = np.concatenate([np.zeros((len(counts), 1), dtype=drawn.dtype), np.cumsum(drawn, 1)], 1)
        cells.append(
            (upto[:, -1:] - upto[:, np.searchsorted(scores[own][order], thresholds, side="right")], upto[:, -1])
        )
    (hits, positives), (alarms, negatives) = cells
    place = np.zeros(len(counts), dtype=int)
    with np.errstate(invalid="ignore", divide="ignore"):
        if choose:
            distance = (1 - hits / positives[:, None]) ** 2 + (alarms / negatives[:, None]) ** 2
            place = len(thresholds) - 1 - distance[:, ::-1].argmin(1)
        tp, fp = (np.take_along_axis(cell, place[:, None], 1)[:, 0].astype(float) for cell in (hits, alarms))
        fn, tn = positives - tp, negatives - fp
        total = positives + negatives
        f1 = [2 * right / np.maximum(2 * right + fp + fn, 1) for right in (tp, tn)]
        metrics = {
            "accuracy": (tp + tn) / total,
            "balanced_accuracy": (tp / positives + tn / negatives) / 2,
            "weighted_f1": (f1[0] * positives + f1[1] * negatives) / total,
            "recall": tp / positives,
            "precision": np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), 0.0),
        }
    one_class = (positives == 0) | (negatives == 0)
    return {name: np.where(one_class, np.nan, values) for name, values in metrics.items()}


def resampled_choice(
    predictions: ArrayLike, classes: ArrayLike, counts: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """`metrics.choice_metrics` of every resample, (R,) each; predictions and classes (S,) of class numbers."""
    predictions, classes = np.asarray(predictions), np.asarray(classes)
    total = counts.sum(1).astype(float)
    hits, present, predicted = (
        np.stack([counts[:, chosen == c].sum(1) for c in range(num_classes)], 1).astype(float)
        for chosen in (np.where(predictions == classes, classes, -1), classes, predictions)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = np.where(present > 0, hits / present, 0).sum(1) / (present > 0).sum(1)
        f1 = 2 * hits / np.maximum(present + predicted, 1)
        return {
            "accuracy": hits.sum(1) / total,
            "balanced_accuracy": recalls,
            "weighted_f1": (f1 * present).sum(1) / total,
        }
