"""DICOM folders and zips: series sorted, checked and stacked to volumes; only geometry and a cleaned description leave."""

try:
    import pydicom  # noqa: F401
except ImportError:
    raise ImportError("DICOM files need pydicom: pip install 'itemized-clip-hf[dicom]'.") from None

from .sample import sample_visits
from .study import read_dicom

__all__ = ["read_dicom", "sample_visits"]
