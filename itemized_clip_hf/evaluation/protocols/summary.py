"""Scores and truth of a protocol -> its figures, each with a confidence interval over studies."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from .. import bootstrap as boot
from .. import metrics
from ..calibration import Calibration
from ..estimates import Estimates
from ..results import ChoiceResult, FindingResult, TableResult
from .labels import Truth
from .schema import Prompts, Protocol

Thresholds = dict[str, tuple[int, float]]
"""Finding -> number of its prompt and its threshold."""

Resampled = dict[str, np.ndarray]
"""Metric -> its value in every resample, (R,)."""


def summarize(
    protocol: Protocol,
    prompts: Prompts,
    scores: np.ndarray,
    truth: Truth,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    thresholds: Thresholds | None = None,
    calibration: Calibration | None = None,
) -> TableResult:
    """
    Estimates of every finding or task, and their mean.

    Args:
        prompts: as the scores were made, from `Protocol.choose_prompts`.
        scores: (S, M) of the studies of `truth`: a column a name, or a column a prompt where the best prompt counts; no NaN.
        resamples: of the bootstrap; 0 leaves out the intervals.
        thresholds: finding -> number of its prompt and threshold, from `choose_thresholds` on other studies; else both are
            chosen on these labels.
        calibration: adds, of findings that it holds for, the expected calibration error, what that would be by chance, and
            sensitivity and specificity at its operating point.
    """
    counts = boot.study_counts(len(scores), resamples, seed)
    return summarize_drawn(protocol, prompts, scores, truth, counts, thresholds, calibration)[0]


def summarize_drawn(
    protocol: Protocol,
    prompts: Prompts,
    scores: np.ndarray,
    truth: Truth,
    counts: np.ndarray | None,
    thresholds: Thresholds | None = None,
    calibration: Calibration | None = None,
) -> tuple[TableResult, Resampled]:
    """`summarize` with the studies of every resample, (R, S), and the means of the table in every resample."""
    if protocol.findings is not None:
        return _findings(protocol, prompts, scores, truth, counts, thresholds, calibration)
    return _tasks(protocol, scores, truth, counts) if protocol.tasks else _ranking(scores, truth, counts)


def choose_thresholds(protocol: Protocol, prompts: Prompts, scores: np.ndarray, truth: Truth) -> Thresholds:
    """Finding -> number of its best prompt (0 where they are averaged) and threshold next to the ROC corner."""
    chosen = {}
    for name, labels, columns, _ in scores_by_finding(protocol, prompts, scores, truth):
        best = choose_prompt(labels, columns)
        chosen[name] = best, _threshold(protocol, labels, columns[:, best])
    return chosen


def scores_by_finding(
    protocol: Protocol, prompts: Prompts, scores: np.ndarray, truth: Truth
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(name, labels, scores of each prompt, which studies) of the studies whose label is known."""
    assert truth.labels is not None
    start = 0
    for number, name in enumerate(protocol.names):
        width = len(prompts[name]) if protocol.best_prompt else 1
        known = ~np.isnan(truth.labels[:, number])
        yield name, truth.labels[known, number], scores[known, start : start + width], known
        start += width


def choose_prompt(labels: np.ndarray, columns: np.ndarray) -> int:
    """Number of the column (S, prompts) with the best AUC; 0 where the labels are all the same."""
    aucs = [metrics.auroc(labels, column) for column in columns.T]
    return 0 if np.isnan(aucs).all() else int(np.nanargmax(aucs))


def _threshold(protocol: Protocol, labels: np.ndarray, scores: np.ndarray) -> float:
    if protocol.threshold_points:
        return metrics.reference_threshold(labels, scores, protocol.threshold_points)
    return metrics.roc_closest_threshold(labels, scores)


def columns_of(protocol: Protocol, prompts: Prompts) -> dict[str, list[str]]:
    """Column of the scores -> its prompts: a column a name, or one a prompt where the best prompt counts."""
    if not protocol.best_prompt:
        return dict(prompts)
    return {f"{name} [{number}]": [text] for name, texts in prompts.items() for number, text in enumerate(texts)}


def _mean_estimates(rows: list[Estimates], resampled: list[Resampled], count: int) -> tuple[Estimates, Resampled]:
    """
    Means over findings or tasks, unweighted, those without an estimate (a single class) left out; NaN where all are. The same
    in every resample.
    """
    means, drawn_means = {}, {}
    for metric in dict.fromkeys(metric for row in rows for metric in row):
        values = [row[metric].value for row in rows if metric in row]
        drawn = [own[metric] for own in resampled if metric in own]
        if drawn:
            drawn_means[metric] = _nanmean(np.stack(drawn), 0)
        means[metric] = boot.estimate(_nanmean(values), drawn_means.get(metric), metric, count)
    return means, drawn_means


def _nanmean(values: ArrayLike, axis: int | None = None):
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)


def _estimates(values: dict[str, float], resampled: Resampled, count: int) -> Estimates:
    return {metric: boot.estimate(value, resampled.get(metric), metric, count) for metric, value in values.items()}


def _findings(
    protocol: Protocol,
    prompts: Prompts,
    scores: np.ndarray,
    truth: Truth,
    counts: np.ndarray | None,
    thresholds: Thresholds | None,
    calibration: Calibration | None,
) -> tuple[TableResult, Resampled]:
    rows, drawn = {}, []
    for name, labels, columns, known in scores_by_finding(protocol, prompts, scores, truth):
        own_counts = None if counts is None else counts[:, known]
        best, threshold = (choose_prompt(labels, columns), None) if thresholds is None else thresholds[name]
        row = FindingResult(int(labels.sum()), int(len(labels) - labels.sum()), len(scores) - len(labels))
        if protocol.best_prompt:
            row.prompt = prompts[name][best]
        rows[name] = row
        if min(row.positive, row.negative) == 0:  # nothing to tell apart
            continue
        own = columns[:, best]
        # Where the best prompt is chosen here, it is chosen in every resample anew.
        candidates = columns.T if protocol.best_prompt and thresholds is None else own[None]
        resampled = _resampled_ranking(labels, own, candidates, own_counts)
        ranking = {"auc": metrics.auroc(labels, own), "average_precision": metrics.average_precision(labels, own)}
        row.threshold, decided = _decided(protocol, labels, own, own_counts, resampled, threshold)
        calibrated = _calibrated(calibration, name, prompts[name], protocol, labels, columns, own_counts, resampled)
        row.estimates = _estimates(ranking | decided | calibrated, resampled, len(labels))
        drawn.append(resampled)
    mean, drawn_means = _mean_estimates([row.estimates for row in rows.values()], drawn, len(scores))
    return TableResult(len(scores), mean, findings=rows), drawn_means


def _calibrated(
    calibration: Calibration | None,
    name: str,
    prompts: list[str],
    protocol: Protocol,
    labels: np.ndarray,
    columns: np.ndarray,
    counts: np.ndarray | None,
    resampled: Resampled,
) -> dict[str, float]:
    """What a calibration is worth here; nothing where it does not hold for the finding. Adds resampled figures."""
    known = None if calibration is None else calibration.findings.get(name)
    if calibration is None or known is None or known.scaling is None:
        return {}
    if protocol.best_prompt:
        if known.prompts[0] not in prompts:
            return {}
        scores = columns[:, prompts.index(known.prompts[0])]
    elif known.prompts == prompts:
        scores = columns[:, 0]
    else:
        return {}
    probability = known.scaling.probability(scores)
    error = metrics.expected_calibration_error(labels, probability)
    found = {
        "calibration_error": error,
        "calibration_error_by_chance": metrics.chance_calibration_error(probability),
    }
    if counts is not None:
        resampled["calibration_error"] = boot.resampled_calibration_error(labels, probability, counts)
    point = known.points.get(calibration.point)
    if point is None:
        return found
    above, positive = scores.astype(float) > point.threshold.value, labels.astype(bool)
    for metric, own, hit in (("sensitivity", positive, above), ("specificity", ~positive, ~above)):
        found[metric] = float(hit[own].mean())
        if counts is not None:
            resampled[metric] = boot.resampled_mean(np.where(own, hit, np.nan), counts)
    return found


def _resampled_ranking(
    labels: np.ndarray, scores: np.ndarray, candidates: np.ndarray, counts: np.ndarray | None
) -> Resampled:
    """`auc` of the best candidate (prompts, S) and `average_precision` of the scores (S,) in every resample."""
    if counts is None:
        return {}
    return {
        "auc": np.stack([boot.resampled_auroc(labels, column, counts) for column in candidates]).max(0),
        "average_precision": boot.resampled_average_precision(labels, scores, counts),
    }


def _decided(
    protocol: Protocol,
    labels: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray | None,
    resampled: Resampled,
    threshold: float | None,
) -> tuple[float | None, dict[str, float]]:
    """The threshold and the metrics of predictions at it; the resampled ones are added to `resampled`."""
    candidates: np.ndarray
    if threshold is not None:
        candidates = np.array([threshold])
    elif protocol.threshold_points:
        candidates = np.linspace(-1, 1, protocol.threshold_points)
    else:
        values = np.unique(np.asarray(scores, dtype=np.float64))
        candidates = np.concatenate([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    at = _threshold(protocol, labels, scores) if threshold is None else threshold
    if np.isnan(at):
        return None, {}
    if counts is not None:
        choose = threshold is None
        resampled.update(
            boot.resampled_threshold_metrics(labels, scores, counts, candidates.astype(scores.dtype), choose)
        )
    predictions = scores > np.asarray(at, dtype=np.asarray(scores).dtype)
    return float(at), metrics.threshold_metrics(labels, predictions)


def _tasks(
    protocol: Protocol, scores: np.ndarray, truth: Truth, counts: np.ndarray | None
) -> tuple[TableResult, Resampled]:
    assert truth.classes is not None
    rows, drawn, names = {}, [], protocol.names
    for task, members in protocol.tasks.items():
        columns = [names.index(member) for member in members]
        chosen = np.isin(truth.classes, columns)
        own = scores[chosen][:, columns]
        classes = np.array([columns.index(c) for c in truth.classes[chosen]], dtype=int)
        of_each = {member: int((classes == number).sum()) for number, member in enumerate(members)}
        rows[task] = ChoiceResult(int(chosen.sum()), of_each)
        if len(np.unique(classes)) < 2:  # nothing to choose between
            continue
        pair = len(members) == 2
        values = metrics.pair_metrics(own, classes) if pair else metrics.choice_metrics(own, classes)
        resampled = {} if counts is None else _resampled_choice(own, classes, counts[:, chosen])
        rows[task].estimates = _estimates(values, resampled, len(classes))
        drawn.append({"balanced_accuracy": resampled["balanced_accuracy"]} if resampled else {})
    balanced = [{m: e for m, e in row.estimates.items() if m == "balanced_accuracy"} for row in rows.values()]
    mean, drawn_means = _mean_estimates(balanced, drawn, len(scores))
    return TableResult(len(scores), mean, tasks=rows), drawn_means


def _resampled_choice(scores: np.ndarray, classes: np.ndarray, counts: np.ndarray) -> Resampled:
    """`metrics.choice_metrics`, or `pair_metrics` of two classes, in every resample."""
    resampled = boot.resampled_choice(scores.argmax(1), classes, counts, scores.shape[1])
    if scores.shape[1] == 2:
        resampled["auc"] = boot.resampled_auroc(classes == 1, scores[:, 1].astype(float) - scores[:, 0], counts)
        predicted = (scores.argmax(1) == 1).astype(float)
        decided = boot.resampled_threshold_metrics(classes == 1, predicted, counts, [0.5], choose=False)
        resampled |= {metric: decided[metric] for metric in ("recall", "precision")}
    return resampled


def _ranking(scores: np.ndarray, truth: Truth, counts: np.ndarray | None) -> tuple[TableResult, Resampled]:
    assert truth.classes is not None
    ranks = metrics.true_class_ranks(scores, truth.classes)
    per_study = {"top1": ranks <= 1, "top5": ranks <= 5, "mean_rank": ranks}
    resampled = {} if counts is None else {m: boot.resampled_mean(values, counts) for m, values in per_study.items()}
    summary = metrics.classification_summary(scores, truth.classes)
    return TableResult(len(scores), _estimates(summary, resampled, len(scores))), resampled
