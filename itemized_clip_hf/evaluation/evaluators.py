"""Figures during training: `ItemizedCLIPTrainer(evaluators=[...])` calls these with its model and processor."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .completeness import evaluate_items
from .evaluate import evaluate_protocol
from .protocol import Protocol, load_protocol


class ProtocolEvaluator:
    """
    A protocol's means, as `<protocol>_<figure>`; the same code as `itemized-clip evaluate`, without intervals.

    Args:
        protocol: a name, a YAML file or a [`Protocol`].
        data: see `evaluate_protocol`, whose arguments `settings` are.
    """

    def __init__(self, protocol: str | os.PathLike | Protocol, data: str | os.PathLike, **settings):
        self.protocol = protocol if isinstance(protocol, Protocol) else load_protocol(protocol)
        self.data = data
        self.settings: dict[str, Any] = {"resamples": 0, **settings}

    def __call__(self, model, processor) -> dict[str, float]:
        results = evaluate_protocol(model, processor, self.protocol, self.data, **self.settings).results
        start = self.protocol.name.replace("-", "_")
        figures: dict[str, float] = {}
        for name, table in results["tables"].items():
            middle = f"_{name}" if name else ""
            figures |= {f"{start}{middle}_{figure}": own["value"] for figure, own in table["mean"].items()}
        return {**figures, f"{start}_headline": results["headline"]["value"]}


class ItemEvaluator:
    """
    Completeness and separability of some studies' items (`completeness.evaluate_items`), as `items_<figure>`.

    Args:
        studies: each with `images` and `items`.
        most: of them that are used, from the start.
    """

    def __init__(self, studies: Sequence[Mapping], most: int | None = None, batch_size: int = 8, name: str = "items"):
        self.studies = [studies[number] for number in range(min(len(studies), most or len(studies)))]
        self.batch_size = batch_size
        self.name = name

    def __call__(self, model, processor) -> dict[str, float]:
        found = evaluate_items(model, processor, self.studies, batch_size=self.batch_size).summary(resamples=0)
        return {f"{self.name}_{figure}": own["value"] for figure, own in found.items()}
