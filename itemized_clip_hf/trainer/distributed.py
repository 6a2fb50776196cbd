"""What training by several processes asks of the model and of the arguments."""

from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from .gather import rank, world_size


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter, put together from its shards where it has some: then all processes have to ask."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


class SeedByRank(TrainerCallback):
    """Negatives, token masks and dropped paths differ between ranks: seed + rank."""

    def on_train_begin(self, args, state, control, **kwargs):
        if world_size() > 1:
            torch.manual_seed(args.seed + rank())


def refuse_caching(trainer: Trainer) -> None:
    """Raises where parameters are not whole in every process, or are not the model's own, while it runs backward."""
    conflicts = {
        "FSDP": trainer.is_fsdp_enabled,
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "torch.compile": trainer.args.torch_compile,
        "several GPUs in one process": trainer.args.n_gpu > 1,
    }
    for name in [name for name, found in conflicts.items() if found]:
        raise ValueError(
            f"cached_micro_batch_size does not work with {name}: use one process per GPU without sharding (torchrun), or "
            "gradient checkpointing instead of cached features."
        )


def require_even_batches(args: TrainingArguments) -> None:
    """Raises where a process could come to the end of an epoch earlier than others, which would wait for its texts."""
    if args.world_size > 1 and not args.accelerator_config.even_batches:
        raise ValueError(
            "accelerator_config has even_batches: false, which gives some processes fewer batches than others; the loss "
            "needs all processes in every step. Leave it on: the last batches are then filled up from the start of the epoch. "
            "dataloader_drop_last leaves them out instead."
        )


def choose_sharded_units(plugin, model) -> None:
    """
    FSDP gathers a unit's parameters when its `forward` is called. Objectives call other methods of the pooler: its parameters
    stay with those of the whole model, which are there during the whole loss. And accelerate makes the token embedding a unit
    of its own, which then cannot be part of a larger one (BERT's embeddings).
    """
    words = model.get_input_embeddings()
    kept = {type(module).__name__ for module in model.modules() if words in list(module.modules())[1:]}
    kept.add(type(model.item_pooler).__name__)
    names = plugin.transformer_cls_names_to_wrap or model._no_split_modules
    plugin.transformer_cls_names_to_wrap = [name for name in names if name not in kept]


@contextmanager
def own_class(model):
    """Sharding puts a class of torch's in front of the model's; its code would be saved in place of the model's."""
    shown = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(cls for cls in shown.__mro__ if not issubclass(cls, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = shown
