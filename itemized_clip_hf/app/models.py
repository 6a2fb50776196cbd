"""Models of the app: loaded once, shared by all sessions, and never changed."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..domains import load_domain
from ..explain.maps import require_pooler
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.load import load
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..provenance import describe_model, hash_model, hash_processor


@dataclass
class AppModel:
    """
    A model that can be chosen in the page.

    Args:
        name: in the page.
        about: what results say of it, from `provenance.describe_model`.
        towers: held while a study passes through the vision tower: one at a time.
        texts: held while texts are encoded: tokenizers are not made for several threads.
    """

    name: str
    model: ItemizedCLIPModel
    processor: ItemizedCLIPProcessor
    about: dict[str, Any]
    towers: threading.Lock = field(default_factory=threading.Lock)
    texts: threading.Lock = field(default_factory=threading.Lock)

    @property
    def domain(self) -> str | None:
        """What its scans are checked for."""
        domain: str | None = self.model.config.domain
        return domain

    @property
    def prompts(self) -> dict[str, list[str]]:
        """Label -> texts of its domain; empty where it has none."""
        return load_domain(self.domain).prompts if self.domain else {}


Given = str | Path | tuple[ItemizedCLIPModel, ItemizedCLIPProcessor]
"""A folder or name as `models.load` takes it, or a model with its processor."""


def load_models(given: Mapping[str, Given], device: str = "auto", tokenizer: str | None = None) -> dict[str, AppModel]:
    """
    Args:
        given: name in the page -> model.
        device, tokenizer: see `models.load.load`, of those that are loaded here.

    Raises:
        ValueError: there is none, or one has no trained pooler, which attention and places are shown by.
    """
    if not given:
        raise ValueError("the app needs a model: pass one.")
    loaded = {}
    for name, one in given.items():
        model, processor = load(one, device, tokenizer) if isinstance(one, (str, Path)) else one
        try:
            require_pooler(model)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        about = describe_model(model, hash_model(model), hash_processor(processor))
        about["model"]["name"] = name  # not the server's folder
        loaded[name] = AppModel(name, model.eval(), processor, about)
    return loaded


@contextmanager
def watched(model: ItemizedCLIPModel, watch: Callable[[float], None]) -> Iterator[None]:
    """
    Calls `watch` before each layer of the vision tower with the part that is done; an error of its ends the forward pass.

    One at a time: the model is shared.
    """
    layers = list(model.vision_model.encoder.layers)

    def before(number: int) -> Callable[[torch.nn.Module, Any], None]:
        def hook(module: torch.nn.Module, arguments: Any) -> None:
            watch(number / len(layers))

        return hook

    handles = [layer.register_forward_pre_hook(before(number)) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
