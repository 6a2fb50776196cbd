"""The images of a protocol: found in a folder or list, opened one by one, with names and geometry as published."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.layout import Layout, only_picture, require_one_scan
from ...data.studies.records import Records, read_records, study_name
from ...data.study import Scan, Study
from ...domains import load_domain
from ..zero_shot import fold
from .labels import find_id_column, is_list, spell
from .schema import Protocol


class ProtocolStudies:
    """
    The studies of a protocol in the order of `ids`, images opened one by one.

    Args:
        data: a list of studies with ids and images, or a folder that holds, at any depth, a file or folder of the name of
            every id, as it is or, where there is none, spelt otherwise (`CQ500CT0 CQ500CT0` for `CQ500-CT-0`, see `spell`).
        id_column: of the list, where it has an unusual name.
        skip_missing: leave out ids without images instead of raising.

    Raises:
        ValueError: ids without images, or with several, are named.
    """

    def __init__(
        self, data: str | os.PathLike, ids: list[str], skip_missing: bool = False, id_column: str | None = None
    ):
        path = Path(data)
        self.records = None
        places: dict[str, Any] = {}
        if is_list(path):
            listed = read_records(path)
            column = find_id_column(
                listed.columns, id_column if fold(id_column or "") in map(fold, listed.columns) else None
            )
            self.records = Records(listed.rows, listed.folder, id_column=column) if column else listed
            wanted = {name.lower(): name for name in ids}
            for number in range(len(self.records)):
                study = wanted.get(study_name(self.records.id_of(number)).lower())
                if study in places:
                    raise ValueError(f"{path.name}: duplicate id {study}.")
                if study is not None:
                    places[study] = number
        else:
            places = find_images(path, ids)
        missing = [name for name in ids if name not in places]
        if missing and (not skip_missing or len(missing) == len(ids)):
            raise ValueError(
                f"{len(missing)} of {len(ids)} studies of the label table have no images below {data}, e.g. {missing[:5]}; "
                "skip_missing (--skip-missing) evaluates the others."
            )
        self.missing = missing
        self.ids = [name for name in ids if name in places]
        self._places = [places[name] for name in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """`id` and `images` of a study."""
        place = self._places[number]
        images = str(place) if self.records is None else self.records[place].get("images")
        return {"id": self.ids[number], "images": images}

    def size_of(self, number: int) -> tuple[str, int]:
        """Where the images are, relative to nothing, and their bytes, for a fingerprint."""
        place = self._places[number]
        return (place.name, place.stat().st_size if place.is_file() else 0) if self.records is None else (str(place), 0)


def find_images(folder: Path, ids: list[str]) -> dict[str, Path]:
    """Id -> file or folder of that name, the one next to the top; what an id names is not searched any further."""
    exact = {name.lower(): name for name in ids}
    spelt = Counter(spell(name) for name in ids)
    alike = {spell(name): name for name in ids if spelt[spell(name)] == 1}
    found: dict[bool, dict[str, list[Path]]] = {True: {}, False: {}}
    level = [folder]
    while level:
        entries = [entry for parent in level for entry in sorted(parent.iterdir()) if not entry.name.startswith(".")]
        level, here = [], {True: {}, False: {}}  # type: ignore[var-annotated]
        for entry in entries:
            if not entry.is_dir() and entry.suffix.lower() in (".csv", ".txt", ".json", ".jsonl", ".parquet"):
                continue
            name = study_name(entry)
            words = {spell(word) for word in name.split(" ")}
            study = (
                exact.get(name.lower()) or alike.get(spell(name)) or (alike.get(*words) if len(words) == 1 else None)
            )
            if study is not None:
                here[name.lower() == study.lower()].setdefault(study, []).append(entry)
            elif entry.is_dir():
                level.append(entry)
        for kind, studies in here.items():
            for study, paths in studies.items():
                found[kind].setdefault(study, paths)
    chosen = {**found[False], **found[True]}
    for study, paths in chosen.items():
        if len(paths) > 1:
            places = [str(path.relative_to(folder)) for path in paths]
            raise ValueError(f"the images of study {study} may be {places}: keep one of them.")
    return {study: paths[0] for study, paths in chosen.items()}


def as_published(protocol: Protocol, study: Any) -> Any:
    """The study with names and geometry of its scans as the protocol knows them; pictures stay as they are."""
    if protocol.scan_name == "{name}" and protocol.array_spacing is None:
        return study
    opened = study.scans if isinstance(study, Study) else study
    if isinstance(opened, Mapping):
        named = list(opened.items())
    else:
        listed = list(opened) if isinstance(opened, (list, tuple)) else [opened]
        if not any(isinstance(scan, Scan) for scan in listed):
            return study
        named = [(getattr(scan, "name", None), scan) for scan in listed]
    for name, scan in named:
        if isinstance(scan, Scan):
            scan.name = protocol.name_scan(name, scan.prepared)
            if scan.affine is None and protocol.array_spacing is not None:
                scan.affine = _stored_affine(
                    load_domain(str(protocol.domain)).image["orientation"], protocol.array_spacing
                )
                scan.history.append(
                    f"spacing {protocol.array_spacing} mm and orientation by the protocol {protocol.name}"
                )
    return [scan for _, scan in named]


def _stored_affine(orientation: str, spacing: Sequence[float]) -> np.ndarray:
    """Depth-first indices -> mm, of a volume whose columns, rows and slices run as `orientation` says."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (code, step) in enumerate(zip(orientation[::-1], spacing)):
        row = next(row for row, codes in enumerate(("RL", "AP", "SI")) if code in codes)
        affine[row, axis] = step if code in "RAS" else -step
    return affine


def open_record(record: dict, layout: Layout | None = None) -> Any:
    """Images of a study: paths of volumes are read; `layout` says what a study is in a folder."""
    from ...data.readers.read import read_study
    from ...processing.pictures_itemized_clip import PICTURE_SUFFIXES

    images = record["images"]
    if images is None:
        raise ValueError("it has no images")
    layout = layout or Layout()
    require_one_scan(images, layout)
    if isinstance(images, str) and (picture := only_picture(Path(images), layout)):
        return str(picture)
    leaves = images.values() if isinstance(images, dict) else images if isinstance(images, list) else [images]
    if all(isinstance(leaf, str) and not leaf.lower().endswith(PICTURE_SUFFIXES) for leaf in leaves):
        study = read_study(images, record["id"], skip_unreadable=True, layout=layout)
        if not study.scans:
            raise ValueError("; ".join(map(str, study.skipped)) or "it holds no scan")
        return study
    return images
