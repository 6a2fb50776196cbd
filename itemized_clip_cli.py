"""Entry point of the command line: lists the verbs without importing the package, so that `--help` answers at once."""

import ast
import importlib.util
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

input_option = click.option(
    "-i", "--input", "inputs", multiple=True, required=True, metavar="PATH", help="What to read; repeat for several."
)
model_option = click.option(
    "-m",
    "--model",
    required=True,
    metavar="MODEL",
    help="Folder or Hub name of a model, ORG/NAME or ORG/NAME@REVISION; 'untrained:DOMAIN' has random weights.",
)
tokenizer_option = click.option("--tokenizer", metavar="PATH", help="Tokenizer folder, BERT vocab.txt or CLIP merges.")
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps or auto.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
volume_option = click.option("--volume-index", type=int, help="Which volume of a 4-D file to take; 0 is the first.")
prompt_option = click.option(
    "-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="Item to look for; repeat."
)
scores_option = click.option(
    "--scores",
    type=click.Choice(["similarity", "logit", "probability", "sigmoid"]),
    default="similarity",
    show_default=True,
    help="What is written: the text-conditioned cosine similarity, which `evaluate` uses, too; the model's logit; its "
    "probability where the model is calibrated (see `calibrate`), else the sigmoid of the logit, uncalibrated and called so.",
)
calibration_option = click.option(
    "--calibration",
    metavar="PATH",
    help="Folder or file of a calibration (see `calibrate`) instead of the model's own; none: leave it out.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Numbers that the model works in. auto: those of its saved weights, which is float32 for models that were trained or "
    "converted here; bf16: as in training on a GPU, faster there; scores differ from float32 in the third decimal.",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Threads that read studies ahead while the model is at work; the results do not depend on it.",
)

accept_option = click.option(
    "--accept",
    multiple=True,
    metavar="CODE",
    help="A problem that is no reason to refuse a scan, e.g. not-raw; codes as `inspect` prints them. Repeat for several.",
)
layout_option = click.option(
    "--layout",
    type=click.Choice(["study", "cohort"]),
    help="What the volume files of a folder are where their names leave it open: scans of one study, or a study each.",
)


def domain_option(required: bool = False) -> Callable[[Any], Any]:
    """`--domain`, by name or file."""
    return click.option(
        "--domain", metavar="NAME", required=required, help="brain-mri, head-ct, chest-ct, ..., or a YAML file."
    )


LOOKS = {
    "accept": "code",
    "against": "source",
    "base": "model",
    "checkpoint": "source",
    "cohort": "source",
    "data": "source",
    "device": "device",
    "domain": "domain",
    "eval_data": "source",
    "eval_labels": "source",
    "facts_file": "source",
    "init": "source",
    "inputs": "source",
    "into": "model",
    "labels": "label_table",
    "model": "model",
    "models": "named_model",
    "output": "output",
    "point": "point",
    "points": "point",
    "paths": "source",
    "prompt_file": "prompts",
    "protocol_name": "protocol",
    "recipe": "recipe",
    "results": "source",
    "source": "source",
    "tokenizer": "tokenizer",
    "validation": "source",
    "validation_labels": "source",
}
"""Parameters of verbs -> the function of `itemized_clip_hf/cli/_looks.py` that looks at their values before the verb starts."""


def look_first(command: click.Command) -> click.Command:
    """Has the values of a verb's options looked at while they are parsed, before the verb imports anything."""
    for parameter in command.params:
        if parameter.name in LOOKS and parameter.callback is None:
            parameter.callback = _look
    return command


def _look(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    from itemized_clip_hf.cli import _looks

    for one in value if isinstance(value, tuple) else (value,):
        if one is not None:
            getattr(_looks, LOOKS[str(parameter.name)])(one)
    return value


def parse_settings(settings: tuple[str, ...]) -> dict:
    """NAME=VALUE, values as JSON where they are."""
    parsed = {}
    for setting in settings:
        name, found, value = setting.partition("=")
        if not found:
            raise click.BadParameter(f"{setting!r} is not NAME=VALUE", param_hint="--set")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def _verbs_folder() -> Path:
    package: Any = importlib.util.find_spec("itemized_clip_hf")
    return Path(package.submodule_search_locations[0]) / "cli"


class Interrupted(KeyboardInterrupt):
    """Somebody wants the process to end: SIGINT or SIGTERM."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


_STAYS = "itemized_clip.what_stays"


def say_what_stays(place: str | os.PathLike) -> None:
    """Tells who interrupts this verb where its work is kept, and that the same command goes on there."""
    click.get_current_context().meta[_STAYS] = str(place)


@contextmanager
def interrupts(context: click.Context) -> Iterator[None]:
    """SIGINT and SIGTERM become `Interrupted` in the main thread, which ends the process in order: 130 and 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is short, and not to be interrupted
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Interrupted(number)

    kept = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as stop:
        place = context.meta.get(_STAYS)
        advice = f"; what is written so far is in {place}; run the same command again to go on" if place else ""
        click.echo(f"\nInterrupted{advice}.", err=True)
        raise SystemExit(128 + getattr(stop, "number", signal.SIGINT)) from None
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Verbs(click.Group):
    """One verb per file of `itemized_clip_hf/cli`; the file's name is the verb, its first docstring line the help."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Names of the files."""
        return sorted(path.stem for path in _verbs_folder().glob("*.py") if not path.stem.startswith("_"))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of a file, which is imported now."""
        if name not in self.list_commands(context):
            return None
        spec: Any = importlib.util.spec_from_file_location(f"itemized_clip_cli_{name}", _verbs_folder() / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return look_first(module.command)

    def invoke(self, context: click.Context) -> Any:
        """Runs a verb; what a user can mend is told in a line, without a traceback unless `ITEMIZED_CLIP_TRACEBACK` is set."""
        try:
            with interrupts(context):
                return super().invoke(context)
        except (OSError, ValueError, ImportError) as error:
            if os.environ.get("ITEMIZED_CLIP_TRACEBACK"):
                raise
            raise click.ClickException(_explain(error)) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Verbs with the first line of their files, none of which is imported for it."""
        rows = []
        for name in self.list_commands(context):
            doc = ast.get_docstring(ast.parse((_verbs_folder() / f"{name}.py").read_text()))
            rows.append((name, (doc or "").splitlines()[0]))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _explain(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    from itemized_clip_hf.data.files import explain_os_error

    return explain_os_error(error)


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Score, explain and train on images whose text is a list of independent findings."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    main()
