"""DICOM folders and zips: series sorted, checked and stacked to volumes; only geometry and a cleaned description leave."""

import os
from pathlib import Path

from ...study import Study

SUFFIXES = (".dcm", ".zip")


def read(path: Path, volume_index: int | None = None) -> Study:
    """As `read_dicom`; `volume_index` is of no use here, as echoes and time points become scans of their own."""
    study = read_dicom(path)
    for scan in study.scans.values():
        scan.visits = study.visits
    return study


def read_dicom(path: str | os.PathLike[str]) -> Study:
    """Every CT and MR series below a folder or in a zip as one scan: see `dicom.study.read_dicom`."""
    _require_pydicom()
    from . import study

    return study.read_dicom(path)


def sample_visits(place: Path, known: dict[Path, set[str]] | None = None) -> set[str]:
    """Digests of the visits of the DICOM images below a folder or in a zip: see `dicom.sample.sample_visits`."""
    _require_pydicom()
    from . import sample

    return sample.sample_visits(place, known)


def _require_pydicom() -> None:
    try:
        import pydicom  # noqa: F401  only whether it is there
    except ImportError:
        raise ImportError("DICOM files need pydicom: pip install 'itemized-clip-hf[dicom]'.") from None
