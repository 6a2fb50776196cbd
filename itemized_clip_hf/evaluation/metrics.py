"""Metrics as pure functions of numpy arrays."""

import numpy as np
from numpy.typing import ArrayLike


def auroc(labels: ArrayLike, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN where only one class is present. labels (S,), scores (S,)."""
    labels = np.asarray(labels).astype(bool)
    if labels.all() or not labels.any():
        return float("nan")
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        raise ImportError("AUROC needs scikit-learn: pip install 'itemized-clip-hf[metrics]'.") from None
    return float(roc_auc_score(labels, scores))


def true_class_ranks(scores: np.ndarray, classes: ArrayLike) -> np.ndarray:
    """1-based rank of the true class by descending score; among equal scores the lower class number comes first.

    scores (S, C), classes (S,) of class numbers.
    """
    order = np.argsort(-np.asarray(scores), axis=1, kind="stable")
    return (order == np.asarray(classes)[:, None]).argmax(1) + 1


def classification_summary(scores: np.ndarray, classes: ArrayLike) -> dict[str, float]:
    """`top1` and `top5` as shares, and `mean_rank`."""
    ranks = true_class_ranks(scores, classes)
    return {"top1": float((ranks == 1).mean()), "top5": float((ranks <= 5).mean()), "mean_rank": float(ranks.mean())}
