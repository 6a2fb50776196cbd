"""Headers of DICOM files: which fields are read, and which files do not hold a slice of a scan."""

import contextlib
import io
import re
import struct
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from ...privacy import IDENTIFYING_FIELDS
from .files import DicomFile, UnusableFileError

HEAD_BYTES = 1 << 17
"""Bytes of a file that are read for its header; up to `MAX_HEADER_BYTES` where it is longer."""
MAX_HEADER_BYTES = 1 << 26
MODALITIES = ("CT", "MR")
_OTHER_MODALITIES = (
    *"AU CR DOC DX ECG ES GM IO KO MG NM OP OPT OT PR PT PX REG RF SC SEG SM SR US XA XC".split(),
    *"RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT".split(),
)
_KNOWN_SUFFIXES = (
    *(".dcm", ".ima", ".dicom", ".txt", ".xml", ".json", ".csv", ".pdf", ".zip", ".gz", ".nii", ".htm", ".html"),
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".exe", ".dll", ".ini", ".inf", ".md"),
)
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LOCALIZER = re.compile(r"(?<![a-z])(scout|locali[sz]er|survey|topogram|surview|3[- _]?plane)", re.IGNORECASE)
# What is surveyed for lesions is scanned in slices, unless ImageType says otherwise.
_WHOLE_SURVEY = re.compile(
    r"(skelet|bone|osse|myeloma|metasta|trauma|whole[- _]?body|(?<![a-z])wb(?![a-z])).*(survey|topogram)"
    r"|(survey|topogram).*(skelet|bone|osse|myeloma|metasta|trauma|whole[- _]?body|(?<![a-z])wb(?![a-z]))",
    re.IGNORECASE,
)
TAGS = (
    *IDENTIFYING_FIELDS,
    *"SOPClassUID SOPInstanceUID SeriesInstanceUID SeriesNumber InstanceNumber Modality ImageType".split(),
    *"SeriesDescription ProtocolName SequenceName BurnedInAnnotation NumberOfFrames".split(),
    *"Rows Columns SamplesPerPixel BitsAllocated PhotometricInterpretation PixelSpacing".split(),
    *"ImagePositionPatient ImageOrientationPatient RescaleSlope RescaleIntercept RescaleType PixelPaddingValue".split(),
    *"EchoTime EchoNumbers DiffusionBValue DiffusionGradientOrientation TemporalPositionIdentifier".split(),
    *"AcquisitionNumber StackID SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence".split(),
    *"StudyInstanceUID FrameOfReferenceUID ConvolutionKernel InversionTime FlipAngle RepetitionTime TriggerTime".split(),
    *"ContrastBolusAgent ScanningSequence SequenceVariant ScanOptions KVP SliceThickness FilterType".split(),
    *"ReconstructionDiameter ReconstructionAlgorithm ImagedNucleus AcquisitionTime SeriesTime".split(),
)
# With SOPInstanceUID and InstanceNumber: what tells a slice from its copy.
WHERE = ("ImagePositionPatient", "AcquisitionNumber", "EchoTime")
_SIEMENS_CREATOR, SIEMENS_B_VALUE, _SIEMENS_MOSAIC_IMAGES = 0x00190010, 0x0019100C, 0x0019100A
_SIEMENS_TAGS = (_SIEMENS_CREATOR, SIEMENS_B_VALUE, _SIEMENS_MOSAIC_IMAGES)
# Private b-values: the tag of the maker's name, what it holds, the tag of the value.
_PRIVATE_B_VALUES = (
    (0x00430010, "GEMS", 0x00431039),
    (0x20010010, "PHILIPS", 0x20011003),
    (_SIEMENS_CREATOR, "SIEMENS", SIEMENS_B_VALUE),
)


def label_of(file: DicomFile) -> str:
    """
    What a file that is left out is called: its description, still to be cleaned once all secrets are known. Names of files may
    be names of patients, whatever stands behind their dots too.
    """
    with contextlib.suppress(Exception):
        if file.header is not None:
            return describe(file.header) or "series"
    suffix = Path(file.name).suffix.lower()
    return f"*{suffix}" if suffix in _KNOWN_SUFFIXES else "file"


def read_header(file: DicomFile) -> None:
    """The fields that are looked at, and none besides."""
    data = file.read(HEAD_BYTES)
    if not _starts_as_dicom(data):
        raise UnusableFileError("it is not a DICOM file")
    header, end = _parse(data)
    if len(data) == HEAD_BYTES and end >= len(data):
        if "SOPClassUID" not in header:  # it stands at the start
            raise UnusableFileError("it is not an image, or its header is damaged")
        header, end = _parse(file.read(MAX_HEADER_BYTES))
    file.header, file.pixels_at = header, end


def _starts_as_dicom(data: bytes) -> bool:
    """Whether data begin as DICOM does: with a preamble, or at once with a field of group 2 or 8 of plausible length."""
    if data[128:132] == b"DICM":
        return True
    if len(data) < 132 or data[:2] not in (b"\x02\0", b"\x08\0") or data[3] != 0:
        return False
    explicit = data[4:6].isalpha() and data[4:6].isupper()
    length = int.from_bytes(data[6:8] if explicit else data[4:8], "little")
    return length <= 1024 and pydicom.datadict.dictionary_has_tag(int.from_bytes(data[:2], "little") << 16 | data[2])


def private_b_value(header: Dataset) -> float | None:
    """s/mm2 as GE, Philips and Siemens write it in fields of their own."""
    for creator, maker, tag in _PRIVATE_B_VALUES:
        if tag not in header or maker not in str(header.get(creator, "")).upper():
            continue
        value = header[tag].value
        if isinstance(value, bytes) and maker == "PHILIPS" and len(value) == 4:
            value = struct.unpack("<f", value)[0]
        elif isinstance(value, bytes):
            value = value.decode("ascii", "ignore").strip(" \0").split("\\")
        first = value if isinstance(value, (int, float, str)) else next(iter(value or []), None)
        try:
            number = float(first)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if number >= 0:
            return number % 100000 if maker == "GEMS" else number  # GE adds 1e9 where directions were averaged
    return None


def refuse_other_images(header: Any) -> None:
    """Refuses what is not a slice of a CT or MR scan."""
    _refuse_other_kinds(header)
    _refuse_other_pictures(header)
    if not 2 <= int(header.Rows) <= 8192 or not 2 <= int(header.Columns) <= 8192:
        raise UnusableFileError(f"it has {int(header.Rows)} x {int(header.Columns)} pixels")
    if not str(header.get("SeriesInstanceUID", "")):
        raise UnusableFileError("it names no series (SeriesInstanceUID)")


def _refuse_other_kinds(header: Any) -> None:
    """Other modalities, and images that are made from slices or for planning them."""
    kind = [str(part).upper() for part in header.get("ImageType") or []]
    sop_class = pydicom.uid.UID(str(header.get("SOPClassUID", ""))).name
    modality = str(header.get("Modality", ""))
    if "Secondary Capture" in sop_class or "SCREEN SAVE" in kind:
        raise UnusableFileError("it is a secondary capture (a picture of a screen or a report)")
    if "Parametric Map" in sop_class:  # whose modality may be that of the images it was made of
        raise UnusableFileError("it is a parametric map (a result, as heat maps are)")
    if modality not in MODALITIES:
        shown = modality if modality in _OTHER_MODALITIES else "unknown"
        raise UnusableFileError(f"its modality is {shown}, expected one of {', '.join(MODALITIES)}")
    if "Rows" not in header or "Columns" not in header:
        raise UnusableFileError("it holds no image, or its header is cut off")
    if "LOCALIZER" in kind or _is_named_localizer(describe(header)):
        raise UnusableFileError("it is a localizer")
    if "MOSAIC" in kind or _mosaic_images(header) > 1:
        raise UnusableFileError(
            "it is a Siemens mosaic (slices in one picture); convert the series to NIfTI with dcm2niix"
        )
    if {"PROJECTION IMAGE", "MIP", "MNIP", "MINIP"} & set(kind):
        raise UnusableFileError("it is a projection through a volume, not a slice")


def _refuse_other_pictures(header: Any) -> None:
    """Pixels that are not plain intensities."""
    if str(header.get("BurnedInAnnotation", "NO")).upper() == "YES":
        raise UnusableFileError("it has text burned into the picture, which may name the patient")
    if int(header.get("SamplesPerPixel", 1) or 1) != 1:
        raise UnusableFileError("it is a color picture")
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2")).strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnusableFileError("it is a color picture, or does not say how its values are shown")
    if photometric == "MONOCHROME1" and str(header.get("Modality", "")) == "MR":
        raise UnusableFileError("its intensities are stored inverted (MONOCHROME1)")


def _is_named_localizer(description: str) -> bool:
    return bool(_LOCALIZER.search(description)) and not _WHOLE_SURVEY.search(description)


def _parse(data: bytes) -> tuple[Any, int]:
    """The header, and where reading it ended: before the pixels, or at the end of the data."""
    refuse_deflated(data)
    stream = io.BytesIO(data)
    private = [tag for creator, _, value in _PRIVATE_B_VALUES for tag in (creator, value)]
    wanted: list[Any] = [*TAGS, *_SIEMENS_TAGS, *private]
    tags: list[Any] = [pydicom.tag.Tag(tag) for tag in wanted]
    header = pydicom.filereader.read_partial(stream, stop_when=_ends_header, specific_tags=tags, force=True)
    return header, stream.tell()


def _ends_header(tag: BaseTag, vr: str | None, length: int) -> bool:
    """At the pixels, or in what is no data set: zeros would be read eight bytes at a time."""
    return not 0x0004 <= tag >> 16 < 0x7FE0


def refuse_deflated(data: bytes) -> None:
    """Refuses a deflated file, which pydicom would inflate whole, however much that is."""
    if _DEFLATED in data:
        raise UnusableFileError("its transfer syntax is deflated; convert it with dcmconv first")


def _mosaic_images(header: Dataset) -> int:
    creator = header.get(_SIEMENS_CREATOR)
    count = header.get(_SIEMENS_MOSAIC_IMAGES)
    if creator is None or count is None or "SIEMENS" not in str(creator.value):
        return 0
    value = count.value
    return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value or 0)


def describe(header: Dataset) -> str:
    """What a series is called, by the first field that says it; empty if none does."""
    for name in ("SeriesDescription", "ProtocolName", "SequenceName"):
        if str(header.get(name, "") or "").strip():
            return str(header.get(name))
    return ""
