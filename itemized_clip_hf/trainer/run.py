"""One training run from a recipe and a list of studies to a model folder."""

import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from transformers.utils import logging

from ..bars import without_library_bars
from ..conversion.initialize import initialize
from ..data.layout import Layout
from ..data.studies.cache import CachedPictures
from ..data.studies.records import Records, read_records
from ..data.studies.storage import check_prepared
from ..domains import load_domain
from ..modeling.configuration_itemized_clip import ItemizedCLIPConfig
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.adapters import find_base
from ..models.load import load
from ..models.names import is_adapter_folder
from ..models.precision import multiplies_bf16
from ..models.tokenizer import load_tokenizer, train_tokenizer
from ..processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..recipes import Recipe, without_foreign_weights
from .argument_rules import FOR_SCRIPTS
from .checkpoints import last_complete_checkpoint
from .gather import world_size
from .interrupts import Interrupts, TrainingInterrupted
from .output_folder import checkpoint_to_resume, held
from .trainer import ItemizedCLIPTrainer
from .training_args import ItemizedCLIPTrainingArguments
from .used_folder import require_unused

logger = logging.get_logger(__name__)

MAE_NOTE = "The vision tower was started from MAE weights; the published ones are CC-BY-NC-4.0, and so is what is made of them."


def build_processor(recipe: Recipe, items, tokenizer_path: str | None = None) -> ItemizedCLIPProcessor:
    """Processor of the recipe; the tokenizer is loaded from a path or learned from the items (an iterable of lists)."""
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
    return ItemizedCLIPProcessor.from_domain(recipe.domain, tokenizer=tokenizer, **recipe.image)


def build_model(recipe: Recipe, tokenizer, seed: int = 0) -> ItemizedCLIPModel:
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


def first_known(*values):
    return next(value for value in values if value is not None)


def build_arguments(recipe: Recipe, output, overrides: dict) -> ItemizedCLIPTrainingArguments:
    """Training arguments of the recipe with the changes to them, as far as this machine allows."""
    settings = {"logging_strategy": "steps", **without_foreign_weights(recipe.training, overrides), **overrides}
    known = ItemizedCLIPTrainingArguments.__dataclass_fields__
    for old in [name for name in settings if name.startswith("gradient_checkpointing")]:
        new = old.replace("gradient", "activation")  # as later versions of the library call it
        if new in known:
            settings.setdefault(new, settings.pop(old))
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"there are no training arguments {unknown}; see transformers.TrainingArguments.")
    scripted = [name for name in FOR_SCRIPTS if settings.get(name)]
    if scripted:
        raise ValueError(
            f"{scripted} are for scripts of one's own: this trains; --eval-data evaluates meanwhile, --resume goes on."
        )
    if recipe.global_batch_size is not None and "per_device_train_batch_size" not in settings:
        parts = int(os.environ.get("WORLD_SIZE", world_size())) * settings.get("gradient_accumulation_steps", 1)
        if recipe.global_batch_size % parts:
            raise ValueError(
                f"the global batch of {recipe.global_batch_size} studies cannot be split into {parts} parts (processes times "
                "accumulation steps); set per_device_train_batch_size."
            )
        settings["per_device_train_batch_size"] = recipe.global_batch_size // parts
    if settings.get("bf16") and not torch.cuda.is_available():
        settings["bf16"] = settings["use_cpu"] = multiplies_bf16()
        if not settings["bf16"]:
            logger.warning("no GPU, and this CPU does not multiply bf16: training in float32")
    if settings.get("dataloader_num_workers", 0) > (os.cpu_count() or 1):
        settings["dataloader_num_workers"] = os.cpu_count() or 1
    return ItemizedCLIPTrainingArguments(output_dir=str(output), **settings)


def train_recipe(
    recipe: Recipe,
    data: str | os.PathLike,
    output: str | os.PathLike,
    tokenizer: str | None = None,
    eval_data: str | os.PathLike | None = None,
    resume: bool = False,
    items_column: str | None = None,
    images_column: str | None = None,
    model_folder: str | None = None,
    init: str | None = None,
    accept_license: bool = False,
    interrupts: Interrupts | None = None,
    layout: str | None = None,
    **overrides,
) -> ItemizedCLIPTrainer:
    """
    Trains and saves a model folder (weights, processor, trainer state) at `output`, which must not hold another run.

    Args:
        recipe: from `load_recipe`.
        data, eval_data: as in `read_records`.
        tokenizer: path; see `build_processor`.
        resume: continue from the last checkpoint in `output` that was written to its end; from the beginning without one.
        items_column, images_column: of the list, where their names are not the usual ones.
        model_folder: start from this model and its processor instead of fresh weights.
        init: weights that the recipe's model starts from as far as they fit, see `initialization.initialize`.
        accept_license: of MAE weights, where `init` is a file of these.
        interrupts: ends training at SIGINT and SIGTERM with a checkpoint, and a `TrainingInterrupted`.
        layout: what the files of a folder are where it cannot be told, see `data.layout.Layout`.
        overrides: training arguments that win over the recipe's.

    Raises:
        ValueError: for an output folder that holds another run, is in use or cannot be written, and for arguments that cannot
            work.
    """
    checkpoint = checkpoint_to_resume(output) if resume else None
    if not resume:
        require_unused(output)
    args = build_arguments(recipe, output, overrides)
    if model_folder is not None and init is not None:
        raise ValueError("pass a model to go on from (--model), or weights for the recipe's model (--init), not both.")
    folders = [folder for folder in (data, eval_data) if folder is not None]
    if checkpoint is None and model_folder is None:
        for folder in folders:
            check_prepared(folder, ItemizedCLIPImageProcessor.from_domain(recipe.domain, **recipe.image))
    columns: dict[str, Any] = {"items_column": items_column, "images_column": images_column}
    rule = Layout.of_settings({**load_domain(recipe.domain).image, **recipe.image}, layout)
    records: Records | CachedPictures = read_records(data, **columns, layout=rule)
    if records.items_column is None or records.images_column is None:
        raise ValueError(
            f"{data}: no column of items or of images among {records.columns}; name them with --items-column and "
            "--images-column."
        )
    logger.warning(
        f"{len(records)} studies; images from {records.images_column!r}, items from {records.items_column!r}"
    )
    if checkpoint is not None or model_folder is not None:
        source = cast(str, checkpoint or model_folder)
        if checkpoint is not None and is_adapter_folder(checkpoint):
            source = find_base(checkpoint)  # the Trainer adds adapters of its own and fills them from the checkpoint
        model, processor = load(source, "cpu", tokenizer)
        if model.config.domain != recipe.domain:
            raise ValueError(
                f"{checkpoint or model_folder} is a model of domain {model.config.domain!r}, the recipe is for "
                f"{recipe.domain!r}."
            )
        for folder in folders:
            check_prepared(folder, processor.image_processor)
    else:
        processor = build_processor(recipe, records.items(), tokenizer)
        model = build_model(recipe, processor.tokenizer, args.seed)
        if init is not None:
            initialize(model, init, accept_license)
            if recipe.tokenizer and "vocab_size" in recipe.tokenizer and tokenizer is None:
                logger.warning(
                    "the tokenizer is learned from the data: word embeddings that were loaded belong to other words unless "
                    "--tokenizer names the one of these weights."
                )
    processor.image_processor.layout = layout
    if args.bf16 and args.use_cpu:  # as in the vision tower: PyTorch's own attention is slow there
        model.text_model.set_attn_implementation("eager")
    if recipe.cache_pictures:
        records = cache(records, recipe.cache_pictures)
    eval_records: Records | CachedPictures | None = None
    if eval_data is not None:
        eval_records = read_records(eval_data, **columns, layout=rule)
        eval_records = cache(eval_records, recipe.cache_pictures) if recipe.cache_pictures else eval_records
    listening = interrupts.listening() if interrupts is not None else nullcontext()
    with listening, held(output, resume, args.process_index == 0):
        return _train(
            model,
            processor,
            args,
            (records, eval_records),
            checkpoint,
            (model_folder, init, accept_license),
            interrupts,
        )


def _train(model, processor, args, data, checkpoint, origin, interrupts) -> ItemizedCLIPTrainer:
    """Training, and the model folder; `data` for training and evaluation, `origin` as in `train_recipe`."""
    model_folder, init, accept_license = origin
    output = cast(str, args.output_dir)
    if args.lora is not None and not model.config.name_or_path:
        base = Path(output) / "base"
        if args.process_index == 0:
            with without_library_bars():
                model.save_pretrained(base)
            processor.save_pretrained(base)
        model.config.name_or_path = str(base)
    trainer = ItemizedCLIPTrainer(model, args, train_dataset=data[0], eval_dataset=data[1], processing_class=processor)
    if trainer.card is not None and init is not None:
        trainer.card.started_from = f"weights of {Path(init).name}, as far as they fit"
        trainer.card.license_note = MAE_NOTE if accept_license else ""
    elif trainer.card is not None and model_folder is not None and trainer.card.base_model is None:
        trainer.card.started_from = f"the model {Path(model_folder).name}"
    if interrupts is None:
        train_and_save(trainer, checkpoint)
        return trainer
    trainer.add_callback(interrupts)
    try:
        train_and_save(trainer, checkpoint, interrupts)
    except (KeyboardInterrupt, RuntimeError):
        if interrupts.number is None:
            raise
        raise interrupted(trainer, interrupts, "Training was ended within a step") from None
    if interrupts.number is not None:
        raise TrainingInterrupted(interrupts.number, f"Training was complete; the model is saved in {output}.")
    return trainer


def train_and_save(trainer: ItemizedCLIPTrainer, checkpoint: str | None, interrupts: Interrupts | None = None) -> None:
    output = cast(str, trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    if interrupts is not None and interrupts.number is not None and trainer.state.global_step < trainer.state.max_steps:
        raise interrupted(trainer, interrupts, f"Training was ended after step {trainer.state.global_step}")
    trainer.save_model(output)
    trainer.save_state()


def interrupted(trainer: ItemizedCLIPTrainer, interrupts: Interrupts, what: str) -> TrainingInterrupted:
    last = last_complete_checkpoint(cast(str, trainer.args.output_dir))
    saved = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
    return TrainingInterrupted(
        interrupts.number or signal.SIGINT, f"{what}; {saved}. To go on, add --resume to the command."
    )


def cache(records, shortest_side: int) -> CachedPictures:
    cached = CachedPictures(records, shortest_side)
    for skipped in cached.skipped:
        logger.warning(f"record {skipped.study} is left out: {skipped.reason}")
    return cached
