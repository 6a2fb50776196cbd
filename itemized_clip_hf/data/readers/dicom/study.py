"""A DICOM folder or zip as one study."""

import contextlib
import logging
import os
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pydicom

from ...privacy import clean_description, clean_suffix, identifying_fields, identifying_words, scrub
from ...study import Skipped, Study
from .files import DicomFile, UnusableFileError, list_files
from .header import WHERE, describe, label_of, read_header, refuse_other_images
from .identity import Visits
from .series import split_series
from .slices import Slice, list_slices, short_number
from .stack import build_scan

_NOISY_LOGGERS = ("pydicom", "highdicom", "pylibjpeg", "openjpeg", "libjpeg", "rle")


def read_dicom(path: str | os.PathLike) -> Study:
    """
    Every CT and MR series below a folder or in a zip as one scan, or one for each echo, b-value or part.

    Slices are sorted along their normal. The modality LUT is applied once: CT in HU. Uneven slice distances and a tilted
    gantry are resampled to an even, upright grid, linear between slices, as `history` then says. Left out, with a reason each
    in `skipped`: localizers, secondary captures, projections, other modalities, mosaics, pictures with burned-in text,
    duplicates, and files that are damaged or not DICOM.

    Args:
        path: folder (sub-folders included), `.zip`, or one (multi-frame) file.

    Raises:
        FileNotFoundError: no such path.
        ValueError: not a single series could be read, with the reasons; or several patients or studies lie there, counted.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    study = Study({}, id=path.name if path.is_dir() else path.stem)
    secrets: set[str] = set()
    skipped: Counter[tuple[str, str]] = Counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        visits = Visits()
        series = _collect_slices(list_files(path, stack), secrets, visits, skipped)
        shown = scrub(path.name, secrets)
        visits.refuse_several(shown)
        study.visits = (visits.patients, visits.studies)
        for slices in series.values():
            _add_scans(study, slices, str(path), secrets, skipped)
    study.skipped = _name_skipped(skipped, secrets, shown)
    if not study.scans:
        listed = "; ".join(map(str, study.skipped[:10])) or "it holds no DICOM file"
        raise ValueError(f"{shown} holds no series that can be used. {listed}.")
    return study


def _collect_slices(
    files: Iterable[DicomFile], secrets: set[str], visits: Visits, skipped: Counter[tuple[str, str]]
) -> dict[str, list[Slice]]:
    """Slices by SeriesInstanceUID; words that identify the patient, the visits and what is left out are added on the way."""
    series: dict[str, list[Slice]] = defaultdict(list)
    seen: set[tuple[str, ...]] = set()
    for file in files:
        try:
            read_header(file)
            secrets |= identifying_words(file.header)
            refuse_other_images(file.header)
            slices = list_slices(file.header, file)
            visits.add(file.header)
            key = tuple(str(file.header.get(name, "")) for name in ("SOPInstanceUID", "InstanceNumber", *WHERE))
            if key in seen:
                raise UnusableFileError("another file holds the same image")
            seen.add(key)
            series[str(file.header.SeriesInstanceUID)] += slices
        except UnusableFileError as error:
            skipped[label_of(file), str(error)] += 1
        except Exception as error:  # damaged values surface in many ways; their texts may quote the header
            skipped[label_of(file), _damaged(error)] += 1
    return series


def _name_skipped(counts: Counter[tuple[str, str]], secrets: set[str], study: str) -> list[Skipped]:
    """What was left out, under descriptions without words that identify the patient."""
    merged: Counter[tuple[str, str]] = Counter()
    for (what, reason), count in counts.items():
        label = what if what.startswith("*") or what == "file" else clean_description(what, secrets) or "series"
        merged[label, reason] += count
    return [
        Skipped(study, what, "read", f"{reason} ({count} times)" if count > 1 else reason)
        for (what, reason), count in merged.items()
    ]


def _damaged(error: Exception) -> str:
    return f"it cannot be read: it is damaged ({type(error).__name__})"


def _add_scans(
    study: Study, slices: list[Slice], path: str, secrets: set[str], skipped: Counter[tuple[str, str]]
) -> None:
    """The volumes of one SeriesInstanceUID, each named after its own description."""
    for volume in split_series(slices, _name(slices, secrets), skipped):
        name = _name(volume.slices, secrets) + clean_suffix(volume.suffix, secrets)
        try:
            scan = build_scan(volume.slices, skipped, name)
        except UnusableFileError as error:
            skipped[name, str(error)] += 1
            continue
        except Exception as error:  # as above
            skipped[name, _damaged(error)] += 1
            continue
        scan.name, scan.path = name, path
        scan.private_fields = identifying_fields(volume.slices[0].file.header)
        study.add(scan)


def _name(slices: list[Slice], secrets: set[str]) -> str:
    header = slices[0].file.header
    return clean_description(describe(header), secrets) or f"series-{short_number(header.get('SeriesNumber')) or 0}"


class _Quiet:
    """Settings that hold for the whole process: set by the first of the threads that read, put back by the last."""

    def __init__(self):
        self.lock = threading.Lock()
        self.readers = 0
        self.settings = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            self.readers += 1
            if self.readers == 1:
                self.settings.enter_context(_silence())

    def __exit__(self, *error) -> None:
        with self.lock:
            self.readers -= 1
            if not self.readers:
                self.settings.close()


_QUIET = _Quiet()


def quiet() -> _Quiet:
    """Nothing checks, logs or quotes values while files are read."""
    return _QUIET


@contextlib.contextmanager
def _silence():
    before = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    loggers = [
        logging.getLogger(name) for name in logging.root.manager.loggerDict if name.split(".")[0] in _NOISY_LOGGERS
    ]
    silenced = [logger for logger in loggers if not logger.disabled]
    for logger in silenced:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        pydicom.config.settings.reading_validation_mode = before
        for logger in silenced:
            logger.disabled = False
