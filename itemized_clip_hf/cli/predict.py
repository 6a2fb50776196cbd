"""Score studies against prompts, each prompt by itself."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import (
    accept_option,
    calibration_option,
    device_option,
    input_option,
    json_option,
    layout_option,
    model_option,
    precision_option,
    prompt_option,
    say_what_stays,
    scores_option,
    tokenizer_option,
    volume_option,
    workers_option,
)

if TYPE_CHECKING:
    from itemized_clip_hf.cli._scores import Scoring


STATED_BY_PROMPTS = (
    ("prompts", "-p"),
    ("prompt_file", "--prompts"),
    ("tokenizer", "--tokenizer"),
    ("calibration", "--calibration"),
    ("point", "--point"),
)
"""Options that mean nothing to a classifier."""


@click.command()
@input_option
@model_option
@prompt_option
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(exists=True),
    help="JSON or YAML file: label -> prompts; or text, one a line.",
)
@scores_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    help="CSV file of the scores. Run the same command again to go on with a run that was stopped.",
)
@click.option("--batch-size", default=4, show_default=True, help="Studies of one pass through the model.")
@workers_option
@calibration_option
@click.option(
    "--point", metavar="RULE", help="Operating point of the calibration that says yes or no, instead of its own."
)
@precision_option
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    inputs: tuple[str, ...],
    model: str,
    output: str | None,
    batch_size: int,
    as_json: bool,
    **options: Any,
) -> None:
    """
    Score studies against prompts.

    Inputs are files, DICOM folders and zips, folders of volumes, folders of studies, and .jsonl, .csv or .parquet lists. The
    volumes of a folder are scans of one study, or a study each where the model's studies have one scan. Without prompts those
    of the model's domain are used; the embeddings of several prompts of a label are averaged. Where a list has labels
    (`labels`: {finding: 1 or 0}, or one column for each finding), metrics are added; studies whose label is unknown (nothing,
    null, -1) are left out of its metric.

    Every output names the quantity that it holds. The CSV file has the columns id, path (from the folder on that holds all
    inputs), quantity, and one a label. Where the model is calibrated for the prompts (`calibrate`), every output also has the
    probability of each label with its 95 % interval, yes or no at the operating point, and how far the study lies from those
    of the calibration; without it scores are uncalibrated. With -o, scores are kept in OUTPUT.scores.jsonl as they come, until
    the CSV file is whole: a run that was stopped goes on there when the same command is run again.

    A classifier (`train --task classification`) scores its own labels, by default as an uncalibrated sigmoid or softmax.
    """
    from itemized_clip_hf.cli._studies import require_inputs
    from itemized_clip_hf.data.files import hold_output

    require_inputs(inputs)
    target = Path(output) if output else None
    with ExitStack() as stack:
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_output(target))
        scoring = make_scoring(context, target)
        if scoring.kept.path is not None:
            say_what_stays(scoring.kept.path)
        scoring.run(batch_size, progress=len(scoring.records) > batch_size and not as_json)
        if target is not None:
            scoring.write(target)
    if not report(scoring, model, output, as_json):
        sys.exit(1)


def make_scoring(context: click.Context, target: Path | None) -> Scoring:
    """Model, inputs and prompts as the options say; of a classifier its own labels."""
    from itemized_clip_hf.cli._scores import LabelScoring, Scoring
    from itemized_clip_hf.cli._studies import Inputs, Opener, choose_prompts
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.evaluation.calibration import load_calibration
    from itemized_clip_hf.evaluation.label_scores import default_function
    from itemized_clip_hf.modeling.classification_itemized_clip import ItemizedCLIPForImageClassification
    from itemized_clip_hf.models.load import UNTRAINED, architecture_of, load, load_head
    from itemized_clip_hf.models.precision import weights_dtype

    options = context.params
    model, accept, precision = options["model"], options["accept"], options["precision"]
    is_classifier = architecture_of(model) == ItemizedCLIPForImageClassification.__name__
    loaded: Any
    if is_classifier:
        quantity = quantity_of_labels(context, options["scores"])
        head = ItemizedCLIPForImageClassification
        loaded, processor = load_head(model, head, options["device"], weights_dtype(precision))
        quantity = quantity or default_function(loaded)
    else:
        quantity = options["scores"]
        loaded, processor = load(model, options["device"], options["tokenizer"], dtype=weights_dtype(precision))
    processor.image_processor.accept = accept
    if model.startswith(UNTRAINED):
        click.echo("note: random weights, the scores mean nothing", err=True)
    rule = Layout.of_processor(processor, options["layout"])
    records = Inputs(options["inputs"], rule)
    opener = Opener(options["volume_index"], loaded.config.domain, accept, rule)
    settings: dict[str, Any] = {"quantity": quantity, "precision": precision, "num_workers": options["workers"]}
    if is_classifier:
        return LabelScoring(loaded, processor, records, opener=opener, target=target, **settings)
    chosen_prompts = choose_prompts(options["prompts"], options["prompt_file"], loaded.config.domain)
    stated = options["calibration"], options["point"]
    if precision == "bf16" and any(stated):
        raise ValueError("scores in bf16 are not those that a calibration was made on: leave out --precision bf16.")
    source, point = stated if precision != "bf16" else ("none", None)
    calibration = load_calibration(loaded, processor, source, point, folder=model)
    return Scoring(loaded, processor, records, chosen_prompts, opener, target, **settings, calibration=calibration)


def quantity_of_labels(context: click.Context, scores: str) -> str | None:
    """
    What is written of a classifier: None for the sigmoid or softmax of its logits, unless these are asked for.

    Raises:
        click.UsageError: options that have no meaning for it are stated.
    """
    stated = click.core.ParameterSource.COMMANDLINE
    for name, option in STATED_BY_PROMPTS:
        if context.get_parameter_source(name) == stated:
            raise click.UsageError(f"the model is a classifier with labels of its own: leave out {option}.")
    if context.get_parameter_source("scores") != stated:
        return None
    if scores == "similarity":
        raise click.UsageError("the model is a classifier, which has no similarities: use --scores sigmoid or logit.")
    return scores if scores == "logit" else None


def report(scoring: Scoring, model: str, output: str | None, as_json: bool) -> bool:
    """Prints scores, and metrics where the inputs have labels; whether every study was scored and every label was one."""
    from itemized_clip_hf.cli._scores import label_metrics, print_scores, unread_labels, warn_of_far
    from itemized_clip_hf.data.studies.training_ids import warn_of_training
    from itemized_clip_hf.models.load import say_origin

    records, problem = scoring.records, ""
    metrics: dict[str, float | None] = {}
    notes: list[str] = []
    try:
        metrics, notes = label_metrics(scoring.seen, scoring.labels, scoring.similarities())
    except ValueError as error:  # the scores are what was asked for
        problem = str(error)
    trained = warn_of_training(model, records.own_ids) if metrics else None
    for note in (*notes, *unread_labels(records, scoring.labels), *([trained] if trained else [])):
        click.echo(note, err=True)
    if as_json:
        warned = {"notes": [trained]} if trained else {}
        results = {"model": say_origin(model), **scoring.as_json()}
        click.echo(json.dumps({**results, **({"metrics": metrics} if metrics else {}), **warned}, indent=1))
    else:
        print_scores(scoring, metrics, output)
    warn_of_far(scoring)
    if problem:
        click.echo(f"no metrics: {problem}", err=True)
    failed = scoring.kept.errors
    if failed:
        click.echo(f"{len(failed)} of {len(records)} studies could not be scored", err=True)
    return not failed and not problem
