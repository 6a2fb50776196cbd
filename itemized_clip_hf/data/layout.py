"""What a study is: which studies a folder holds, by one rule for every entrance (docs/layouts.md)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..domains import Presets
from .kinds import holds_dicom, holds_study, is_picture, is_volume, is_zip, study_name
from .scan_names import are_scan_names, doubt_one_study, is_called_mask

logger = logging.get_logger(__name__)

CHOICES = ("study", "cohort")
_IMAGES = Presets(lambda domain: domain.image)


@dataclass(frozen=True)
class Layout:
    """
    How the files of a folder make studies.

    Args:
        multi_scan: volume files of one folder are scans of one study, if their names do not speak against it; otherwise each is
            a study, as in domains whose studies have one scan.
        pictures: whether studies are pictures, which are then looked for before volumes.
        choice: what the user says where names leave it open: `"study"`, the files of a folder are one study; `"cohort"`, each
            is a study of its own.
        ids: names of studies that are known already: where a file has one of them, each file is a study.
    """

    multi_scan: bool = True
    pictures: bool = False
    choice: str | None = None
    ids: frozenset[str] = frozenset()

    def __post_init__(self):
        if self.choice not in (None, *CHOICES):
            raise ValueError(f"layout is {self.choice!r}, expected 'study' or 'cohort'.")
        if self.choice == "study" and not self.multi_scan:
            raise ValueError("layout is 'study', but studies have one scan here: every file is a study. Leave it out.")

    @classmethod
    def of_domain(cls, domain: str | None, choice: str | None = None, ids: Iterable[str] = ()) -> "Layout":
        """The rule of a domain; of studies with several scans where it is None or unknown."""
        return cls.of_settings(_IMAGES.get(domain or "", {}), choice, ids)

    @classmethod
    def of_settings(cls, settings: Any, choice: str | None = None, ids: Iterable[str] = ()) -> "Layout":
        """The rule that fits the settings of an image processor: a mapping with `multi_scan` and `scan_size`."""
        return cls(
            settings.get("multi_scan", True),
            (settings.get("scan_size") or (0,))[0] == 1,
            choice,
            frozenset(map(str, ids)),
        )

    @classmethod
    def of_processor(cls, processor: Any, choice: str | None = None) -> "Layout":
        """The rule that an [`ItemizedCLIPProcessor`] opens folders by."""
        images = processor.image_processor
        settings = {name: getattr(images, name) for name in ("multi_scan", "scan_size")}
        return cls.of_settings(settings, choice or getattr(images, "layout", None))

    @property
    def each_file(self) -> bool:
        """Whether each volume file of a folder is a study of its own."""
        return not self.multi_scan or self.choice == "cohort"

    def inside(self, images: Any) -> "Layout":
        """The rule for folders that a dictionary names as scans of one study, which that study is then known to be."""
        return replace(self, choice="study") if isinstance(images, dict) and self.multi_scan else self


def list_studies(path: Path, layout: Layout | None = None) -> list[dict]:
    """
    The studies of a folder as rows: `id`, `images` (path of a file or folder) and, of folders of pictures, `label`.

    Raises:
        ValueError: it holds none, or nothing says where one study ends and the next begins.
    """
    return _Listing(layout or Layout()).read(path.absolute())


def only_study(path: Path, layout: Layout | None = None) -> Path:
    """
    The file or folder of the one study that a folder holds.

    Raises:
        ValueError: as `list_studies`, or it holds several, counted.
    """
    studies = list_studies(path, layout)
    if len(studies) > 1:
        raise ValueError(
            f"{path.name} holds {len(studies)} studies, of several patients or visits ({_some(s['id'] for s in studies)}), "
            "expected one: pass each by itself, or give it a row of its own."
        )
    return Path(studies[0]["images"])


def only_picture(path: Path, layout: Layout) -> Path | None:
    """The picture of a folder that holds one and nothing else; None for files, and where studies are volumes."""
    if not layout.pictures or not path.is_dir():
        return None
    place = only_study(path, layout)
    return place if is_picture(place) else None


def require_one_scan(images: Any, layout: Layout) -> None:
    """
    Raises:
        ValueError: the images of a study are a list of several files, where studies have one scan. A dictionary says itself
            that its files are of one study.
    """
    files = sum(isinstance(image, str) for image in images) if isinstance(images, (list, tuple)) else 0
    if files > 1 and not layout.multi_scan:
        raise ValueError(
            f"the study has {files} files, expected one: studies have one scan here. Give each file a row of its own, or names "
            "(name -> file) if they are of one patient."
        )


class _Listing:
    """One look at a folder and what is below; DICOM headers of every folder are sampled once."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.sampled: dict[Path, set[str]] = {}

    def read(self, path: Path) -> list[dict]:
        entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
        folders = [entry for entry in entries if entry.is_dir()]
        volumes = [entry for entry in entries if is_volume(entry)]
        if self.layout.pictures or not volumes:
            pictures = _list_pictures(entries, folders)
            if pictures and (self.layout.pictures or not self._holds_volumes(path)):
                return pictures
        if volumes and (not all(map(is_zip, volumes)) or len(volumes) == 1 and not folders):
            return self._list_files(path, volumes, folders)
        if not volumes and holds_dicom(path, below=False):
            return [_row(path, path.name)]
        return self._list_units(path, [*folders, *volumes])

    def _holds_volumes(self, path: Path) -> bool:
        return holds_dicom(path) or any(holds_study(entry) for entry in path.iterdir() if entry.is_dir())

    def _list_files(self, path: Path, volumes: list[Path], folders: list[Path]) -> list[dict]:
        """A folder of volume files: the study that they are, or the studies."""
        if self.layout.each_file or any(study_name(file) in self.layout.ids for file in volumes):
            return self._list_each_file(path, volumes, folders)
        names = [study_name(file) for file in volumes if not is_zip(file)]
        names = [name for name in names if not is_called_mask(name)]
        doubt = doubt_one_study(names) if self.layout.choice is None else ""
        if doubt:
            raise ValueError(
                f"{path.name} holds {len(names)} volume files ({_some(names)}), and it cannot be told whether they are the "
                f"scans of one study or studies of several patients: {doubt}. Pass --layout study or --layout cohort (in "
                "Python layout='study' or layout='cohort'); or put the files of each patient into a folder of their own."
            )
        return [_row(path, path.name)]

    def _list_each_file(self, path: Path, volumes: list[Path], folders: list[Path]) -> list[dict]:
        scans = [file for file in volumes if not is_called_mask(study_name(file))] or volumes
        if len(scans) < len(volumes):
            logger.warning(f"{len(volumes) - len(scans)} files of {path.name} are called masks, and are no studies")
        folders = [folder for folder in folders if not is_called_mask(folder.name) and holds_study(folder)]
        inner = [row for folder in folders for row in self._list_inner(folder)]
        if len(scans) == 1 and not inner and study_name(scans[0]) not in self.layout.ids:
            return [_row(scans[0] if len(volumes) > 1 else path, path.name)]
        return [_row(file) for file in scans] + inner

    def _list_units(self, path: Path, entries: list[Path]) -> list[dict]:
        """A folder of folders and zips."""
        units = [entry for entry in sorted(entries) if is_zip(entry) or holds_study(entry)]
        if not units:
            raise ValueError(
                f"the folder {path} holds neither volumes, nor DICOM series, nor folders of them, nor pictures."
            )
        if len(units) < len(entries):
            logger.warning(f"{len(entries) - len(units)} folders of {path.name} hold no study, and are left alone")
        files = {unit: [file for file in unit.iterdir() if is_volume(file)] for unit in units if unit.is_dir()}
        if not self.layout.each_file and len(files) == len(units) and all(map(_is_series_of_tensors, files.values())):
            return [_row(path, path.name)]
        if len(units) == 1 and units[0].is_dir():
            return self.read(units[0])
        dicom = [unit for unit in units if not files.get(unit) and (is_zip(unit) or holds_dicom(unit))]
        if len(dicom) > 1 and self._are_one_visit(path, dicom, only=len(dicom) == len(units)):
            return [_row(path, path.name)]
        names = [unit.name for unit in units]
        if not self.layout.each_file and are_scan_names(names) and all(len(found) == 1 for found in files.values()):
            raise ValueError(
                f"{path.name} holds {len(names)} folders that are called like the scans of one study ({_some(names)}): put its "
                "files into one folder, or pass --layout cohort (in Python layout='cohort') if each folder is a study."
            )
        return [row for unit in units for row in self._list_inner(unit)]

    def _are_one_visit(self, path: Path, units: list[Path], only: bool) -> bool:
        """Whether folders and zips of DICOM files hold one visit together, or one or more each."""
        from .readers.dicom import sample_visits

        visits = [sample_visits(unit, self.sampled) for unit in units]
        everyone = set().union(*visits)
        if "" in everyone:
            if self.layout.choice is None:
                raise ValueError(
                    f"{path.name} holds {len(units)} folders or zips of DICOM files whose headers name neither study nor "
                    "patient: pass --layout study if they are of one study, --layout cohort if each is a study of its own (in "
                    "Python layout=...)."
                )
            return self.layout.choice == "study" and only
        if len(everyone) <= 1 and only:
            if len({is_zip(unit) for unit in units}) > 1:
                raise ValueError(
                    f"{path.name} holds folders and zips of one study ({_some(unit.name for unit in units)}): unpack the "
                    "zips, or take away what is there twice."
                )
            return True
        if sum(map(len, visits)) > len(everyone):
            shared = [unit.name for unit, own in zip(units, visits) if any(own & o for o in visits if o is not own)]
            raise ValueError(
                f"{path.name} holds several studies, and {_some(shared)} hold series of the same one: put each study into a "
                "folder of its own."
            )
        return False

    def _list_inner(self, unit: Path) -> list[dict]:
        """What a folder or zip adds to the list of the folder that it lies in; it is called by its own name."""
        if unit.is_file():
            return [_row(unit)]
        try:
            rows = self.read(unit)
        except ValueError:  # which is said when it is opened
            return [_row(unit)]
        if len(rows) == 1:
            place = Path(rows[0]["images"])
            return [_row(place if place.is_file() else unit, study_name(unit))]
        known = self.layout.ids
        return [{**row, "id": row["id"] if row["id"] in known else f"{study_name(unit)}/{row['id']}"} for row in rows]


def _row(place: Path, name: str | None = None) -> dict:
    return {"id": name or study_name(place), "images": str(place)}


def _list_pictures(entries: list[Path], folders: list[Path]) -> list[dict]:
    """Pictures of a folder, or those of its folders, each a class."""
    pictures = [_row(entry) for entry in entries if is_picture(entry)]
    classes = {folder.name: [entry for entry in sorted(folder.iterdir()) if is_picture(entry)] for folder in folders}
    if pictures or not all(classes.values()):
        return pictures
    return [
        {"id": f"{name}/{study_name(picture)}", "images": str(picture), "label": name}
        for name, found in classes.items()
        for picture in found
    ]


def _is_series_of_tensors(files: list[Path]) -> bool:
    """Whether a folder is a series as the reference stores it: `img.pt`, or `img_NAME.pt` for each of several."""
    return bool(files) and all(f.suffix == ".pt" and (f.stem == "img" or f.stem.startswith("img_")) for f in files)


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
