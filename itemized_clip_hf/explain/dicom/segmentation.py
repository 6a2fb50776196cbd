"""Where a heat map reaches a threshold, as Segmentation Storage (PS3.3 A.51): one binary segment."""

from typing import Any

from highdicom.seg import Segmentation, SegmentDescription
from highdicom.uid import UID
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ..maps import HeatMap
from .author import Author, coding_schemes, finding_code, plain_text, short_text
from .planes import describe_planes
from .source import SourceSeries


def make_segmentation(heat: HeatMap, source: SourceSeries, author: Author, threshold: float, **numbers: Any) -> Dataset:
    """
    Voxels whose attention is at least `threshold` times the mean over the study; all frames are there where none is.

    Args:
        numbers: UIDs and numbers of the object and its series.
    """
    assert heat.affine is not None  # scans of DICOM files have one
    segment = SegmentDescription(
        segment_number=1,
        segment_label=short_text(heat.item),
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=finding_code(heat.item),
        algorithm_type="AUTOMATIC",
        algorithm_identification=author.identification(),
        tracking_uid=UID(),
        tracking_id=plain_text(heat.item),
    )
    segment.SegmentDescription = (
        f"{heat.attribution.capitalize()} at least {threshold:g} times its mean; research only, not a lesion's extent"
    )
    return Segmentation(
        source_images=source.images,
        pixel_array=heat.values >= threshold,
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        content_label="ATTENTION" if heat.attribution == "attention" else "ATTRIBUTION",
        content_description=short_text(heat.item),
        series_description=short_text(
            f"{heat.attribution.capitalize()} from {threshold:g} times mean, {heat.scan_name}"
        ),
        coding_schemes=coding_schemes(),
        **describe_planes(heat.affine, heat.values.shape),
        **author.equipment,
        **numbers,
    )
