"""What the parts of the Trainer share: the types of its model and arguments, and settings that hold for a moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from .card_callback import CardCallback
from .objectives import Objective
from .training_args import ItemizedCLIPTrainingArguments


class TrainerBase(Trainer):
    """The library's Trainer, with this package's model and arguments."""

    args: ItemizedCLIPTrainingArguments
    model: ItemizedCLIPModel
    objective: Objective
    card: CardCallback | None = None
    trained_on: tuple[list[str], str]
    """Ids of the studies, and the model that training started from."""


@contextmanager
def temporarily(target: object, **values: Any) -> Iterator[None]:
    """Attributes have other values inside this context and their own again after it, however it ends."""
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
