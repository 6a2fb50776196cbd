"""
A score of one finding as a probability: Platt's sigmoid (Platt 1999, with his smoothed targets) or isotonic steps (Zadrozny
and Elkan 2002), with intervals by refits to resampled studies. scikit-learn fits; `resampled_platt` does so for all resamples.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from . import bootstrap as boot
from .metrics import require_sklearn

MIN_CLASS = 10
"""Positives, and negatives, from which a finding is calibrated."""
MIN_ISOTONIC = 50
"""The same for isotonic scaling, whose steps follow single studies."""
REFITS = 200
"""Refits to resampled studies, which intervals are made of."""
FOLDS = 5
_KNOTS = 101
_NEWTON_STEPS = 50


def sigmoid(logits: ArrayLike) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=float)))


@dataclass
class Platt:
    """
    sigmoid(slope * score + intercept).

    Args:
        refits: (R, 2), slope and intercept of refits to resampled studies.
    """

    slope: float
    intercept: float
    refits: np.ndarray
    method: ClassVar[str] = "platt"

    @classmethod
    def fit(cls, labels: ArrayLike, scores: ArrayLike, counts: np.ndarray | None = None) -> Platt:
        """Labels (S,), scores (S,); counts (R, S) from `bootstrap.draw_counts`, none for no refits."""
        require_sklearn()
        from sklearn.linear_model import LogisticRegression

        labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=float)
        centered, mean, spread = _standardize(scores)
        weights = _target(labels, np.ones((1, len(labels))))[0]
        # A soft target is a study of each label, weighted.
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that C is ignored, which some versions say
            model.fit(
                np.concatenate([centered, centered])[:, None],
                np.repeat([1, 0], len(labels)),
                np.concatenate([weights, 1 - weights]),
            )
        slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
        refits = np.zeros((0, 2)) if counts is None else resampled_platt(labels, scores, counts)
        return cls(slope / spread, intercept - slope * mean / spread, refits)

    def probability(self, scores: ArrayLike) -> np.ndarray:
        """Of scores (S,)."""
        return sigmoid(self.slope * np.asarray(scores, dtype=float) + self.intercept)

    def interval(self, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of the probability, (S,) each."""
        logits = self.refits[:, :1] * np.asarray(scores, dtype=float)[None] + self.refits[:, 1:]
        low, high = np.quantile(logits, [0.025, 0.975], axis=0)
        return sigmoid(low), sigmoid(high)

    def to_dict(self) -> dict[str, Any]:
        """As in `calibration.json`."""
        refits = [[_digits(value) for value in row] for row in self.refits.tolist()]
        return {"slope": _digits(self.slope), "intercept": _digits(self.intercept), "refits": refits}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Platt:
        """From `to_dict`; ValueError where numbers are missing."""
        refits = _numbers(content["refits"], 2)
        if refits.shape[1] != 2 or not len(refits):
            raise ValueError(f"refits have the shape {refits.shape}, expected pairs")
        return cls(float(content["slope"]), float(content["intercept"]), refits)


@dataclass
class Isotonic:
    """
    Steps that never fall with the score, straight between knots, level outside of them.

    Args:
        knots: scores, ascending, (K,); those between quantiles of the validation scores, so that no step is one study's.
        probabilities, low, high: (K,) of the fit, and ends of the 95 % interval: that of refits, and of the share of positives
            on the step (Wilson), whichever is wider.
    """

    knots: np.ndarray
    probabilities: np.ndarray
    low: np.ndarray
    high: np.ndarray
    method: ClassVar[str] = "isotonic"

    @classmethod
    def fit(cls, labels: ArrayLike, scores: ArrayLike, counts: np.ndarray | None = None) -> Isotonic:
        """Labels (S,), scores (S,); counts (R, S) from `bootstrap.draw_counts`, none for no refits."""
        labels, scores = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
        knots = np.unique(np.quantile(scores, np.linspace(0, 1, _KNOTS)))
        fitted = cls._steps(labels, scores, np.ones(len(labels)), knots)
        if counts is None:
            return cls(knots, fitted, fitted, fitted)
        drawn = [cls._steps(labels, scores, row, knots) for row in counts]
        low, high = np.quantile(np.stack(drawn), [0.025, 0.975], axis=0)
        # A step whose studies are all alike is the same in every resample: it is no surer than its number of studies.
        level = cls._steps(labels, scores, np.ones(len(labels)), scores)
        steps, places = np.unique(level, return_inverse=True)
        sizes, positives = np.bincount(places), np.bincount(places, labels)
        nearest = np.abs(steps[None] - fitted[:, None]).argmin(1)
        least, most = _wilson(positives[nearest], sizes[nearest])
        return cls(knots, fitted, np.minimum(low, least), np.maximum(high, most))

    @staticmethod
    def _steps(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, knots: np.ndarray) -> np.ndarray:
        require_sklearn()
        from sklearn.isotonic import IsotonicRegression

        surest = 1 / (weights.sum() + 2)  # S studies cannot show that a probability is 0 or 1
        model = IsotonicRegression(y_min=surest, y_max=1 - surest, out_of_bounds="clip")
        drawn = weights > 0
        return model.fit(scores[drawn], labels[drawn], weights[drawn]).predict(knots)

    def probability(self, scores: ArrayLike) -> np.ndarray:
        """Of scores (S,)."""
        return np.interp(np.asarray(scores, dtype=float), self.knots, self.probabilities)

    def interval(self, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of the probability, (S,) each."""
        scores = np.asarray(scores, dtype=float)
        return np.interp(scores, self.knots, self.low), np.interp(scores, self.knots, self.high)

    def to_dict(self) -> dict[str, Any]:
        """As in `calibration.json`."""
        parts = {
            "knots": self.knots,
            "probabilities": self.probabilities,
            "low": self.low,
            "high": self.high,
        }
        return {name: [_digits(value) for value in values.tolist()] for name, values in parts.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Isotonic:
        """From `to_dict`; ValueError where numbers are missing."""
        parts = [_numbers(content[name], 1) for name in ("knots", "probabilities", "low", "high")]
        if len({len(part) for part in parts}) != 1 or not len(parts[0]):
            raise ValueError("knots and probabilities differ in number")
        if (np.diff(parts[0]) <= 0).any():
            raise ValueError("knots are not ascending")
        return cls(*parts)


Scaling = Platt | Isotonic
METHODS: dict[str, type[Platt] | type[Isotonic]] = {"platt": Platt, "isotonic": Isotonic}


def choose_scaling(
    labels: ArrayLike, scores: ArrayLike, refits: int = REFITS, seed: int = 0
) -> tuple[Scaling | None, str, dict[str, float]]:
    """
    The scaling with the lower log loss in a stratified cross-validation of 5 folds; isotonic from 50 of each label on.

    Args:
        labels: (S,) of 0 and 1.
        scores: (S,).
        refits, seed: of the intervals.

    Returns:
        the scaling, or None and why; log loss of each method, in nats a study.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=float)
    fewest = int(min(labels.sum(), (~labels).sum()))
    if fewest < MIN_CLASS:
        found = f"{int(labels.sum())} positives and {int((~labels).sum())} negatives"
        return None, f"{found}, fewer than {MIN_CLASS} of one kind", {}
    counts = boot.draw_counts(len(labels), refits, seed)
    platt = Platt.fit(labels, scores, counts)
    if not platt.slope > 0:
        return None, "positives do not score higher than negatives", {}
    tried: list[type[Platt] | type[Isotonic]] = [Platt, *([Isotonic] if fewest >= MIN_ISOTONIC else [])]
    losses = {one.method: cross_validated_loss(one, labels, scores, seed) for one in tried}
    if losses.get("isotonic", np.inf) < losses["platt"]:
        return Isotonic.fit(labels, scores, counts), "", losses
    return platt, "", losses


def cross_validated_loss(
    method: type[Platt] | type[Isotonic], labels: np.ndarray, scores: np.ndarray, seed: int
) -> float:
    """Mean log loss, in nats, of studies that were not fitted to."""
    require_sklearn()
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    probability = np.zeros(len(labels))
    for fitted, left in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(scores[:, None], labels):
        probability[left] = method.fit(labels[fitted], scores[fitted]).probability(scores[left])
    return float(log_loss(labels, probability, labels=[False, True]))


def resampled_platt(labels: ArrayLike, scores: ArrayLike, counts: np.ndarray) -> np.ndarray:
    """Slope and intercept of `Platt.fit` in every resample, (R, 2), by Newton's method; resamples of one label are left out."""
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=float)
    both = (counts[:, labels].sum(1) > 0) & (counts[:, ~labels].sum(1) > 0)
    weights = counts[both].astype(float)
    centered, mean, spread = _standardize(scores)
    targets = _target(labels, weights)
    logits, found = np.zeros_like(weights), np.zeros((len(weights), 2))
    for _ in range(_NEWTON_STEPS):
        probability = sigmoid(logits)
        rest, curve = weights * (targets - probability), weights * probability * (1 - probability) + 1e-12 * weights
        gradient = np.stack([rest @ centered, rest.sum(1)], 1)
        across, square = curve @ centered, curve @ centered**2
        hessian = np.stack([np.stack([square, across], 1), np.stack([across, curve.sum(1)], 1)], 1)
        step = np.linalg.solve(hessian + 1e-10 * np.eye(2), gradient[..., None])[..., 0]
        step *= np.minimum(1, 5 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-12))
        found += step
        logits = found[:, :1] * centered + found[:, 1:]
        if np.abs(step).max(initial=0) < 1e-9:
            break
    return np.stack([found[:, 0] / spread, found[:, 1] - found[:, 0] * mean / spread], 1)


def _wilson(positives: np.ndarray, sizes: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Ends of Wilson's interval of a share."""
    middle = (positives + z**2 / 2) / (sizes + z**2)
    half = z / (sizes + z**2) * np.sqrt(positives * (sizes - positives) / sizes + z**2 / 4)
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def _target(labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Platt's targets (R, S): (P + 1) / (P + 2) of the P positives and 1 / (N + 2) of the N negatives, drawn with weights."""
    positives, negatives = weights[:, labels].sum(1, keepdims=True), weights[:, ~labels].sum(1, keepdims=True)
    return np.where(labels[None], (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _standardize(scores: np.ndarray) -> tuple[np.ndarray, float, float]:
    mean, spread = float(scores.mean()), float(scores.std()) or 1.0
    return (scores - mean) / spread, mean, spread


def _digits(value: float) -> float:
    return float(f"{value:.9g}")


def _numbers(values: Any, dimensions: int) -> np.ndarray:
    """The values as an array; ValueError where one is not a number."""
    array = np.asarray(values, dtype=float)
    if array.ndim != dimensions or not np.isfinite(array).all():
        raise ValueError("a value is not a finite number")
    return array
