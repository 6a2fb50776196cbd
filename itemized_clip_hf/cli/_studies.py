"""Studies named on the command line, read one at a time."""

import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from itemized_clip_hf.data.checks import Report
from itemized_clip_hf.data.kinds import study_name
from itemized_clip_hf.data.layout import Layout, only_picture, require_one_scan
from itemized_clip_hf.data.open import Warnings, known_codes, require_usable
from itemized_clip_hf.data.readers.read import read_file
from itemized_clip_hf.data.studies.records import Records, read_records
from itemized_clip_hf.data.studies.training_ids import ids_of
from itemized_clip_hf.data.study import Scan, Skipped, Study
from itemized_clip_hf.data.tables import TABLE_SUFFIXES
from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.evaluation.encode import Closed
from itemized_clip_hf.processing.pictures_itemized_clip import PICTURE_SUFFIXES
from itemized_clip_hf.processing.scans_itemized_clip import require_single_scans
from itemized_clip_hf.specs import read_prompts


class Inputs:
    """
    Records of all inputs, read one by one; a record that cannot be read holds the reason under `error`.

    Studies that are called the same get the names of their folder or list in front (`first/dicom`, `second/dicom`), or a number
    behind where that does not tell them apart. `paths` tells where each lies, from the folder on that holds all inputs: what
    stands above may name a patient, and is known to who typed it.

    Args:
        layout: what a study is in a folder.
    """

    def __init__(self, inputs: tuple[str, ...], layout: Layout | None = None):
        self.inputs = [Path(source) for source in inputs]
        self.sources = [read_records(source, layout=layout) for source in inputs]
        named = [
            (source.id_of(index), _folders(path, source.id_of(index)))
            for path, source in zip(self.inputs, self.sources)
            for index in range(len(source))
        ]
        self.own_ids = [name for source in self.sources for name in ids_of(source)]
        self.ids = tell_apart(named)
        base = Path(os.path.commonpath([path.absolute().parent for path in self.inputs]))
        self.paths = [
            _below(base, place_of(source, index) or path.absolute())
            for path, source in zip(self.inputs, self.sources)
            for index in range(len(source))
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        known = zip(self.ids, self.paths)
        for source in self.sources:
            for index in range(len(source)):
                name, path = next(known)
                try:
                    yield {**source[index], "id": name, "path": path}
                except Exception as error:  # whatever a row makes a library raise: it is that study's error
                    yield {"id": name, "path": path, "error": str(error)}

    def fingerprint(self) -> list[Any]:
        """Ids, and places, sizes and times of the inputs, as JSON; not their content."""
        facts = []
        for path in self.inputs:
            status = path.stat() if path.exists() else None
            facts.append([str(path.absolute()), *([status.st_size, status.st_mtime_ns] if status else [])])
        return [self.ids, facts]


def require_inputs(inputs: tuple[str, ...]) -> None:
    """Raises for inputs that are not there, and lists that cannot be read, before anything heavy is loaded."""
    for source in inputs:
        if not Path(source).is_dir():
            read_records(source)


def place_of(source: Records, index: int) -> Path | None:
    """The file or folder of a study, the folder that holds all of several; None where its images are part of a table."""
    if hasattr(source.rows, "column_names"):
        return None
    try:
        paths = source.paths_of(index)
        leaves = list(paths.values()) if isinstance(paths, dict) else paths if isinstance(paths, list) else [paths]
        return Path(os.path.commonpath(leaves)).absolute() if leaves and None not in leaves else None
    except ValueError:
        return None


def _below(base: Path, path: Path) -> str:
    """The path from a folder on, in full where that is the root; of one that lies elsewhere, the name."""
    if base == Path(base.anchor):
        shown = path.as_posix()
    else:
        shown = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
    return shown.encode("utf-8", "backslashreplace").decode()


def _folders(path: Path, name: str) -> tuple[str, ...]:
    """What can stand in front of the name of a study, the nearest last."""
    parts = path.absolute().parts[1:]
    stem = study_name(path)
    stem = next((stem[: -len(suffix)] for suffix in TABLE_SUFFIXES if stem.lower().endswith(suffix)), stem)
    return parts[:-1] if stem == name else (*parts[:-1], stem)


def tell_apart(named: list[tuple[str, tuple[str, ...]]]) -> list[str]:
    """
    Names that differ.

    Args:
        named: name of a study, and what can stand in front of it, the nearest last.
    """
    names = [name for name, _ in named]
    for depth in range(1, max((len(folders) for _, folders in named), default=0) + 1):
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        names = [
            "/".join((*folders[-depth:], own)) if counts[name] > 1 else name
            for name, (own, folders) in zip(names, named)
        ]
    counts, taken = Counter(names), set(names)
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        if counts[name] > 1 and seen[name] > 1:
            number = seen[name]
            while f"{name} ({number})" in taken:
                number += 1
            names[place] = f"{name} ({number})"
            taken.add(names[place])
    return names


class Opener:
    """
    Opens the images of a record: paths of volumes are read and checked, and what is wrong with them is printed.

    Args:
        volume_index: which volume of 4-D files.
        domain: that the volumes are meant for.
        accept: codes of `data.checks` that are no reason to refuse a scan.
        layout: what a study is in a folder; the domain's rule if None.

    `skipped` holds what was left out of each study that was opened, by its id.
    """

    def __init__(
        self,
        volume_index: int | None = None,
        domain: str | None = None,
        accept: Collection[str] = (),
        layout: Layout | None = None,
    ):
        self.volume_index = volume_index
        self.layout = layout or Layout.of_domain(domain)
        self.domain = domain
        self.accept = known_codes(accept)
        self.warnings, self.lock = Warnings(partial(click.echo, err=True)), threading.Lock()
        self.skipped: dict[str, list[Skipped]] = {}

    def settings(self) -> dict[str, Any]:
        """What the scores of what it opened depend on."""
        stated = {} if self.layout.choice is None else {"layout": self.layout.choice}
        return {"volume_index": self.volume_index, "accept": sorted(self.accept), **stated}

    def __call__(self, record: dict) -> Any:
        """
        What a processor takes as one study; scans that cannot be used are left out, and said.

        Raises:
            OSError, ValueError: nothing of the study can be used.
        """
        if "error" in record:
            raise ValueError(record["error"])
        if record.get("images") is None:
            raise ValueError("the study has no images.")
        images, study = record["images"], record["id"]
        require_one_scan(images, self.layout)
        skipped = self.skipped[study] = []
        opened: Any
        if isinstance(images, dict):  # a folder of several series brings names of its own
            named = [(name, self._open_or_skip(image, study, name, images, skipped)) for name, image in images.items()]
            opened = {own: scan for name, found in named for own, scan in flatten(name, found)}
        elif isinstance(images, list):
            found = [self._open_or_skip(image, study, None, images, skipped) for image in images]
            opened = [scan for one in found for scan in (one.values() if isinstance(one, dict) else [one])]
        else:
            opened = self._open(images, study, None, None, skipped)
        if skipped and not opened:
            if len(skipped) == 1:
                raise ValueError(skipped[0].reason)
            raise ValueError(
                f"none of the {len(skipped)} scans of the study could be used; the last error: {skipped[-1].reason}"
            )
        return opened

    def _open_or_skip(self, image: Any, study: str, name: str | None, images: Any, skipped: list[Skipped]) -> Any:
        try:
            return self._open(image, study, name, images, skipped)
        except (OSError, ValueError) as error:
            shown = name or (Path(image).name if isinstance(image, str) else None)
            self._skip(Skipped(study, shown, "read", str(error)), skipped)
            return {}

    def _open(self, image: Any, study: str, name: str | None, images: Any, skipped: list[Skipped]) -> Any:
        """An image of a study, `images` being the dictionary or list that it stands in: a file's scan or a folder's by name."""
        if not isinstance(image, str) or image.lower().endswith(PICTURE_SUFFIXES):
            return image
        layout = self.layout.inside(images)
        if picture := only_picture(Path(image), layout):
            return str(picture)
        opened = read_file(image, self.volume_index, layout)
        require_single_scans(opened, images)
        where = study if name is None else f"{study}/{name}"
        if not isinstance(opened, Study):
            return self._check(opened, where)
        for lost in opened.skipped:
            self._skip(replace(lost, study=study), skipped)
        usable = {}
        for own, scan in opened.scans.items():
            try:
                usable[own] = self._check(scan, f"{where}/{own}")
            except ValueError as error:
                self._skip(Skipped(study, own if name is None else f"{name}/{own}", "check", str(error)), skipped)
        return usable

    def _check(self, scan: Scan, where: str) -> Scan:
        return require_usable(scan, self.domain, self.accept, where, self._warn)

    def _warn(self, report: Report, where: str) -> None:
        with self.lock:  # several threads may read
            self.warnings(report, where)

    def _skip(self, lost: Skipped, skipped: list[Skipped]) -> None:
        skipped.append(lost)
        click.echo(f"{lost.study}: skipped {lost.scan}: {lost.reason}", err=True)


def flatten(name: str, opened: Any) -> list[tuple[str, Any]]:
    """Scans that stand for one image of a study, with their names."""
    if not isinstance(opened, dict):
        return [(name, opened)]
    return [(name if len(opened) == 1 else f"{name}_{own}", scan) for own, scan in opened.items()]


class OpenOneByOne:
    """
    Iterates over the studies of records, still closed, and keeps what is needed afterwards.

    Args:
        done: ids of studies that are not opened.
    """

    def __init__(self, records: Inputs, opener: Opener, done: Collection[str] = ()):
        self.records = records
        self.opener = opener
        self.done = set(done)
        self.seen: list[dict] = []
        self.names: list[str] = []

    def __len__(self) -> int:
        return len(self.records) - len(self.done)

    def __iter__(self) -> Iterator[Closed]:
        for record in self.records:
            self.seen.append({name: value for name, value in record.items() if name != "images"})
            if record["id"] in self.done:
                continue
            self.names.append(record["id"])
            yield Closed(partial(self.opener, record))


def choose_prompts(prompts: tuple[str, ...], prompt_file: str | None, domain: str | None) -> dict[str, list[str]]:
    """Prompts of the command line, of a file (see `specs.read_prompts`), or of the model's domain."""
    if prompt_file:
        return read_prompts(prompt_file)
    if prompts:
        return {text: [text] for text in prompts}
    known = load_domain(domain).prompts if domain else {}
    if not known:
        raise ValueError("no prompts: pass -p TEXT or --prompts FILE (the model's domain has none of its own).")
    return known
