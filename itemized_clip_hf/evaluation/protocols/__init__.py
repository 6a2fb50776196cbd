"""
Evaluation protocols as data: one YAML file each, with the keys of `schema.Protocol`.

Nothing heavy is imported here, so that a mistyped name is told at once.
"""

import os
from pathlib import Path
from typing import Any

from ...specs import build, conform, describe, find_written, merge, read_written
from ..tasks import available_tasks
from .schema import Prompts, Protocol

__all__ = ["Prompts", "Protocol", "available_protocols", "find_protocol", "load_protocol"]

_FOLDER = Path(__file__).parent


def available_protocols() -> list[str]:
    """Names of the protocols of the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def find_protocol(name_or_path: str | os.PathLike) -> Path:
    """The file of a protocol; ValueError where there is none of that name."""
    return find_written("protocol", name_or_path, _FOLDER, [*available_protocols(), *available_tasks()])


def load_protocol(name_or_path: str | os.PathLike, variant: str | None = None) -> Protocol:
    """
    A protocol of the package by name, or any YAML file.

    Args:
        variant: one of its variants, e.g. `released`, which repeats what the released code does.
    """
    path = find_protocol(name_or_path)
    content = read_written(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no protocol: it holds {describe(content)}, expected keys such as findings.")
    variants = content.get("variants", {})
    conform(variants, dict[str, dict[str, Any]], f"{path.name}: variants")
    own = {key: value for key, value in content.items() if key != "variants"}
    built = {None: build(Protocol, content, path.name, name=path.stem)}
    for name, changes in variants.items():
        changed = merge(own, changes)
        built[name] = build(Protocol, changed, f"{path.name}: variant {name}", name=path.stem)
    if variant not in built:
        raise ValueError(f"protocol {path.stem} has no variant {variant!r}; it has {sorted(variants)}.")
    return built[variant]
