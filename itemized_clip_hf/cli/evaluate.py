"""Run an evaluation protocol: figures with confidence intervals, plots, and all it takes to repeat them."""

import json
from pathlib import Path

import click

from itemized_clip_cli import (
    accept_option,
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
    protocol_name,
    variant,
    data,
    model,
    output,
    labels,
    id_column,
    prompt_file,
    validation,
    validation_labels,
    settings,
    skip_missing,
    batch_size,
    workers,
    resamples,
    seed,
    plots,
    tokenizer,
    volume_index,
    accept,
    layout,
    device,
    as_json,
):
    """
    Run an evaluation protocol.

    Protocols: ct-rate, rad-chestct, rsna, cq500, pub-brain-5, rsicd, um220k, or a YAML file of one's own with `findings` or
    `classes` and their prompts. The folder holds the label table and, at any depth, a file or folder per study. Scores are kept
    in OUTPUT.scores.jsonl: a run that was killed goes on there (protocols and segmentation). They are text-conditioned cosine
    similarities, as the results say under `quantity`.

    Tasks without a label table take the place of a protocol: retrieval (captions as COCO's or Karpathy's JSON, or a list),
    items (a list of studies with items: completeness and separability), segmentation (a list with `mask`).
    """
    from itemized_clip_hf.evaluation.protocols import TASKS, check_task_settings, load_protocol
    from itemized_clip_hf.specs import read_prompts

    task = protocol_name in TASKS
    given = {
        "--variant": variant,
        "--labels": labels,
        "--id-column": id_column,
        "--prompts": prompt_file,
        "--validation": validation,
        "--validation-labels": validation_labels,
        "--skip-missing": skip_missing,
    }
    for option in [option for option, value in given.items() if value and task] + (
        ["--set"] if settings and not task else []
    ):
        raise click.UsageError(f"{option} means nothing to {protocol_name}")
    protocol = None if task else load_protocol(protocol_name, variant)
    chosen = parse_settings(settings)
    if task:
        check_task_settings(protocol_name, chosen)

    from itemized_clip_hf.cli._studies import Opener
    from itemized_clip_hf.data.files import hold_output, write_text
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.evaluation.evaluate import evaluate_protocol
    from itemized_clip_hf.evaluation.protocols.report import draw_evaluation, format_results, model_index
    from itemized_clip_hf.evaluation.tasks.run import format_task, run_task
    from itemized_clip_hf.models.load import UNTRAINED, load, say_origin

    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    click.get_current_context().with_resource(hold_output(target))
    loaded, processor = load(model, device, tokenizer)
    processor.image_processor.accept = accept
    if model.startswith(UNTRAINED):
        click.echo("note: random weights, the figures mean nothing", err=True)
    if protocol_name not in ("retrieval", "items"):
        say_what_stays(target.with_suffix(".scores.jsonl"))
    processor.image_processor.layout = layout
    opener = Opener(volume_index, loaded.config.domain, accept, Layout.of_processor(processor))
    common = {
        "scores_file": target.with_suffix(".scores.jsonl"),
        "batch_size": batch_size,
        "num_workers": workers,
        "trained_on": model,
        "resamples": resamples,
        "seed": seed,
        "progress": not as_json,
        "open_study": opener,
        "opened_with": opener.settings(),
    }
    if protocol is None:
        results = run_task(protocol_name, loaded, processor, data, **common, **chosen)
        results["model"] |= say_origin(model)
        write_text(target, json.dumps(results, indent=1) + "\n")
        click.echo(json.dumps(results, indent=1) if as_json else format_task(results))
        return
    pairs = [entry.split("=", 1) if entry.split("=")[0] in protocol.tables else ("", entry) for entry in labels]
    named = dict(pairs)
    if len(named) < len(pairs):
        raise click.BadParameter(
            f"several files for one table; tables: {sorted(protocol.tables)}", param_hint="--labels"
        )
    evaluation = evaluate_protocol(
        loaded,
        processor,
        protocol,
        data,
        labels=named or None,
        prompts=read_prompts(prompt_file) if prompt_file else None,
        id_column=id_column,
        validation=validation,
        validation_labels=validation_labels,
        skip_missing=skip_missing,
        **common,
    )
    results = evaluation.results
    results["model"] |= say_origin(model)
    results["variant"] = variant
    results["model_index"] = model_index(results, Path(results["model"]["name"]).name)
    write_text(target, json.dumps(results, indent=1) + "\n")
    click.echo(json.dumps(results, indent=1) if as_json else format_results(results))
    if plots:
        try:
            files = draw_evaluation(loaded, processor, protocol, evaluation, target.with_suffix(".plots"), opener)
        except ImportError as error:
            files = []
            click.echo(f"no pictures: {error}", err=True)
        for file in files:
            click.echo(f"written: {file}", err=True)
