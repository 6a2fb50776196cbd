"""
Facts of each domain, one YAML file each: preprocessing, text, normal rule, prompts, checks, loss weights, architecture.

A file of one's own is named by its path wherever a domain is asked for; from then on its name is known, in processes that are
started later too, by the environment variable `ITEMIZED_CLIP_DOMAINS`: files, or folders of them, parted by `os.pathsep`.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ..specs import build, check_keys, describe, find_written, merge, nearest, read_written

_FOLDER = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml", ".json")
OWN_DOMAINS = "ITEMIZED_CLIP_DOMAINS"
DOMAIN_FILE = "domain.json"
"""Of a model folder: the facts of its domain."""
_LISTS = ("labels", "expected_series", "normal_rule")


@dataclass(frozen=True)
class Domain:
    """
    Args:
        name: the file's name, unless the file says `name`.
        title: as people call it.
        image: settings of the image processor.
        text: `context_length`, `lowercase`, and the `tokenizer` that the published checkpoints use: its `vocabulary` comes in
            a `file`, has a `size` and, where known, a `sha256` of its entries, each followed by a line feed.
        normal_rule: presets of `is_normal`; a study without any rule is never normal.
        objective: weights of the ItemizedCLIP objective.
        baselines: arguments of other objectives, by their names.
        architecture: arguments of `ItemizedCLIPConfig` for the published size.
        labels: finding or class -> its prompts; several prompts of one label are averaged.
        modality: "MR" or "CT", by which units are checked; None for pictures.
        coverage: shortest and longest extent in mm of a usual scan: `across` the body and from `head_to_foot`.
        lung_volume: least and most litres of a usual scan with the density of lung (-900 to -600 HU); None leaves a side open.
        expected_series: kind of series -> words, one of which stands in the name of a series of that kind.
        display_window: HU that pictures of a scan show; None: by its own percentiles.
        example: Python of a study, for the example of a model card.
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
    modality: Literal["MR", "CT"] | None = None
    coverage: dict[Literal["across", "head_to_foot"], list[float]] = field(default_factory=dict)
    lung_volume: list[float | None] | None = None
    expected_series: dict[str, list[str]] = field(default_factory=dict)
    display_window: list[float] | None = None
    example: str | None = None

    def is_normal(self, items: list[str]) -> bool:
        """Whether the items say that there is nothing to find (method 7.1)."""
        if not items:
            return False
        first = items[0].strip().lower()
        if len(items) == 1 and first.rstrip(".") in self.normal_rule.get("only_item", ()):
            return True
        if first in self.normal_rule.get("first_item", ()):
            return True
        return any(phrase in first for phrase in self.normal_rule.get("first_item_contains", ()))

    def weights(self, objective: str) -> dict[str, Any]:
        """Arguments of an objective that differ from its defaults in this domain."""
        return self.objective if objective == "itemized_clip" else self.baselines.get(objective, {})

    @property
    def is_shipped(self) -> bool:
        """Whether the package has a domain of this name."""
        return _is_shipped(self.name)

    @property
    def prompts(self) -> dict[str, list[str]]:
        """Label -> list of prompts."""
        return {label: [p] if isinstance(p, str) else list(p) for label, p in self.labels.items()}


def shipped_domains() -> list[str]:
    """Names of the package's domains."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def available_domains() -> list[str]:
    """
    Names of the package's domains and of the user's own that are known.

    >>> available_domains()
    ['brain-mri', 'chest-ct', 'head-ct', 'natural-images', 'remote-sensing']
    """
    return sorted({*shipped_domains(), *_own_files()})


def load_domain(name_or_path: str | os.PathLike[str]) -> Domain:
    """
    A domain by its name, or from a YAML file, whose name is known from then on.

    Raises:
        ValueError: there is none of that name; or the file is not a domain, or has the name of another one.

    >>> load_domain("chest-ct").image["spacing"]
    [3, 1, 1]
    """
    name = os.fspath(name_or_path)
    if name.lower().endswith(_SUFFIXES):
        return _load_own(Path(name).absolute())
    if _is_shipped(name):
        return _load_shipped(name)
    own = _own_files()
    if name in own:
        return read_domain(own[name])
    near = nearest(name, available_domains())
    hint = f"; did you mean {near!r}?" if near else "."
    raise ValueError(
        f"unknown domain {name!r}; known: {available_domains()}, or the path of a YAML file (a model folder brings its own "
        f"as {DOMAIN_FILE}){hint}"
    )


def _is_shipped(name: str) -> bool:
    return Path(name).name == name and (_FOLDER / f"{name}.yaml").is_file()


@lru_cache
def _load_shipped(name: str) -> Domain:
    path = _FOLDER / f"{name}.yaml"
    return build(Domain, read_written(path), path.name, name=name)


def _load_own(path: Path) -> Domain:
    if not path.is_file():
        raise ValueError(f"there is no domain file {path}; known by name: {available_domains()}.")
    domain = read_domain(path)
    if domain.is_shipped:
        if domain != _load_shipped(domain.name):
            raise ValueError(f"{path.name}: the package has a domain {domain.name!r}; give yours another name.")
        return domain
    known = _own_files().get(domain.name)
    if known is None:
        os.environ[OWN_DOMAINS] = os.pathsep.join(filter(None, [os.environ.get(OWN_DOMAINS), str(path)]))
    elif known != path and read_domain(known) != domain:
        raise ValueError(f"{path} and {known} say different things of a domain {domain.name!r}; give one another name.")
    return domain


def _own_files() -> dict[str, Path]:
    """Name -> file of the user's own domains; the first of a name counts."""
    files: dict[str, Path] = {}
    for entry in filter(None, os.environ.get(OWN_DOMAINS, "").split(os.pathsep)):
        place = Path(entry)
        for path in sorted(place.glob("*.yaml")) if place.is_dir() else [place]:
            if path.is_file():
                files.setdefault(_name_of(path), path)
    return files


def _name_of(path: Path) -> str:
    return _read_name(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _read_name(path: Path, changed: int) -> str:
    content = read_written(path)
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else path.stem


def read_domain(path: Path) -> Domain:
    """
    A domain's file, its settings and its architecture checked too.

    It may start from another one with `base: NAME`: settings are merged, while labels, series and normal rule take the place of
    those of the base.

    Raises:
        ValueError: it is not valid YAML, or what it says is not a domain.
    """
    return _read_domain(path.resolve(), path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=32)
def _read_domain(path: Path, changed: int) -> Domain:
    from .schema import check_domain

    content = _merge_bases(path, ())
    domain = build(Domain, {"name": path.stem, **content}, path.name)
    check_domain(domain, path.name)
    return domain


def _merge_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ValueError(f"{path.name} starts from itself: `base` names a domain that names it again.")
    content = read_written(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds {describe(content)}, expected keys such as title, image and text.")
    check_keys(content, [*Domain.__dataclass_fields__, "base"], path.name, "a domain has")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ValueError(f"{path.name}: base is {describe(base)}, expected the name or the file of a domain.")
    beside = path.parent / base
    found = beside if beside.is_file() else find_written("domain", base, _FOLDER, shipped_domains())
    lists = {name: value for name, value in content.items() if name in _LISTS}
    return merge(_merge_bases(found.resolve(), (*above, path)), content) | lists


def save_domain(name: str | None, folder: str | os.PathLike[str]) -> None:
    """Writes a domain of the user's own into a model folder, which is then whole without the user's file."""
    if name is not None and not _is_shipped(name):
        text = json.dumps(asdict(load_domain(name)), indent=1) + "\n"
        (Path(folder) / DOMAIN_FILE).write_text(text, encoding="utf-8")


def restore_domain(folder: str | os.PathLike[str]) -> None:
    """Makes the domain known that a model folder brings."""
    path = Path(folder) / DOMAIN_FILE
    if path.is_file() and not _is_shipped(_name_of(path)):
        load_domain(path)


class Presets(Mapping[str, dict[str, Any]]):
    """Name or file of a domain -> a part of its facts, read when it is asked for."""

    def __init__(self, part: Callable[[Domain], dict[str, Any]]):
        self._part = part

    def __getitem__(self, name: str) -> dict[str, Any]:
        if not (name.lower().endswith(_SUFFIXES) or _is_shipped(name) or name in _own_files()):
            raise KeyError(name)
        return self._part(load_domain(name))

    def __iter__(self) -> Iterator[str]:
        return iter(available_domains())

    def __len__(self) -> int:
        return len(available_domains())
