"""Train or fine-tune: from a recipe on reports, or a head on labels."""

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
from itemized_clip_hf.cli._tasks import (
    REPORTS,
    ManyValues,
    add_task_options,
    refuse_foreign_options,
    stated_options,
    task_module,
    task_names,
)

if TYPE_CHECKING:
    from itemized_clip_hf.recipes import Recipe
    from itemized_clip_hf.trainer.interrupts import Interrupts
    from itemized_clip_hf.trainer.run_record import RunRecord

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FOR_TRAIN_RECIPE = ("items_column", "images_column", "layout", "init", "accept_license")
"""Options that are arguments of `train_recipe` by the same names; a run that goes on remembers them, `model` and `accept`."""
REPEATED = frozenset({"recipe", "variant", "tokenizer", "data", "eval_data", "labels", "eval_labels"})
"""Options that a run that goes on does not remember, paths of data among them."""


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


@contextmanager
def ending_at_signals() -> Iterator["Interrupts"]:
    """What ends training at a signal: what is saved is said, and the exit status is that of the signal."""
    from itemized_clip_hf.trainer.interrupts import Interrupts, TrainingInterruptedError

    try:
        yield Interrupts()
    except TrainingInterruptedError as interruption:
        click.echo(str(interruption), err=True)
        sys.exit(interruption.exit_status)


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


def train_reports(run: "RunRecord", again: dict[str, Any], output: str, resume: bool, device: str) -> dict[str, Any]:
    """
    The summary of a run on reports.

    Args:
        again: options that are not remembered.
    """
    loaded, overrides = read_run(run, output, resume, device)
    has_own_model = run.options.get("model") is not None
    look_at_folders(loaded, again["data"], again.get("eval_data"), output, resume, has_own_model)

    from itemized_clip_hf.recipes.schema import check_recipe
    from itemized_clip_hf.trainer.run import train_recipe

    stated = ", ".join(f"{name}={value}" for name, value in run.settings.items())
    check_recipe(loaded, f"recipe {run.recipe}" + (f" with {stated}" if stated else ""))
    with ending_at_signals() as interrupts:
        trainer = train_recipe(
            loaded,
            again["data"],
            output,
            tokenizer=again.get("tokenizer"),
            eval_data=again.get("eval_data"),
            resume=resume,
            interrupts=interrupts,
            record=run,
            model_folder=run.options.get("model"),
            **{name: run.options[name] for name in FOR_TRAIN_RECIPE if name in run.options},
            **overrides,
        )
    last = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    return {"output": output, "steps": trainer.state.global_step, "left_out": trainer.studies_left_out, **last}


def train_head(
    task: str, run: "RunRecord", again: dict[str, Any], output: str, resume: bool, device: str
) -> dict[str, Any]:
    """The summary of a run of another task; arguments as of `train_reports`."""
    settings = {**run.settings, **({"use_cpu": True} if device == "cpu" else {})}
    options = {**run.options, **again, "output": output}
    accept = options.pop("accept", None)
    if accept:
        settings["accept"] = list(accept)
    with ending_at_signals() as interrupts:
        summary: dict[str, Any] = task_module(task).run(options, settings, resume, interrupts, run)
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """A line for each figure; a table of rows as such."""
    from itemized_clip_hf.evaluation.text_table import format_table

    table = summary.pop("table", [])
    width = max(16, *(len(name) + 2 for name in summary))
    click.echo("\n".join(f"{name:<{width}}{value}" for name, value in summary.items()))
    if table:
        rows = [["-" if row[name] is None else row[name] for name in table[0]] for row in table]
        click.echo(format_table(list(table[0]), rows))


@click.command(cls=ManyValues)
@click.option(
    "--task",
    type=click.Choice(task_names()),
    default=REPORTS,
    show_default=True,
    help="What is learned: the whole model from reports by a recipe, or a head of --model from labels.",
)
@click.option("--recipe", metavar="NAME", help="A recipe of the package (see info) or a YAML file; for reports.")
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
@click.pass_context
def command(
    context: click.Context,
    task: str,
    output: str,
    settings: tuple[str, ...],
    resume: bool,
    device: str,
    as_json: bool,
    **others: Any,
) -> None:
    """
    Train a model and save it with its processor.

    A line of a .jsonl list names a study: {"id": "...", "images": {"AX_T2": "scan.nii.gz"}, "items": ["...", "..."]}. A
    study that cannot be read is left out of its batch and listed in quarantine.csv. Ctrl-C saves a checkpoint; --resume goes
    on from it, with the variant and the settings that the run was begun with.

    With --task classification a classifier is trained from --model and labels; options of one task say so in brackets.
    """
    refuse_foreign_options(context, task, ("recipe",) if task == REPORTS else task_module(task).REQUIRED, resume)
    if device not in ("auto", "cpu"):
        raise click.BadParameter(
            "training takes every visible GPU: choose with CUDA_VISIBLE_DEVICES, or pass cpu", param_hint="--device"
        )
    chosen = parse_settings(settings)
    stated = stated_options(context)
    again = {name: value for name, value in stated.items() if name in REPEATED}
    kept = {name: value for name, value in stated.items() if name not in REPEATED}
    with leaving_at_signals():
        from itemized_clip_hf.trainer.run_record import RunRecord

        name = again.get("recipe") if task == REPORTS else f"task:{task}"
        run = options_of_run(RunRecord(str(name), again.get("variant"), chosen, kept), output, resume)
        if task == REPORTS:
            summary = train_reports(run, again, output, resume, device)
        else:
            summary = train_head(task, run, again, output, resume, device)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        print_summary(summary)


add_task_options(command)
