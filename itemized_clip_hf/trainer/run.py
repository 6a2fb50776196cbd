"""One training run from a recipe and a list of studies to a model folder: plan, build, train."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback
from transformers.utils import logging

from ..bars import without_library_bars
from ..conversion.initialize import initialize
from ..data.layout import Layout
from ..data.studies.cache import CachedPictures
from ..data.studies.records import Records, read_records
from ..data.studies.storage import check_prepared
from ..domains import load_domain
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.adapters import find_base
from ..models.load import load
from ..models.names import is_adapter_folder
from ..processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..recipes import Recipe
from .from_recipe import build_arguments, build_model, build_processor
from .interrupts import Interrupts
from .output_folder import checkpoint_to_resume, held
from .run_record import RunRecord
from .trainer import ItemizedCLIPTrainer
from .training_args import ItemizedCLIPTrainingArguments
from .until_signal import train_until_signal
from .used_folder import require_unused

logger = logging.get_logger(__name__)

MAE_NOTE = "The vision tower was started from MAE weights; the published ones are CC-BY-NC-4.0, and so is what is made of them."


@dataclass(frozen=True)
class RunOptions:
    """What a run is asked for besides recipe and training arguments; see `train_recipe`."""

    data: str | os.PathLike[str]
    output: str | os.PathLike[str]
    tokenizer: str | None = None
    eval_data: str | os.PathLike[str] | None = None
    resume: bool = False
    items_column: str | None = None
    images_column: str | None = None
    model_folder: str | None = None
    init: str | None = None
    accept_license: bool = False
    layout: str | None = None


@dataclass(frozen=True)
class RunPlan:
    """
    What a run will do, as far as it can be told without a model.

    Args:
        checkpoint: that the run goes on from.
        records: of the training studies.
    """

    recipe: Recipe
    options: RunOptions
    args: ItemizedCLIPTrainingArguments
    checkpoint: str | None
    records: Records

    @property
    def source(self) -> str | None:
        """The folder that model and processor come from; None for fresh ones."""
        return self.checkpoint or self.options.model_folder


@dataclass(frozen=True)
class RunParts:
    """What is trained, and on what."""

    model: ItemizedCLIPModel
    processor: ItemizedCLIPProcessor
    train_data: Records | CachedPictures
    eval_data: Records | CachedPictures | None


def train_recipe(
    recipe: Recipe,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    tokenizer: str | None = None,
    eval_data: str | os.PathLike[str] | None = None,
    resume: bool = False,
    items_column: str | None = None,
    images_column: str | None = None,
    model_folder: str | None = None,
    init: str | None = None,
    accept_license: bool = False,
    interrupts: Interrupts | None = None,
    layout: str | None = None,
    record: RunRecord | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **overrides: Any,
) -> ItemizedCLIPTrainer:
    """
    Trains and saves a model folder (weights, processor, trainer state) at `output`, which must not hold another run.

    Args:
        recipe: from `load_recipe`.
        data, eval_data: as in `read_records`.
        output: the folder of the run: checkpoints, quarantine, and the model in the end.
        tokenizer: path; see `build_processor`.
        resume: continue from the last checkpoint in `output` that was written to its end; from the beginning without one.
        items_column, images_column: of the list, where their names are not the usual ones.
        model_folder: start from this model and its processor instead of fresh weights.
        init: weights that the recipe's model starts from as far as they fit, see `conversion.initialize`.
        accept_license: of MAE weights, where `init` is a file of these.
        interrupts: ends training at SIGINT and SIGTERM with a checkpoint, and a `TrainingInterruptedError`.
        layout: what the files of a folder are where it cannot be told, see `data.layout.Layout`.
        record: of the options that the run was begun with; kept in `output` for the one that goes on.
        callbacks, overrides: of the library's trainer; training arguments that win over the recipe's.

    Raises:
        ValueError: the output folder holds another run, is in use or cannot be written, or arguments cannot work.
    """
    options = RunOptions(
        data=data,
        output=output,
        tokenizer=tokenizer,
        eval_data=eval_data,
        resume=resume,
        items_column=items_column,
        images_column=images_column,
        model_folder=model_folder,
        init=init,
        accept_license=accept_license,
        layout=layout,
    )
    plan = plan_run(recipe, options, overrides)
    parts = build_run(plan)
    with interrupts.listening() if interrupts is not None else nullcontext():
        is_first = plan.args.process_index == 0
        with held(output, resume, is_first):
            if record is not None and is_first:
                record.write(output)
            return train_run(plan, parts, interrupts, callbacks)


def plan_run(recipe: Recipe, options: RunOptions, overrides: dict[str, Any]) -> RunPlan:
    """Looks at folders, arguments and lists of studies; nothing is written, and no model is built."""
    checkpoint = checkpoint_to_resume(options.output) if options.resume else None
    if not options.resume:
        require_unused(options.output)
    args = build_arguments(recipe, options.output, overrides)
    if options.model_folder is not None and options.init is not None:
        raise ValueError("pass a model to go on from (--model), or weights for the recipe's model (--init), not both.")
    if checkpoint is None and options.model_folder is None:
        check_prepared_folders(options, ItemizedCLIPImageProcessor.from_domain(recipe.domain, **recipe.image))
    records = list_records(recipe, options, options.data)
    if records.items_column is None or records.images_column is None:
        raise ValueError(
            f"{options.data}: no column of items or of images among {records.columns}; name them with --items-column and "
            "--images-column."
        )
    logger.warning(
        f"{len(records)} studies; images from {records.images_column!r}, items from {records.items_column!r}"
    )
    return RunPlan(recipe, options, args, checkpoint, records)


def build_run(plan: RunPlan) -> RunParts:
    """Model and processor, fresh or from a folder, and the data as training reads them."""
    model, processor = load_parts(plan) if plan.source is not None else make_parts(plan)
    processor.image_processor.layout = plan.options.layout
    if plan.args.bf16 and plan.args.use_cpu:  # as in the vision tower: PyTorch's own attention is slow there
        model.text_model.set_attn_implementation("eager")
    train_data = cache_pictures(plan.recipe, plan.records)
    eval_data = None
    if plan.options.eval_data is not None:
        eval_data = cache_pictures(plan.recipe, list_records(plan.recipe, plan.options, plan.options.eval_data))
    return RunParts(model, processor, train_data, eval_data)


def train_run(
    plan: RunPlan,
    parts: RunParts,
    interrupts: Interrupts | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> ItemizedCLIPTrainer:
    """
    Training, and the model folder.

    Raises:
        TrainingInterruptedError: a signal ended it; what is saved stands in its message.
    """
    if plan.args.lora is not None and not parts.model.config.name_or_path:
        save_base(plan, parts)
    trainer = ItemizedCLIPTrainer(
        parts.model,
        plan.args,
        train_dataset=parts.train_data,
        eval_dataset=parts.eval_data,
        processing_class=parts.processor,
        callbacks=list(callbacks),
    )
    describe_start(trainer, plan.options)
    train_until_signal(trainer, plan.checkpoint, interrupts)
    return trainer


def list_records(recipe: Recipe, options: RunOptions, source: str | os.PathLike[str]) -> Records:
    """The studies of a list or a folder, images closed."""
    rule = Layout.of_settings({**load_domain(recipe.domain).image, **recipe.image}, options.layout)
    return read_records(source, options.items_column, options.images_column, layout=rule)


def check_prepared_folders(options: RunOptions, processor: ItemizedCLIPImageProcessor) -> None:
    """Refuses data that were prepared for another processor."""
    for folder in (options.data, options.eval_data):
        if folder is not None:
            check_prepared(folder, processor)


def load_parts(plan: RunPlan) -> tuple[ItemizedCLIPModel, ItemizedCLIPProcessor]:
    """Model and processor of the folder that the run starts or goes on from."""
    source = cast(str, plan.source)
    weights = source
    if plan.checkpoint is not None and is_adapter_folder(plan.checkpoint):
        weights = find_base(plan.checkpoint)  # the Trainer adds adapters of its own and fills them from the checkpoint
    model, processor = load(weights, "cpu", plan.options.tokenizer)
    if model.config.domain != plan.recipe.domain:
        raise ValueError(
            f"{source} is a model of domain {model.config.domain!r}, the recipe is for {plan.recipe.domain!r}."
        )
    check_prepared_folders(plan.options, processor.image_processor)
    return model, processor


def make_parts(plan: RunPlan) -> tuple[ItemizedCLIPModel, ItemizedCLIPProcessor]:
    """The recipe's model and processor, with fresh weights or those of `init`."""
    recipe, options = plan.recipe, plan.options
    processor = build_processor(recipe, plan.records.items(), options.tokenizer)
    model = build_model(recipe, processor.tokenizer, plan.args.seed)
    if options.init is not None:
        initialize(model, options.init, options.accept_license)
        if recipe.tokenizer and "vocab_size" in recipe.tokenizer and options.tokenizer is None:
            logger.warning(
                "the tokenizer is learned from the data: word embeddings that were loaded belong to other words unless "
                "--tokenizer names the one of these weights."
            )
    return model, processor


def cache_pictures(recipe: Recipe, records: Records) -> Records | CachedPictures:
    """Decoded pictures in memory, where the recipe says so."""
    if not recipe.cache_pictures:
        return records
    cached = CachedPictures(records, recipe.cache_pictures)
    for skipped in cached.skipped:
        logger.warning(f"record {skipped.study} is left out: {skipped.reason}")
    return cached


def save_base(plan: RunPlan, parts: RunParts) -> None:
    """A fresh model that gets adapters is kept beside them, which are of no use without it."""
    base = Path(cast(str, plan.args.output_dir)) / "base"
    if plan.args.process_index == 0:
        with without_library_bars():
            parts.model.save_pretrained(base)
        parts.processor.save_pretrained(base)
    parts.model.config.name_or_path = str(base)


def describe_start(trainer: ItemizedCLIPTrainer, options: RunOptions) -> None:
    """Tells the card what training started from."""
    if trainer.card is None:
        return
    if options.init is not None:
        trainer.card.started_from = f"weights of {Path(options.init).name}, as far as they fit"
        trainer.card.license_note = MAE_NOTE if options.accept_license else ""
    elif options.model_folder is not None and trainer.card.base_model is None:
        trainer.card.started_from = f"the model {Path(options.model_folder).name}"
