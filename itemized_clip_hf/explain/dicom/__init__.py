"""Results as DICOM objects in the study that they are of, a file per object; highdicom is imported when they are written."""

from .output import DicomOutput
from .write import write_dicom

__all__ = ["DicomOutput", "write_dicom"]
