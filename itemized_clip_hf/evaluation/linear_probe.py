"""Linear probe: what a frozen vision tower knows, read out by logistic regression."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from . import bootstrap as boot
from .encode import encode_studies
from .metrics import auroc, average_precision

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""Inverse strengths of the penalty among which is chosen."""


def extract_features(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    studies: Iterable,
    batch_size: int = 8,
    progress: bool = False,
    on_error: Callable[[int, Exception], None] | None = None,
) -> np.ndarray:
    """(S, 2 P): the global embedding and the mean of the tokens of real scans, each of unit length; NaN for failed studies."""
    rows: dict[int, np.ndarray] = {}
    failed: list[int] = []

    def leave_out(number: int, error: Exception) -> None:
        if on_error is None:
            raise error
        failed.append(number)
        on_error(number, error)

    for encoded in encode_studies(model, processor, studies, batch_size, "encoding" if progress else None, leave_out):
        tokens, mask = encoded.tokens.float(), encoded.token_mask
        weights = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.float()
        mean = (tokens * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        parts = [
            part / part.norm(dim=-1, keepdim=True).clamp(min=1e-12) for part in (encoded.image_embeds.float(), mean)
        ]
        for number, left, right in zip(encoded.numbers, *(part.cpu().numpy() for part in parts)):
            rows[number] = np.concatenate([left, right])
    if not rows:
        raise ValueError("none of the studies can be read.")
    table = np.full((len(rows) + len(failed), len(next(iter(rows.values())))), np.nan, dtype=np.float32)
    for number, row in rows.items():
        table[number] = row
    return table


def probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    names: Sequence[str],
    folds: int = 5,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
) -> dict[str, dict]:
    """
    Logistic regression per finding; the penalty is chosen by cross-validated AUC on the training studies.

    Args:
        train_features, test_features: from `extract_features`; studies with NaN are left out.
        train_labels, test_labels: (S, F) of 0, 1 and NaN for unknown.

    Returns:
        finding -> `auc`, `average_precision` on the test studies, each with `low` and `high`; the chosen `strength`.

    Raises:
        ValueError: a finding has fewer than `folds` training studies with or without it.
    """
    found = {}
    for number, name in enumerate(names):
        (features, labels), (unseen, truth) = (
            _known(table, own[:, number])
            for table, own in ((train_features, train_labels), (test_features, test_labels))
        )
        if min(labels.sum(), (1 - labels).sum()) < folds:
            raise ValueError(
                f"{name!r}: {int(labels.sum())} of {len(labels)} training studies have it, too few for {folds} folds."
            )
        search = fit_probe(features, labels, folds, seed)
        scores = search.decision_function(unseen)
        row: dict = {
            "strength": search.best_params_["logisticregression__C"],
            "positive": int(truth.sum()),
            "studies": len(truth),
        }
        counts = boot.study_counts(len(truth), resamples, seed)
        for metric, value, resampled in (
            ("auc", auroc(truth, scores), boot.resampled_auroc),
            ("average_precision", average_precision(truth, scores), boot.resampled_average_precision),
        ):
            row[metric] = boot.estimate(
                value, None if counts is None else resampled(truth, scores, counts), metric, len(truth)
            ).to_dict()
        found[name] = row
    return found


def fit_probe(features: np.ndarray, labels: np.ndarray, folds: int, seed: int = 0) -> Any:
    """
    Logistic regression of one finding, fitted: scikit-learn's, whose `best_params_` tell the strength.

    Args:
        folds: in which the penalty is chosen by AUC; with fewer than two it is 1.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ImportError("the linear probe needs scikit-learn: pip install 'itemized-clip-hf[metrics]'.") from None
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    if folds < 2:
        return regression.fit(features, labels.astype(int))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    search = GridSearchCV(regression, {"logisticregression__C": STRENGTHS}, scoring="roc_auc", cv=splits)
    return search.fit(features, labels.astype(int))


def _known(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = ~np.isnan(labels) & ~np.isnan(features).any(1)
    return features[kept], labels[kept]


def probe_scores(
    train_features: np.ndarray, train_labels: np.ndarray, test_features: np.ndarray, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """
    Scores (S, F) of test studies by a logistic regression for each finding, also where few studies have it: the penalty is
    chosen in as many folds as there are studies of the rarer kind, and is 1 where that is one study.

    Args:
        train_features, test_features: from `extract_features`; training studies with NaN are left out, test studies with NaN
            get NaN.
        train_labels: (S, F) of 0, 1 and NaN for unknown.

    Returns:
        decision values; 0 for a finding whose training studies are all of one kind.
    """
    scores = np.zeros((len(test_features), train_labels.shape[1]), dtype=np.float32)
    usable = ~np.isnan(test_features).any(1)
    scores[~usable] = np.nan
    for number in range(train_labels.shape[1]):
        features, labels = _known(train_features, train_labels[:, number])
        rarer = int(min(labels.sum(), (1 - labels).sum()))
        if rarer:
            fitted = fit_probe(features, labels, min(folds, rarer), seed)
            scores[usable, number] = fitted.decision_function(test_features[usable])
    return scores
