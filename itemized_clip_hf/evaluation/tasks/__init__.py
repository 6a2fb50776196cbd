"""
Evaluations that need no label table, one file each: `evaluate --protocol NAME` calls `run` of `tasks/NAME.py`.

The keyword-only arguments of `run` are the task's settings. They are read from the source, so that a mistyped one is told
before anything heavy is imported.
"""

import ast
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_NOT_TASKS = ("__init__", "run")


@dataclass
class TaskOptions:
    """
    What every task is given.

    Args:
        batch_size: studies of one pass through the model; the task's own default if None.
        resamples, seed: of the bootstrap.
        progress: show a bar.
        num_workers: see `encode_studies`.
        scores_file: keeps what is known of each study, for a run that is stopped.
        open_study, opened_with, trained_on: as in `evaluate_protocol`.
        about: hashes of model and processor.
    """

    batch_size: int | None = None
    resamples: int = 1000
    seed: int = 0
    progress: bool = False
    num_workers: int = 0
    scores_file: str | os.PathLike | None = None
    open_study: Callable[[dict], Any] | None = None
    opened_with: Mapping[str, Any] | None = None
    trained_on: str | os.PathLike | None = None
    about: Mapping[str, str] = field(default_factory=dict)


def available_tasks() -> list[str]:
    """
    Names of the tasks.

    >>> available_tasks()
    ['items', 'retrieval', 'segmentation']
    """
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in _NOT_TASKS)


def task_settings(name: str) -> tuple[str, ...]:
    """
    Names of the settings of a task.

    >>> task_settings("segmentation")
    ('prompt', 'series', 'num_tokens')
    """
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    return tuple(argument.arg for argument in run.args.kwonlyargs)


def check_task_settings(name: str, settings: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: the task has no such setting.
    """
    known = task_settings(name)
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"the task {name} has no settings {unknown}; it has {list(known)}.")
