"""Operating points: from which score on a finding counts as present, by rules that have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import bootstrap as boot
from .estimates import Estimate

DEFAULT_POINTS = ("youden", "roc-closest", "sensitivity=0.9", "specificity=0.9", "cost=1")
_PLAIN = ("youden", "roc-closest")
_BLOCK = 50


@dataclass(frozen=True)
class OperatingPoint:
    """
    A threshold with what it does to the studies that it was chosen on, which is a little too good.

    Args:
        name: of the rule, see `check_point`.
        threshold: a study is positive where its score is greater; the interval is that of the rule, chosen in every resample.
        sensitivity, specificity: at the threshold; intervals over studies.
    """

    name: str
    threshold: Estimate
    sensitivity: Estimate
    specificity: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As in `calibration.json`."""
        parts = {"threshold": self.threshold, "sensitivity": self.sensitivity, "specificity": self.specificity}
        return {name: part.to_dict() for name, part in parts.items()}

    @classmethod
    def from_dict(cls, name: str, content: Mapping[str, Any], count: int | None = None) -> OperatingPoint:
        """From `to_dict`."""
        parts = (Estimate.from_dict(content[one], count=count) for one in ("threshold", "sensitivity", "specificity"))
        return cls(check_point(name), *parts)


def check_point(name: str) -> str:
    """
    The name of a rule as it is kept.

    `youden`: most sensitivity + specificity. `roc-closest`: next to the ROC corner. `sensitivity=X`, `specificity=X`: at least
    X, and of these the most of the other. `cost=C`: lowest expected cost, a miss costing C false alarms, at the share of
    positives among the studies.

    Raises:
        ValueError: there is no such rule, or its number is out of range.

    >>> check_point("sensitivity=.90")
    'sensitivity=0.9'
    """
    if name in _PLAIN:
        return name
    kind, _, text = name.partition("=")
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if kind in ("sensitivity", "specificity") and 0 < number <= 1 or kind == "cost" and 0 < number < float("inf"):
        return f"{kind}={number:g}"
    raise ValueError(
        f"there is no operating point {name!r}: expected youden, roc-closest, sensitivity=X or specificity=X with X above "
        "0 and at most 1, or cost=C, the false alarms that a miss costs."
    )


def choose_points(
    labels: ArrayLike, scores: ArrayLike, names: Sequence[str] = DEFAULT_POINTS, counts: np.ndarray | None = None
) -> list[OperatingPoint]:
    """
    Operating points of scores.

    Args:
        labels: (S,) of 0 and 1, both of which occur.
        scores: (S,).
        counts: (R, S) from `bootstrap.draw_counts`, for intervals.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=float)
    values = np.unique(scores)
    candidates = np.concatenate([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    whole = np.ones((1, len(labels)), dtype=np.int64)
    sensitivity, specificity, prevalence = _rates(labels, scores, whole, candidates)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in names}
    fixed: dict[str, list[np.ndarray]] = {name: [] for name in names}
    chosen = {name: _choose(name, sensitivity, specificity, prevalence)[0] for name in names}
    for start in range(0, 0 if counts is None else len(counts), _BLOCK):
        block = _rates(labels, scores, counts[start : start + _BLOCK], candidates)  # type: ignore[index]
        for name in names:
            places = _choose(name, *block)
            drawn[name].append(np.where(np.isnan(block[0][:, 0] + block[1][:, 0]), np.nan, candidates[places]))
            fixed[name].append(np.stack([block[0][:, chosen[name]], block[1][:, chosen[name]]]))
    points = []
    for name, place in chosen.items():
        thresholds = np.concatenate(drawn[name]) if counts is not None else None
        own = np.concatenate(fixed[name], 1) if counts is not None else (None, None)
        points.append(
            OperatingPoint(
                name,
                boot.estimate(candidates[place], thresholds, count=len(labels)),
                boot.estimate(sensitivity[0, place], own[0], count=int(labels.sum())),
                boot.estimate(specificity[0, place], own[1], count=int((~labels).sum())),
            )
        )
    return points


def _rates(
    labels: np.ndarray, scores: np.ndarray, counts: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sensitivity and specificity (R, T) of `score > candidate`, NaN where a label is missing, and prevalence (R, 1)."""
    found = []
    for own in (labels, ~labels):
        order = np.argsort(scores[own], kind="stable")
        upto = np.cumsum(counts[:, own][:, order], 1)
        upto = np.concatenate([np.zeros((len(counts), 1), dtype=upto.dtype), upto], 1)
        places = np.searchsorted(scores[own][order], candidates, side="right")
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(upto[:, places] / upto[:, -1:])
    below_positive, below_negative = found
    return 1 - below_positive, below_negative, counts[:, labels].sum(1, keepdims=True) / counts.sum(1, keepdims=True)


def _choose(name: str, sensitivity: np.ndarray, specificity: np.ndarray, prevalence: np.ndarray) -> np.ndarray:
    """Place of the candidate that a rule takes in every resample, (R,); the largest threshold among equals."""
    kind, _, text = name.partition("=")
    if kind == "specificity":  # the lowest threshold that has it: most sensitivity
        return (specificity >= float(text) - 1e-12).argmax(1)
    if kind == "youden":
        loss = -(sensitivity + specificity)
    elif kind == "roc-closest":
        loss = (1 - sensitivity) ** 2 + (1 - specificity) ** 2
    elif kind == "cost":
        loss = float(text) * prevalence * (1 - sensitivity) + (1 - prevalence) * (1 - specificity)
    else:
        loss = np.where(sensitivity >= float(text) - 1e-12, 0.0, 1.0)
    loss = np.round(loss, 12)
    return loss.shape[1] - 1 - loss[:, ::-1].argmin(1)
