"""What the parts of the Trainer share: the types of its model and arguments."""

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
