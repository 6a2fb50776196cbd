"""Runs a task of `evaluation/tasks`: its figures, what they rest on, and a table of them."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from ...modeling.modeling_itemized_clip import ItemizedCLIPModel
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from ...provenance import describe_model, hash_file, hash_model, hash_processor, installed_versions
from ..quantity import DEFAULT, describe
from ..results import TaskResult
from ..text_table import format_table, null_for_nan
from . import TaskOptions, check_task_settings


def run_task(
    name: str, model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, data: str | os.PathLike, **settings
) -> dict[str, Any]:
    """
    Results of a task with what they rest on, ready for JSON.

    Args:
        settings: fields of `TaskOptions`, and settings of the task.

    Raises:
        ValueError: the task has no such setting.
    """
    common = {key: settings.pop(key) for key in TaskOptions.__dataclass_fields__ if key in settings}
    check_task_settings(name, settings)
    options = TaskOptions(**common)
    options.about = {"model": hash_model(model), "processor": hash_processor(processor)}
    result: TaskResult = import_module(f"{__package__}.{name}").run(model, processor, data, options, **settings)
    if name != "segmentation":
        result.facts = {"quantity": DEFAULT, **result.facts}
    path = Path(data)
    result.rest |= {
        **describe_model(model, options.about["model"], options.about["processor"]),
        "data": {"name": path.name, "sha256": hash_file(path) if path.is_file() else None},
        "intervals": {
            "level": 0.95,
            "resamples": options.resamples,
            "seed": options.seed,
            "over": "studies; T2I@k over texts",
        },
        "versions": installed_versions(),
    }
    return null_for_nan(result.to_dict())


def format_task(results: dict[str, Any]) -> str:
    """The figures of a task as a table, from its JSON."""
    result = TaskResult.from_dict(results)
    rows = [
        [f"{group}, {metric}" if group else metric, estimate.format()]
        for group, _, estimates in result.groups()
        for metric, estimate in estimates.items()
    ]
    facts = [
        f"{name}: {results[name]}" for name in ("studies", "images", "captions", "texts", "mode") if name in results
    ]
    scores = [f"Figures rest on {describe(results['quantity'])}."] if "quantity" in results else []
    table = format_table(["", "(95 % interval)"], rows)
    return "\n".join([", ".join(facts), table, *scores, *results.get("notes", [])])
