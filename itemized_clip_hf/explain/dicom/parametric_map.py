"""A heat map as Parametric Map Storage (PS3.3 A.75): float voxels in the space of the images that the scan was read from."""

from typing import Any

import numpy as np
from highdicom import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ..maps import HeatMap
from .author import Author, coding_schemes, own_code, short_text
from .planes import describe_planes
from .source import SourceSeries


def make_parametric_map(heat: HeatMap, source: SourceSeries, author: Author, **numbers: Any) -> Dataset:
    """
    Attention in units of its mean over the study, a frame per slice of the heat map's grid.

    Args:
        numbers: UIDs and numbers of the object and its series.
    """
    assert heat.affine is not None  # scans of DICOM files have one
    values = np.ascontiguousarray(heat.values, np.float32)
    highest = max(float(values.max()), 1.0)
    kind = "attention" if heat.attribution == "attention" else "attribution"
    mapping = RealWorldValueMapping(
        lut_label=kind,
        lut_explanation=f"{heat.attribution.capitalize()} over mean {heat.attribution} of the study",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, highest),
        slope=1.0,
        intercept=0.0,
        quantity_definition=own_code(kind),
    )
    made = ParametricMap(
        source_images=source.images,
        pixel_array=values,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=highest / 2, window_width=highest)],
        content_label=kind.upper(),
        content_description=short_text(heat.item),
        content_qualification="RESEARCH",
        series_description=short_text(f"{heat.attribution.capitalize()}, {heat.scan_name}"),
        coding_schemes=coding_schemes(),
        **describe_planes(heat.affine, values.shape),
        **author.equipment,
        **numbers,
    )
    made.Laterality = None  # has to be there, empty, where no region of the body is named
    return made
