"""Searches for settings (`hyperparameter_search`): a fresh model for every trial, and what a trial may change."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, enable_full_determinism, set_seed

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from .argument_rules import USED_AT_CONSTRUCTION
from .base import TrainerBase
from .preparation import prepare_model
from .training_args import ItemizedCLIPTrainingArguments


class SearchingTrainer(TrainerBase):
    """Every model that `model_init` builds gets the objective."""

    _first_model: ItemizedCLIPModel | None = None
    """Built and prepared already; the library asks for it when it is constructed."""

    def _build_first_model(
        self, args: ItemizedCLIPTrainingArguments, model_init: Callable[..., PreTrainedModel]
    ) -> ItemizedCLIPModel:
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
        self.model_init = model_init
        model: ItemizedCLIPModel = super().call_model_init()  # type: ignore[assignment]  # declared as any module
        self._first_model = model
        return model

    def call_model_init(self, trial: Any = None) -> ItemizedCLIPModel:
        """A fresh model with the objective in it; the first one is built before the library asks for it."""
        first_model, self._first_model = self._first_model, None
        if first_model is not None:
            return first_model
        model: ItemizedCLIPModel = super().call_model_init(trial)  # type: ignore[assignment]  # declared as any module
        prepare_model(model, self.args, self.objective, self.processing_class)
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        before = {name: getattr(self.args, name) for name in USED_AT_CONSTRUCTION}
        super()._hp_search_setup(trial)
        changed = [name for name, value in before.items() if getattr(self.args, name) != value]
        if changed:
            raise ValueError(
                f"a search cannot change {changed}: model, objective and data are built with them before it begins. Build a "
                "Trainer for each of their values."
            )
