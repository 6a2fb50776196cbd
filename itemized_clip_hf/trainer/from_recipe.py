"""What a recipe becomes on this machine: processor, model with fresh weights, training arguments."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import logging

from ..domains import load_domain
from ..modeling.configuration_itemized_clip import ItemizedCLIPConfig
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.precision import multiplies_bf16
from ..models.tokenizer import load_tokenizer, train_tokenizer
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..recipes import Recipe, without_foreign_weights
from .argument_rules import FOR_SCRIPTS
from .gather import world_size
from .training_args import ItemizedCLIPTrainingArguments

logger = logging.get_logger(__name__)


def build_processor(
    recipe: Recipe, items: Iterable[list[str]], tokenizer_path: str | None = None
) -> ItemizedCLIPProcessor:
    """Processor of the recipe; the tokenizer is loaded from a path or learned from the items of all studies."""
    settings = recipe.tokenizer or {}
    context = settings.get("context_length", load_domain(recipe.domain).text["context_length"])
    if tokenizer_path is not None:
        tokenizer = load_tokenizer(tokenizer_path, context)
    elif "vocab_size" in settings:
        tokenizer = train_tokenizer((item for row in items for item in row), settings["vocab_size"], context)
    else:
        raise ValueError(
            "this recipe needs a tokenizer: pass its path (--tokenizer; the domain uses "
            f"{load_domain(recipe.domain).text['tokenizer']}), or give the recipe `tokenizer: {{vocab_size: 4096}}` to learn "
            "one."
        )
    processor = ItemizedCLIPProcessor.from_domain(recipe.domain, tokenizer=tokenizer, **recipe.image)
    if "context_length" in settings:  # more than the domain's, too, which is a limit of its published checkpoints
        processor.tokenizer.model_max_length = tokenizer.model_max_length
    return processor


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> ItemizedCLIPModel:
    """Model of the recipe with fresh weights; vocabulary and special tokens of the text tower are the tokenizer's."""
    architecture = recipe.architecture()
    text = dict(architecture["text_config"])
    if recipe.tokenizer and "vocab_size" in recipe.tokenizer:
        text["vocab_size"] = len(tokenizer)
    text["max_position_embeddings"] = max(text.get("max_position_embeddings", 0), tokenizer.model_max_length)
    text["pad_token_id"] = tokenizer.pad_token_id
    if text["model_type"] == "clip_text_model":
        text["bos_token_id"] = first_known(tokenizer.bos_token_id, tokenizer.cls_token_id)
        text["eos_token_id"] = first_known(tokenizer.eos_token_id, tokenizer.sep_token_id)
    if len(tokenizer) > text["vocab_size"]:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} entries, the text tower {text['vocab_size']}: they do not belong together."
        )
    torch.manual_seed(seed)
    return ItemizedCLIPModel(ItemizedCLIPConfig(**{**architecture, "text_config": text}, domain=recipe.domain))


def first_known(*values: Any) -> Any:
    """The first value that is not None."""
    return next(value for value in values if value is not None)


def build_arguments(
    recipe: Recipe, output: str | os.PathLike[str], overrides: dict[str, Any]
) -> ItemizedCLIPTrainingArguments:
    """
    Training arguments of the recipe with the changes to them, as far as this machine allows.

    Raises:
        ValueError: an argument is unknown, or could only be ignored.
    """
    settings = {"logging_strategy": "steps", **without_foreign_weights(recipe.training, overrides), **overrides}
    settings |= strategies_of_steps(overrides)
    rename_checkpointing(settings)
    refuse_unknown(settings)
    if recipe.global_batch_size is not None and "per_device_train_batch_size" not in settings:
        settings["per_device_train_batch_size"] = split_batch(
            recipe.global_batch_size, settings.get("gradient_accumulation_steps", 1)
        )
    if settings.get("bf16") and not torch.cuda.is_available():
        settings["bf16"] = settings["use_cpu"] = multiplies_bf16()
        if not settings["bf16"]:
            logger.warning("no GPU, and this CPU does not multiply bf16: training in float32")
    if settings.get("dataloader_num_workers", 0) > (os.cpu_count() or 1):
        settings["dataloader_num_workers"] = os.cpu_count() or 1
    return ItemizedCLIPTrainingArguments(output_dir=str(output), **settings)


def strategies_of_steps(overrides: dict[str, Any]) -> dict[str, str]:
    """
    `save_strategy` and the like where their number of steps is set: recipes save by epochs, and it would be ignored.

    >>> strategies_of_steps({"save_steps": 100})
    {'save_strategy': 'steps'}

    Raises:
        ValueError: both are set, and contradict each other.
    """
    strategies = {}
    for what in ("save", "eval", "logging"):
        steps, strategy = f"{what}_steps", f"{what}_strategy"
        if overrides.get(steps) is None:
            continue
        stated = str(getattr(overrides.get(strategy), "value", overrides.get(strategy, "steps")))
        if stated not in ("steps", "best"):  # best models are looked for at evaluations
            raise ValueError(
                f"{steps}={overrides[steps]} has no effect with {strategy}={stated}: leave one of them out, or set "
                f"{strategy}=steps."
            )
        strategies[strategy] = stated
    return strategies


def rename_checkpointing(settings: dict[str, Any]) -> None:
    """Gives `gradient_checkpointing` the name that later versions of the library have for it, in place."""
    known = ItemizedCLIPTrainingArguments.__dataclass_fields__
    for old in [name for name in settings if name.startswith("gradient_checkpointing")]:
        new = old.replace("gradient", "activation")
        if new in known:
            settings.setdefault(new, settings.pop(old))


def refuse_unknown(
    settings: dict[str, Any], arguments: type[TrainingArguments] = ItemizedCLIPTrainingArguments
) -> None:
    """
    Looks at the names of training arguments.

    Args:
        arguments: the class that has them.

    Raises:
        ValueError: there is no such argument, or it is for scripts of one's own.
    """
    unknown = sorted(set(settings) - set(arguments.__dataclass_fields__))
    if unknown:
        raise ValueError(f"there are no training arguments {unknown}; see transformers.TrainingArguments.")
    scripted = [name for name in FOR_SCRIPTS if settings.get(name)]
    if scripted:
        raise ValueError(
            f"{scripted} are for scripts of one's own: this trains; --eval-data evaluates meanwhile, --resume goes on."
        )


def split_batch(global_batch_size: int, accumulation_steps: int) -> int:
    """
    Studies of one process and micro-step.

    Raises:
        ValueError: the global batch cannot be split into equal parts.
    """
    parts = int(os.environ.get("WORLD_SIZE", world_size())) * accumulation_steps
    if global_batch_size % parts:
        raise ValueError(
            f"the global batch of {global_batch_size} studies cannot be split into {parts} parts (processes times "
            "accumulation steps); set per_device_train_batch_size."
        )
    return global_batch_size // parts
