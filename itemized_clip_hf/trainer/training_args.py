"""Arguments of a training run, on top of the library's."""

import os
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_available
from transformers.trainer_utils import HubStrategy

from ..models.adapters import LoraSettings
from .augmentation import AugmentationSettings


def leave_out_pinning(args: TrainingArguments) -> None:
    """Without an accelerator pinned memory does nothing but warn."""
    if args.dataloader_pin_memory and not torch.accelerator.is_available():
        args.dataloader_pin_memory = False


def stay_on_cpu(args: TrainingArguments) -> None:
    """Several processes without an accelerator: unless they are told so, the library lets each train by itself, unsaid."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
        args.use_cpu = True


def check_frozen(freeze_text: bool | str, freeze_vision: bool | str, lora: dict[str, Any] | str | None) -> None:
    """
    Looks at what is not to be trained.

    Raises:
        ValueError: a mode is unknown, or would freeze the adapters.
    """
    frozen = {"text": freeze_text, "vision": freeze_vision}
    for tower, mode in frozen.items():
        if mode not in (False, True, "except_layernorm"):
            raise ValueError(f"freeze_{tower} is {mode!r}, expected False, True or 'except_layernorm'.")
    if lora is not None:
        preset = LoraSettings.read(lora).preset
        for tower, mode in frozen.items():
            if mode and preset in (tower, "both"):
                raise ValueError(
                    f"freeze_{tower}={mode!r} would freeze the adapters too: LoRA freezes the tower itself, set "
                    f"freeze_{tower}=false and name what else to train in lora's `trainable`."
                )


@dataclass
class ItemizedCLIPTrainingArguments(TrainingArguments):
    """
    The library's `TrainingArguments` with the optimization of the papers as defaults (method 7.7), and some of its own.

    >>> args = ItemizedCLIPTrainingArguments(output_dir="run", objective="flair", max_items=5, use_cpu=True)
    >>> args.objective, args.max_items, args.learning_rate, args.adam_beta2
    ('flair', 5, 0.000175, 0.98)

    Args:
        objective (`str`): name of a file in `trainer/objectives`.
        objective_weights (`dict`): its arguments where they differ from the defaults.
        freeze_text (`bool` or `str`): `True` freezes the text tower, `"except_layernorm"` all of it but its LayerNorms; the
            text projection is always trained.
        freeze_vision (`bool` or `str`): the same for the vision tower.
        lora (`str` or `dict`): adapters on the attention and MLP projections of the `"vision"`, `"text"` or `"both"` towers;
            besides them pooler, projections, scale and bias are trained. `{"preset": "text", "rank": 16}` changes the
            settings, see `models.adapters.LoraSettings`.
        cached_micro_batch_size (`int`): encode that many studies at a time and keep their features only: batches larger than
            the memory, with the gradients of the whole batch, for one more pass through the towers (`trainer/cached.py`).
        max_items (`int`): item slots K of a study.
        max_scans (`int`): most scans of a study in training.
        scan_fill (`str`): `"mask"` or `"repeat"`, see the collator.
        augmentation (`dict`): random changes to volumes by MONAI's transforms, before they are normalized, see
            `trainer/augmentation.py`: `{"transforms": [{"RandGaussianNoised": {"std": 0.03}}], "draw": "scan"}`.
        resident_pictures (`bool`): keep the decoded training pictures on the accelerator and crop, turn and normalize them
            there (`trainer/resident.py`); for pictures of one size, which `cache_pictures` of a recipe makes of square ones.
        save_minutes (`float`): save a checkpoint whenever that many minutes have passed since the last one, besides what
            `save_strategy` says: for machines that may be taken away.
        muon_learning_rate, muon_weight_decay (`float`): train the weights of linear layers by Muon with these
            (`trainer/muon.py`) and the rest by AdamW; steps are of AdamW's size, so the rates are of its order.
        hub_license (`str`): license of the weights, as the Hub calls it; `push_to_hub` needs it, or a `card.yaml` with it.
        accept (`list[str]`): codes of the checks that a scan is used in spite of, as `itemized-clip inspect` gives them.
        diverse_sampling (`dict`): `{"max_merged": 3, "consecutive_prob": 0.5}` for 2-D captions.
    """

    objective: str = "itemized_clip"
    objective_weights: dict[str, Any] | str | None = None
    freeze_text: bool | str = False
    freeze_vision: bool | str = False
    lora: dict[str, Any] | str | None = None
    cached_micro_batch_size: int | None = None
    max_items: int = 7
    max_scans: int = 10
    scan_fill: str = "mask"
    accept: list[str] | None = None
    diverse_sampling: dict[str, Any] | str | None = None
    augmentation: dict[str, Any] | str | None = None
    resident_pictures: bool = False
    save_minutes: float | None = None
    muon_learning_rate: float | None = None
    muon_weight_decay: float = 0.1
    hub_license: str | None = None

    learning_rate: float = 1.75e-4
    weight_decay: float = 0.2
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 0.0
    lr_scheduler_type: str = "cosine"
    dataloader_drop_last: bool = True
    remove_unused_columns: bool = False
    seed: int = 0
    report_to: None | str | list[str] = field(default="none")  # HfArgumentParser needs this order of types

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "objective_weights",
        "diverse_sampling",
        "augmentation",
        "lora",
    ]

    def __post_init__(self) -> None:
        if self.deepspeed and not is_deepspeed_available():  # type: ignore[no-untyped-call]  # the library's
            raise ImportError(
                "the argument deepspeed needs the package of that name: pip install deepspeed. Without it, fsdp=True shards "
                "parameters, gradients and optimizer state too."
            )
        stay_on_cpu(self)
        super().__post_init__()  # type: ignore[no-untyped-call]  # the library's
        leave_out_pinning(self)
        if self.push_to_hub and self.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            strategy = getattr(self.hub_strategy, "value", self.hub_strategy)
            raise ValueError(
                f"hub_strategy is {strategy!r}: optimizer states and pickled arguments are not uploaded; choose 'end' or "
                "'every_save'."
            )
        check_frozen(self.freeze_text, self.freeze_vision, self.lora)
        if self.augmentation is not None:
            AugmentationSettings.read(cast(dict[str, Any], self.augmentation))
        if self.cached_micro_batch_size is not None and self.cached_micro_batch_size < 1:
            raise ValueError(f"cached_micro_batch_size is {self.cached_micro_batch_size}, expected 1 or more.")
        if self.muon_learning_rate is not None and (self.fsdp or self.deepspeed):
            raise ValueError("Muon needs whole matrices: leave out muon_learning_rate, or FSDP and DeepSpeed.")
        if self.cached_micro_batch_size is not None and self.fsdp:
            raise ValueError(
                "cached_micro_batch_size does not work with FSDP, whose parameters are in pieces; leave out one."
            )
