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
        help="[classification, segmentation] Stop early: evaluations without a lower loss on --eval-data.",
    ),
    click.Option(
        ["--shots"],
        metavar="K ... [all]",
        callback=lambda context, parameter, value: None if value is None else read_shots(value),
        help="[classification] Few-shot curve in place of a model: zero-shot, linear probe, head and LoRA trained on so many "
        "studies of each label, tested on --eval-data; table and plot.",
    ),
    click.Option(
        ["--repeats"],
        type=click.IntRange(min=1),
        default=3,
        show_default=True,
        help="[classification] Draws of studies for each number of --shots.",
    ),
)


def read_shots(text: str) -> list[int | str]:
    """
    Numbers of shots, and `all`.

    >>> read_shots("1,4,all")
    [1, 4, 'all']
    """
    shots: list[int | str] = []
    for word in text.replace(",", " ").split():
        if word != "all" and not (word.isdigit() and int(word) > 0):
            raise click.BadParameter(f"{word!r} is not a number of studies above 0, nor 'all'")
        shots.append(word if word == "all" else int(word))
    return list(dict.fromkeys(shots))


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
    stated = {names.get(name, name): value for name, value in options.items()}
    if stated.get("label_names"):
        stated["label_names"] = tuple(stated["label_names"])
    shots, repeats = stated.pop("shots", None), stated.pop("repeats", None)
    if shots is None and repeats is not None:
        raise click.UsageError("--repeats has no effect without --shots: leave it out.")
    if shots is not None:
        from itemized_clip_hf.trainer.supervised.few_shot import few_shot_curve

        curve = few_shot_curve(
            ClassificationOptions(**stated), settings, shots, repeats or 3, resume, interrupts, record
        )
        return {"output": stated["output"], "table": curve["table"]}
    trainer, results = train_classifier(ClassificationOptions(**stated), settings, resume, interrupts, record)
    summary = {"output": stated["output"], "steps": trainer.state.global_step, "left_out": trainer.studies_left_out}
    for name in ("zero_shot", "trained"):
        for metric in ("auc", "average_precision"):
            mean = results.get(name, {}).get("labels", {}).get("mean", {}).get(metric)
            if mean is not None:
                summary[f"{name}_{metric}"] = round(mean["value"], 4)
        choice = results.get(name, {}).get("choice", {}).get("tasks", {}).get("classes", {})
        if "accuracy" in choice:
            summary[f"{name}_accuracy"] = round(choice["accuracy"]["value"], 4)
    return summary
