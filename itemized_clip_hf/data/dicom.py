"""DICOM folders and zips: series sorted, checked and stacked to volumes; only geometry and a cleaned description leave."""

import contextlib
import io
import logging
import os
import re
import struct
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from .privacy import (
    IDENTIFYING_FIELDS,
    clean_description,
    clean_suffix,
    identifying_fields,
    identifying_words,
    scrub,
)
from .resample import is_even, resample_upright
from .study import Scan, Study

try:
    import pydicom
except ImportError:
    pydicom = None  # type: ignore[assignment]

MAX_FILE_BYTES = 1 << 30
HEAD_BYTES = 1 << 17
"""Bytes of a file that are read for its header; up to `MAX_HEADER_BYTES` where it is longer."""
MAX_HEADER_BYTES = 1 << 26
MAX_SERIES_BYTES = 2 << 30
MAX_VOLUMES = 4
"""Most volumes of one series that are kept, as of echoes or b-values; of a longer (dynamic) one only the first is."""
MIN_SLICES = 3
SAME_PLACE = 0.02
"""mm up to which two slices lie in one place; headers round positions."""
MAX_SHIFT = 10.0
"""mm that a slice may lie beside the line of the others."""
MODALITIES = ("CT", "MR")
_OTHER_MODALITIES = (
    *"AU CR DOC DX ECG ES GM IO KO MG NM OP OPT OT PR PT PX REG RF SC SEG SM SR US XA XC".split(),
    *"RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT".split(),
)
AIR = -1024

_KNOWN_SUFFIXES = (
    *(".dcm", ".ima", ".dicom", ".txt", ".xml", ".json", ".csv", ".pdf", ".zip", ".gz", ".nii", ".htm", ".html"),
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".exe", ".dll", ".ini", ".inf", ".md"),
)
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_LOCALIZER = re.compile(r"(?<![a-z])(scout|locali[sz]er|survey|topogram|surview|3[- _]?plane)", re.IGNORECASE)
# What tells the volumes of one series apart, and how it is written behind the name.
_MARKS = {
    "stack": "stack{}",
    "echo": "TE{}",
    "b_value": "b{}",
    "kind": "{}",
    "time": "t{}",
    "acquisition": "acq{}",
    "direction": "dir{}",
}
_TAGS = (
    *IDENTIFYING_FIELDS,
    *"SOPClassUID SOPInstanceUID SeriesInstanceUID SeriesNumber InstanceNumber Modality ImageType".split(),
    *"SeriesDescription ProtocolName SequenceName BurnedInAnnotation NumberOfFrames".split(),
    *"Rows Columns SamplesPerPixel BitsAllocated PhotometricInterpretation PixelSpacing".split(),
    *"ImagePositionPatient ImageOrientationPatient RescaleSlope RescaleIntercept RescaleType PixelPaddingValue".split(),
    *"EchoTime EchoNumbers DiffusionBValue DiffusionGradientOrientation TemporalPositionIdentifier".split(),
    *"AcquisitionNumber StackID SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence".split(),
)
_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (
    *_PIXEL_DATA,
    *"PixelRepresentation BitsStored HighBit PlanarConfiguration ModalityLUTSequence PixelPaddingRangeLimit".split(),
    *"ExtendedOffsetTable ExtendedOffsetTableLengths".split(),
)
# Of a multi-frame file, where a slice's header is spread over them.
_GROUPS = (
    *"PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence".split(),
    *"FrameContentSequence MREchoSequence MRDiffusionSequence MRImageFrameTypeSequence CTImageFrameTypeSequence".split(),
)
# With SOPInstanceUID and InstanceNumber: what tells a slice from its copy.
_WHERE = ("ImagePositionPatient", "AcquisitionNumber", "EchoTime")
_TALKING = ("pydicom", "pylibjpeg", "openjpeg", "libjpeg", "rle")
_SIEMENS_CREATOR, _SIEMENS_B_VALUE, _SIEMENS_MOSAIC_IMAGES = 0x00190010, 0x0019100C, 0x0019100A
_SIEMENS_TAGS = (_SIEMENS_CREATOR, _SIEMENS_B_VALUE, _SIEMENS_MOSAIC_IMAGES)


@dataclass
class _File:
    """A file of the folder or zip: its name, what reads its first bytes, its header and where its pixels start."""

    name: str
    read: Callable[[int], bytes]
    header: Any = None
    pixels_at: int = 0


@dataclass
class _Slice:
    """One frame of a file with its geometry in mm, LPS+ as DICOM has it."""

    file: _File
    frame: int
    position: np.ndarray
    orientation: np.ndarray
    pixel_spacing: tuple[float, float]
    rescale: tuple[float, float] | None
    marks: dict[str, Any] = field(default_factory=dict)

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def height(self) -> float:
        """mm along the normal."""
        return float(self.position @ self.normal)

    def fits(self, other: "_Slice") -> bool:
        """Whether both may lie in one volume."""
        kind = [(s.file.header.Rows, s.file.header.Columns, s.file.header.Modality) for s in (self, other)]
        return (
            kind[0] == kind[1]
            and np.allclose(self.orientation, other.orientation, atol=2e-3)
            and np.allclose(self.pixel_spacing, other.pixel_spacing, rtol=1e-3)
        )


class _Unusable(ValueError):
    """A file or series that is left out, and why, in words without values of the header."""


def read_dicom(path: str | os.PathLike) -> Study:
    """
    Every CT and MR series below a folder or in a zip as one scan, or one for each echo, b-value or part.

    Slices are sorted along their normal. The modality LUT is applied once: CT in HU. Uneven slice distances and a tilted
    gantry are resampled to an even, upright grid, linear between slices, as `history` then says. Left out, with a reason each
    in `skipped`: localisers, secondary captures, projections, other modalities, mosaics, pictures with burned-in text,
    duplicates, and files that are damaged or no DICOM.

    Args:
        path: folder (sub-folders included), `.zip`, or one (multi-frame) file.

    Raises:
        FileNotFoundError: no such path.
        ValueError: not a single series could be read; the message lists the reasons.
    """
    if pydicom is None:
        raise ImportError("DICOM files need pydicom: pip install 'itemized-clip-hf[dicom]'.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    study = Study({}, id=path.name if path.is_dir() else path.stem)
    secrets: set[str] = set()
    skipped: dict[tuple[str, str], int] = defaultdict(int)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        series: dict[str, list[_Slice]] = defaultdict(list)
        seen: set[tuple] = set()
        for file in _list_files(path, stack):
            try:
                _read_header(file)
                secrets |= identifying_words(file.header)
                _refuse_other_images(file.header)
                key = tuple(str(file.header.get(name, "")) for name in ("SOPInstanceUID", "InstanceNumber", *_WHERE))
                if key in seen:
                    raise _Unusable("another file holds the same image")
                seen.add(key)
                slices = _list_slices(file.header, file)
                series[str(file.header.SeriesInstanceUID)] += slices
            except _Unusable as error:
                skipped[_label(file), str(error)] += 1
            except Exception as error:  # damaged values surface in many ways; their texts may quote the header
                skipped[_label(file), f"it cannot be read: it is damaged ({type(error).__name__})"] += 1
        for slices in series.values():
            header = slices[0].file.header
            name = clean_description(_describe(header), secrets) or f"series-{_word(header.get('SeriesNumber')) or 0}"
            for suffix, volume in _split_series(slices, name, skipped):
                suffix = clean_suffix(suffix, secrets)
                try:
                    scan = _build_scan(volume, skipped, name)
                except _Unusable as error:
                    skipped[name + suffix, str(error)] += 1
                    continue
                except Exception as error:
                    skipped[name + suffix, f"it cannot be read: it is damaged ({type(error).__name__})"] += 1
                    continue
                scan.name, scan.path = name + suffix, str(path)
                scan.private_fields = identifying_fields(volume[0].file.header)
                study.add(scan)
    merged: dict[tuple[str, str], int] = defaultdict(int)
    for (what, reason), count in skipped.items():
        label = what if what.startswith("*") or what == "file" else clean_description(what, secrets) or "series"
        merged[label, reason] += count
    for (what, reason), count in merged.items():
        study.skipped.append((what, f"{reason} ({count} times)" if count > 1 else reason))
    if not study.scans:
        listed = "; ".join(f"{what}: {reason}" for what, reason in study.skipped[:10]) or "it holds no DICOM file"
        raise ValueError(f"{scrub(path.name, secrets)} holds no series that can be used. {listed}.")
    return study


@contextlib.contextmanager
def _quiet():
    """Nothing checks, logs or quotes values while files are read."""
    before = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] in _TALKING]
    talking = [logger for logger in loggers if not logger.disabled]
    for logger in talking:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom.config.settings.reading_validation_mode = before
        for logger in talking:
            logger.disabled = False


def _list_files(path: Path, stack: contextlib.ExitStack) -> Iterator[_File]:
    """Files in the order of their names; those of a zip stay readable until the stack is closed."""
    if path.is_file() and path.suffix.lower() == ".zip":
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
        except Exception:  # a damaged directory surfaces in many ways
            raise ValueError(f"{path.name} cannot be read: it is damaged or no zip file.") from None
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            name = Path(info.filename).name
            if not info.is_dir() and not name.startswith(".") and name != "DICOMDIR":
                read = _zip_reader(archive, info)
                yield _File(name, read)
        return
    for member in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if member.is_file() and not member.name.startswith(".") and member.name != "DICOMDIR":
            yield _File(member.name, partial(_read_bounded, member))


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        try:
            with archive.open(info) as member:
                return member.read(limit)
        except NotImplementedError:
            raise _Unusable("the zip is compressed in a way that Python cannot read") from None
        except RuntimeError:
            raise _Unusable("the zip is encrypted") from None

    return read


def _read_bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(min(limit, os.fstat(file.fileno()).st_size))


def _label(file: _File) -> str:
    """
    What a file that is left out is called: its description, still to be cleaned once all secrets are known. Names of files may
    be names of patients, whatever stands behind their dots too.
    """
    with contextlib.suppress(Exception):
        if file.header is not None:
            return _describe(file.header) or "series"
    suffix = Path(file.name).suffix.lower()
    return f"*{suffix}" if suffix in _KNOWN_SUFFIXES else "file"


def _read_header(file: _File) -> None:
    """The fields that are looked at, and none besides."""
    data = file.read(HEAD_BYTES)
    if data[128:132] != b"DICM":
        raise _Unusable("it is no DICOM file")
    header, end = _parse(data)
    if len(data) == HEAD_BYTES and end >= len(data):
        if "SOPClassUID" not in header:  # it stands at the start
            raise _Unusable("it is no image, or its header is damaged")
        header, end = _parse(file.read(MAX_HEADER_BYTES))
    file.header, file.pixels_at = header, end


def _refuse_other_images(header) -> None:
    """Refuses what is no slice of a CT or MR scan."""
    kind = [str(part).upper() for part in header.get("ImageType") or []]
    sop_class = pydicom.uid.UID(str(header.get("SOPClassUID", ""))).name
    modality = str(header.get("Modality", ""))
    if "Secondary Capture" in sop_class or "SCREEN SAVE" in kind:
        raise _Unusable("it is a secondary capture (a picture of a screen or a report)")
    if modality not in MODALITIES:
        shown = modality if modality in _OTHER_MODALITIES else "unknown"
        raise _Unusable(f"its modality is {shown}, expected one of {', '.join(MODALITIES)}")
    if "Rows" not in header or "Columns" not in header:
        raise _Unusable("it holds no image, or its header is cut off")
    if "LOCALIZER" in kind or _LOCALIZER.search(_describe(header)):
        raise _Unusable("it is a localiser")
    if "MOSAIC" in kind or _mosaic_images(header) > 1:
        raise _Unusable(
            "it is a Siemens mosaic (many slices in one picture); convert the series to NIfTI with dcm2niix"
        )
    if {"PROJECTION IMAGE", "MIP", "MNIP", "MINIP"} & set(kind):
        raise _Unusable("it is a projection through a volume, not a slice")
    if str(header.get("BurnedInAnnotation", "NO")).upper() == "YES":
        raise _Unusable("it has text burned into the picture, which may name the patient")
    if int(header.get("SamplesPerPixel", 1) or 1) != 1:
        raise _Unusable("it is a colour picture")
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2")).strip()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise _Unusable("it is a colour picture, or does not say how its values are shown")
    if photometric == "MONOCHROME1" and modality == "MR":
        raise _Unusable("its intensities are stored inverted (MONOCHROME1)")
    if not 2 <= int(header.Rows) <= 8192 or not 2 <= int(header.Columns) <= 8192:
        raise _Unusable(f"it has {int(header.Rows)} x {int(header.Columns)} pixels")
    if not str(header.get("SeriesInstanceUID", "")):
        raise _Unusable("it names no series (SeriesInstanceUID)")


def _parse(data: bytes) -> tuple[Any, int]:
    """The header, and where reading it ended: before the pixels, or at the end of the data."""
    _refuse_deflated(data)
    stream = io.BytesIO(data)
    wanted: list[Any] = [*_TAGS, *_SIEMENS_TAGS]
    tags: list[Any] = [pydicom.tag.Tag(tag) for tag in wanted]
    header = pydicom.filereader.read_partial(stream, stop_when=_ends_header, specific_tags=tags)
    return header, stream.tell()


def _ends_header(tag, vr, length) -> bool:
    """At the pixels, or in what is no data set: zeros would be read eight bytes at a time."""
    return not 0x0004 <= tag >> 16 < 0x7FE0


def _refuse_deflated(data: bytes) -> None:
    """pydicom would inflate all of it at once, however much that is."""
    if _DEFLATED in data:
        raise _Unusable("its transfer syntax is deflated; convert it with dcmconv first")


def _mosaic_images(header) -> int:
    creator = header.get(_SIEMENS_CREATOR)
    count = header.get(_SIEMENS_MOSAIC_IMAGES)
    if creator is None or count is None or "SIEMENS" not in str(creator.value):
        return 0
    value = count.value
    return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else int(value or 0)


def _describe(header) -> str:
    for name in ("SeriesDescription", "ProtocolName", "SequenceName"):
        if str(header.get(name, "") or "").strip():
            return str(header.get(name))
    return ""


def _list_slices(header, file: _File) -> list[_Slice]:
    """The frames of a file: one for classic objects, many for enhanced ones."""
    shared = _first(header, "SharedFunctionalGroupsSequence")
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if int(header.get("NumberOfFrames", 1) or 1) > 1:
            raise _Unusable("it holds several frames without the position of each")
        return [_make_slice(file, 0, [header])]
    count = int(header.get("NumberOfFrames", 1) or 1)
    if count != len(frames):
        raise _Unusable(f"it says that it holds {count} frames and describes {len(frames)}")
    slices = []
    for number, own in enumerate(frames):
        groups = [
            item
            for group in (own, shared)
            if group is not None
            for sequence in _GROUPS
            if (item := _first(group, sequence)) is not None
        ]
        groups += [
            item for group in groups if (item := _first(group, "DiffusionGradientDirectionSequence")) is not None
        ]
        slices.append(_make_slice(file, number, groups))
    return slices


def _first(dataset, name: str):
    sequence = dataset.get(name) if dataset is not None else None
    return sequence[0] if sequence else None


def _make_slice(file: _File, frame: int, groups: list) -> _Slice:
    def find(*names):
        for name in names:
            for group in groups:
                element = group.get(name)
                value = element.value if hasattr(element, "value") else element
                if value is not None and str(value) != "":
                    return value
        return None

    values = []
    for name, count, what in (
        ("ImagePositionPatient", 3, "position"),
        ("ImageOrientationPatient", 6, "orientation"),
        ("PixelSpacing", 2, "pixel spacing"),
    ):
        found = find(name)
        if found is None:
            raise _Unusable(f"it has no {what} ({name})")
        value = np.array([float(number) for number in found])
        if value.shape != (count,) or not np.isfinite(value).all() or np.abs(value).max() > 1e5:
            raise _Unusable(f"its {what} is damaged ({name})")
        values.append(value)
    position, orientation, spacing = values
    lengths = np.linalg.norm(orientation[:3]), np.linalg.norm(orientation[3:])
    if not np.allclose(lengths, 1, atol=1e-2) or abs(orientation[:3] @ orientation[3:]) > 1e-2:
        raise _Unusable("its orientation is damaged (ImageOrientationPatient): no two unit vectors at a right angle")
    orientation = np.concatenate([orientation[:3] / lengths[0], orientation[3:] / lengths[1]])
    if not (spacing > 0).all():
        raise _Unusable("its pixel spacing is not positive")
    if spacing.min() < 1e-3 or spacing.max() > 1e3:
        raise _Unusable("its pixel spacing is damaged (PixelSpacing)")
    slope, intercept = find("RescaleSlope"), find("RescaleIntercept")
    if (slope is None) != (intercept is None):
        raise _Unusable("it has a rescale slope or intercept without the other one")
    rescale = None if slope is None else (float(slope), float(intercept))
    if rescale is not None and (not np.isfinite(rescale).all() or rescale[0] == 0):
        raise _Unusable(f"its voxels would be scaled by {rescale[0]} and {rescale[1]}")
    b_value = find("DiffusionBValue", _SIEMENS_B_VALUE)
    direction = find("DiffusionGradientOrientation")
    marks = {
        "stack": _word(find("StackID")),
        "echo": _word(find("EffectiveEchoTime", "EchoTime")),
        "b_value": _word(b_value),
        "kind": "-".join(str(part) for part in list(find("FrameType", "ImageType") or [])[2:])[:24],
        "time": _word(find("TemporalPositionIndex", "TemporalPositionIdentifier")),
        "acquisition": _word(find("AcquisitionNumber")),
        "direction": None if direction is None else tuple(round(float(x), 3) for x in direction),
    }
    return _Slice(file, frame, position, orientation, (spacing[0], spacing[1]), rescale, marks)


def _word(value) -> str | None:
    """A number as short as it can be written; anything else is dropped, since it could be free text."""
    try:
        return None if value is None else f"{float(value):g}"
    except (TypeError, ValueError):
        return None


def _split_series(slices: list[_Slice], name: str, skipped) -> Iterator[tuple[str, list[_Slice]]]:
    """A series as volumes: slices of one orientation and size, no two of them in one place; with a suffix for the name."""
    parts: list[list[_Slice]] = []
    for one in slices:
        part = next((part for part in parts if part[0].fits(one)), None)
        if part is None:
            parts.append([one])
        else:
            part.append(one)
    for number, part in enumerate(parts):
        suffix = f"-{number + 1}" if number else ""
        volumes = _split_repeats(part)
        if volumes is None:
            part, repeats = _drop_repeats(part)
            if repeats:
                skipped[name + suffix, "another slice of the series holds the same image"] += repeats
            volumes = _split_repeats(part)
        if volumes is None:
            skipped[name + suffix, "several slices lie in one place and nothing in the header tells them apart"] += 1
            continue
        if len(volumes) > MAX_VOLUMES:
            label = f"{name}{suffix}"
            skipped[label, f"it holds {len(volumes)} volumes; the first is used, the others are left out"] += 1
            volumes = volumes[:1]
        for mark, volume in volumes:
            yield suffix + mark, volume


def _split_repeats(slices: list[_Slice]) -> list[tuple[str, list[_Slice]]] | None:
    differ = _places_differ(slices)
    if differ and (len(slices) < 2 * MIN_SLICES or is_even(_heights(slices))):
        return [("", slices)]
    usable = [mark for mark in _MARKS if len({one.marks[mark] for one in slices}) > 1]
    for count in (1,) if differ else (1, 2, 3):
        for marks in combinations(usable, count):
            groups: dict[tuple, list[_Slice]] = defaultdict(list)
            for one in slices:
                groups[tuple(one.marks[mark] for mark in marks)].append(one)
            if differ and not _interleaved(list(groups.values())):
                continue
            if all(_places_differ(group) for group in groups.values()):
                named = []
                for index, (values, group) in enumerate(sorted(groups.items(), key=lambda item: _order(item[0]))):
                    words = [
                        _MARKS[mark].format(index + 1 if mark == "direction" else value)
                        for mark, value in zip(marks, values)
                        if value not in (None, "")
                    ]
                    named.append(("_" + "_".join(words) if words else "", group))
                return named
    return [("", slices)] if differ else None


def _interleaved(groups: list[list[_Slice]]) -> bool:
    """Whether they are whole volumes of one region, as repeats are whose positions follow the patient's motion."""
    heights = [_heights(group) for group in groups]
    if any(len(own) < MIN_SLICES or not is_even(own) for own in heights):
        return False
    lows, highs = [own[0] for own in heights], [own[-1] for own in heights]
    return max(lows) - min(lows) < 0.5 * (max(highs) - min(lows)) and max(lows) < min(highs)


def _drop_repeats(slices: list[_Slice]) -> tuple[list[_Slice], int]:
    """Slices without those whose place and pixels another one has, and how many these were."""
    places: dict[tuple, list[_Slice]] = defaultdict(list)
    for one in slices:
        places[tuple(np.rint(one.position / SAME_PLACE).astype(int))].append(one)
    if len(slices) > 2 * len(places):  # repeats of another kind
        return slices, 0
    kept: list[_Slice] = []
    for first, *others in places.values():
        kept.append(first)
        kept += [one for one in others if not _same_pixels(first, one)]
    return kept, len(slices) - len(kept)


def _same_pixels(first: _Slice, second: _Slice) -> bool:
    try:
        a, b = (_read_plane(one, str(one.file.header.Modality), {}) for one in (first, second))
    except (_Unusable, ImportError):
        return False
    return np.array_equal(a, b)


def _order(values: tuple) -> list:
    def number(value):
        try:
            return (0, float(value), "")
        except (TypeError, ValueError):
            return (1, 0.0, str(value))

    return [number(value) for value in values]


def _heights(slices: list[_Slice]) -> np.ndarray:
    return np.sort([one.height for one in slices])


def _places_differ(slices: list[_Slice]) -> bool:
    return len(slices) < 2 or float(np.diff(_heights(slices)).min()) > SAME_PLACE


def _build_scan(slices: list[_Slice], skipped, name: str) -> Scan:
    header = slices[0].file.header
    if len(slices) < MIN_SLICES:
        raise _Unusable(
            f"it has only {len(slices)} slices of this orientation: a localiser, or most of the series is missing"
        )
    rows, columns = int(header.Rows), int(header.Columns)
    if 4 * rows * columns * len(slices) > MAX_SERIES_BYTES:
        raise _Unusable(f"its {len(slices)} slices of {rows} x {columns} take more than {MAX_SERIES_BYTES >> 30} GiB")
    slices = sorted(slices, key=lambda one: one.height)
    modality = str(header.Modality)
    notes: dict[str, str] = {}
    planes, kept, compressed = [], [], None
    opened: dict[int, Any] = {}
    for one in slices:
        try:
            plane = _read_plane(one, modality, opened)
        except _Unusable as error:
            skipped[name, str(error)] += 1
            continue
        except ImportError as error:
            compressed = str(error)
            continue
        planes.append(plane)
        kept.append(one)
    if compressed is not None:
        raise _Unusable(compressed)
    if len(kept) < MIN_SLICES:
        raise _Unusable(f"only {len(kept)} of its {len(slices)} slices can be read")
    volume = np.stack(planes)
    history = [f"DICOM series of {len(slices)} slices, {rows} x {columns} pixels, sorted along the slice normal"]
    if len(kept) < len(slices):
        notes["lost-slices"] = f"{len(slices) - len(kept)} of its {len(slices)} slices are damaged and left out"
    rescales = {one.rescale for one in kept if one.rescale is not None}
    unscaled = sum(one.rescale is None for one in kept)
    if rescales - {(1.0, 0.0)}:
        if unscaled:
            raise _Unusable(
                f"{unscaled} of its {len(kept)} slices have no rescale slope and intercept, the others have"
            )
        slope, intercept = min(rescales)
        shown = f"{slope:g} and {intercept:g}" if len(rescales) == 1 else "each slice by its own"
        history.append(f"rescale slope and intercept applied: {shown}")
    elif modality == "CT" and unscaled:
        notes["no-rescale"] = "its header has no rescale slope and intercept"
    volume, affine = _place(volume, kept, modality, history, notes)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Scan(volume, lps_to_ras @ affine, modality=modality, history=history, notes=notes)


def _read_plane(one: _Slice, modality: str, opened: dict) -> np.ndarray:
    """Pixels of one slice with the modality LUT applied once; integers where it keeps them so."""
    if id(one.file) not in opened:
        opened.clear()
        opened[id(one.file)] = _read_pixels(one.file)
    stored, dataset = opened[id(one.file)]
    plane = stored if stored.ndim == 2 else stored[one.frame]
    if plane.shape != (int(one.file.header.Rows), int(one.file.header.Columns)):
        raise _Unusable("its pixels do not have the size that its header gives")
    outside = _padding(plane, dataset) if modality == "CT" else None
    if dataset.get("ModalityLUTSequence"):
        values = pydicom.pixels.apply_modality_lut(plane, dataset)
    elif one.rescale is None:
        values = plane
    else:
        slope, intercept = one.rescale
        if slope == 1 and intercept == int(intercept):
            values = plane.astype(np.int64 if plane.dtype.itemsize > 2 else np.int32) + int(intercept)
        else:
            values = plane.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if outside is not None and outside.any():
        values = np.where(outside, values.dtype.type(AIR) if values.dtype.kind != "u" else 0, values)
    if values.dtype.kind in "iu" and -32768 <= values.min() and values.max() <= 32767:
        return values.astype(np.int16)
    return values.astype(np.float32)


def _padding(plane: np.ndarray, dataset) -> np.ndarray | None:
    """Which stored pixels lie outside of what was scanned."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    bits = 8 * plane.dtype.itemsize
    limits = [int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue))]
    if plane.dtype.kind == "i":  # often written as unsigned nevertheless
        limits = [limit - (1 << bits) if limit >= 1 << (bits - 1) else limit for limit in limits]
    return (plane >= min(limits)) & (plane <= max(limits))


def _read_pixels(file: _File) -> tuple[np.ndarray, Any]:
    rows, columns, frames = (int(file.header.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames"))
    # More than twice the size of the pixels is none of them, whatever a small zip inflates to.
    most = file.pixels_at + 16 * rows * columns * max(frames, 1) + (1 << 20)
    data = file.read(min(most, MAX_FILE_BYTES))
    _refuse_deflated(data)
    dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=[*_TAGS, *_PIXEL_TAGS])
    pixels = next((dataset[name].value for name in _PIXEL_DATA if name in dataset), None)
    if not pixels:
        raise _Unusable("it holds no pixels, or is cut off")
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if 4 * frames * int(dataset.Rows) * int(dataset.Columns) > MAX_SERIES_BYTES:
        raise _Unusable(f"its {frames} frames take more than {MAX_SERIES_BYTES >> 30} GiB")
    expected = frames * int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if (syntax is None or not syntax.is_compressed) and len(pixels) > expected + 1:  # pydicom would cut it
        raise _Unusable("it holds more pixels than its header says, or they are not in the stated transfer syntax")
    compressed = syntax is not None and syntax.is_compressed
    if compressed and not _can_decode(syntax):
        raise ImportError(
            f"its pixels are compressed ({syntax.name}); reading them needs: pip install 'itemized-clip-hf[dicom-compressed]'"
        )
    try:
        if compressed and syntax != pydicom.uid.RLELossless:
            for frame in pydicom.encaps.generate_frames(pixels, number_of_frames=frames):
                if _coded_size(frame) != (int(dataset.Rows), int(dataset.Columns), 1):
                    raise _Unusable("its compressed pixels do not have the size that its header gives")
        return dataset.pixel_array, dataset
    except _Unusable:
        raise
    except Exception as error:
        raise _Unusable(
            f"its pixels cannot be decoded: they are cut off, damaged, or not in the stated transfer syntax "
            f"({type(error).__name__})"
        ) from None


def _coded_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and colours that a JPEG or JPEG 2000 stream states: decoders take memory for them before anything else."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000: start of the stream, then its size
    if start >= 0:
        columns, rows, left, top = struct.unpack_from(">4I", frame, start + 8)
        return rows - top, columns - left, struct.unpack_from(">H", frame, start + 40)[0]
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # JPEG-LS; start of a frame
            return (*struct.unpack_from(">2H", frame, at + 5), frame[at + 9])
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _can_decode(syntax) -> bool:
    try:
        return pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        raise _Unusable("its pixels are compressed in a way that nothing here decodes, as a video is") from None


def _place(volume, slices: list[_Slice], modality: str, history: list[str], notes: dict[str, str]):
    """The stacked slices on an even, upright grid, and its index -> LPS mm transform."""
    positions = np.stack([one.position for one in slices])
    rows_along, columns_along = slices[0].orientation[:3], slices[0].orientation[3:]
    spacing = slices[0].pixel_spacing
    line = positions[-1] - positions[0]
    normal = slices[0].normal / np.linalg.norm(slices[0].normal)
    tilt = float(np.degrees(np.arccos(np.clip(line @ normal / np.linalg.norm(line), -1, 1))))
    heights = positions @ normal
    gaps = np.diff(heights)
    lateral = positions - positions[0]
    lateral -= (lateral @ normal)[:, None] * normal
    along_line = np.outer((heights - heights[0]) / (heights[-1] - heights[0]), lateral[-1])
    tilted = float(np.linalg.norm(lateral[-1])) > 0.25 * min(spacing)
    shifted = float(np.linalg.norm(lateral - along_line, axis=1).max())
    straight = shifted <= 0.25 * min(spacing)
    even = is_even(heights)
    if not tilted and straight and even:
        affine = np.eye(4)
        affine[:3, 0] = line / (len(slices) - 1)
        affine[:3, 1] = columns_along * spacing[0]
        affine[:3, 2] = rows_along * spacing[1]
        affine[:3, 3] = positions[0]
        return volume, affine
    if not even:
        usual = float(np.median(gaps))
        shown = f"slice distances from {gaps.min():.2f} to {gaps.max():.2f} mm"
        notes["uneven"] = f"{shown} (usually {usual:.2f}), evened out"
        if gaps.max() > 20 or gaps.max() > 5.5 * usual:
            raise _Unusable(f"{shown}: too many slices are missing to fill in between")
    if tilted:
        if tilt > 45:
            raise _Unusable(f"its slices are stacked at {tilt:.0f} degrees to their normal: the positions are wrong")
        notes["tilted"] = f"gantry tilted by {tilt:.1f} degrees, resampled upright"
    if not straight:
        if shifted > MAX_SHIFT:
            raise _Unusable(f"its slices do not lie behind each other: one is {shifted:.0f} mm beside the others")
        notes["shifted"] = f"slices up to {shifted:.1f} mm beside each other, put in their places"
    fill = AIR if modality == "CT" else 0
    try:
        volume, affine = resample_upright(volume, positions, rows_along, columns_along, spacing, fill, MAX_SERIES_BYTES)
    except ValueError as error:
        raise _Unusable(str(error)) from None
    size = " x ".join(map(str, volume.shape))
    history.append(
        f"resampled to an even upright grid of {size} voxels: "
        + "; ".join(notes[key] for key in ("uneven", "tilted", "shifted") if key in notes)
    )
    return volume, affine
