"""Run an evaluation protocol: figures with confidence intervals, plots, and all it takes to repeat them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import (
    accept_option,
    calibration_option,
    device_option,
    json_option,
    layout_option,
    model_option,
    parse_settings,
    say_what_stays,
    tokenizer_option,
    volume_option,
    workers_option,
)

if TYPE_CHECKING:
    from itemized_clip_hf.cli._studies import Opener
    from itemized_clip_hf.evaluation.protocols import Protocol
    from itemized_clip_hf.evaluation.protocols.run import Evaluation
    from itemized_clip_hf.modeling.modeling_itemized_clip import ItemizedCLIPModel
    from itemized_clip_hf.processing.processing_itemized_clip import ItemizedCLIPProcessor

LOADING = ("device", "tokenizer", "volume_index", "accept", "layout")
"""Options by which model and studies are opened."""
OF_PROTOCOLS = ("variant", "id_column", "validation", "validation_labels", "skip_missing", "by", "calibration", "point")
"""Options that mean nothing to a task."""


@click.command()
@click.option(
    "--protocol",
    "protocol_name",
    required=True,
    metavar="NAME",
    help="A protocol (see info) or a YAML file.",
)
@click.option("--variant", help="A variant that the protocol names, e.g. released.")
@click.option(
    "-i",
    "--input",
    "data",
    required=True,
    metavar="PATH",
    help="Folder of images and label tables, or a list.",
)
@model_option
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False),
    help="JSON file; scores and plots go beside it.",
)
@click.option("--labels", multiple=True, metavar="[TABLE=]FILE", help="Label table instead of the protocol's.")
@click.option("--id-column", metavar="NAME", help="Column of study ids in the label table.")
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(exists=True),
    help="JSON or YAML file: name -> prompt or prompts.",
)
@click.option(
    "--validation", metavar="PATH", help="Data of a split to choose thresholds on, instead of the test labels."
)
@click.option("--validation-labels", metavar="FILE", help="Its label table.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of a task, e.g. mode=accelerated."
)
@click.option(
    "--by", multiple=True, metavar="COLUMN", help="Column of the label table to compare groups by, e.g. sex. Repeat."
)
@calibration_option
@click.option("--point", metavar="RULE", help="Operating point of the calibration, instead of its own.")
@click.option("--skip-missing", is_flag=True, help="Evaluate without studies that have no images.")
@click.option("--batch-size", default=8, show_default=True, help="Studies of one pass through the model.")
@workers_option
@click.option("--resamples", default=1000, show_default=True, help="Of the bootstrap; 0: no intervals.")
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap.")
@click.option(
    "--plots/--no-plots",
    default=True,
    show_default=True,
    help="Curves, and heat maps of the worst studies.",
)
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
def command(
    protocol_name: str,
    data: str,
    model: str,
    output: str,
    labels: tuple[str, ...],
    settings: tuple[str, ...],
    workers: int,
    plots: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """
    Run an evaluation protocol.

    Protocols: ct-rate, rad-chestct, rsna, cq500, pub-brain-5, rsicd, um220k, or a YAML file of one's own with `findings` or
    `classes` and their prompts. The folder holds the label table and, at any depth, a file or folder per study. Scores are kept
    in OUTPUT.scores.jsonl: a run that was killed goes on there (protocols and segmentation). They are text-conditioned cosine
    similarities, as the results say under `quantity`. Where the model is calibrated, that is measured, too (see `calibrate`).

    Tasks without a label table take the place of a protocol: retrieval (captions as COCO's or Karpathy's JSON, or a list),
    items (a list of studies with items: completeness and separability), segmentation (a list with `mask`).
    """
    protocol, task_settings, tables = check_choices(protocol_name, labels, settings, options)

    from itemized_clip_hf.data.files import hold_output, write_text
    from itemized_clip_hf.evaluation.protocols.report import format_results
    from itemized_clip_hf.evaluation.protocols.run import evaluate_protocol
    from itemized_clip_hf.evaluation.tasks.run import format_task, run_task
    from itemized_clip_hf.models.load import say_origin
    from itemized_clip_hf.specs import read_prompts

    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    click.get_current_context().with_resource(hold_output(target))
    if protocol_name not in ("retrieval", "items"):
        say_what_stays(target.with_suffix(".scores.jsonl"))
    loaded, processor, opener = load_and_note(model, **{name: options[name] for name in LOADING})
    common: dict[str, Any] = {
        "scores_file": target.with_suffix(".scores.jsonl"),
        "num_workers": workers,
        "trained_on": model,
        "progress": not as_json,
        "open_study": opener,
        "opened_with": opener.settings(),
    } | {name: options[name] for name in ("batch_size", "resamples", "seed")}
    if protocol is None:
        results = run_task(protocol_name, loaded, processor, data, **common, **task_settings)
        results["model"] |= say_origin(model)
        write_text(target, json.dumps(results, indent=1) + "\n")
        click.echo(json.dumps(results, indent=1) if as_json else format_task(results))
        return
    common |= {name: options[name] for name in OF_PROTOCOLS if name != "variant"}
    prompts = read_prompts(options["prompt_file"]) if options["prompt_file"] else None
    evaluation = evaluate_protocol(loaded, processor, protocol, data, labels=tables, prompts=prompts, **common)
    results = complete(note_choice(evaluation, options["prompt_file"]), say_origin(model), options["variant"])
    write_text(target, json.dumps(results, indent=1) + "\n")
    click.echo(json.dumps(results, indent=1) if as_json else format_results(results))
    if plots:
        draw(loaded, processor, protocol, evaluation, target.with_suffix(".plots"), opener)


def note_choice(evaluation: Evaluation, prompt_file: str | None) -> dict[str, Any]:
    """Results with what is to be said of prompts that `prompts` chose."""
    from itemized_clip_hf.evaluation.prompt_bank import choice_notes

    results = evaluation.results
    if prompt_file is not None:
        results["notes"] += choice_notes(prompt_file, evaluation.studies.ids, results["model"]["sha256"])
    return results


def complete(results: dict[str, Any], origin: dict[str, Any], variant: str | None) -> dict[str, Any]:
    """Results with what the command line knows: where the model came from, the variant, and the `model-index` of a card."""
    from itemized_clip_hf.evaluation.results import ProtocolResult

    results["model"] |= origin
    index = ProtocolResult.from_dict(results).model_index(Path(results["model"]["name"]).name)
    results |= {"variant": variant, "model_index": index}
    return results


def check_choices(
    protocol_name: str, labels: tuple[str, ...], settings: tuple[str, ...], options: dict[str, Any]
) -> tuple[Protocol | None, dict[str, Any], dict[str, str] | None]:
    """
    The protocol, or None and the settings of a task, and label tables by name; nothing heavy is imported.

    Raises:
        click.UsageError: options that mean nothing to the protocol or task.
        ValueError: there is no such protocol, variant or setting.
    """
    from itemized_clip_hf.evaluation.protocols import load_protocol
    from itemized_clip_hf.evaluation.tasks import available_tasks, check_task_settings

    is_task = protocol_name in available_tasks()
    given = {f"--{name.replace('_', '-')}": options[name] for name in OF_PROTOCOLS}
    given = {"--labels": labels, **given, "--prompts": options["prompt_file"]} if is_task else {"--set": settings}
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} means nothing to {protocol_name}")
    chosen = parse_settings(settings)
    if is_task:
        check_task_settings(protocol_name, chosen)
        return None, chosen, None
    protocol = load_protocol(protocol_name, options["variant"])
    tables: dict[str, str] = {}
    for entry in labels:
        name, _, file = entry.partition("=")
        tables |= {name: file} if name in protocol.tables and file else {"": entry}
    if len(tables) < len(labels):
        raise click.BadParameter(
            f"several files for one table; tables: {sorted(protocol.tables)}", param_hint="--labels"
        )
    return protocol, {}, tables or None


def load_and_note(
    model: str,
    device: str,
    tokenizer: str | None,
    volume_index: int | None,
    accept: tuple[str, ...],
    layout: str | None,
) -> tuple[ItemizedCLIPModel, ItemizedCLIPProcessor, Opener]:
    """Model and processor, and what opens studies for them; random weights are noted."""
    from itemized_clip_hf.cli._studies import Opener
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.models.load import UNTRAINED, load

    loaded, processor = load(model, device, tokenizer)
    processor.image_processor.accept = accept
    processor.image_processor.layout = layout
    if model.startswith(UNTRAINED):
        click.echo("note: random weights, the figures mean nothing", err=True)
    return loaded, processor, Opener(volume_index, loaded.config.domain, accept, Layout.of_processor(processor))


def draw(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    protocol: Protocol,
    evaluation: Evaluation,
    folder: Path,
    opener: Opener,
) -> None:
    """Plots, and what was written; a word where matplotlib is missing."""
    from itemized_clip_hf.evaluation.protocols.report import draw_evaluation

    try:
        files = draw_evaluation(model, processor, protocol, evaluation, folder, opener)
    except ImportError as error:
        files = []
        click.echo(f"no pictures: {error}", err=True)
    for file in files:
        click.echo(f"written: {file}", err=True)
