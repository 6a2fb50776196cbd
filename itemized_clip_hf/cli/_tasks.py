"""
Tasks of `train` besides reports, each in a file `_train_TASK.py` of this folder, which imports click alone at its top.

A file has `OPTIONS`, the options of the task, `TAKES`, the names of the options of reports that it takes too, and
`run(options, settings, resume, interrupts, record)`, which trains and returns a summary; `options` are what was stated, by
name. `REQUIRED` names those that have to be.
"""

import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import click

REPORTS = "reports"
_PREFIX = "_train_"
ALWAYS = frozenset({"task", "data", "output", "settings", "resume", "device", "as_json"})


def task_names() -> list[str]:
    """Names of all tasks, reports first."""
    return [REPORTS, *sorted(path.stem.removeprefix(_PREFIX) for path in Path(__file__).parent.glob(f"{_PREFIX}*.py"))]


@cache
def task_module(name: str) -> ModuleType:
    """The file of a task."""
    path = Path(__file__).with_name(f"{_PREFIX}{name}.py")
    spec: Any = importlib.util.spec_from_file_location(f"itemized_clip_cli{_PREFIX}{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add_task_options(command: click.Command) -> click.Command:
    """Adds the options of all tasks to `train`; one that several tasks have is that of the first."""
    for task in task_names()[1:]:
        known = {parameter.name for parameter in command.params}
        command.params += [option for option in task_module(task).OPTIONS if option.name not in known]
    return command


def options_of(task: str, command: click.Command) -> set[str]:
    """Names of the options that a task takes."""
    own = {str(option.name) for name in task_names()[1:] for option in task_module(name).OPTIONS}
    if task == REPORTS:
        return {str(parameter.name) for parameter in command.params} - own
    module = task_module(task)
    return {*ALWAYS, *module.TAKES, *(str(option.name) for option in module.OPTIONS)}


def stated_options(context: click.Context) -> dict[str, Any]:
    """What the command line says of the task, by name, without what every task has; lists instead of tuples, for JSON."""
    default = click.core.ParameterSource.DEFAULT
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in context.params.items()
        if name not in ALWAYS - {"data"} and context.get_parameter_source(name) != default
    }


def refuse_foreign_options(context: click.Context, task: str, required: Iterable[str], resume: bool) -> None:
    """
    Looks at the options of a task.

    Args:
        required: names of options that have to be stated, unless the run goes on and remembers them.

    Raises:
        click.UsageError: one is stated that the task does not take, or one is missing.
    """
    taken = options_of(task, context.command)
    stated = click.core.ParameterSource.COMMANDLINE
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in taken and context.get_parameter_source(name) == stated:
            raise click.UsageError(f"{parameter.opts[0]} has no effect on --task {task}: leave it out.")
        if name in required and context.params.get(name) is None and (not resume or name == "recipe"):
            raise click.MissingParameter(ctx=context, param=parameter)


class ManyValues(click.Command):
    """A command one of whose options takes all values that follow it: `--shots 1 4 all` is `--shots 1,4,all`."""

    several: frozenset[str] = frozenset({"--shots"})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Joins the values by commas first."""
        joined: list[str] = []
        for argument in args:
            follows = len(joined) > 1 and joined[-2] in self.several
            if follows and (argument.isdigit() or argument == "all"):
                joined[-1] += f",{argument}"
            else:
                joined.append(argument)
        return super().parse_args(ctx, joined)
