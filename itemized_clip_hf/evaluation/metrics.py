"""Metrics as pure functions of numpy arrays; S studies, C classes or findings. scikit-learn does what it has."""

from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike


def require_sklearn() -> ModuleType:
    """`sklearn.metrics`; ImportError with the cure where it is not installed."""
    try:
        import sklearn.metrics
    except ImportError:
        raise ImportError("metrics need scikit-learn: pip install 'itemized-clip-hf[metrics]'.") from None
    return sklearn.metrics


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """
    Area under the ROC curve; NaN where only one class is present. labels (S,), scores (S,).

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    labels = np.asarray(labels).astype(bool)
    if labels.all() or not labels.any():
        return float("nan")
    return float(require_sklearn().roc_auc_score(labels, scores))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """
    Area under the precision-recall steps; NaN without a positive. labels (S,), scores (S,).

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    labels = np.asarray(labels).astype(bool)
    return float(require_sklearn().average_precision_score(labels, scores)) if labels.any() else float("nan")


def rates(labels: ArrayLike, scores: ArrayLike, thresholds: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """True and false positive rate of `score > threshold` at each threshold; NaN where a class is missing."""
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores)
    above = [
        len(own) - np.searchsorted(np.sort(own), thresholds, side="right") for own in (scores[labels], scores[~labels])
    ]
    with np.errstate(invalid="ignore"):
        return above[0] / np.float64(labels.sum()), above[1] / np.float64((~labels).sum())


def corner_distance(true_rate: ArrayLike, false_rate: ArrayLike) -> np.ndarray:
    """Distance of points of the ROC curve to its corner (0, 1)."""
    return np.sqrt((1 - np.asarray(true_rate)) ** 2 + np.asarray(false_rate) ** 2)


def reference_threshold(labels: ArrayLike, scores: ArrayLike, num_points: int = 1000) -> float:
    """
    The reference's threshold search (method 8.1): of `num_points` even steps in [-1, 1] the one next to the ROC corner, the
    largest among equals. 1,000 for CT-RATE, 4,000 for Rad-ChestCT. NaN where only one class is present.
    """
    grid = np.linspace(-1, 1, num_points)
    # Scores are compared as they are, thresholds in the scores' precision: what the reference does.
    distance = corner_distance(*rates(labels, scores, grid.astype(np.asarray(scores).dtype)))
    if np.isnan(distance).any():
        return float("nan")
    return float(grid[len(grid) - 1 - distance[::-1].argmin()])


def roc_closest_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """
    The threshold next to the ROC corner among all that tell scores apart: half-way between neighbouring scores, below and above
    all of them; the largest among equals. NaN where only one class is present.
    """
    values = np.unique(np.asarray(scores, dtype=np.float64))
    if not len(values):
        return float("nan")
    between = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    distance = corner_distance(*rates(labels, np.asarray(scores, dtype=np.float64), between))
    if np.isnan(distance).any():
        return float("nan")
    return float(between[len(between) - 1 - distance[::-1].argmin()])


def threshold_metrics(labels: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """
    `accuracy`, `balanced_accuracy`, `weighted_f1` (by support), and `recall` and `precision` of the positives. labels (S,),
    predictions (S,), both true or false.
    """
    metrics = require_sklearn()
    labels, predictions = np.asarray(labels).astype(bool), np.asarray(predictions).astype(bool)
    kept = {"zero_division": 0}
    return {
        "accuracy": float(metrics.accuracy_score(labels, predictions)),
        "balanced_accuracy": float(metrics.recall_score(labels, predictions, average="macro", **kept)),
        "weighted_f1": float(metrics.f1_score(labels, predictions, average="weighted", **kept)),
        "recall": float(metrics.recall_score(labels, predictions, **kept)),
        "precision": float(metrics.precision_score(labels, predictions, **kept)),
    }


def choice_metrics(scores: ArrayLike, classes: ArrayLike) -> dict[str, float]:
    """
    Of arg-max predictions among C classes: `accuracy`, `balanced_accuracy` (over the classes that occur), `weighted_f1`.
    scores (S, C), classes (S,) of class numbers.
    """
    metrics = require_sklearn()
    classes, predictions = np.asarray(classes), np.asarray(scores).argmax(1)
    present = np.unique(classes)
    return {
        "accuracy": float((predictions == classes).mean()),
        "balanced_accuracy": float(np.mean([(predictions[classes == c] == c).mean() for c in present])),
        "weighted_f1": float(metrics.f1_score(classes, predictions, average="weighted", zero_division=0)),
    }


def pair_metrics(scores: ArrayLike, classes: ArrayLike) -> dict[str, float]:
    """
    Of a choice between two classes: those of `choice_metrics`, `recall` and `precision` of the second one, and `auc` of its
    probability in a softmax over the two scores as they are. scores (S, 2), classes (S,) of 0 and 1.
    """
    scores = np.asarray(scores)
    probability = 1 / (1 + np.exp(scores[:, 0].astype(float) - scores[:, 1]))
    decided = threshold_metrics(classes, scores.argmax(1))
    return {
        **choice_metrics(scores, classes),
        "auc": auroc(classes, probability),
        **{n: decided[n] for n in ("recall", "precision")},
    }


def true_class_ranks(scores: np.ndarray, classes: ArrayLike) -> np.ndarray:
    """
    1-based rank of the true class by descending score; among equal scores the lower class number comes first. scores (S, C),
    classes (S,) of class numbers.

    >>> true_class_ranks(np.array([[0.1, 0.9, 0.5], [0.2, 0.1, 0.0]]), [2, 0]).tolist()
    [2, 1]
    """
    order = np.argsort(-np.asarray(scores), axis=1, kind="stable")
    return (order == np.asarray(classes)[:, None]).argmax(1) + 1


def classification_summary(scores: np.ndarray, classes: ArrayLike) -> dict[str, float]:
    """`top1` and `top5` as shares, and `mean_rank`."""
    ranks = true_class_ranks(scores, classes)
    return {"top1": float((ranks == 1).mean()), "top5": float((ranks <= 5).mean()), "mean_rank": float(ranks.mean())}


def best_ranks(scores: np.ndarray, relevant: Sequence[Sequence[int]]) -> np.ndarray:
    """
    1-based rank of the best relevant column of every row, by descending score; others of the same score count half as better.

    Raises:
        ValueError: a score is NaN, which no rank means anything beside.
    """
    return np.array([1 + better.min() for better in _others_above(scores, relevant)])


def worst_ranks(scores: np.ndarray, relevant: Sequence[Sequence[int]]) -> np.ndarray:
    """1-based rank of the worst relevant column of every row, among all columns; ties and errors as in `best_ranks`."""
    return np.array([len(better) + better.max() for better in _others_above(scores, relevant)])


def _others_above(scores: ArrayLike, relevant: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Of every row and relevant column: columns that are not relevant and score higher, equal ones by half."""
    for values, columns in zip(np.asarray(scores), relevant):
        if np.isnan(values).any():
            raise ValueError(
                "a score is not a number: the model's weights are damaged, or too large for its precision."
            )
        own = values[list(columns)][:, None]
        others = np.delete(values, list(columns))[None]
        yield (others > own).sum(1) + (others == own).sum(1) / 2


def retrieval_summary(ranks: ArrayLike, levels: Sequence[int] = (1, 5, 10, 50, 100)) -> dict[str, float]:
    """
    `R@k` as shares, `mean_rank` and `median_rank` of 1-based ranks (Q,).

    >>> retrieval_summary([1, 1, 4, 20], levels=(1, 5))
    {'R@1': 0.5, 'R@5': 0.75, 'mean_rank': 6.5, 'median_rank': 2.5}
    """
    ranks = np.asarray(ranks)
    at = {f"R@{k}": float((ranks <= k).mean()) for k in levels}
    return {**at, "mean_rank": float(ranks.mean()), "median_rank": float(np.median(ranks))}


def iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two masks of one shape; NaN where both are empty."""
    predicted, truth = np.asarray(predicted, dtype=bool), np.asarray(truth, dtype=bool)
    union = (predicted | truth).sum()
    return float((predicted & truth).sum() / union) if union else float("nan")


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """
    Twice the intersection over the sum of two masks of one shape; NaN where both are empty.

    >>> dice(np.array([1, 1, 0]), np.array([0, 1, 1]))
    0.5
    """
    predicted, truth = np.asarray(predicted, dtype=bool), np.asarray(truth, dtype=bool)
    total = predicted.sum() + truth.sum()
    return float(2 * (predicted & truth).sum() / total) if total else float("nan")


def calibration_curve(
    labels: ArrayLike, probabilities: ArrayLike, num_bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of positives and count of each of `num_bins` even bins of [0, 1] that is not empty."""
    labels, probabilities = np.asarray(labels, dtype=float), np.asarray(probabilities, dtype=float)
    bins = np.clip((probabilities * num_bins).astype(int), 0, num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    used = count > 0
    mean = np.bincount(bins, probabilities, num_bins)[used] / count[used]
    share = np.bincount(bins, labels, num_bins)[used] / count[used]
    return mean, share, count[used]


def chance_calibration_error(
    probabilities: ArrayLike, num_draws: int = 200, num_bins: int = 10, seed: int = 0
) -> float:
    """
    Mean expected calibration error of as many studies whose labels are drawn by these very probabilities (S,): what perfect
    calibration would show. Few studies show an error that is not there.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    labels = np.random.default_rng(seed).random((num_draws, len(probabilities))) < probabilities
    bins = np.clip((probabilities * num_bins).astype(int), 0, num_bins - 1)
    rest = (probabilities - labels) @ np.eye(num_bins)[bins]
    return float(np.abs(rest).sum(1).mean() / len(probabilities))


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, num_bins: int = 10) -> float:
    """Mean distance between probability and share of positives over even bins, weighted by their studies."""
    mean, share, count = calibration_curve(labels, probabilities, num_bins)
    return float((np.abs(mean - share) * count).sum() / count.sum())
