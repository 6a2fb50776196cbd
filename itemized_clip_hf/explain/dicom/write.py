"""All objects of a result, in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...data.files import file_name, whole_file
from ..result import StudyResult

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from .source import SourceSeries

FIRST_SERIES = 9000
"""Number of the series of the report; pictures and maps follow."""


def write_dicom(
    folder: str | os.PathLike[str], result: StudyResult, threshold: float | None = None, anonymous: bool = False
) -> list[Path]:
    """
    Writes what was found in a study as DICOM objects of the same patient, study and frame of reference.

    - the scores: one Comprehensive 3D SR, `report.dcm`;
    - per finding a Secondary Capture of its picture, `NN_FINDING.dcm`;
    - per finding and scan its heat map in the scan's own grid, `NN_FINDING__SCAN.dcm`: a Parametric Map (float), or, with a
      threshold, a Segmentation.

    All are marked as research output that is not calibrated, and name the algorithm by version and hash of the model. Patient
    and study are copied from the files that the study was read from, which have to be where they were, and go nowhere else.

    Args:
        folder: made if it is not there.
        result: with `about` from `provenance.describe_model`.
        threshold: times the mean attention over the study.
        anonymous: leaves out patient, study date, accession number and the like. Study, frame of reference and the images that
            are referred to get fresh UIDs, the same for all objects of this call: nothing leads back to the source, so
            the objects do not overlay it.

    Raises:
        ImportError: highdicom or pydicom is not installed.
        ValueError: the study was not read from DICOM images, these are gone, or the result does not name its model.
    """
    require_highdicom()
    from ...data.readers.dicom.study import quiet
    from .author import Author
    from .source import read_sources, set_identity

    check_threshold(threshold)
    author = Author.of(result)
    sources = read_sources(result, anonymous)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for name, source, make in _objects(result, sources, threshold):
        with quiet():  # highdicom tells the log about UIDs
            made = make(author=author)
            set_identity(made, source.identity)
            with whole_file(place / name) as path:
                made.save_as(path, enforce_file_format=True)
        written.append(place / name)
    return written


def _objects(
    result: StudyResult, sources: list[SourceSeries], threshold: float | None
) -> Iterator[tuple[str, SourceSeries, Callable[..., Dataset]]]:
    """Name of the file, whose object it is, and what makes it; one heat map is in memory at a time."""
    from functools import partial

    from highdicom import UID

    from ..studies import unique
    from .parametric_map import make_parametric_map
    from .secondary_capture import make_secondary_capture
    from .segmentation import make_segmentation
    from .structured_report import make_structured_report

    series = [UID() for _ in range(len(sources) + 2)]

    def numbers(place: int, number: int) -> dict[str, Any]:
        return {
            "series_instance_uid": series[place],
            "series_number": FIRST_SERIES + place,
            "sop_instance_uid": UID(),
            "instance_number": number + 1,
        }

    yield "report.dcm", sources[0], partial(make_structured_report, result, sources, **numbers(0, 0))
    for number, finding in enumerate(result.findings):
        start = f"{number:02d}_{file_name(finding.label, 'finding')}"
        maps = result.heat_maps(number)
        yield f"{start}.dcm", sources[0], partial(make_secondary_capture, maps, sources[0], **numbers(1, number))
        names: set[str] = set()
        for scan, (heat, source) in enumerate(zip(maps, sources)):
            name = f"{start}__{unique(file_name(result.scan_names[scan], 'scan'), names)}.dcm"
            settings = numbers(scan + 2, number)
            if threshold is None:
                yield name, source, partial(make_parametric_map, heat, source, **settings)
            else:
                yield name, source, partial(make_segmentation, heat, source, threshold=threshold, **settings)


def check_threshold(threshold: float | None) -> None:
    """
    Raises:
        ValueError: it is there, and not a finite number above 0.
    """
    if threshold is not None and not 0 < threshold < float("inf"):
        raise ValueError(f"the threshold is {threshold}, expected a number above 0: times the mean attention.")


def require_highdicom() -> None:
    """
    Raises:
        ImportError: highdicom is not installed; with the name of the extra.
    """
    try:
        import highdicom  # noqa: F401  only whether it is there
    except ImportError:
        raise ImportError("DICOM objects need highdicom: pip install 'itemized-clip-hf[dicom-out]'.") from None
