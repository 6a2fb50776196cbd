"""The picture of a finding as Secondary Capture Image Storage (PS3.3 A.8)."""

import io
from typing import Any

import numpy as np
from highdicom.sc import SCImage
from pydicom.dataset import Dataset

from ..maps import HeatMap
from ..plots import plot_item
from .author import Author, short_text
from .source import SourceSeries


def make_secondary_capture(maps: list[HeatMap], source: SourceSeries, author: Author, **numbers: Any) -> Dataset:
    """
    The montage that `explain` draws: slices of every scan with the attention of one finding on top.

    Args:
        maps: of the finding, one per scan.
        numbers: UIDs and numbers of the object and its series.
    """
    from PIL import Image

    montage = io.BytesIO()
    plot_item(maps, montage)
    with Image.open(montage) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    capture = SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=source.images[0].StudyInstanceUID,
        patient_orientation=("L", "P"),
        series_description=f"{maps[0].attribution.capitalize()}, pictures; research only",
        **author.equipment,
        **numbers,
    )
    # They have to be there: panels have an orientation each, and no region of the body is named.
    for name in ("PatientOrientation", "Laterality"):
        setattr(capture, name, None)
    capture.ImageComments = short_text(maps[0].item, 10000)
    return capture
