"""Arguments of the library that have no effect on this training, or a wrong one: refused by name where they are set."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from .training_args import ItemizedCLIPTrainingArguments

NO_TOKENS = "the loss counts studies and items, there are no tokens to predict"
LENGTHS = "studies have no length to be sorted by; choose 'random' or 'sequential'"
LIGER = "its kernels are for language models"


def is_set(value: Any) -> bool:
    """Whether an argument of the library that is off by default was set."""
    return bool(value)


Refused = tuple[Callable[[Any], bool], str]

REFUSED: dict[str, Refused] = {
    "average_tokens_across_devices": (lambda value: value is not True, NO_TOKENS),
    "dataloader_in_order": (
        lambda value: value is not True,
        "batches would come as workers finish, and a resumed run would differ from an undisturbed one",
    ),
    "debug": (is_set, "the library's detector of overflows cannot read masks, which the model's layers take"),
    "enable_jit_checkpoint": (
        is_set,
        "it saves between a loss and its step, and the resumed run differs; `itemized-clip train` saves at SIGTERM by "
        "itself, and save_minutes saves by the clock",
    ),
    "include_num_input_tokens_seen": (lambda value: value not in ("no", False), NO_TOKENS),
    "label_names": (is_set, "there are no labels: the loss is between images and texts"),
    "label_smoothing_factor": (is_set, "there are no labels: the loss is between images and texts"),
    "length_column_name": (lambda value: value != "length", LENGTHS),
    "liger_kernel_config": (is_set, LIGER),
    "optim": (
        lambda value: any(name in str(getattr(value, "value", value)) for name in ("lomo", "galore", "apollo")),
        "it changes weights by rules of its own, during the backward pass or for chosen layers, and has not been tried",
    ),
    "optim_target_modules": (is_set, "it belongs to GaLore and APOLLO, which have not been tried"),
    "parallelism_config": (
        is_set,
        "the loss needs every process to hold studies of its own: use DDP, fsdp or deepspeed",
    ),
    "remove_unused_columns": (is_set, "it takes images and items away before they are processed"),
    "train_sampling_strategy": (lambda value: value not in ("random", "sequential"), LENGTHS),
    "use_cache": (is_set, "there is no decoder"),
    "use_liger_kernel": (is_set, LIGER),
}
"""Name -> (whether a value is refused, why)."""

FOR_SCRIPTS = ("do_train", "do_eval", "do_predict", "resume_from_checkpoint")
"""Read by scripts that call the Trainer, and by nothing else."""

_SEARCHABLE = ("muon_learning_rate", "muon_weight_decay")
USED_AT_CONSTRUCTION = sorted(
    {field.name for field in fields(ItemizedCLIPTrainingArguments)}
    - {field.name for field in fields(TrainingArguments)}
    - set(_SEARCHABLE)
)
"""Arguments that model, objective and data are built with."""


def refuse_arguments(args: TrainingArguments, refused_values: Mapping[str, Refused] = REFUSED) -> None:
    """
    Looks at the library's arguments.

    Args:
        refused_values: name -> whether a value is refused, and why.

    Raises:
        ValueError: one is set that could only be ignored.
    """
    for name, (refused, reason) in refused_values.items():
        value = getattr(args, name, None)
        if hasattr(args, name) and refused(value):
            shown = getattr(value, "value", value)
            raise ValueError(f"{name}={shown!r} does not work here: {reason}. Leave it out.")
