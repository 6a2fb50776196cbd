"""The library's Trainer for heads: freezing, LoRA and layer-wise rates, studies with seeds, whole models."""

import copy
import re
from dataclasses import replace
from typing import Any, cast

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ...data.studies.training_ids import ids_of
from ...models.adapters import TRAINABLE, LoraSettings, add_lora, has_adapters, merge_adapters
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..argument_rules import refuse_arguments
from ..checkpoints import CheckpointingTrainer
from ..distributed import SeedByRank
from ..evaluation import CompleteEvaluation
from ..optimizers import ClampLogitScale, ScheduledTrainer
from ..preparation import align_weights, freeze_tower, require_steps
from ..sampler import SeededDataset
from ..temporarily import temporarily
from .arguments import REFUSED_BY_HEADS, SupervisedArguments
from .collator import EveryRow, SupervisedCollator

TOWERS = ("vision_model", "text_model")
_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
_BELOW = re.compile(r"vision_model\.(embeddings|pre_layer_norm)\.")


class SupervisedTrainer(CompleteEvaluation, ScheduledTrainer, CheckpointingTrainer):
    """
    Trains a head on the towers of [`ItemizedCLIPModel`].

    Args:
        model: a model whose forward pass returns `loss`; its towers are called `vision_model` and, where there is one,
            `text_model`.
        args: [`SupervisedArguments`].
        data_collator: a [`SupervisedCollator`] of the head.
        train_dataset, eval_dataset: map-style; examples as the collator takes them.
        processing_class: [`ItemizedCLIPProcessor`], saved beside the model.
        kwargs: the library's other arguments (`compute_metrics`, `callbacks`, ...).

    Checkpoints of a model with adapters hold these and what else is trained; `save_model` writes a whole model, adapters
    merged.
    """

    args: SupervisedArguments  # type: ignore[assignment]  # of heads
    model: PreTrainedModel  # type: ignore[assignment]  # any head

    def __init__(
        self,
        model: PreTrainedModel,
        args: SupervisedArguments,
        data_collator: SupervisedCollator,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ItemizedCLIPProcessor | None = None,
        **kwargs: Any,
    ):
        refuse_arguments(args, REFUSED_BY_HEADS)
        if args.augmentation is not None and getattr(data_collator, "augmentation", None) is None:
            raise ValueError(
                "augmentation is done by the collator: give it its `augmentation`, or leave out the argument."
            )
        self.trained_on = ids_of(train_dataset), str(model.config.name_or_path or "")
        prepare_head(model, args, processing_class)
        if train_dataset is not None:
            train_dataset = SeededDataset(train_dataset, data_collator.prepare, data_collator.report)
        self._report = data_collator.report
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._every_row(studies) for name, studies in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._every_row(eval_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if has_adapters(model) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("adapters are not saved from sharded models: train them without FSDP and DeepSpeed.")
        if hasattr(model, "logit_scale"):
            self.add_callback(ClampLogitScale())
        self.add_callback(SeedByRank())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As the library's; raises where there is not one batch."""
        loader = super().get_train_dataloader()
        studies = len(cast(SeededDataset, self.train_dataset))
        require_steps(self.args, studies, len(loader), self._train_batch_size)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """All studies, a row each."""
        is_passed = eval_dataset is not None and not isinstance(eval_dataset, str)
        return super().get_eval_dataloader(self._every_row(eval_dataset) if is_passed else eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """All studies, a row each."""
        return super().get_test_dataloader(self._every_row(test_dataset))

    def _every_row(self, studies: Any) -> EveryRow:
        return studies if isinstance(studies, EveryRow) else EveryRow(studies, self._report)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The library's groups of parameters, parted by the rates of the layers."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.args.layer_decay < 1:
            split_groups(optimizer, layer_factors(self.accelerator.unwrap_model(self.model), self.args.layer_decay))
        return optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the library's, of a model with adapters the whole model; within a checkpoint the adapters alone."""
        if _internal_call or not has_adapters(self.model):
            super().save_model(output_dir, _internal_call)
            return
        with temporarily(self, model=merge_adapters(copy.deepcopy(self.model))):
            super().save_model(output_dir, _internal_call)


def prepare_head(model: PreTrainedModel, args: SupervisedArguments, processor: ItemizedCLIPProcessor | None) -> None:
    """
    Adapters, and what stays as it is, in place; the random numbers of others are left alone.

    Raises:
        ValueError: an argument is about a text tower, and the model has none.
    """
    align_weights(model)
    if processor is not None:
        processor.check_model(model.config)
        model.config.preprocessing = processor.preprocessing()
    has_text = hasattr(model, "text_model")
    settings = None if args.lora is None else LoraSettings.read(args.lora)
    if not has_text and (args.freeze_text or (settings is not None and settings.preset == "text")):
        raise ValueError("the model has no text tower: leave out freeze_text, and set lora to 'vision'.")
    if settings is not None:
        if settings.trainable == list(TRAINABLE):
            settings = replace(settings, trainable=names_outside_towers(model))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            add_lora(model, settings)
    if has_text:
        freeze_tower(cast(torch.nn.Module, model.text_model), args.freeze_text)
    freeze_tower(cast(torch.nn.Module, model.vision_model), args.freeze_vision)


def names_outside_towers(model: PreTrainedModel) -> list[str]:
    """First parts of the names of all parameters that are not of a tower, as regular expressions."""
    first = dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters())
    return [rf"{re.escape(name)}\b" for name in first if name not in TOWERS]


def layer_factors(model: PreTrainedModel, decay: float) -> dict[int, float]:
    """
    Factor of the learning rate of every parameter, by its `id`.

    A layer of the vision tower with n layers above it learns at decay ** n of the rate, its embeddings at decay ** (number of
    layers), everything else at the whole rate.
    """
    layers: int = model.config.vision_config.num_hidden_layers
    factors = {}
    for name, parameter in model.named_parameters():
        above = 0
        if found := _LAYER.search(name):
            above = layers - 1 - int(found[1])
        elif _BELOW.search(name):
            above = layers
        factors[id(parameter)] = decay**above
    return factors


def split_groups(optimizer: torch.optim.Optimizer, factors: dict[int, float]) -> None:
    """Parts the groups of a fresh optimizer in place, by the factors of their parameters' rates."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        for factor in sorted({factors[id(parameter)] for parameter in group["params"]}):
            own = [parameter for parameter in group["params"] if factors[id(parameter)] == factor]
            optimizer.add_param_group({**group, "params": own, "lr": group["lr"] * factor})
