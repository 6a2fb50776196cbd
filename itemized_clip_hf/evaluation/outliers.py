"""How far a study lies from others: Mahalanobis distance of global embeddings (Lee et al. 2018), as a percentile of theirs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .metrics import require_sklearn

MIN_STUDIES = 20
"""Studies from which a distance is told."""
FAR_PERCENTILE = 99.0
"""A study beyond this percentile is far: one in a hundred of studies like the others is, too."""
_FOLDS = 5


@dataclass
class Distance:
    """
    A cloud of studies: mean and shape, nobody's embedding.

    Args:
        mean: (P,) of unit embeddings.
        precision: (P, P), inverse of their covariance, shrunk (Ledoit and Wolf 2004).
        percentiles: (101,), distance below which 0 to 100 % of the studies lie, each measured from a cloud without it.
        studies: that it rests on.
    """

    mean: np.ndarray
    precision: np.ndarray
    percentiles: np.ndarray
    studies: int

    @classmethod
    def fit(cls, embeds: np.ndarray, seed: int = 0) -> Distance | None:
        """Of unit embeddings (S, P); None of fewer than 20 studies."""
        embeds = np.asarray(embeds, dtype=np.float64)
        if len(embeds) < MIN_STUDIES:
            return None
        folds = np.random.default_rng(seed).permutation(len(embeds)) % _FOLDS
        distances = np.zeros(len(embeds))
        for fold in range(_FOLDS):
            distances[folds == fold] = _distances(embeds[folds == fold], *_cloud(embeds[folds != fold]))
        percentiles = np.quantile(distances, np.linspace(0, 1, 101))
        mean, precision = _cloud(embeds)
        return cls(mean, precision, percentiles, len(embeds))

    def percentile(self, embeds: np.ndarray) -> np.ndarray:
        """Of unit embeddings (B, P): the share of the studies, in percent, that lie nearer, (B,)."""
        embeds = np.asarray(embeds, dtype=np.float64)
        return np.interp(_distances(embeds, self.mean, self.precision), self.percentiles, np.arange(101.0))


def unit(embeds: np.ndarray) -> np.ndarray:
    """Embeddings (B, P) at unit length, float32."""
    embeds = np.asarray(embeds, dtype=np.float64)
    return (embeds / np.maximum(np.linalg.norm(embeds, axis=-1, keepdims=True), 1e-12)).astype(np.float32)


def _cloud(embeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    require_sklearn()
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(embeds)
    return fitted.location_, fitted.precision_


def _distances(embeds: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    rest = embeds - mean
    return np.sqrt(np.maximum(np.einsum("bp,pq,bq->b", rest, precision, rest, optimize=True), 0))
