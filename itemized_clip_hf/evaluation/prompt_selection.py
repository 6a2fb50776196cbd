"""Which phrasings of a finding to average: forward selection on a table of scores, and what it is worth on held-out studies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from . import bootstrap as boot
from .estimates import Estimate
from .metrics import require_sklearn

Ensemble = tuple[int, ...]
"""Numbers of phrasings, ascending; their normalized embeddings are averaged."""

FOLDS = 5
MIN_OF_EACH = 10
"""With fewer studies that have a finding, or that do not, nothing is chosen by them."""
MAX_ENSEMBLES = 50_000
"""Of all findings: beyond that the table of scores is larger than it is worth."""


def list_ensembles(phrasings: int, largest: int, default: Ensemble) -> list[Ensemble]:
    """
    All ensembles of up to `largest` phrasings, single ones first, and the default one.

    >>> list_ensembles(3, 2, (0,))
    [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    """
    sizes = range(1, min(largest, phrasings) + 1)
    return list(dict.fromkeys([*(one for size in sizes for one in combinations(range(phrasings), size)), default]))


@dataclass
class EnsembleScores:
    """
    Scores of one finding.

    Args:
        labels: (S,) True where the study has it.
        table: (S, E), one column per ensemble.
        ensembles: what the columns are, from `list_ensembles`.
        default: the ensemble that is used so far.
    """

    labels: np.ndarray
    table: np.ndarray
    ensembles: list[Ensemble]
    default: Ensemble
    column: dict[Ensemble, int] = field(init=False)

    def __post_init__(self):
        self.labels = np.asarray(self.labels).astype(bool)
        self.column = {ensemble: number for number, ensemble in enumerate(self.ensembles)}

    def auc(self, ensemble: Ensemble, rows: np.ndarray) -> float:
        """AUROC of an ensemble in some studies, ties by half; NaN where only one class is present."""
        scores, labels = self.table[rows, self.column[ensemble]], self.labels[rows]
        above, below = scores[labels], np.sort(scores[~labels])
        wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
        return float(wins.sum() / 2 / (len(above) * len(below))) if len(above) and len(below) else float("nan")

    def rarer(self, rows: np.ndarray) -> int:
        """Studies of the rarer class."""
        return int(min(self.labels[rows].sum(), (~self.labels[rows]).sum()))


@dataclass
class Selection:
    """
    What was chosen for one finding, and what choosing is worth.

    Args:
        chosen: ensemble by all studies.
        by_fold: what the same procedure chose without the studies of each fold; empty where there were too few.
        held_out: `default`, `chosen` and their `difference`: AUC in studies that had no say in the choice.
        resampled: the same in every resample, (R,) each.
    """

    chosen: Ensemble
    by_fold: list[Ensemble] = field(default_factory=list)
    held_out: dict[str, Estimate] = field(default_factory=dict)
    resampled: dict[str, np.ndarray] = field(default_factory=dict)


def forward_path(scores: EnsembleScores, rows: np.ndarray) -> list[Ensemble]:
    """
    Ensembles of 1, 2, ... phrasings: each adds to the one before the phrasing that makes its AUC in these studies highest.

    Args:
        rows: numbers of the studies that may be looked at.
    """
    path: list[Ensemble] = []
    chosen: Ensemble = ()
    while True:
        longer = [one for one in scores.ensembles if len(one) == len(chosen) + 1 and set(chosen) < set(one)]
        if not longer:
            return path
        chosen = max(longer, key=lambda one: scores.auc(one, rows))  # the first among equals
        path.append(chosen)


def choose_ensemble(scores: EnsembleScores, rows: np.ndarray, folds: int = FOLDS, seed: int = 0) -> Ensemble:
    """
    The default, or the ensemble of the size that does best in cross-validation within these studies.

    In each fold forward selection sees the other folds only. The smallest size among equals wins, the default before all.
    """
    gains: dict[int, list[float]] = {}
    for seen, held in _folds(scores, rows, folds, seed):
        base = scores.auc(scores.default, held)
        for ensemble in forward_path(scores, seen):
            gains.setdefault(len(ensemble), []).append(scores.auc(ensemble, held) - base)
    means = {size: float(np.mean(values)) for size, values in gains.items()}
    best = max(means, key=lambda size: (means[size], -size), default=0)
    return forward_path(scores, rows)[best - 1] if best and means[best] > 0 else scores.default


def select(scores: EnsembleScores, counts: np.ndarray | None = None, folds: int = FOLDS, seed: int = 0) -> Selection:
    """
    Chooses by all studies, and says by nested cross-validation what the whole procedure is worth.

    Scores of different ensembles are not on one scale, so pairs of studies are compared within folds only: the AUC is the share
    of these pairs in the right order, for the default in the same pairs.

    Args:
        counts: (R, S) of `bootstrap.draw_counts`, for intervals; resampled are held-out studies, the choices stay.
        folds: outer and inner ones.
        seed: of the folds.
    """
    everyone = np.arange(len(scores.labels))
    if scores.rarer(everyone) < MIN_OF_EACH:
        return Selection(scores.default)
    chosen = choose_ensemble(scores, everyone, folds, seed)
    by_fold, parts = [], []
    for seen, held in _folds(scores, everyone, folds, seed):
        by_fold.append(choose_ensemble(scores, seen, folds, seed))
        parts.append((held, {"default": scores.default, "chosen": by_fold[-1]}))
    values = _within_folds(scores, parts, np.ones((1, len(everyone)), dtype=np.int32))
    resampled = {} if counts is None else _within_folds(scores, parts, counts)
    held_out = {
        name: boot.estimate(value[0], resampled.get(name), "auc", len(everyone)) for name, value in values.items()
    }
    return Selection(chosen, by_fold, held_out, resampled)


def _within_folds(
    scores: EnsembleScores, parts: Sequence[tuple[np.ndarray, dict[str, Ensemble]]], counts: np.ndarray
) -> dict[str, np.ndarray]:
    """AUC over the pairs of all folds, of `default`, `chosen`, and their `difference`, in every resample: (R,)."""
    wins: dict[str, Any] = {"default": 0.0, "chosen": 0.0}
    pairs: Any = 0.0
    for held, ensembles in parts:
        labels, drawn = scores.labels[held], counts[:, held]
        weight = drawn[:, labels].sum(1).astype(float) * drawn[:, ~labels].sum(1)
        pairs = pairs + weight
        for name, ensemble in ensembles.items():
            aucs = boot.resampled_auroc(labels, scores.table[held, scores.column[ensemble]], drawn)
            wins[name] = wins[name] + np.where(weight > 0, np.nan_to_num(aucs) * weight, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {name: won / pairs for name, won in wins.items()}
    return {**values, "difference": values["chosen"] - values["default"]}


def _folds(scores: EnsembleScores, rows: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(studies that may be looked at, studies that are held out), both classes in each; none where there are too few."""
    require_sklearn()
    from sklearn.model_selection import StratifiedKFold

    splits = min(folds, scores.rarer(rows))
    if splits < 2:
        return
    for seen, held in StratifiedKFold(splits, shuffle=True, random_state=seed).split(rows, scores.labels[rows]):
        yield rows[seen], rows[held]
