"""A classifier from a model, a list of studies and their labels: plan, build, train, and how well it does."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import EarlyStoppingCallback, EvalPrediction
from transformers.utils import logging

from ...data.files import write_text
from ...data.layout import Layout
from ...data.studies.records import Records, read_records
from ...data.studies.storage import check_prepared
from ...data.studies.training_ids import ids_of, warn_of_training
from ...domains import load_domain
from ...evaluation.label_scores import mean_figures, summarize_labels
from ...evaluation.text_table import null_for_nan
from ...evaluation.zero_shot import fold
from ...modeling.classification_itemized_clip import SINGLE_LABEL, UNKNOWN, ItemizedCLIPForImageClassification
from ...modeling.modeling_itemized_clip import ItemizedCLIPModel
from ...models.load import load, say_origin
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from ...specs import read_prompts
from ..interrupts import Interrupts
from ..preparation import build_augmentation
from ..run_record import RunRecord
from .arguments import SupervisedArguments
from .label_table import StudyLabels, balanced_weights, read_study_labels
from .labels import ClassificationCollator, LabeledStudies
from .run import supervised_arguments, train_in_folder
from .trainer import SupervisedTrainer

logger = logging.get_logger(__name__)

RESULTS = "results.json"
OPTIMISTIC = (
    "the checkpoint was chosen by its figures on these studies, which are therefore somewhat optimistic: for a fair test "
    "evaluate on others"
)


@dataclass(frozen=True)
class ClassificationOptions:
    """
    What a run is asked for besides training arguments.

    Args:
        data, eval_data: lists or folders of studies, as in `read_records`.
        output: the folder of the run: checkpoints, quarantine, results, and the model in the end.
        model: folder or name of the [`ItemizedCLIPModel`] that training starts from.
        labels, eval_labels: tables of labels beside the studies, see `read_study_labels`.
        prompts: file of label -> texts that the queries start from; else the domain's prompts of these labels, or their names.
        label_names: labels that are used; all if None.
        head: `"items"` or `"class_token"`.
        class_weights: `"none"` or `"balanced"`.
        patience: stop where the loss on the evaluation studies has not fallen that many evaluations long.
        id_column: of the tables of labels.
    """

    data: str | os.PathLike[str]
    output: str | os.PathLike[str]
    model: str
    labels: str | os.PathLike[str] | None = None
    eval_data: str | os.PathLike[str] | None = None
    eval_labels: str | os.PathLike[str] | None = None
    prompts: str | os.PathLike[str] | None = None
    label_names: tuple[str, ...] | None = None
    head: str = "items"
    class_weights: str = "none"
    patience: int | None = None
    id_column: str | None = None
    images_column: str | None = None
    layout: str | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.head == "class_token" and self.prompts is not None:
            raise ValueError(
                "--prompts has no effect on --head class_token, whose weights start from zeros: leave out one."
            )
        if self.eval_data is None and (self.eval_labels is not None or self.patience is not None):
            raise ValueError("--eval-labels and --patience need studies to evaluate on: pass --eval-data.")


@dataclass(frozen=True)
class ClassificationParts:
    """Model, processor and labeled studies of a run; `prompts` is empty for the class token's head."""

    model: ItemizedCLIPModel
    processor: ItemizedCLIPProcessor
    labels: StudyLabels
    train_data: LabeledStudies
    eval_labels: StudyLabels | None
    eval_data: LabeledStudies | None
    prompts: dict[str, list[str]] = field(default_factory=dict)

    def classifier(self, options: ClassificationOptions) -> ItemizedCLIPForImageClassification:
        """A fresh classifier, as training starts with it."""
        weights = balanced_weights(self.labels) if options.class_weights == "balanced" else None
        settings: dict[str, Any] = {"problem_type": self.labels.problem_type, "class_weights": weights}
        if options.head == "class_token":
            return ItemizedCLIPForImageClassification.from_model(
                self.model, self.labels.names, head="class_token", **settings
            )
        return ItemizedCLIPForImageClassification.from_prompts(self.model, self.processor, self.prompts, **settings)

    def collator(self, args: SupervisedArguments) -> ClassificationCollator:
        """Makes batches of these studies."""
        return ClassificationCollator(
            self.processor,
            max_scans=args.max_scans,
            accept=args.accept,
            quarantine=Path(cast(str, args.output_dir)) / "quarantine.csv",
            augmentation=build_augmentation(args.augmentation, self.processor),
            num_labels=None if self.labels.problem_type == SINGLE_LABEL else len(self.labels.names),
        )


def train_classifier(
    options: ClassificationOptions,
    settings: dict[str, Any] | None = None,
    resume: bool = False,
    interrupts: Interrupts | None = None,
    record: RunRecord | None = None,
) -> tuple[SupervisedTrainer, dict[str, Any]]:
    """
    Trains a classifier and saves it with its processor in the output folder, its figures in `results.json`.

    Args:
        settings: training arguments, see [`SupervisedArguments`].
        resume, interrupts, record: see `train_in_folder`.

    Returns:
        the Trainer, and what `results.json` holds.

    Raises:
        ValueError: what cannot work, before anything is written.
    """
    args = classification_arguments(options, settings or {})
    parts = read_parts(options)
    started: dict[str, Any] = {}

    def build() -> SupervisedTrainer:
        trainer = build_trainer(parts, options, args)
        if parts.eval_data is not None and options.head == "items":
            started["zero_shot"] = evaluate(trainer, parts.eval_data)
        return trainer

    trainer = train_in_folder(build, options.output, resume, interrupts, record)
    results = describe_run(parts, options) | started
    if parts.eval_data is not None:
        results["trained"] = evaluate(trainer, parts.eval_data)
        results["notes"] = [*results["notes"], *([OPTIMISTIC] if args.load_best_model_at_end else [])]
    if trainer.is_world_process_zero():
        write_text(Path(options.output) / RESULTS, json.dumps(null_for_nan(results), indent=1) + "\n")
    return trainer, results


def classification_arguments(options: ClassificationOptions, settings: dict[str, Any]) -> SupervisedArguments:
    """Training arguments; with studies to evaluate on, every epoch is evaluated, and the one with the lowest loss kept."""
    defaults: dict[str, Any] = {"save_total_limit": 2}
    if options.eval_data is not None:
        defaults |= {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "loss"}
        if "eval_steps" in settings:  # what is evaluated has to be saved, or the best could not be kept
            defaults |= {"save_strategy": "steps", "save_steps": settings["eval_steps"]}
    return supervised_arguments(options.output, settings, **defaults)


def read_parts(options: ClassificationOptions) -> ClassificationParts:
    """Model, processor, and the studies with their labels; what is left out is said."""
    model, processor = load(options.model, "cpu", options.tokenizer)
    processor.image_processor.layout = options.layout
    rule = Layout.of_processor(processor, options.layout)

    for folder in (options.data, options.eval_data):
        if folder is not None:
            check_prepared(folder, processor.image_processor)

    def read(data: str | os.PathLike[str], labels: Any, like: StudyLabels | None) -> tuple[StudyLabels, Records]:
        records = read_records(data, images_column=options.images_column, layout=rule)
        found = read_study_labels(records, labels, options.label_names, options.id_column, like)
        for note in found.notes:
            logger.warning(note)
        return found, records

    labels, records = read(options.data, options.labels, None)
    constant = [name for name, count in labels.counts().items() if count in (0, len(labels.numbers))]
    if constant:
        logger.warning(f"training has no studies of both kinds for the labels {constant}: they cannot be learned")
    train_data = LabeledStudies(records, labels.table, labels.numbers)
    eval_labels, eval_data = None, None
    if options.eval_data is not None:
        eval_labels, eval_records = read(options.eval_data, options.eval_labels, labels)
        eval_data = LabeledStudies(eval_records, eval_labels.table, eval_labels.numbers)
        for note in seen_before(options.model, train_data, eval_data):
            logger.warning(note)
            eval_labels.notes.append(note)
    prompts = {}
    if options.head == "items":
        prompts = choose_label_prompts(labels.names, options.prompts, model.config.domain)
    return ClassificationParts(model, processor, labels, train_data, eval_labels, eval_data, prompts)


def seen_before(model: str, train_data: LabeledStudies, studies: LabeledStudies) -> list[str]:
    """Notes where studies of the evaluation are trained on here, or were by the model that training starts from."""
    ids = ids_of(studies)
    shared = set(ids) & set(ids_of(train_data))
    here = [f"{len(shared)} of {len(ids)} studies of the evaluation are trained on, too: their figures say little"]
    before = warn_of_training(model, ids)
    return [*(here if shared else ()), *([before] if before else ())]


def choose_label_prompts(
    names: list[str], file: str | os.PathLike[str] | None, domain: str | None
) -> dict[str, list[str]]:
    """
    Texts that the queries of the labels start from.

    Args:
        file: label -> text or texts; else the domain's prompts of a label, or its name.

    Raises:
        ValueError: the file leaves out a label, or names another.
    """
    if file is None:
        known = {fold(label): texts for label, texts in (load_domain(domain).prompts if domain else {}).items()}
        return {name: known.get(fold(name), [name]) for name in names}
    given = {fold(label): (label, texts) for label, texts in read_prompts(file).items()}
    missing = [name for name in names if fold(name) not in given]
    strangers = [label for key, (label, _) in given.items() if key not in {fold(name) for name in names}]
    if missing or strangers:
        raise ValueError(
            f"{Path(file).name}: it has no prompt for the labels {missing}, and prompts for {strangers}, which are not labels; "
            f"expected one or several texts for each of {names} (--label chooses among the labels)."
        )
    return {name: given[fold(name)][1] for name in names}


def build_trainer(
    parts: ClassificationParts,
    options: ClassificationOptions,
    args: SupervisedArguments,
    train_data: LabeledStudies | None = None,
) -> SupervisedTrainer:
    """The Trainer of a fresh classifier; `train_data` in place of all training studies."""
    callbacks = [] if options.patience is None else [EarlyStoppingCallback(options.patience)]
    names = parts.labels.names

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = cast(np.ndarray, prediction.predictions), cast(np.ndarray, prediction.label_ids)
        return mean_figures(summarize_labels(names, logits, labels, resamples=0))

    return SupervisedTrainer(
        parts.classifier(options),
        args,
        parts.collator(args),
        parts.train_data if train_data is None else train_data,
        parts.eval_data,
        processing_class=parts.processor,
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )


def predict_logits(trainer: SupervisedTrainer, studies: LabeledStudies) -> np.ndarray:
    """Logits (S, F); NaN for studies that could not be read."""
    found = trainer.predict(cast(Any, studies))
    logits, labels = np.array(found.predictions, dtype=np.float32), np.asarray(found.label_ids)
    logits[np.isnan(labels).all(1) if labels.ndim == 2 else labels == UNKNOWN] = np.nan
    return logits


def evaluate(trainer: SupervisedTrainer, studies: LabeledStudies) -> dict[str, Any]:
    """Figures of the classifier on some studies, with intervals over them; studies that cannot be read are left out."""
    names = cast(ItemizedCLIPForImageClassification, trainer.accelerator.unwrap_model(trainer.model)).label_names
    logits = predict_logits(trainer, studies)
    usable = ~np.isnan(logits).any(1)
    results = summarize_labels(names, logits[usable], studies.labels[usable])
    return {name: result.to_dict() for name, result in results.items()} | {"unreadable": int((~usable).sum())}


def describe_run(parts: ClassificationParts, options: ClassificationOptions) -> dict[str, Any]:
    """What the figures rest on, without paths of data."""
    return {
        "task": "classification",
        "model": say_origin(options.model),
        "head": options.head,
        "problem_type": parts.labels.problem_type,
        "labels": parts.labels.names,
        "prompts": parts.prompts,
        "class_weights": options.class_weights,
        "training": {"studies": len(parts.train_data), "positive": parts.labels.counts()},
        "notes": [*parts.labels.notes, *(parts.eval_labels.notes if parts.eval_labels else [])],
    }
