"""The metrics as modules of Hugging Face's `evaluate`: `ZeroShotFindings().compute(predictions=..., references=...)`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import bootstrap as boot
from . import metrics
from .protocols.labels import Truth
from .protocols.schema import Protocol
from .protocols.summary import summarize
from .tasks.retrieval import LEVELS

try:
    import datasets
    import evaluate
except ImportError:
    raise ImportError("these modules need evaluate: pip install 'itemized-clip-hf[metrics,data]'.") from None

_ROWS = datasets.List(datasets.Value("float32"))
_CITATION = "ItemizedCLIP, CVPR 2026"


def _info(description: str, references: Any) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": _ROWS, "references": references})
    return evaluate.MetricInfo(description=description, citation=_CITATION, features=features)


class ZeroShotFindings(evaluate.Metric):
    """
    Scores of findings, each present or not.

    Args of `compute`: predictions (S, F); references (S, F) of 0, 1 and -1 for unknown; `names` of the findings;
    `threshold_points` of the reference's threshold search, or None for the exact one; `resamples` of the bootstrap, 0 for no
    intervals.
    """

    def _info(self):
        return _info(
            "AUC, average precision and figures at the ROC-closest threshold.", datasets.List(datasets.Value("int8"))
        )

    def _compute(
        self,
        predictions: Any,
        references: Any,
        names: Sequence[str] | None = None,
        threshold_points: int | None = None,
        resamples: int = 0,
        seed: int = 0,
    ):
        scores, labels = np.array(predictions, dtype=np.float32), np.array(references, dtype=float)
        labels[labels < 0] = np.nan
        names = list(names or map(str, range(scores.shape[1])))
        protocol = Protocol("own", findings=names, threshold_points=threshold_points)
        truth = Truth([str(number) for number in range(len(scores))], labels=labels)
        return summarize(protocol, {name: [name] for name in names}, scores, truth, resamples, seed).to_dict()


class ZeroShotClasses(evaluate.Metric):
    """
    Scores of classes, one of which is true: `top1`, `top5`, `mean_rank`, `balanced_accuracy`, `weighted_f1`.

    Args of `compute`: predictions (S, C); references (S,) class numbers.
    """

    def _info(self):
        return _info("Top-1, top-5, mean rank of the true class, balanced accuracy.", datasets.Value("int32"))

    def _compute(self, predictions: Any, references: Any):
        scores = np.array(predictions)
        choice = metrics.choice_metrics(scores, references)
        return {
            **metrics.classification_summary(scores, references),
            **{n: choice[n] for n in ("balanced_accuracy", "weighted_f1")},
        }


class Retrieval(evaluate.Metric):
    """
    Ranks of the best and of the worst relevant column: `R@k`, `mean_rank`, `median_rank`, and `complete@k`, whether all
    relevant columns are among the first k.

    Args of `compute`: predictions (Q, M) scores of every candidate; references (Q, *) numbers of the relevant ones; `levels`.
    """

    def _info(self):
        return _info("Recall at k, ranks and completeness.", datasets.List(datasets.Value("int32")))

    def _compute(
        self, predictions: Any, references: Any, levels: Sequence[int] = LEVELS, resamples: int = 0, seed: int = 0
    ):
        scores = np.array(predictions)
        best, worst = metrics.best_ranks(scores, references), metrics.worst_ranks(scores, references)
        found: dict[str, Any] = dict(metrics.retrieval_summary(best, levels))
        found |= {f"complete@{k}": float((worst <= k).mean()) for k in levels}
        if resamples:
            counts = boot.draw_counts(len(scores), resamples, seed)
            for k in levels:
                found[f"R@{k} interval"] = list(boot.interval(boot.resampled_mean(best <= k, counts)))
        return found
