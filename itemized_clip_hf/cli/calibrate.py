"""Calibrate a model: probabilities and operating points of every finding, from a validation split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from itemized_clip_cli import (
    accept_option,
    device_option,
    json_option,
    layout_option,
    model_option,
    say_what_stays,
    tokenizer_option,
    volume_option,
    workers_option,
)

LOADING = ("device", "tokenizer", "volume_index", "accept", "layout")
"""Options by which model and studies are opened."""


@click.command()
@click.option(
    "--protocol", "protocol_name", required=True, metavar="NAME", help="A protocol with findings, or a YAML file."
)
@click.option("--variant", help="A variant that the protocol names, e.g. released.")
@click.option(
    "-i",
    "--input",
    "data",
    required=True,
    metavar="PATH",
    help="Validation studies: folder with a label table, or a list.",
)
@model_option
@click.option(
    "-o", "--output", "folder", metavar="DIR", help="Where calibration.json goes; the model's folder by default."
)
@click.option("--labels", metavar="FILE", help="Label table instead of the protocol's.")
@click.option("--id-column", metavar="NAME", help="Column of study ids in the label table.")
@click.option(
    "--prompts", "prompt_file", type=click.Path(exists=True), help="JSON or YAML file: name -> prompt or prompts."
)
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="RULE",
    help="Operating point: youden, roc-closest, sensitivity=X, specificity=X (at least X), or cost=C (a miss costs C false "
    "alarms). Repeat for several; the first says yes or no. By default youden, roc-closest, sensitivity=0.9, specificity=0.9, "
    "cost=1.",
)
@click.option("--skip-missing", is_flag=True, help="Calibrate without studies that have no images.")
@click.option("--overwrite", is_flag=True, help="Replace a calibration.json that is there.")
@click.option("--batch-size", default=8, show_default=True, help="Studies of one pass through the model.")
@workers_option
@click.option("--resamples", default=1000, show_default=True, help="Of the intervals of operating points.")
@click.option("--seed", default=0, show_default=True, help="Of resamples and folds.")
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
def command(protocol_name: str, data: str, model: str, folder: str | None, as_json: bool, **options: Any) -> None:
    """
    Calibrate a model.

    Of every finding Platt or isotonic scaling (which of them, cross-validation tells) and operating points, with intervals,
    from studies that the model was neither trained on nor is evaluated on. Findings with fewer than 10 positives or negatives
    get neither. They are kept in calibration.json in the model's folder, with hashes of the weights and of the data, no ids.
    `predict`, `evaluate`, the pipelines and the card then use them. Scores are kept in calibration.scores.jsonl until the file
    is whole: a run that was killed goes on there.
    """
    from itemized_clip_hf.evaluation.operating_points import DEFAULT_POINTS, check_point
    from itemized_clip_hf.evaluation.protocols import load_protocol
    from itemized_clip_hf.evaluation.protocols.schema import require_findings
    from itemized_clip_hf.models.names import CALIBRATION

    points = [check_point(name) for name in options["points"] or DEFAULT_POINTS]
    protocol = load_protocol(protocol_name, options["variant"])
    require_findings(protocol)
    target = choose_target(model, folder, options["overwrite"]) / CALIBRATION

    from itemized_clip_hf.cli.evaluate import load_and_note
    from itemized_clip_hf.data.files import hold_output
    from itemized_clip_hf.evaluation.calibrate import calibrate
    from itemized_clip_hf.evaluation.calibration_text import format_calibration
    from itemized_clip_hf.specs import read_prompts

    target.parent.mkdir(parents=True, exist_ok=True)
    click.get_current_context().with_resource(hold_output(target))
    kept = target.with_suffix(".scores.jsonl")
    say_what_stays(kept)
    loaded, processor, opener = load_and_note(model, **{name: options[name] for name in LOADING})
    shared = ("id_column", "skip_missing", "batch_size", "resamples", "seed")
    result = calibrate(
        loaded,
        processor,
        protocol,
        data,
        labels=options["labels"],
        prompts=read_prompts(options["prompt_file"]) if options["prompt_file"] else None,
        points=points,
        scores_file=kept,
        progress=not as_json,
        open_study=opener,
        opened_with=opener.settings(),
        num_workers=options["workers"],
        trained_on=model,
        **{name: options[name] for name in shared},
    )
    result.calibration.save(target.parent)
    kept.unlink(missing_ok=True)
    click.echo(
        json.dumps({"file": str(target), **result.to_dict()}, indent=1) if as_json else format_calibration(result)
    )
    if not as_json:
        click.echo(f"written: {target}", err=True)


def choose_target(model: str, folder: str | None, overwrite: bool) -> Path:
    """The folder of `calibration.json`; UsageError where it has to be named, ValueError where it has one already."""
    from itemized_clip_hf.models.names import CALIBRATION

    if folder is None and not Path(model).is_dir():
        raise click.UsageError(f"{model} is no folder: say where calibration.json goes, -o DIR.")
    target = Path(folder or model)
    if (target / CALIBRATION).exists() and not overwrite:
        raise ValueError(
            f"{target / CALIBRATION} is there already: pass --overwrite to replace it, or -o DIR for another folder."
        )
    return target
