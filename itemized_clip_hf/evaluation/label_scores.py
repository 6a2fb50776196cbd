"""Scores of a classifier, and its figures, each with a confidence interval over studies."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch

from ..modeling.classification_itemized_clip import SINGLE_LABEL, ItemizedCLIPForImageClassification
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from . import bootstrap as boot
from .encode import EncodedStudies
from .protocols.labels import Truth
from .protocols.schema import Protocol
from .protocols.summary import summarize
from .results import TableResult
from .zero_shot import collect_scores

UNKNOWN_CLASS = -100
FUNCTIONS = ("none", "sigmoid", "softmax")


@torch.no_grad()
def label_logits(model: ItemizedCLIPForImageClassification, studies: EncodedStudies) -> np.ndarray:
    """Logits (B, F) of encoded studies, float32."""
    logits = model.score_labels(studies.image_embeds, studies.tokens, studies.token_mask)
    return logits.float().cpu().numpy()


def score_labels(
    model: ItemizedCLIPForImageClassification, processor: ItemizedCLIPProcessor, studies: Iterable, **settings: Any
) -> np.ndarray:
    """
    Logits (S, F) of studies, NaN for those that cannot be read.

    Args:
        studies: see `encode_studies`.
        settings: of `collect_scores`.
    """
    return collect_scores(partial(label_logits, model), len(model.label_names), model, processor, studies, **settings)


def default_function(model: ItemizedCLIPForImageClassification) -> str:
    """What turns logits into probabilities: the softmax where a study has one class, else the sigmoid of each label."""
    return "softmax" if model.config.problem_type == SINGLE_LABEL else "sigmoid"


def apply_function(logits: np.ndarray, function: str) -> np.ndarray:
    """
    Logits (S, F) as scores, float32.

    Args:
        function: `"sigmoid"`, `"softmax"` over the labels, or `"none"`.

    Raises:
        ValueError: there is no such function.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"function_to_apply is {function!r}, expected one of {', '.join(FUNCTIONS)}.")
    table = torch.from_numpy(np.asarray(logits, dtype=np.float32))
    scores = table if function == "none" else table.sigmoid() if function == "sigmoid" else table.softmax(-1)
    return scores.numpy()


def summarize_labels(
    names: list[str], logits: np.ndarray, labels: np.ndarray, resamples: int = boot.RESAMPLES, seed: int = 0
) -> dict[str, TableResult]:
    """
    AUC, average precision and what follows a threshold, of every label by itself and their mean; where a study has one class,
    the choice among the classes besides.

    Args:
        names: of the labels.
        logits: (S, F).
        labels: (S, F) of 0, 1 and NaN for unknown, or (S,) numbers of classes, -100 for unknown; these studies are left out.
        resamples: of the bootstrap; 0 for no intervals.

    Returns:
        `"labels"`, of classes each against the rest; of classes also `"choice"`.
    """
    logits, labels = np.asarray(logits, dtype=np.float32), np.asarray(labels)
    prompts = {name: [name] for name in names}
    if labels.ndim == 2:
        protocol = Protocol("own", findings=list(names))
        return {"labels": summarize(protocol, prompts, logits, _truth(labels=labels), resamples, seed)}
    known = labels != UNKNOWN_CLASS
    scores, classes = apply_function(logits[known], "softmax"), labels[known].astype(int)
    each = _truth(labels=np.eye(len(names))[classes])
    one = Protocol("own", classes=list(names), tasks={"classes": list(names)})
    return {
        "labels": summarize(Protocol("own", findings=list(names)), prompts, scores, each, resamples, seed),
        "choice": summarize(one, prompts, scores, _truth(classes=classes), resamples, seed),
    }


def mean_figures(results: dict[str, TableResult]) -> dict[str, float]:
    """
    What stands for the whole, known values only: means over the labels; of classes AUC and average precision, each class
    against the rest, and accuracy and the like of the choice.
    """
    figures = {name: estimate.value for name, estimate in results["labels"].mean.items() if estimate.is_known}
    if "choice" not in results:
        return figures
    choice = next(iter((results["choice"].tasks or {}).values())).estimates
    ranked = {name: figures[name] for name in ("auc", "average_precision") if name in figures}
    return {name: one.value for name, one in choice.items() if one.is_known} | ranked


def _truth(labels: np.ndarray | None = None, classes: np.ndarray | None = None) -> Truth:
    rows = labels if labels is not None else classes
    assert rows is not None
    return Truth([str(number) for number in range(len(rows))], labels=labels, classes=classes)
