"""Scores and truth of a protocol -> its figures, each with a confidence interval over studies."""

import numpy as np

from .. import bootstrap as boot
from .. import metrics
from .images import Prompts, Protocol, Truth

Figure = dict[str, float]
"""`value`, and `low` and `high` of the 95 % interval."""


def summarize(
    protocol: Protocol,
    prompts: Prompts,
    scores: np.ndarray,
    truth: Truth,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    thresholds: dict[str, tuple[int, float]] | None = None,
) -> dict:
    """
    Args:
        prompts: as the scores were made, from `Protocol.choose_prompts`.
        scores: (S, M) of the studies of `truth`: a column a name, or a column a prompt where the best prompt counts; no NaN.
        resamples: of the bootstrap; 0 leaves out the intervals.
        thresholds: finding -> number of its prompt and threshold, from `choose_thresholds` on other studies; else both are
            chosen on these labels.

    Returns:
        `studies`, the figures of each finding or task, and their mean.
    """
    counts = boot.study_counts(len(scores), resamples, seed)
    if protocol.findings is not None:
        return _findings(protocol, prompts, scores, truth, counts, thresholds)
    return _tasks(protocol, scores, truth, counts) if protocol.tasks else _ranking(scores, truth, counts)


def choose_thresholds(
    protocol: Protocol, prompts: Prompts, scores: np.ndarray, truth: Truth
) -> dict[str, tuple[int, float]]:
    """Finding -> number of its best prompt (0 where they are averaged) and threshold next to the ROC corner."""
    chosen = {}
    for name, labels, columns, _ in _by_finding(protocol, prompts, scores, truth):
        best = _best(labels, columns)
        chosen[name] = best, _threshold(protocol, labels, columns[:, best])
    return chosen


def _by_finding(protocol: Protocol, prompts: Prompts, scores: np.ndarray, truth: Truth):
    """(name, labels, scores of each prompt, which studies) of the studies whose label is known."""
    assert truth.labels is not None
    start = 0
    for number, name in enumerate(protocol.names):
        width = len(prompts[name]) if protocol.best_prompt else 1
        known = ~np.isnan(truth.labels[:, number])
        yield name, truth.labels[known, number], scores[known, start : start + width], known
        start += width


def _best(labels: np.ndarray, columns: np.ndarray) -> int:
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


def _mean_figures(rows: list[dict], resampled: list[dict]) -> dict[str, Figure]:
    """Means over findings or tasks, unweighted, those without a figure (a single class) left out; NaN where all are."""
    means = {}
    for name in dict.fromkeys(key for row in rows for key, entry in row.items() if isinstance(entry, dict)):
        values = [row[name]["value"] for row in rows if name in row]
        drawn = [own[name] for own in resampled if name in own]
        with np.errstate(invalid="ignore"):
            means[name] = boot.figure(_nanmean(values), _nanmean(np.stack(drawn), 0) if drawn else None)
    return means


def _nanmean(values, axis=None):
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)


def _findings(protocol, prompts, scores, truth, counts, thresholds) -> dict:
    rows, drawn = {}, []
    for name, labels, columns, known in _by_finding(protocol, prompts, scores, truth):
        own_counts = None if counts is None else counts[:, known]
        best, threshold = (_best(labels, columns), None) if thresholds is None else thresholds[name]
        own = columns[:, best]
        row: dict = {"positive": int(labels.sum()), "negative": int(len(labels) - labels.sum())}
        if len(labels) < len(scores):
            row["unknown"] = len(scores) - len(labels)
        if protocol.best_prompt:
            row["prompt"] = prompts[name][best]
        rows[name] = row
        if min(row["positive"], row["negative"]) == 0:  # nothing to tell apart
            continue
        resampled = {}
        if own_counts is not None:
            # Where the best prompt is chosen here, it is chosen in every resample anew.
            candidates = columns.T if protocol.best_prompt and thresholds is None else [own]
            resampled["auc"] = np.stack([boot.resampled_auroc(labels, one, own_counts) for one in candidates]).max(0)
            resampled["average_precision"] = boot.resampled_average_precision(labels, own, own_counts)
        row["auc"] = boot.figure(metrics.auroc(labels, own), resampled.get("auc"))
        row["average_precision"] = boot.figure(
            metrics.average_precision(labels, own), resampled.get("average_precision")
        )
        row |= _decided(protocol, labels, own, own_counts, resampled, threshold)
        drawn.append(resampled)
    return {"studies": len(scores), "findings": rows, "mean": _mean_figures(list(rows.values()), drawn)}


def _decided(protocol, labels, scores, counts, resampled: dict, threshold: float | None) -> dict:
    """Figures of predictions at the threshold; the resampled ones are added to `resampled`."""
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
        return {"threshold": None}
    found = metrics.threshold_metrics(labels, scores > np.asarray(at, dtype=np.asarray(scores).dtype))
    if counts is not None:
        choose = threshold is None
        resampled.update(
            boot.resampled_threshold_metrics(labels, scores, counts, candidates.astype(scores.dtype), choose)
        )
    return {"threshold": float(at), **{name: boot.figure(value, resampled.get(name)) for name, value in found.items()}}


def _tasks(protocol, scores, truth, counts) -> dict:
    rows, drawn, names = {}, [], protocol.names
    for task, members in protocol.tasks.items():
        columns = [names.index(member) for member in members]
        kept = np.isin(truth.classes, columns)
        own, classes = scores[kept][:, columns], np.array([columns.index(c) for c in truth.classes[kept]], dtype=int)
        row: dict = {
            "studies": int(kept.sum()),
            "classes": {m: int((classes == i).sum()) for i, m in enumerate(members)},
        }
        rows[task] = row
        if len(np.unique(classes)) < 2:  # nothing to choose between
            continue
        pair = len(members) == 2
        found = metrics.pair_metrics(own, classes) if pair else metrics.choice_metrics(own, classes)
        resampled = {}
        if counts is not None:
            resampled = boot.resampled_choice(own.argmax(1), classes, counts[:, kept], len(members))
            if pair:
                probability = own[:, 1].astype(float) - own[:, 0]
                resampled["auc"] = boot.resampled_auroc(classes == 1, probability, counts[:, kept])
                predicted = (own.argmax(1) == 1).astype(float)
                decided = boot.resampled_threshold_metrics(
                    classes == 1, predicted, counts[:, kept], [0.5], choose=False
                )
                resampled |= {name: decided[name] for name in ("recall", "precision")}
        rows[task] |= {name: boot.figure(value, resampled.get(name)) for name, value in found.items()}
        drawn.append({"balanced_accuracy": resampled["balanced_accuracy"]} if resampled else {})
    means = _mean_figures([{k: v for k, v in row.items() if k == "balanced_accuracy"} for row in rows.values()], drawn)
    return {"studies": len(scores), "tasks": rows, "mean": means}


def _ranking(scores, truth, counts) -> dict:
    ranks = metrics.true_class_ranks(scores, truth.classes)
    found = metrics.classification_summary(scores, truth.classes)
    per_study = {"top1": ranks <= 1, "top5": ranks <= 5, "mean_rank": ranks}
    resampled = {} if counts is None else {n: boot.resampled_mean(v, counts) for n, v in per_study.items()}
    return {
        "studies": len(scores),
        "mean": {name: boot.figure(value, resampled.get(name)) for name, value in found.items()},
    }
