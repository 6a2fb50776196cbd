"""A model that draws masks, from a model, a list of studies and their masks: plan, build, train, and how well it does."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import EarlyStoppingCallback

from ...data.files import write_text
from ...data.layout import Layout
from ...data.studies.masks import MaskRecords, read_mask_records
from ...evaluation.masks import evaluate_masks
from ...evaluation.text_table import null_for_nan
from ...modeling.modeling_itemized_clip import ItemizedCLIPModel
from ...modeling.segmentation_itemized_clip import ItemizedCLIPForSemanticSegmentation
from ...models.load import load, say_origin
from ...models.segmenter import lay_out_for_cpu, load_segmenter
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..interrupts import Interrupts
from ..preparation import build_augmentation
from ..run_record import RunRecord
from .arguments import SupervisedArguments
from .masks import MaskCollator
from .run import supervised_arguments, train_in_folder
from .trainer import SupervisedTrainer

RESULTS = "results.json"
DECODER = "mask_decoder."


@dataclass(frozen=True)
class SegmentationOptions:
    """
    What a run is asked for besides training arguments.

    Args:
        data, eval_data: lists of studies with masks, see `data.studies.masks`.
        output: the folder of the run: checkpoints, quarantine, results, and the model in the end.
        model: folder or name of the model that training starts from: an [`ItemizedCLIPModel`], which gets a fresh decoder, or
            a model that draws masks.
        classes: names of the classes 1, 2, ... of label maps; none: masks of items.
        train: `"decoder"`, which leaves the model and its scores as they are, or `"all"`.
        channels: width of a fresh decoder, see [`ItemizedCLIPMaskSettings`].
        item_dropout: share of the items whose words are hidden from the decoder at a step.
        max_items: most items of a study at a step.
        drawn_scans: scans of a study that a step draws; all if None.
        patience: stop where the loss on the evaluation studies has not fallen that many evaluations long.
    """

    data: str | os.PathLike[str]
    output: str | os.PathLike[str]
    model: str
    eval_data: str | os.PathLike[str] | None = None
    classes: tuple[str, ...] = ()
    train: str = "decoder"
    channels: int | None = None
    item_dropout: float | None = None
    max_items: int = 3
    drawn_scans: int | None = None
    patience: int | None = None
    images_column: str | None = None
    items_column: str | None = None
    layout: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.train not in ("decoder", "all"):
            raise ValueError(f"train is {self.train!r}, expected 'decoder' or 'all'.")
        if self.patience is not None and self.eval_data is None:
            raise ValueError("--patience needs studies to evaluate on: pass --eval-data.")
        if self.classes and self.item_dropout is not None:
            raise ValueError(
                "--item-dropout has no effect on --class, whose model takes no items: leave out one of the two."
            )


def train_segmenter(
    options: SegmentationOptions,
    settings: dict[str, Any] | None = None,
    resume: bool = False,
    interrupts: Interrupts | None = None,
    record: RunRecord | None = None,
) -> tuple[SupervisedTrainer, dict[str, Any]]:
    """
    Trains a model that draws masks and saves it with its processor in the output folder, its figures in `results.json`.

    Args:
        settings: training arguments, see [`SupervisedArguments`].
        resume, interrupts, record: see `train_in_folder`.

    Returns:
        the Trainer, and what `results.json` holds.

    Raises:
        ValueError: what cannot work, before anything is written.
    """
    args = segmentation_arguments(options, settings or {})
    model, processor = build_segmenter(options, args.seed)
    data = _read(options, options.data, processor)
    eval_data = None if options.eval_data is None else _read(options, options.eval_data, processor)

    def build() -> SupervisedTrainer:
        return build_trainer(model, processor, data, eval_data, options, args)

    trainer = train_in_folder(build, options.output, resume, interrupts, record)
    results: dict[str, Any] = {
        "task": "segmentation",
        "model": say_origin(options.model),
        "mask_decoder": model.config.mask_decoder,
        "classes": list(options.classes),
        "train": options.train,
        "training": {"studies": len(data), "left_out": trainer.studies_left_out},
    }
    if eval_data is not None and trainer.is_world_process_zero():
        trained = trainer.accelerator.unwrap_model(trainer.model)
        results["trained"] = evaluate_masks(cast(Any, trained), processor, eval_data).to_dict()
    if trainer.is_world_process_zero():
        write_text(Path(options.output) / RESULTS, json.dumps(null_for_nan(results), indent=1) + "\n")
    return trainer, results


def segmentation_arguments(options: SegmentationOptions, settings: dict[str, Any]) -> SupervisedArguments:
    """Training arguments; with studies to evaluate on, every epoch is evaluated, and the one with the lowest loss kept."""
    defaults: dict[str, Any] = {"save_total_limit": 2, "learning_rate": 2e-3, "per_device_train_batch_size": 4}
    defaults |= {"per_device_eval_batch_size": 1, "prediction_loss_only": True}  # logits of a study can take gigabytes
    if options.train == "decoder":
        refused = sorted({"lora", "layer_decay", "freeze_text", "freeze_vision"} & set(settings))
        if refused:
            raise ValueError(f"{refused} have no effect where the decoder alone is trained: pass --train all.")
        defaults |= {"freeze_text": True, "freeze_vision": True}
    if options.eval_data is not None:
        defaults["eval_strategy"] = "epoch"
        if settings.get("save_strategy") != "no":
            defaults |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    return supervised_arguments(options.output, settings, **defaults)


def build_segmenter(
    options: SegmentationOptions, seed: int
) -> tuple[ItemizedCLIPForSemanticSegmentation, ItemizedCLIPProcessor]:
    """
    The model that training starts from, and its processor.

    Raises:
        ValueError: options describe a fresh decoder, and the model has one.
    """
    base, processor = load(options.model, "cpu", options.tokenizer)
    processor.image_processor.layout = options.layout
    if getattr(base.config, "mask_decoder", None) is not None:
        fresh = {"--channels": options.channels, "--item-dropout": options.item_dropout, "--class": options.classes}
        stated = [name for name, value in fresh.items() if value not in (None, ())]
        if stated:
            raise ValueError(f"{', '.join(stated)}: the model has a mask decoder already, which training goes on with.")
        return load_segmenter(options.model, "cpu")[0], processor
    require_pooler_for_items(base, options)
    settings: dict[str, Any] = {"mode": "classes" if options.classes else "items"}
    settings |= {} if options.channels is None else {"channels": options.channels}
    settings |= {} if options.item_dropout is None else {"item_dropout": options.item_dropout}
    return ItemizedCLIPForSemanticSegmentation.from_model(base, settings, options.classes, seed), processor


def require_pooler_for_items(base: ItemizedCLIPModel, options: SegmentationOptions) -> None:
    """Refuses masks of items from a model whose pooler, which guides them, was not trained."""
    if not options.classes and base.config.scoring == "global":
        raise ValueError(
            f"{options.model} was trained by an objective of global embeddings: its item pooler is untrained and cannot guide "
            "masks of items. Objectives itemized_clip and flair train it; --class works without."
        )


def build_trainer(
    model: ItemizedCLIPForSemanticSegmentation,
    processor: ItemizedCLIPProcessor,
    data: Any,
    eval_data: Any,
    options: SegmentationOptions,
    args: SupervisedArguments,
) -> SupervisedTrainer:
    """The Trainer; where the decoder alone is trained, the rest is frozen."""
    if options.train == "decoder":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(DECODER))
    if args.device.type == "cpu":
        lay_out_for_cpu(model)
    collator = MaskCollator(
        processor,
        max_scans=args.max_scans,
        accept=args.accept,
        quarantine=Path(cast(str, args.output_dir)) / "quarantine.csv",
        augmentation=build_augmentation(args.augmentation, processor),
        num_labels=None if model.mask_decoder.by_item else model.config.num_labels,
        max_items=options.max_items,
        drawn_scans=options.drawn_scans,
    )
    callbacks = [] if options.patience is None else [EarlyStoppingCallback(options.patience)]
    return SupervisedTrainer(model, args, collator, data, eval_data, processing_class=processor, callbacks=callbacks)


def _read(
    options: SegmentationOptions, source: str | os.PathLike[str], processor: ItemizedCLIPProcessor
) -> MaskRecords:
    rule = Layout.of_processor(processor, options.layout)
    columns = {"images_column": options.images_column, "items_column": options.items_column}
    return read_mask_records(source, layout=rule, **columns)
