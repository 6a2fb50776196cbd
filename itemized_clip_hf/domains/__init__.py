"""Facts of each domain, one YAML file each: preprocessing, text, normal rule, prompts, loss weights, architecture."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..specs import build, nearest, read_written

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Domain:
    """
    Args:
        name: the file's name.
        title: as people call it.
        image: settings of the image processor.
        text: `context_length`, `lowercase`, and the `tokenizer` that the published checkpoints use: its `vocabulary` comes in
            a `file`, has a `size` and, where known, a `sha256` of its entries, each followed by a line feed.
        normal_rule: presets of `is_normal`; a study without any rule is never normal.
        objective: weights of the ItemizedCLIP objective.
        baselines: arguments of other objectives, by their names.
        architecture: arguments of `ItemizedCLIPConfig` for the published size.
        labels: finding or class -> its prompts; several prompts of one label are averaged.
    """

    name: str
    title: str
    image: dict[str, Any]
    text: dict[str, Any]
    objective: dict[str, Any]
    architecture: dict[str, Any]
    normal_rule: dict[str, list[str]] = field(default_factory=dict)
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    labels: dict[str, str | list[str]] = field(default_factory=dict)

    def is_normal(self, items: list[str]) -> bool:
        """Whether the items say that there is nothing to find (spec 7.1)."""
        if not items:
            return False
        first = items[0].strip().lower()
        if len(items) == 1 and first.rstrip(".") in self.normal_rule.get("only_item", ()):
            return True
        if first in self.normal_rule.get("first_item", ()):
            return True
        return any(phrase in first for phrase in self.normal_rule.get("first_item_contains", ()))

    def weights(self, objective: str) -> dict:
        """Arguments of an objective that differ from its defaults in this domain."""
        return self.objective if objective == "itemized_clip" else self.baselines.get(objective, {})

    @property
    def prompts(self) -> dict[str, list[str]]:
        """Label -> list of prompts."""
        return {label: [p] if isinstance(p, str) else list(p) for label, p in self.labels.items()}


def available_domains() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@lru_cache
def load_domain(name: str) -> Domain:
    """The domain of that name."""
    path = _FOLDER / f"{name}.yaml"
    if name not in available_domains():
        near = nearest(name, available_domains())
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(f"unknown domain {name!r}; known: {available_domains()}{hint}")
    return build(Domain, read_written(path), path.name, name=name)


def read_domain(path: Path) -> Domain:
    """
    A domain's file, its settings and its architecture checked too.

    Raises:
        ValueError: it is no YAML, or what it says is no domain.
    """
    from .schema import check_domain

    content = read_written(path)
    domain = build(Domain, content, path.name, name=path.stem)
    check_domain(domain, path.name)
    return domain


class Presets(Mapping):
    """Domain name -> a part of its facts, read when it is asked for."""

    def __init__(self, part: Callable[[Domain], dict]):
        self._part = part

    def __getitem__(self, name: str) -> dict:
        if name not in available_domains():
            raise KeyError(name)
        return self._part(load_domain(name))

    def __iter__(self) -> Iterator[str]:
        return iter(available_domains())

    def __len__(self) -> int:
        return len(available_domains())
