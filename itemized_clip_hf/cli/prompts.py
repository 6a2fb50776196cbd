"""Choose prompts: the AUC of each phrasing of a bank, and the ensembles that do best, told on held-out studies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from itemized_clip_hf.evaluation.prompt_bank import PromptChoice


@click.command()
@click.option(
    "-i",
    "--input",
    "data",
    required=True,
    metavar="PATH",
    help="Labeled studies to choose by, not those of the test: a list, or a folder of images and label tables.",
)
@model_option
@click.option(
    "--bank",
    "prompt_file",
    required=True,
    type=click.Path(exists=True),
    help="YAML or JSON file: finding -> phrasings.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False),
    help="YAML or JSON file of the chosen prompts, for --prompts; figures and scores go beside it.",
)
@click.option(
    "--protocol",
    "protocol_name",
    metavar="NAME",
    help="Takes columns and default prompts from a protocol (see info) or a YAML file.",
)
@click.option("--labels", metavar="FILE", help="Label table of the studies.")
@click.option("--id-column", metavar="NAME", help="Column of study ids in the label table.")
@click.option("--largest", default=3, show_default=True, type=click.IntRange(min=1), help="Phrasings of an ensemble.")
@click.option("--folds", default=5, show_default=True, type=click.IntRange(min=2), help="Of the cross-validation.")
@click.option("--skip-missing", is_flag=True, help="Choose without studies that have no images.")
@click.option("--overwrite", is_flag=True, help="Replace the output where it is there already.")
@click.option("--batch-size", default=8, show_default=True, help="Studies of one pass through the model.")
@workers_option
@click.option("--resamples", default=1000, show_default=True, help="Of the bootstrap; 0: no intervals.")
@click.option("--seed", default=0, show_default=True, help="Of folds and bootstrap.")
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
def command(model: str, output: str, overwrite: bool, as_json: bool, **options: Any) -> None:
    """
    Choose prompts by labeled studies.

    Prints the AUC of each phrasing of the bank, and writes for each finding the ensemble (mean of normalized embeddings) that
    forward selection under cross-validation finds, or the default prompts where nothing does better: those of the protocol, or
    of the model's domain, or else the first phrasing. Its worth against the default is told by studies that had no say in the
    choice.

    The file knows which studies it was chosen on: `evaluate --prompts` warns where they are evaluated. Scores are kept in
    OUTPUT.scores.jsonl: a run that was killed goes on there.
    """
    target = Path(output)
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is there already: choose another output, or pass --overwrite.")

    from itemized_clip_hf.data.files import hold_output
    from itemized_clip_hf.evaluation.prompt_bank import format_choice

    target.parent.mkdir(parents=True, exist_ok=True)
    click.get_current_context().with_resource(hold_output(target))
    say_what_stays(target.with_suffix(".scores.jsonl"))
    choice = choose(model, target, progress=not as_json, **options)
    choice.write(target)
    for one in choice.results["unreadable"]:
        click.echo(f"{one['id']}: {one['reason']}", err=True)
    click.echo(json.dumps(choice.results, indent=1) if as_json else format_choice(choice.results))
    click.echo(f"written: {target}", err=True)


def choose(
    model: str,
    target: Path,
    data: str,
    prompt_file: str,
    protocol_name: str | None,
    device: str,
    tokenizer: str | None,
    volume_index: int | None,
    accept: tuple[str, ...],
    layout: str | None,
    workers: int,
    **settings: Any,
) -> PromptChoice:
    """What `select_prompts` finds with these options, scores kept beside the target."""
    from itemized_clip_hf.cli._studies import Opener
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.evaluation.prompt_bank import select_prompts
    from itemized_clip_hf.evaluation.protocols import load_protocol
    from itemized_clip_hf.models.load import UNTRAINED, load
    from itemized_clip_hf.specs import read_prompts

    bank = read_prompts(prompt_file)
    protocol = load_protocol(protocol_name) if protocol_name else None
    loaded, processor = load(model, device, tokenizer)
    processor.image_processor.accept, processor.image_processor.layout = accept, layout
    if model.startswith(UNTRAINED):
        click.echo("note: random weights, the figures mean nothing", err=True)
    opener = Opener(volume_index, loaded.config.domain, accept, Layout.of_processor(processor))
    return select_prompts(
        loaded,
        processor,
        data,
        bank,
        protocol,
        scores_file=target.with_suffix(".scores.jsonl"),
        open_study=opener,
        opened_with=opener.settings(),
        num_workers=workers,
        trained_on=model,
        **settings,
    )
