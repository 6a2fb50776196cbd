"""Figures during training: `ItemizedCLIPTrainer(evaluators=[...])` calls these with its model and processor."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from transformers.utils import logging

from ..data.studies.records import Records
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .evaluate import evaluate_protocol
from .protocols import Protocol, load_protocol
from .tasks.items import evaluate_items

logger = logging.get_logger(__name__)


def open_images(studies: Sequence[Mapping] | Records, number: int) -> Any:
    """Images of one study, opened now."""
    return studies[number]["images"]


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

    def __call__(self, model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor) -> dict[str, float]:
        """The means of every table, and the headline."""
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

    def __init__(
        self, studies: Sequence[Mapping] | Records, most: int | None = None, batch_size: int = 8, name: str = "items"
    ):
        count = min(len(studies), most or len(studies))
        items = list(studies.items()) if isinstance(studies, Records) else [s["items"] for s in studies]
        # Images are opened when their turn comes.
        self.studies = [
            {"items": items[number], "images": partial(open_images, studies, number)} for number in range(count)
        ]
        self.batch_size = batch_size
        self.name = name

    def __call__(self, model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor) -> dict[str, float]:
        """The means over studies or texts."""
        found = evaluate_items(
            model,
            processor,
            self.studies,
            batch_size=self.batch_size,
            on_error=lambda number, error: logger.warning(f"study {number} is left out: {error}"),
            on_bad_scan=lambda number, scan, error: logger.warning(f"study {number}, scan {scan} left out: {error}"),
        ).summary(resamples=0)
        return {f"{self.name}_{figure}": own.value for figure, own in found.items()}
