"""What a Trainer makes of its arguments before training: collator, objective, model; and what it refuses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ..data.study import Skipped
from ..domains import Domain, load_domain
from ..hub.push import licensed
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.adapters import add_lora, has_adapters
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .augmentation import Augmentation
from .collator import ItemizedCLIPCollator
from .objectives import Objective, StudyTextObjective, load_objective
from .training_args import ItemizedCLIPTrainingArguments

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a Trainer is built of: the objective, which is in the model by then, and the collator that joins texts for it."""

    objective: Objective
    collator: Callable[[list[Any]], dict[str, Any]]


def prepare_parts(
    args: ItemizedCLIPTrainingArguments,
    model: ItemizedCLIPModel,
    objective: Objective | None,
    collator: Callable[[list[Any]], dict[str, Any]] | None,
    processor: ItemizedCLIPProcessor | None,
) -> Parts:
    """Collator and objective where none is given, and the model made ready for them in place."""
    domain = load_domain(model.config.domain) if model.config.domain else None
    if collator is None:
        collator = build_collator(args, processor, domain)
    elif args.augmentation is not None:
        raise ValueError(
            "augmentation is done by the collator: give your own one its `augmentation`, and leave out the argument."
        )
    if objective is None:
        objective = build_objective(args, domain)
    require_publishable(args, model)
    if isinstance(objective, StudyTextObjective) and isinstance(collator, ItemizedCLIPCollator):
        collator = replace(collator, join_items=objective.join_items)
    prepare_model(model, args, objective, processor)
    return Parts(objective, collator)


def unchanged(example: Any) -> Any:
    """An example of a collator that prepares nothing."""
    return example


def warn_of_study(skipped: Skipped) -> None:
    """Logs a study that is left out, for collators that keep no quarantine."""
    logger.warning(f"study {skipped.study} is left out: {skipped.reason}")


def freeze_tower(tower: nn.Module, mode: bool | str) -> None:
    """
    Freezes parameters in place.

    Args:
        tower: text or vision tower.
        mode: False, True, or `"except_layernorm"`, which keeps the parameters of LayerNorms trainable (chest CT's text).
    """
    if not mode:
        return
    for module in tower.modules():
        trainable = mode == "except_layernorm" and isinstance(module, nn.LayerNorm)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = trainable


def build_collator(
    args: ItemizedCLIPTrainingArguments, processor: ItemizedCLIPProcessor | None, domain: Domain | None
) -> ItemizedCLIPCollator:
    """The collator that the arguments describe; the domain knows which studies are normal."""
    if processor is None:
        raise ValueError("pass the processor as processing_class, or a data_collator.")
    return ItemizedCLIPCollator(
        processor,
        max_items=args.max_items,
        max_scans=args.max_scans,
        scan_fill=args.scan_fill,
        accept=args.accept,
        diverse_sampling=cast(dict[str, Any] | None, args.diverse_sampling),
        is_normal=domain.is_normal if domain else None,
        augmentation=build_augmentation(args.augmentation, processor),
        quarantine=Path(cast(str, args.output_dir)) / "quarantine.csv",
    )


def build_augmentation(settings: dict[str, Any] | str | None, processor: ItemizedCLIPProcessor) -> Augmentation | None:
    """
    The augmentation that arguments describe, None for none.

    Raises:
        ValueError: the processor is for pictures.
    """
    if settings is None:
        return None
    if processor.image_processor.scan_size[0] == 1:
        raise ValueError(
            "augmentation is for volumes, and these are pictures: set image.train_crop_scale and image.train_rot90_flip."
        )
    return Augmentation(cast(dict[str, Any], settings))


def build_objective(args: ItemizedCLIPTrainingArguments, domain: Domain | None) -> Objective:
    """The objective that the arguments name; their weights win over the domain's."""
    weights = dict(cast(dict[str, Any] | None, args.objective_weights) or {})
    if domain:
        weights = {**domain.weights(args.objective), **weights}
    return load_objective(args.objective, **weights)


def align_weights(model: nn.Module) -> None:
    """
    Gives weights that lie in a file's memory (safetensors) memory of their own.

    Some kernels add in another order where weights do not start at a multiple of 64 bytes, so a run that is resumed in a new
    process would differ in the last bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def prepare_model(
    model: ItemizedCLIPModel, args: ItemizedCLIPTrainingArguments, objective: Objective, processor: Any
) -> None:
    """Adapters, the objective and its parameters, and what stays as it is. The random numbers of others are left alone."""
    align_weights(model)
    if hasattr(processor, "preprocessing"):  # another class may have been passed as processing_class
        processor.check_model(model.config)
        model.config.preprocessing = processor.preprocessing()
    if args.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)  # the adapters
            add_lora(model, args.lora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)  # the objective's own parameters
        objective.attach(model)
    freeze_tower(model.text_model, args.freeze_text)
    freeze_tower(model.vision_model, args.freeze_vision)


def refuse_constructor(
    args: ItemizedCLIPTrainingArguments,
    model: PreTrainedModel | None,
    model_init: Callable[..., PreTrainedModel] | None,
    train_dataset: Any,
    others: dict[str, Any],
) -> None:
    """
    Looks at the arguments of the Trainer.

    Raises:
        ValueError: one could only be ignored, or one is missing.
    """
    if (model is None) == (model_init is None):
        raise ValueError("pass a model or model_init, one of the two.")
    if others.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func does not work here: the loss is an objective; pass one as objective=.")
    optimizer = (others.get("optimizers") or (None,))[0]
    if args.muon_learning_rate is not None and (optimizer is not None or others.get("optimizer_cls_and_kwargs")):
        raise ValueError(
            "muon_learning_rate makes an optimizer of its own: leave it out, or do not pass another optimizer."
        )
    if isinstance(train_dataset, IterableDataset) or (
        train_dataset is not None and not hasattr(train_dataset, "__len__")
    ):
        raise ValueError(
            "train_dataset has no length: the order and the seeds of training need studies by number. Pass a list or a "
            "map-style data set."
        )


def require_publishable(args: ItemizedCLIPTrainingArguments, model: ItemizedCLIPModel) -> None:
    """
    Looks at what `push_to_hub` needs, where it is set.

    Raises:
        ValueError: what will be trained cannot be published.
    """
    if not args.push_to_hub:
        return
    if args.lora is not None or has_adapters(model):
        raise ValueError(
            "push_to_hub does not take adapters: train, merge them (itemized-clip merge), and push the result."
        )
    if not model.config.domain:
        raise ValueError("push_to_hub needs a model with a domain (config.domain): its card says what goes in.")
    if not licensed(cast(str, args.output_dir), args.hub_license):
        raise ValueError(
            "push_to_hub needs the license of the weights: pass hub_license, as the Hub calls it (e.g. cc-by-nc-4.0), or "
            "state it in card.yaml in the output folder."
        )


def require_evaluable(evaluators: Sequence[Any], args: ItemizedCLIPTrainingArguments, processor: Any) -> None:
    """
    Looks at what evaluators need, where there are some.

    Raises:
        ValueError: they would get no processor, or a model in pieces.
    """
    if evaluators and processor is None:
        raise ValueError("evaluators are called with the processor: pass it as processing_class.")
    if evaluators and (args.fsdp or args.deepspeed):
        raise ValueError(
            "evaluators need the whole model: leave out FSDP and DeepSpeed, or evaluate afterwards (evaluate)."
        )


def require_steps(args: TrainingArguments, studies: int, batches: int, batch_size: int) -> None:
    """
    Looks at the length of the training.

    Raises:
        ValueError: it would end without a step.
    """
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        raise ValueError(
            f"max_steps is {args.max_steps} and num_train_epochs is {args.num_train_epochs}: that trains nothing. Set one of "
            "them above 0."
        )
    if batches:
        return
    together = f"{batch_size} studies" + (f" on each of {args.world_size} processes" if args.world_size > 1 else "")
    cure = "pass more studies, or lower per_device_train_batch_size (--set per_device_train_batch_size=N)"
    if args.dataloader_drop_last:
        cure += ", or train on the incomplete batch (--set dataloader_drop_last=false)"
    raise ValueError(
        f"there are {studies} studies and a batch takes {together}: not one batch, so no step. To train, {cure}."
    )
