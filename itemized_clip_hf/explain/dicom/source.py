"""The DICOM images that the scans of a result were read from: what objects made of them refer to, and whose they are."""

import contextlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import generate_uid
from pydicom.valuerep import DS

from ...data.readers.dicom.files import DicomFile, list_files
from ...data.readers.dicom.header import read_header
from ...data.readers.dicom.slices import Slice, list_slices
from ...data.readers.dicom.study import quiet
from ...data.study import Scan
from ..result import StudyResult

REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"),
)
"""Fields of patient and study that every object has, empty where they are not known."""
OPTIONAL = ("IssuerOfPatientID", "StudyDescription", "PatientIdentityRemoved", "DeidentificationMethod")
"""Copied where the source has them."""
_FORMS = {
    "PatientBirthDate": r"\d{8}",
    "PatientSex": r"[MFO]",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientIdentityRemoved": r"YES|NO",
}
"""What values have to look like to be copied; others would make the object invalid."""
_CLASSIC = ("CTImageStorage", "MRImageStorage")
_ENHANCED = (
    *("EnhancedCTImageStorage", "EnhancedMRImageStorage"),
    *("LegacyConvertedEnhancedCTImageStorage", "LegacyConvertedEnhancedMRImageStorage"),
)
_CLASSES = {getattr(pydicom.uid, name): name in _ENHANCED for name in (*_CLASSIC, *_ENHANCED)}
"""SOP classes of the images that may be referred to, and whether they hold several frames."""


@dataclass(repr=False)
class SourceSeries:
    """
    The images of one scan.

    Args:
        images: UIDs and geometry, without patient and pixels: one data set per file.
        places: of each slice its image, the number of its frame from 1 on (None where the image has one), and its position (3,)
            in LPS mm.
        normal: (3,) across the slices.
        identity: patient and study as objects of the same study repeat them, field -> value; None for nobody's.
    """

    images: list[Dataset]
    places: list[tuple[Dataset, int | None, np.ndarray]]
    normal: np.ndarray
    identity: dict[str, str] | None

    @property
    def frame_of_reference(self) -> str:
        """UID of the space that positions are in."""
        return str(self.images[0].FrameOfReferenceUID)

    def nearest(self, point: np.ndarray) -> tuple[Dataset, int | None]:
        """The image, and its frame, whose plane a point (3,) in LPS mm is next to."""
        image, frame, _ = min(self.places, key=lambda place: abs((point - place[2]) @ self.normal))
        return image, frame


def read_sources(result: StudyResult, anonymous: bool = False) -> list[SourceSeries]:
    """
    The images of each scan of a result, by its number; scans of one series share theirs.

    Args:
        anonymous: no patient, and fresh UIDs in place of all that the files have, the same for the same.

    Raises:
        ValueError: a scan was not read from DICOM images, or they are not where they were.
    """
    sources = {id(scan.source): scan.source for scan in result.scans}
    others = [
        name
        for name, scan in zip(result.scan_names, result.scans)
        if not isinstance(scan.source, Scan) or not scan.source.instances
    ]
    if others:
        listed = ", ".join(dict.fromkeys(others))
        raise ValueError(
            f"DICOM objects can only be made of studies that were read from DICOM files: not so {listed}. Pass the DICOM "
            "folder or zip of the study; heat maps of other files are written as NIfTI."
        )
    paths = dict.fromkeys(scan.path for scan in sources.values())
    wanted = {uid for scan in sources.values() for uid, _ in scan.instances}
    named = {scan.instances[0][0] for scan in sources.values()}
    found: dict[str, tuple[list[Slice], dict[str, str]]] = {}
    for path in paths:
        found |= _find(Path(str(path)), wanted, named)
    rename = _renamer() if anonymous else str
    series = {key: _series(scan, found, rename, anonymous) for key, scan in sources.items()}
    return [series[id(scan.source)] for scan in result.scans]


def set_identity(dataset: Dataset, identity: dict[str, str] | None) -> None:
    """Writes patient and study into an object, in UTF-8; without an identity it says that it was removed."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    known = identity or {}
    for name in REQUIRED:
        setattr(dataset, name, known.get(name))
    for name in OPTIONAL:
        if name in known:
            setattr(dataset, name, known[name])
    if identity is None:
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = "Patient, study and UIDs of the source left out"
    elif known.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in known:
        dataset.DeidentificationMethod = "As in the source images"


def decimals(values: Iterable[float]) -> list[Any]:
    """Decimal strings of at most 16 characters, as the standard has them."""
    return [DS(float(value), auto_format=True) for value in values]


def _renamer() -> Callable[[Any], str]:
    known: dict[str, str] = {}

    def rename(uid: Any) -> str:
        if str(uid) not in known:
            known[str(uid)] = generate_uid(None)
        return known[str(uid)]

    return rename


def _find(path: Path, wanted: set[str], named: set[str]) -> dict[str, tuple[list[Slice], dict[str, str]]]:
    """SOPInstanceUID -> slices of the wanted images below a folder or in a zip, and whose they are where that is asked for."""
    found: dict[str, tuple[list[Slice], dict[str, str]]] = {}
    if not path.exists():
        return found
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        for file in list_files(path, stack):
            with contextlib.suppress(Exception):  # the reader passed over what is damaged, too
                read_header(file)
                uid = str(file.header.get("SOPInstanceUID") or "")
                if uid in wanted and uid not in found:
                    found[uid] = list_slices(file.header, file), _identity(file) if uid in named else {}
    return found


def _identity(file: DicomFile) -> dict[str, str]:
    """Patient and study of an image, decoded."""
    tags: list[Any] = ["SpecificCharacterSet", *REQUIRED, *OPTIONAL]
    data = BytesIO(file.read(file.pixels_at))
    header = pydicom.dcmread(data, specific_tags=tags, stop_before_pixels=True, force=True)
    identity = {name: _text(header.get(name)).strip(" \0") for name in (*REQUIRED, *OPTIONAL)}
    return {
        name: value
        for name, value in identity.items()
        if value and re.fullmatch(_FORMS.get(name, r"[^\x00-\x1f]+"), value)
    }


def _text(value: Any) -> str:
    """A value, several of them apart as in the file."""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")


def _series(
    scan: Scan,
    found: dict[str, tuple[list[Slice], dict[str, str]]],
    rename: Callable[[Any], str],
    anonymous: bool,
) -> SourceSeries:
    uids = list(dict.fromkeys(uid for uid, _ in scan.instances))
    lost = sum(uid not in found for uid in uids)
    if lost:
        raise ValueError(
            f"{lost} of the {len(uids)} DICOM images that the scan {scan.name} was read from are not there any more: keep its "
            "folder or zip where it is until the results are written."
        )
    first = found[uids[0]][0][0]
    _require_references(first.file.header, str(scan.name))
    space = rename(str(first.file.header.get("FrameOfReferenceUID") or "") or generate_uid(None))
    thickness = float((scan.spacing or (0.0,))[0])  # of the maps' slices: objects in the same grid take it over
    images = {}
    for uid in uids:
        images[uid] = _image(found[uid][0], first, thickness, rename)
        images[uid].FrameOfReferenceUID = space
    places = [
        (images[uid], frame + 1 if "NumberOfFrames" in images[uid] else None, found[uid][0][frame].position)
        for uid, frame in scan.instances
    ]
    return SourceSeries(list(images.values()), places, first.normal, None if anonymous else found[uids[0]][1])


def _require_references(header: Dataset, name: str) -> None:
    """
    Raises:
        ValueError: nothing can refer to images with such a header.
    """
    missing = [tag for tag in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID") if not header.get(tag)]
    if missing:
        raise ValueError(
            f"the DICOM images of the scan {name} have no {', '.join(missing)}: nothing can refer to them."
        )
    if header.SOPClassUID not in _CLASSES:
        raise ValueError(
            f"the DICOM images of the scan {name} are of the class {pydicom.uid.UID(header.SOPClassUID).name}, expected one of "
            f"{', '.join((*_CLASSIC, *_ENHANCED))}."
        )


def _image(slices: Sequence[Slice], first: Slice, thickness: float, rename: Callable[[Any], str]) -> Dataset:
    """One image as references need it, in the orientation of the first: the reader bears with small differences only."""
    header = slices[0].file.header
    image = Dataset()
    image.SOPClassUID = header.SOPClassUID
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(image, name, rename(header.get(name) or first.file.header.get(name)))
    for name in REQUIRED:
        setattr(image, name, None)
    image.Modality, image.Rows, image.Columns = header.Modality, header.Rows, header.Columns
    image.PositionReferenceIndicator = None
    orientation, spacing = decimals(first.orientation), decimals(first.pixel_spacing)
    (depth,) = decimals([thickness])
    if not _CLASSES[header.SOPClassUID]:
        image.ImagePositionPatient = decimals(slices[0].position)
        image.ImageOrientationPatient, image.PixelSpacing, image.SliceThickness = orientation, spacing, depth
        return image
    image.NumberOfFrames = len(slices)
    image.SharedFunctionalGroupsSequence = [Dataset()]
    image.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = [_item(ImageOrientationPatient=orientation)]
    image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [_item(PixelSpacing=spacing, SliceThickness=depth)]
    image.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=decimals(one.position))]) for one in slices
    ]
    return image


def _item(**fields: Any) -> Dataset:
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item
