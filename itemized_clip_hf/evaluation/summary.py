"""Scores and truth of a protocol -> its figures, each with a confidence interval over studies."""

import numpy as np

from . import bootstrap as boot
from . import metrics
from .protocol import Prompts, Protocol, Truth

Figure = dict[str, float]
"""`value`, and `low` and `high` of the 95 % interval."""


def summarize(
    protocol: Protocol,
    prompts: Prompts,
    scores: np.ndarray,
    truth: Truth,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    thresholds: dict[str, float] | None = None,
) -> dict:
    """
    Args:
        prompts: as the scores were made, from `Protocol.choose_prompts`.
        scores: (S, M) of the studies of `truth`: a column a name, or a column a prompt where the best prompt counts; no NaN.
        resamples: of the bootstrap; 0 leaves out the intervals.
        thresholds: finding -> threshold, chosen elsewhere (on a validation split); else chosen on these labels.

    Returns:
        `studies`, the figures of each finding or task, and their mean.
    """
    counts = boot.draw_counts(len(scores), resamples, seed) if resamples and len(scores) > 1 else None
    if protocol.findings is not None:
        return _findings(protocol, prompts, scores, truth, counts, thresholds)
    return _tasks(protocol, scores, truth, counts) if protocol.tasks else _ranking(scores, truth, counts)


def choose_thresholds(protocol: Protocol, scores: np.ndarray, truth: Truth) -> dict[str, float]:
    """Finding -> threshold next to the ROC corner, for use on other studies; of the protocol's kind."""
    assert truth.labels is not None
    chosen = {}
    for number, name in enumerate(protocol.names):
        known = ~np.isnan(truth.labels[:, number])
        own = truth.labels[known, number], scores[known, number]
        chosen[name] = (
            metrics.reference_threshold(*own, protocol.threshold_points)
            if protocol.threshold_points
            else metrics.roc_closest_threshold(*own)
        )
    return chosen


def columns_of(protocol: Protocol, prompts: Prompts) -> dict[str, list[str]]:
    """Column of the scores -> its prompts: a column a name, or one a prompt where the best prompt counts."""
    if not protocol.best_prompt:
        return dict(prompts)
    return {f"{name} [{number}]": [text] for name, texts in prompts.items() for number, text in enumerate(texts)}


def _figure(value: float, resampled) -> Figure:
    figure = {"value": float(value)}
    if resampled is not None:
        figure["low"], figure["high"] = boot.interval(resampled)
    return figure


def _mean_figures(rows: list[dict], resampled: list[dict]) -> dict[str, Figure]:
    """Means over findings or tasks, unweighted, those without a figure (a single class) left out; NaN where all are."""
    means = {}
    for name in dict.fromkeys(key for row in rows for key, entry in row.items() if isinstance(entry, dict)):
        values = [row[name]["value"] for row in rows if name in row]
        drawn = [own[name] for own in resampled if name in own]
        with np.errstate(invalid="ignore"):
            means[name] = _figure(_nanmean(values), _nanmean(np.stack(drawn), 0) if drawn else None)
    return means


def _nanmean(values, axis=None):
    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)


def _findings(protocol, prompts, scores, truth, counts, thresholds) -> dict:
    rows, drawn, start = {}, [], 0
    for number, name in enumerate(protocol.names):
        width = len(prompts[name]) if protocol.best_prompt else 1
        columns = scores[:, start : start + width]
        start += width
        known = ~np.isnan(truth.labels[:, number])
        labels, own_counts = truth.labels[known, number], None if counts is None else counts[:, known]
        aucs = [metrics.auroc(labels, column) for column in columns[known].T]
        best = int(np.nanargmax(aucs)) if not np.isnan(aucs).all() else 0
        own = columns[known, best]
        row: dict = {"positive": int(labels.sum()), "negative": int(len(labels) - labels.sum())}
        if len(labels) < len(scores):
            row["unknown"] = len(scores) - len(labels)
        if protocol.best_prompt:
            row["prompt"] = prompts[name][best]
        resampled = {}
        if own_counts is not None:
            resampled["auc"] = boot.resampled_auroc(labels, own, own_counts)
            if protocol.best_prompt:  # the best one is chosen in every resample anew
                every = [boot.resampled_auroc(labels, column, own_counts) for column in columns[known].T]
                resampled["auc"] = np.stack(every).max(0)
            resampled["average_precision"] = boot.resampled_average_precision(labels, own, own_counts)
        row["auc"] = _figure(aucs[best], resampled.get("auc"))
        row["average_precision"] = _figure(metrics.average_precision(labels, own), resampled.get("average_precision"))
        row |= _decided(protocol, labels, own, own_counts, resampled, None if thresholds is None else thresholds[name])
        rows[name] = row
        drawn.append(resampled)
    return {"studies": len(scores), "findings": rows, "mean": _mean_figures(list(rows.values()), drawn)}


def _decided(protocol, labels, scores, counts, resampled: dict, threshold: float | None) -> dict:
    """Figures of predictions at the threshold; the resampled ones are added to `resampled`."""
    candidates: np.ndarray
    if threshold is not None:
        candidates = np.array([threshold])
    elif protocol.threshold_points:
        threshold = metrics.reference_threshold(labels, scores, protocol.threshold_points)
        candidates = np.linspace(-1, 1, protocol.threshold_points)
    else:
        threshold = metrics.roc_closest_threshold(labels, scores)
        values = np.unique(np.asarray(scores, dtype=np.float64))
        candidates = np.concatenate([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    if np.isnan(threshold):
        return {"threshold": None}
    found = metrics.threshold_metrics(labels, scores > np.asarray(threshold, dtype=np.asarray(scores).dtype))
    if counts is not None:
        choose = len(candidates) > 1
        drawn = boot.resampled_threshold_metrics(labels, scores, counts, candidates.astype(scores.dtype), choose)
        resampled.update(drawn)
    return {
        "threshold": float(threshold),
        **{name: _figure(value, resampled.get(name)) for name, value in found.items()},
    }


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
        if not kept.any():
            rows[task] = row
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
        rows[task] = row | {name: _figure(value, resampled.get(name)) for name, value in found.items()}
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
        "mean": {name: _figure(value, resampled.get(name)) for name, value in found.items()},
    }
