"""Pictures and heat maps of studies as files: one folder per study, which a run that was stopped passes over."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.files import file_name, remove_parts, whole_file, write_text
from ..data.readers.nifti import write_nifti
from ..data.study import Skipped
from ..evaluation.quantity import DEFAULT
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .attribution import ATTENTION
from .dicom.output import DicomOutput
from .encoded import explain_result
from .maps import HeatMap, write_map
from .plots import plot_item, slug
from .report import write_report

FILES = ("file", "base")
"""Of an entry of maps.json: its heat map, and the scan that was written for it to lie on."""


class StudyToExplain:
    """
    A study, what is asked of it, and what an earlier run wrote; where that is nothing, its images, or why they cannot be read.

    Args:
        record: with `id`, `path` and images.
        items: that are looked for, or label -> texts whose embeddings are averaged.
        folder: of its pictures and maps.
        made_of: hash of all that these depend on.
        report: HTML file that is to be written, too.
        dicom: DICOM objects that are to be written, too.
        notes: for the reader, which stand before the result's own.
    """

    def __init__(
        self,
        record: dict,
        items: list[str] | dict[str, list[str]],
        folder: Path,
        made_of: str,
        open_images: Callable[[dict], Any],
        report: Path | None = None,
        dicom: DicomOutput | None = None,
        notes: Sequence[str] = (),
    ):
        self.name, self.path, self.items, self.folder = record["id"], record["path"], items, folder
        self.report, self.dicom, self.notes = report, dicom, list(notes)
        self.facts = {"id": self.name, "made_of": made_of}
        whole = (report is None or is_report(report, made_of)) and (dicom is None or dicom.is_written())
        self.known = known_maps(folder, made_of) if whole else None
        self.images: Any = None
        self.skipped: list[Skipped] = []
        self.error: Exception | None = None
        if self.known is None:
            try:
                self.images = open_images(record)
                self.skipped = getattr(open_images, "skipped", {}).get(self.name, [])
            except (OSError, ValueError) as error:
                self.error = error


def write_study(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: StudyToExplain,
    order: str = "linear",
    on_bad_scan: Callable[[str | None, Exception], Any] | None = None,
    scores: str = DEFAULT,
    about: dict[str, Any] | None = None,
    attribution: str = ATTENTION,
) -> list[dict[str, Any]]:
    """
    Writes pictures, maps, report, result.json and result.csv of a study, each file whole or not there.

    Args:
        order: `"linear"` or `"nearest"`, see `token_map_to_source`.
        on_bad_scan: called with the name of a scan that is left out, and why.
        scores: quantity of the score that entries name beside the similarity, see `evaluation.quantity`.
        about: what identifies model and processor, see `provenance.describe_model`.
        attribution: what maps, pictures and report show, a name of `explain.attribution.ATTRIBUTIONS`.

    Returns:
        Per item and scan: `item`, `scan`, `share`, `similarity`, and the files.

    Raises:
        OSError, ValueError: the study cannot be read.
    """
    if study.error is not None:
        raise study.error
    about = {**(about or {}), "made_of": study.facts["made_of"]}
    result = explain_result(
        model, processor, study.images, study.items, study.name, scores, on_bad_scan, about, attribution
    )
    result.notes[:0] = study.notes
    result.notes.extend(f"{one.scan or one.study} was left out: {one.reason}" for one in study.skipped)
    entries: list[dict[str, Any]] = []
    bases: dict[int, str] = {}
    highest = max((float(finding.attention.max()) for finding in result.findings), default=None)
    for number, item in enumerate(study.items):
        maps = result.heat_maps(number, order)
        study.folder.mkdir(parents=True, exist_ok=True)
        if number == 0:
            bases = write_bases(study.folder, maps)
        start = f"{number:02d}_{slug(item)}"
        with whole_file(study.folder / f"{start}.png") as path:
            plot_item(maps, path, highest=highest)
        entries += _write_item(study, item, start, maps, bases)
    write_text(study.folder / "result.json", json.dumps(result.to_dict(), indent=1) + "\n")
    write_text(study.folder / "result.csv", result.to_csv())
    if study.report is not None:
        study.report.parent.mkdir(parents=True, exist_ok=True)
        write_report(study.report, result)
    if study.dicom is not None:
        study.dicom.write(result)
    return entries


def _write_item(
    study: StudyToExplain, item: str, start: str, maps: list[HeatMap], bases: dict[int, str]
) -> list[dict[str, Any]]:
    """NIfTI maps of one item, and what is said of each; `start`: of the files' names."""
    entries = []
    names: set[str] = set()
    for index, heat in enumerate(maps):
        entry: dict[str, Any] = {"id": study.name, "item": item, "scan": heat.scan_name, "share": heat.share}
        entry["similarity"] = heat.similarity
        if heat.quantity != DEFAULT:
            entry |= {"score": heat.score, "quantity": heat.quantity}
        if heat.attribution != ATTENTION:
            entry["attribution"] = heat.attribution
        if heat.affine is not None:
            scan = unique(file_name(heat.scan_name or f"scan-{index}", "scan"), names)
            target = study.folder / f"{start}__{scan}.nii.gz"
            with whole_file(target) as path:
                write_map(path, heat)
            entry["file"] = str(target)
            if index in bases:
                entry["base"] = bases[index]
        entries.append(entry)
    return entries


def write_bases(folder: Path, maps: list[HeatMap]) -> dict[int, str]:
    """Each scan that has geometry and is no NIfTI file, once: number of the map -> file that it lies on."""
    written: dict[int, str] = {}
    files: dict[int, str] = {}
    names: set[str] = set()
    for index, heat in enumerate(maps):
        if heat.affine is None or str(heat.path or "").lower().endswith((".nii", ".nii.gz")):
            continue
        source = id(heat.source)  # the windows of one series share it
        if source not in written:
            target = folder / f"scan_{unique(file_name(heat.series or f'scan-{index}', 'scan'), names)}.nii.gz"
            with whole_file(target) as path:
                write_nifti(path, heat.source, heat.affine)
            written[source] = str(target)
        files[index] = written[source]
    return files


def write_maps(folder: Path, facts: dict, entries: list[dict]) -> None:
    """maps.json, the last file of a study: id, model, and the file, item, scan and similarity of every map."""
    listed = [{**entry, **{key: Path(entry[key]).name for key in FILES if key in entry}} for entry in entries]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "maps.json", json.dumps({**facts, "maps": listed}, indent=1) + "\n")


def known_maps(folder: Path, made_of: str) -> list[dict] | None:
    """What an earlier run wrote into a folder, if it was the same; what it left there unfinished is removed."""
    if not folder.is_dir():
        return None
    remove_parts(folder)
    try:
        known = json.loads((folder / "maps.json").read_text(encoding="utf-8"))
        if known["made_of"] != made_of:
            return None
        entries = [
            {**entry, **{key: str(folder / entry[key]) for key in FILES if key in entry}} for entry in known["maps"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entries if all(Path(entry[key]).exists() for entry in entries for key in FILES if key in entry) else None


def is_report(path: Path, made_of: str) -> bool:
    """Whether it is the report of that study and those findings, and not what another run left there."""
    try:
        return made_of in path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def unique(name: str, used: set[str]) -> str:
    """The name, numbered where an earlier one is written the same but for capitals, which some systems do not tell apart."""
    number, candidate = 2, name
    while candidate.casefold() in used:
        candidate = f"{name}-{number}"
        number += 1
    used.add(candidate.casefold())
    return candidate
