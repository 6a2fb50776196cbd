"""Figures of methods by the number of training studies -> a table with intervals over repeats, and its plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .estimates import Estimate

ALL = "all"
METRICS = ("auc", "average_precision")
COLORS = {"zero-shot": "#555555", "linear probe": "#0072b2", "head": "#d55e00", "LoRA": "#009e73"}
"""Okabe and Ito's, which people with any color vision tell apart."""


@dataclass(frozen=True)
class FewShotRun:
    """
    What one training reached on the test studies.

    Args:
        method: a name of `COLORS`.
        shots: studies of each label and of each without it; `"all"`; 0 for zero-shot.
        repeat: number of the draw.
        studies: that were trained on.
        figures: means over the labels, by the names of `METRICS`.
        labels: label -> AUC; None where it has none.
    """

    method: str
    shots: int | str
    repeat: int
    studies: int
    figures: dict[str, float]
    labels: dict[str, float | None]


def interval_of_mean(values: Sequence[float], metric: str = "auc") -> Estimate:
    """
    Mean of repeats with its 95 % interval by Student's t, cut to [0, 1]; no interval of one repeat.

    >>> found = interval_of_mean([0.8, 0.9, 1.0])
    >>> round(found.value, 3), round(found.low, 3), found.high
    (0.9, 0.652, 1.0)
    """
    from scipy.stats import t

    known = np.array([value for value in values if not math.isnan(value)], dtype=float)
    if not len(known):
        return Estimate(math.nan)
    if len(known) == 1:
        return Estimate(float(known[0]), count=1)
    half = float(t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    mean = float(known.mean())
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), count=len(known))


def tabulate(runs: Sequence[FewShotRun], zero_shot: dict[str, Estimate]) -> list[dict[str, Any]]:
    """
    One row for each method and number of shots: mean number of studies, repeats, and each metric with `_low` and `_high`.

    Args:
        zero_shot: metric -> estimate, whose interval is over the test studies: it has no repeats.
    """
    rows = [_row("zero-shot", 0, 0, 0, {name: zero_shot[name] for name in METRICS if name in zero_shot})]
    for method, shots in dict.fromkeys((run.method, run.shots) for run in sorted(runs, key=order_of)):
        own = [run for run in runs if (run.method, run.shots) == (method, shots)]
        estimates = {name: interval_of_mean([run.figures.get(name, math.nan) for run in own]) for name in METRICS}
        rows.append(_row(method, shots, float(np.mean([run.studies for run in own])), len(own), estimates))
    return rows


def order_of(run: FewShotRun) -> tuple[int, float, int]:
    """Methods in the order of `COLORS`, few shots first."""
    return list(COLORS).index(run.method), math.inf if run.shots == ALL else float(run.shots), run.repeat


def _row(method: str, shots: int | str, studies: float, repeats: int, estimates: dict[str, Estimate]) -> dict[str, Any]:
    shown = int(studies) if studies == int(studies) else round(studies, 1)
    row: dict[str, Any] = {"method": method, "shots": shots, "studies": shown, "repeats": repeats}
    for name, found in estimates.items():
        row |= {name: _digits(found.value), f"{name}_low": _digits(found.low), f"{name}_high": _digits(found.high)}
    return row


def _digits(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)


def plot_few_shot(rows: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> Path:
    """
    Draws the mean AUC by the number of shots, whiskers and band for the intervals, as a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from ..explain.figures import new_figure, save_figure

    shots = list(dict.fromkeys(row["shots"] for row in rows if row["method"] != "zero-shot"))
    shots.sort(key=lambda value: math.inf if value == ALL else value)
    most = max((row["studies"] for row in rows if row["shots"] == ALL), default=0)
    figure = new_figure(6.4, 4.2)
    axis = figure.add_subplot()
    zero = next(row for row in rows if row["method"] == "zero-shot")
    if zero.get("auc") is not None:
        axis.axhline(zero["auc"], color=COLORS["zero-shot"], linestyle="--", label="zero-shot")
        if zero.get("auc_low") is not None:
            axis.axhspan(zero["auc_low"], zero["auc_high"], color=COLORS["zero-shot"], alpha=0.12, linewidth=0)
    methods = [method for method in COLORS if method != "zero-shot"]
    for number, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method and row.get("auc") is not None]
        if not own:
            continue
        places = [shots.index(row["shots"]) + 0.06 * (number - (len(methods) - 1) / 2) for row in own]
        means = [row["auc"] for row in own]
        ends = [(row["auc"] if row["auc_low"] is None else row["auc_low"]) for row in own]
        tops = [(row["auc"] if row["auc_high"] is None else row["auc_high"]) for row in own]
        spread = [[mean - low for mean, low in zip(means, ends)], [top - mean for mean, top in zip(means, tops)]]
        axis.errorbar(places, means, yerr=spread, color=COLORS[method], marker="o", capsize=3, label=method)
    names = [f"all ({most:g} studies)" if value == ALL else str(value) for value in shots]
    axis.set_xticks(range(len(shots)), names)
    axis.set_xlabel("studies of each label, and as many without it")
    axis.set_ylabel("mean AUC over the labels")
    axis.set_title(title)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    return save_figure(figure, path)
