"""Training by several processes: what it asks of the model and of the arguments, and what it says when one is lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PredictionOutput, TrainOutput

from ..models.adapters import has_adapters
from .base import TrainerBase
from .gather import rank, world_size
from .lost_process import limit_waiting, lost_processes_named, process_addresses


class DistributedTrainer(TrainerBase):
    """Says which process of the run was lost, whatever the library was doing then."""

    _process_addresses: list[tuple[str, int]]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """
        As the library's.

        Raises:
            ValueError: where there are too few studies for one step, or a checkpoint does not hold all that it takes to go on.
        """
        with lost_processes_named(self.args.ddp_timeout, self._process_addresses):
            self._process_addresses[:] = process_addresses()
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `EvaluatingTrainer`'s."""
        with lost_processes_named(self.args.ddp_timeout, self._process_addresses):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As the library's."""
        with lost_processes_named(self.args.ddp_timeout, self._process_addresses):
            return super().predict(*args, **kwargs)

    def _prepare_processes(self, model: PreTrainedModel) -> None:
        """
        Checks that model and arguments suit the processes of this run, and prepares these.

        Raises:
            ValueError: they do not.
        """
        if self.args.cached_micro_batch_size is not None:
            check_caching_supported(self)
        if has_adapters(model) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("adapters are not saved from sharded models: train them without FSDP and DeepSpeed.")
        require_even_batches(self.args)
        limit_waiting(self.args.ddp_timeout)
        if self.is_fsdp_enabled:
            choose_sharded_units(self.accelerator.state.fsdp_plugin, self.model)


def full_tensor(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter, put together from its shards where it has some: then all processes have to ask."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


class SeedByRank(TrainerCallback):
    """Negatives, token masks and dropped paths differ between ranks: seed + rank."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seeds this process where it is one of several."""
        if world_size() > 1:
            torch.manual_seed(args.seed + rank())


def check_caching_supported(trainer: Trainer) -> None:
    """
    Cached features need every parameter as a whole in every process, while the model runs backward too.

    Raises:
        ValueError: something in use shards, wraps or copies the parameters.
    """
    conflicts = {
        "FSDP": trainer.is_fsdp_enabled,
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "torch.compile": trainer.args.torch_compile,
        "several GPUs in one process": trainer.args.n_gpu > 1,
    }
    in_use = [name for name, is_in_use in conflicts.items() if is_in_use]
    if in_use:
        raise ValueError(
            f"cached_micro_batch_size does not work with {in_use[0]}: use one process per GPU without sharding (torchrun), or "
            "gradient checkpointing instead of cached features."
        )


def require_even_batches(args: TrainingArguments) -> None:
    """
    Raises where a process could come to the end of an epoch earlier than others, which would wait for its texts.

    Raises:
        ValueError: accelerate's `even_batches` is off.
    """
    even_batches = getattr(args.accelerator_config, "even_batches", True)
    if args.world_size > 1 and not even_batches:
        raise ValueError(
            "accelerator_config has even_batches: false, which gives some processes fewer batches than others; the loss "
            "needs all processes in every step. Leave it on: the last batches are then filled up from the start of the epoch. "
            "dataloader_drop_last leaves them out instead."
        )


def choose_sharded_units(plugin: Any, model: PreTrainedModel) -> None:
    """
    Tells accelerate's FSDP plugin which classes of modules are sharded as units of their own.

    FSDP gathers a unit's parameters when its `forward` is called. Objectives call other methods of the pooler: its parameters
    stay with those of the whole model, which are there during the whole loss. And accelerate makes the token embedding a unit
    of its own, which then cannot be part of a larger one (BERT's embeddings).
    """
    words = model.get_input_embeddings()
    not_units = {type(module).__name__ for module in model.modules() if words in list(module.modules())[1:]}
    not_units.add(type(model.item_pooler).__name__)
    names = plugin.transformer_cls_names_to_wrap or model._no_split_modules or ()
    plugin.transformer_cls_names_to_wrap = [name for name in names if name not in not_units]


@contextmanager
def own_class(model: torch.nn.Module) -> Iterator[None]:
    """Sharding puts a class of torch's in front of the model's; its code would be saved in place of the model's."""
    sharded_class: Any = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(cls for cls in sharded_class.__mro__ if not issubclass(cls, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = sharded_class
