"""Embed a cohort: one file of embeddings, scores of prompts and local tokens, to search and to count in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import (
    accept_option,
    device_option,
    input_option,
    json_option,
    layout_option,
    model_option,
    precision_option,
    prompt_option,
    say_what_stays,
    tokenizer_option,
    volume_option,
    workers_option,
)

if TYPE_CHECKING:
    from itemized_clip_hf.cohort.embed import Embedded


@click.command()
@input_option
@model_option
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="Parquet file of the cohort.")
@prompt_option
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(exists=True),
    help="JSON or YAML file: label -> prompts; or text, one a line.",
)
@click.option(
    "--tokens", is_flag=True, help="Keep local tokens, float16: searches for texts and regions need them; large."
)
@click.option("--overwrite", is_flag=True, help="Replace a cohort of another model, or of other prompts or studies.")
@click.option("--batch-size", default=4, show_default=True, help="Studies of one pass through the model.")
@workers_option
@precision_option
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
def command(
    inputs: tuple[str, ...],
    model: str,
    output: str,
    prompts: tuple[str, ...],
    prompt_file: str | None,
    tokens: bool,
    overwrite: bool,
    batch_size: int,
    workers: int,
    precision: str,
    tokenizer: str | None,
    volume_index: int | None,
    accept: tuple[str, ...],
    layout: str | None,
    device: str,
    as_json: bool,
) -> None:
    """
    Embed a cohort.

    A row of the parquet file is a study: its id, its global embedding, and its labels where the list has them; with prompts
    also the score of each and what the item pooler gathers for it; with --tokens also the local tokens. Prompts of one label
    are averaged. The file names model and preprocessing by their hashes. `datasets` and pandas read it; `itemized-clip search`
    looks for studies and texts in it.

    The same command goes on with a run that was stopped, and tries what OUTPUT.quarantine.csv lists again.
    """
    from itemized_clip_hf.cli._studies import Inputs, Opener, require_inputs
    from itemized_clip_hf.cohort.embed import EmbedOptions, embed_cohort
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.data.studies.records import refuse_repeats
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.models.precision import weights_dtype
    from itemized_clip_hf.specs import read_prompts

    require_inputs(inputs)
    chosen = read_prompts(prompt_file) if prompt_file else {text: [text] for text in prompts}
    loaded, processor = load(model, device, tokenizer, dtype=weights_dtype(precision))
    processor.image_processor.accept = accept
    rule = Layout.of_processor(processor, layout)
    records = Inputs(inputs, rule)
    refuse_repeats(
        records.own_ids, "the inputs"
    )  # other verbs put folders in front, whose names would stay in the cohort
    opener = Opener(volume_index, loaded.config.domain, accept, rule)
    say_what_stays(f"{output}.parts")
    embedded = embed_cohort(
        loaded,
        processor,
        records,
        output,
        EmbedOptions(chosen, tokens, precision, batch_size, workers, overwrite),
        open_images=opener,
        opened_with=[opener.settings(), records.fingerprint()[1]],
        progress=len(records) > batch_size and not as_json,
        on_error=lambda study, error: click.echo(f"{study}: {error}", err=True),
        on_bad_scan=lambda study, scan, error: click.echo(f"{study}, scan {scan} left out: {error}", err=True),
    )
    report(embedded, model, len(records), as_json)


def report(embedded: Embedded, model: str, count: int, as_json: bool) -> None:
    """Prints what is in the cohort; raises where studies are missing."""
    from itemized_clip_hf.cohort.embed import quarantine_file
    from itemized_clip_hf.cohort.file import CohortFacts
    from itemized_clip_hf.models.load import UNTRAINED, say_origin

    if model.startswith(UNTRAINED):
        click.echo("note: random weights, the embeddings mean nothing", err=True)
    facts = CohortFacts.read(embedded.path)
    if as_json:
        left_out = [{"id": name, "error": reason} for name, reason in embedded.errors.items()]
        told: dict[str, Any] = {"cohort": str(embedded.path), "studies": embedded.studies, "left_out": left_out}
        told |= {"prompts": list(facts.prompts), "tokens": facts.tokens, "width": facts.width}
        click.echo(json.dumps({"model": say_origin(model), **told}, indent=1))
    else:
        size = Path(embedded.path).stat().st_size / 1e6
        click.echo(
            f"{embedded.studies} studies, embeddings of {facts.width} numbers, {len(facts.prompts)} prompts, "
            f"{'with' if facts.tokens else 'without'} tokens: {embedded.path} ({size:,.1f} MB)"
        )
    if embedded.errors:
        raise click.ClickException(
            f"{len(embedded.errors)} of {count} studies could not be embedded: see {quarantine_file(embedded.path)}"
        )
