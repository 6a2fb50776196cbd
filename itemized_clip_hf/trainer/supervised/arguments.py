"""Arguments of training a head, on top of the library's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from transformers import TrainingArguments

from ..argument_rules import LENGTHS, LIGER, REFUSED, Refused, is_set
from ..augmentation import AugmentationSettings
from ..training_args import check_frozen, leave_out_pinning, stay_on_cpu

REFUSED_BY_HEADS: Mapping[str, Refused] = {
    **{name: REFUSED[name] for name in ("dataloader_in_order", "debug", "enable_jit_checkpoint", "optim", "use_cache")},
    "include_num_input_tokens_seen": (lambda value: value not in ("no", False), "there are no tokens to count"),
    "label_smoothing_factor": (
        is_set,
        "the library smooths labels of one class a study only; the loss is the head's own",
    ),
    "length_column_name": (lambda value: value != "length", LENGTHS),
    "liger_kernel_config": (is_set, LIGER),
    "optim_target_modules": REFUSED["optim_target_modules"],
    "parallelism_config": (is_set, "it has not been tried: use DDP, fsdp or deepspeed"),
    "push_to_hub": (is_set, "checkpoints hold more than is published: push the saved model (`model.push_to_hub`)"),
    "remove_unused_columns": (is_set, "it takes images away before they are processed"),
    "train_sampling_strategy": (lambda value: value not in ("random", "sequential"), LENGTHS),
    "use_liger_kernel": (is_set, LIGER),
}
"""Name -> (whether a value is refused, why), see `argument_rules`."""


@dataclass
class SupervisedArguments(TrainingArguments):
    """
    The library's `TrainingArguments` with defaults that suit heads, and some of its own.

    >>> args = SupervisedArguments(output_dir="run", layer_decay=0.75, use_cpu=True)
    >>> args.layer_decay, args.lr_scheduler_type.value, args.remove_unused_columns
    (0.75, 'cosine', False)

    Args:
        freeze_text (`bool` or `str`): `True` freezes the text tower, `"except_layernorm"` all of it but its LayerNorms; for
            heads that have one.
        freeze_vision (`bool` or `str`): the same for the vision tower.
        lora (`str` or `dict`): adapters on the attention and MLP projections of the towers, see `models.adapters.LoraSettings`;
            all parameters outside the towers are trained besides, unless its `trainable` says which. The saved model is whole,
            its adapters merged.
        layer_decay (`float`): rate of a layer of the vision tower = learning_rate * layer_decay ** (layers above it);
            embeddings lie below all layers.
        max_scans (`int`): most scans of a study in training.
        accept (`list[str]`): codes of the checks that a scan is used in spite of, as `itemized-clip inspect` gives them.
        augmentation (`dict`): random changes to volumes by MONAI's transforms, before they are normalized, see
            `trainer/augmentation.py`.
    """

    freeze_text: bool | str = False
    freeze_vision: bool | str = False
    lora: dict[str, Any] | str | None = None
    layer_decay: float = 1.0
    max_scans: int = 10
    accept: list[str] | None = None
    augmentation: dict[str, Any] | str | None = None

    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    num_train_epochs: float = 20
    warmup_steps: float = 0.1
    lr_scheduler_type: str = "cosine"
    remove_unused_columns: bool = False
    restore_callback_states_from_checkpoint: bool = True
    seed: int = 0
    report_to: None | str | list[str] = field(default="none")  # HfArgumentParser needs this order of types

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "augmentation", "lora"]

    def __post_init__(self) -> None:
        stay_on_cpu(self)
        super().__post_init__()  # type: ignore[no-untyped-call]  # the library's
        leave_out_pinning(self)
        check_frozen(self.freeze_text, self.freeze_vision, self.lora)
        if self.augmentation is not None:
            AugmentationSettings.read(cast(dict[str, Any], self.augmentation))
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}, expected a factor above 0 and up to 1.")
        if self.layer_decay < 1 and self.freeze_vision is True:
            raise ValueError("layer_decay has no effect on a frozen vision tower: leave out one of the two.")
        if self.max_scans < 1:
            raise ValueError(f"max_scans is {self.max_scans}, expected 1 or more.")
