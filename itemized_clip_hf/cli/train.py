"""Train or fine-tune from a recipe and a list of studies."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import accept_option, device_option, json_option, layout_option, parse_settings, tokenizer_option

if TYPE_CHECKING:
    from itemized_clip_hf.recipes import Recipe
    from itemized_clip_hf.trainer.run_record import RunRecord

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FOR_TRAIN_RECIPE = ("items_column", "images_column", "layout", "init", "accept_license")
"""Options that are arguments of `train_recipe` by the same names; a run that goes on remembers them, `model` and `accept`."""


@contextmanager
def leaving_at_signals() -> Iterator[None]:
    """Before training there is nothing to save: ends at once, without what the libraries would say of it."""

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, b"\nended before training began\n")
        os._exit(128 + number)

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def look_at_folders(
    recipe: "Recipe", data: str, eval_data: str | None, output: str, resume: bool, has_own_model: bool
) -> None:
    """What is wrong with the folders of a run, as far as their names and settings tell it."""
    from itemized_clip_hf.data.studies.prepared import prepared_fields, require_prepared_for
    from itemized_clip_hf.domains import load_domain
    from itemized_clip_hf.trainer.used_folder import require_unused

    if not resume:
        require_unused(output)
    stated = prepared_fields({"domain": recipe.domain, **load_domain(recipe.domain).image, **recipe.image})
    for folder in (data, eval_data):
        if folder is not None and not has_own_model:
            require_prepared_for(folder, stated)


def options_of_run(stated: "RunRecord", output: str, resume: bool) -> "RunRecord":
    """The options as stated; of a run that goes on those that it was begun with, where they are not stated again."""
    from itemized_clip_hf.trainer.run_record import RunRecord

    begun = RunRecord.read(output) if resume else None
    for difference in stated.differences(begun):
        click.echo(f"going on with {difference}", err=True)
    return stated.continued(begun)


def read_run(run: "RunRecord", output: str, resume: bool, device: str) -> tuple["Recipe", dict[str, Any]]:
    """The recipe and the training arguments of a run, looked at as far as that needs no torch."""
    from itemized_clip_hf.recipes import read_recipe
    from itemized_clip_hf.recipes.settings import apply_settings, refuse_shapes, require_shapes
    from itemized_clip_hf.trainer.used_folder import checkpoint_folders

    recipe = read_recipe(run.recipe)
    if run.variant:
        recipe = recipe.variant(run.variant, thorough=False)
    recipe, overrides = apply_settings(recipe, run.settings)
    if run.options.get("model") is not None:
        refuse_shapes(recipe, run.settings)
    for checkpoint in checkpoint_folders(output)[-1:] if resume else ():
        require_shapes(recipe, run.settings, checkpoint)
    if run.options.get("accept"):
        overrides["accept"] = list(run.options["accept"])
    if device == "cpu":
        overrides["use_cpu"] = True
    return recipe, overrides


@click.command()
@click.option("--recipe", required=True, metavar="NAME", help="A recipe of the package (see info) or a YAML file.")
@click.option("--variant", help="A variant that the recipe names, e.g. paper-table-12.")
@click.option(
    "-i",
    "--input",
    "--data",
    "data",
    required=True,
    metavar="PATH",
    help=".jsonl or .parquet file (or a glob), or a folder.",
)
@click.option("--eval-data", metavar="PATH", help="The same, for evaluation during training.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False))
@click.option("-m", "--model", metavar="DIR", help="Start from this model instead of fresh weights.")
@click.option(
    "--init",
    metavar="PATH",
    help="Weights for the recipe's model, as far as they fit: a model folder, an authors' checkpoint, or a 2-D MAE encoder.",
)
@click.option("--accept-license", is_flag=True, help="Accept CC-BY-NC-4.0, under which MAE weights were published.")
@tokenizer_option
@click.option(
    "--items-column", help="Column of the items, if not items, captions_unique, captions, sentences or report."
)
@click.option("--images-column", help="Column of the images, if not images, image, scans, file or path.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A training argument, e.g. max_steps=100, or a key of the recipe, e.g. model.hidden_size=64; repeat.",
)
@accept_option
@layout_option
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint in the output folder.")
@device_option
@json_option
def command(
    recipe: str,
    variant: str | None,
    data: str,
    eval_data: str | None,
    output: str,
    tokenizer: str | None,
    settings: tuple[str, ...],
    resume: bool,
    device: str,
    as_json: bool,
    **options: Any,
) -> None:
    """
    Train a model and save it with its processor.

    A line of a .jsonl list names a study: {"id": "...", "images": {"AX_T2": "scan.nii.gz"}, "items": ["...", "..."]}. A
    study that cannot be read is left out of its batch and listed in quarantine.csv. Ctrl-C saves a checkpoint; --resume goes
    on from it, with the variant and the settings that the run was begun with.
    """
    if device not in ("auto", "cpu"):
        raise click.BadParameter(
            "training takes every visible GPU: choose with CUDA_VISIBLE_DEVICES, or pass cpu", param_hint="--device"
        )
    chosen = parse_settings(settings)
    with leaving_at_signals():
        from itemized_clip_hf.trainer.run_record import RunRecord

        stated = {name: list(value) if name == "accept" else value for name, value in options.items() if value}
        run = options_of_run(RunRecord(recipe, variant, chosen, stated), output, resume)
        loaded, overrides = read_run(run, output, resume, device)
        look_at_folders(loaded, data, eval_data, output, resume, has_own_model=run.options.get("model") is not None)

        from itemized_clip_hf.recipes.schema import check_recipe
        from itemized_clip_hf.trainer.interrupts import Interrupts, TrainingInterruptedError
        from itemized_clip_hf.trainer.run import train_recipe

        check_recipe(loaded, f"recipe {recipe}" + (f" with {', '.join(settings)}" if settings else ""))
        try:
            trainer = train_recipe(
                loaded,
                data,
                output,
                tokenizer=tokenizer,
                eval_data=eval_data,
                resume=resume,
                interrupts=Interrupts(),
                record=run,
                model_folder=run.options.get("model"),
                **{name: run.options[name] for name in FOR_TRAIN_RECIPE if name in run.options},
                **overrides,
            )
        except TrainingInterruptedError as interruption:
            click.echo(str(interruption), err=True)
            sys.exit(interruption.exit_status)
    last = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    summary = {"output": output, "steps": trainer.state.global_step, "left_out": trainer.studies_left_out, **last}
    click.echo(json.dumps(summary) if as_json else "\n".join(f"{name:<16}{value}" for name, value in summary.items()))
