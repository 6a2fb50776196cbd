"""`train --task classification`: a classifier from labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from itemized_clip_hf.trainer.interrupts import Interrupts
    from itemized_clip_hf.trainer.run_record import RunRecord

REQUIRED = ("model",)
TAKES = frozenset({"model", "eval_data", "tokenizer", "images_column", "accept", "layout"})
OPTIONS = (
    click.Option(
        ["--labels"],
        metavar="FILE",
        help="[classification] Table of labels by study id; the list's own labels if left out.",
    ),
    click.Option(["--eval-labels"], metavar="FILE", help="[classification] The same, of --eval-data."),
    click.Option(["--id-column"], metavar="NAME", help="[classification] Column of the ids in tables of labels."),
    click.Option(
        ["--label", "label_names"],
        multiple=True,
        metavar="NAME",
        help="[classification] Use this label and no other; repeat for several.",
    ),
    click.Option(
        ["--prompts", "prompt_file"],
        metavar="FILE",
        help="[classification] JSON or YAML file, label -> text or texts that its query starts from; else the domain's "
        "prompts, or the labels' names.",
    ),
    click.Option(
        ["--head"],
        type=click.Choice(["items", "class_token"]),
        default="items",
        show_default=True,
        help="[classification] Queries of the item pooler that start as zero-shot, or a linear layer on the class token.",
    ),
    click.Option(
        ["--class-weights"],
        type=click.Choice(["none", "balanced"]),
        default="none",
        show_default=True,
        help="[classification] balanced: rare labels count as much as frequent ones.",
    ),
    click.Option(
        ["--patience"],
        type=click.IntRange(min=1),
        help="[classification] Stop early: evaluations without a lower loss on --eval-data.",
    ),
)


def run(
    options: dict[str, Any],
    settings: dict[str, Any],
    resume: bool,
    interrupts: Interrupts,
    record: RunRecord,
) -> dict[str, Any]:
    """Trains a classifier; its summary."""
    from itemized_clip_hf.trainer.supervised.classification import ClassificationOptions, train_classifier

    names = {"prompt_file": "prompts"}
    stated = {names.get(name, name): value for name, value in options.items() if name != "accept"}
    if stated.get("label_names"):
        stated["label_names"] = tuple(stated["label_names"])
    if options.get("accept"):
        settings = {**settings, "accept": list(options["accept"])}
    trainer, results = train_classifier(ClassificationOptions(**stated), settings, resume, interrupts, record)
    summary = {"output": stated["output"], "steps": trainer.state.global_step, "left_out": trainer.studies_left_out}
    for name in ("zero_shot", "trained"):
        for metric in ("auc", "average_precision"):
            mean = results.get(name, {}).get("labels", {}).get("mean", {}).get(metric)
            if mean is not None:
                summary[f"{name}_{metric}"] = round(mean["value"], 4)
    return summary
