"""Estimates: a value with its unit, and its interval over studies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["share", "rank", "cosine x 100", "mm"]
NON_PERCENT: dict[str, Unit] = {
    "mean_rank": "rank",
    "mean rank": "rank",
    "median_rank": "rank",
    "worst_rank": "rank",
    "MLL": "cosine x 100",
    "surface_distance": "mm",
    "hausdorff_95": "mm",
}
"""Metrics that are not shares, and their unit."""

MIN_STUDIES = 10
"""With fewer studies a bootstrap interval looks far more certain than it is: tables do not show it."""


def unit_of(metric: str) -> Unit:
    """
    The unit of a metric by its name; `mean` or `largest gap of` may stand before it.

    >>> unit_of("auc"), unit_of("mean_rank")
    ('share', 'rank')
    """
    return NON_PERCENT.get(
        metric, NON_PERCENT.get(metric.removeprefix("largest gap of ").removeprefix("mean "), "share")
    )


def column_title(metric: str) -> str:
    """
    The metric with the unit that tables show it in.

    >>> column_title("auc"), column_title("mean_rank")
    ('auc (%)', 'mean_rank')
    """
    return f"{metric} (%)" if unit_of(metric) == "share" else metric


@dataclass(frozen=True)
class Estimate:
    """
    A value with its 95 % interval.

    Args:
        value: NaN where the metric is not defined, e.g. an AUC of one class.
        low, high: of the interval; None where none was computed.
        unit: `"share"` in [0, 1], `"rank"`, `"cosine x 100"` or `"mm"`.
        count: studies that it rests on; None where it is not known.

    >>> print(Estimate(0.832, 0.81, 0.851, count=400))
    83.2 (81.0-85.1)
    >>> print(Estimate(1.0, 1.0, 1.0, count=3))
    100.0 (too few studies)
    >>> Estimate(0.832, 0.81, 0.851, count=400).to_dict()
    {'value': 0.832, 'low': 0.81, 'high': 0.851}
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: Unit = "share"
    count: int | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], metric: str = "", count: int | None = None) -> Estimate:
        """From `{"value", "low", "high"}` of a file, where null stands for NaN; the metric tells the unit."""
        value = content["value"]
        return cls(
            math.nan if value is None else float(value),
            content.get("low"),
            content.get("high"),
            unit_of(metric),
            count,
        )

    def to_dict(self) -> dict[str, float]:
        """`value`, and `low` and `high` where there is an interval."""
        content = {"value": self.value}
        if self.low is not None and self.high is not None:
            content |= {"low": self.low, "high": self.high}
        return content

    @property
    def is_known(self) -> bool:
        """Whether there is a value at all."""
        return not math.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval whose ends are numbers."""
        ends = (self.low, self.high)
        return all(end is not None and not math.isnan(end) for end in ends)

    def format(self, between: str = "-") -> str:
        """`83.2 (81.0-85.1)`: shares in percent, others with two digits; a dash where there is no value."""
        if not self.is_known:
            return "-"
        factor, digits = (100, 1) if self.unit == "share" else (1, 2)
        text = f"{factor * self.value:.{digits}f}"
        if not self.has_interval:
            return text
        if self.count is not None and self.count < MIN_STUDIES:
            return f"{text} (too few studies)"
        low, high = (f"{factor * float(end or 0):.{digits}f}" for end in (self.low, self.high))
        return f"{text} ({low}{between}{high})"

    __str__ = format


Estimates = dict[str, Estimate]
"""Metric -> its estimate."""


def estimates_from(content: Mapping[str, Any], count: int | None = None) -> Estimates:
    """The estimates of a row of a file; what is not one (counts, a prompt, a threshold) is passed over."""
    return {
        metric: Estimate.from_dict(entry, metric, count)
        for metric, entry in content.items()
        if isinstance(entry, Mapping) and "value" in entry
    }


def estimates_to(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Metric -> `{"value", "low", "high"}`."""
    return {metric: estimate.to_dict() for metric, estimate in estimates.items()}
