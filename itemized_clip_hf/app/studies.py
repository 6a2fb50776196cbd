"""Studies of the app: opened and checked once, and told scan by scan what a model can use of them."""

import copy
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.checks import Report, check_study
from ..data.kinds import is_picture, study_name
from ..data.layout import Layout, list_studies
from ..data.open import known_codes, require_usable
from ..data.readers.read import read_study
from ..data.study import Skipped, Study
from ..evaluation.encode import EncodedStudies
from ..explain.encoded import EncodedStudy
from ..processing.pictures_itemized_clip import open_picture
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor


@dataclass
class OpenedStudy:
    """
    A study as it was read.

    Args:
        name: what the page calls it.
        images: a `Study` of volumes, or a picture.
        source: file or folder that it was read from.
        from_dicom: whether its scans are DICOM series.
    """

    name: str
    images: Any
    source: Path
    from_dicom: bool = False

    @property
    def is_picture(self) -> bool:
        """Whether it is a picture rather than volumes."""
        return not isinstance(self.images, Study)


@dataclass
class Verdict:
    """
    What the checks say of a study, for one domain.

    Args:
        reports: of its scans, then of the study where there is something to say of the whole.
        usable: what a processor takes: the scans that are not refused, by name, or the picture.
        refused: scans that are left out, and why.
    """

    reports: list[Report]
    usable: Any
    refused: list[Skipped] = field(default_factory=list)

    @property
    def level(self) -> str:
        """`"ok"`, `"warn"` or `"refuse"`, the last one where nothing is usable."""
        if not self.usable:
            return "refuse"
        return "warn" if any(report.verdict != "ok" for report in self.reports) else "ok"


def open_study(place: Path, processor: ItemizedCLIPProcessor) -> OpenedStudy:
    """
    Reads a file or folder as one study, by the rule of a model's domain.

    Raises:
        OSError, ValueError: it cannot be read, holds several studies, or is of a kind that the model does not take.
    """
    name = study_name(place)
    rule = layout_of(processor)
    if rule.pictures:
        pictures = [file for file in sorted(place.iterdir()) if is_picture(file)] if place.is_dir() else [place]
        if len(pictures) != 1 or not is_picture(pictures[0]):
            found = f"{len(pictures)} pictures" if len(pictures) != 1 else place.name
            raise ValueError(f"the model takes one picture at a time (JPEG, PNG, TIFF ...), found {found}.")
        return OpenedStudy(study_name(pictures[0]), open_picture(pictures[0]), pictures[0])
    study = read_study(str(place), name, layout=rule)
    from_dicom = any(scan.visits for scan in study.scans.values()) or bool(study.visits)
    return OpenedStudy(name, study, place, from_dicom)


def require_kind(opened: OpenedStudy, processor: ItemizedCLIPProcessor) -> None:
    """
    Raises:
        ValueError: the study is volumes, where the model takes pictures, or the other way round.
    """
    if opened.is_picture != layout_of(processor).pictures:
        found, expected = ("a picture", "volumes") if opened.is_picture else ("volumes", "a picture")
        raise ValueError(f"the study is {found}, but the chosen model takes {expected}: upload another study.")


def layout_of(processor: ItemizedCLIPProcessor) -> Layout:
    """Files of an upload are one study, where the domain's studies have several scans."""
    rule = Layout.of_processor(processor)
    return Layout.of_processor(processor, "study") if rule.multi_scan and not rule.pictures else rule


def inspect_study(opened: OpenedStudy, domain: str | None, accept: Collection[str] = ()) -> Verdict:
    """
    Checks every scan, and keeps what can be used.

    Args:
        domain: that the model is meant for.
        accept: codes of `data.checks` that are no reason to refuse a scan.
    """
    if opened.is_picture:
        width, height = opened.images.size
        return Verdict([Report(None, {"shape": [height, width]}, [])], opened.images)
    codes = known_codes(accept)
    reports = check_study(opened.images, domain, codes)
    usable, refused = {}, []
    for name, scan in opened.images.scans.items():
        try:
            usable[name] = require_usable(copy.copy(scan), domain, codes, name, _pass_over)
        except ValueError as error:
            refused.append(Skipped(opened.name, name, "check", str(error)))
    return Verdict(reports, usable, refused)


def _pass_over(report: Report, where: str) -> None:
    """The page shows warnings; the log has nothing of a study."""


def accepting(processor: ItemizedCLIPProcessor, accept: Collection[str]) -> ItemizedCLIPProcessor:
    """The same processor that accepts some codes; the one that everybody shares stays as it is."""
    own = copy.copy(processor)
    own.image_processor = copy.copy(processor.image_processor)
    own.image_processor.accept = tuple(sorted(accept))
    return own


def list_folder(folder: Path, processor: ItemizedCLIPProcessor) -> dict[str, Path]:
    """
    Studies of a server's folder: name -> file or folder, none of which lies elsewhere.

    Raises:
        OSError, ValueError: it holds none, or nothing says where one study ends and the next begins.
    """
    top = folder.resolve()
    rows = list_studies(folder, Layout.of_processor(processor))
    found = {str(row["id"]): Path(row["images"]) for row in rows}
    return {name: path for name, path in found.items() if path.resolve().is_relative_to(top)}


def tokens_of(study: EncodedStudy) -> EncodedStudies:
    """An encoded study as evaluations take it, with its scans."""
    return replace(study.encoded, scans=[study.scans])
