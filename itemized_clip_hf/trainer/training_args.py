"""Arguments of a training run, on top of the library's."""

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_available


@dataclass
class ItemizedCLIPTrainingArguments(TrainingArguments):
    """
    The library's `TrainingArguments` with the optimisation of the papers as defaults (spec 7.7), and:

    Args:
        objective (`str`): name of a file in `trainer/objectives`.
        objective_weights (`dict`): its arguments where they differ from the defaults.
        freeze_text (`bool` or `str`): `True` freezes the text tower, `"except_layernorm"` all of it but its LayerNorms; the
            text projection is always trained.
        max_items (`int`): item slots K of a study.
        max_scans (`int`): most scans of a study in training.
        scan_fill (`str`): `"mask"` or `"repeat"`, see the collator.
        diverse_sampling (`dict`): `{"max_merged": 3, "consecutive_prob": 0.5}` for 2-D captions.
    """

    objective: str = "itemized_clip"
    objective_weights: dict | str | None = None
    freeze_text: bool | str = False
    max_items: int = 7
    max_scans: int = 10
    scan_fill: str = "mask"
    diverse_sampling: dict | str | None = None

    learning_rate: float = 1.75e-4
    weight_decay: float = 0.2
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 0.0
    lr_scheduler_type: str = "cosine"
    dataloader_drop_last: bool = True
    remove_unused_columns: bool = False
    seed: int = 0
    report_to: str | list[str] | None = field(default="none")

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "objective_weights", "diverse_sampling"]

    def __post_init__(self):
        if self.deepspeed and not is_deepspeed_available():
            raise ImportError(
                "the argument deepspeed needs the package of that name: pip install deepspeed. Without it, fsdp=True shards "
                "parameters, gradients and optimizer state too."
            )
        super().__post_init__()
        if self.freeze_text not in (False, True, "except_layernorm"):
            raise ValueError(f"freeze_text is {self.freeze_text!r}, expected False, True or 'except_layernorm'.")
