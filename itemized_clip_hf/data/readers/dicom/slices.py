"""Frames of DICOM files as slices with their geometry, and what tells them apart."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from .files import DicomFile, UnusableFileError
from .header import describe, private_b_value

# Of a multi-frame file, where a slice's header is spread over them.
_GROUPS = (
    *"PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence".split(),
    *"FrameContentSequence MREchoSequence MRDiffusionSequence MRImageFrameTypeSequence CTImageFrameTypeSequence".split(),
    *"CTReconstructionSequence MRTimingAndRelatedParametersSequence MRModifierSequence".split(),
    "CardiacSynchronizationSequence",
)


OTHER_FIELDS = (
    *"ScanningSequence SequenceVariant ScanOptions SequenceName ProtocolName KVP SliceThickness FilterType".split(),
    *"ReconstructionDiameter ImagedNucleus SeriesTime AcquisitionTime".split(),
)
"""Fields that tell volumes apart where no better one does."""


@dataclass
class Slice:
    """One frame of a file with its geometry in mm, LPS+ as DICOM has it."""

    file: DicomFile
    frame: int
    position: np.ndarray
    orientation: np.ndarray
    pixel_spacing: tuple[float, float]
    rescale: tuple[float, float] | None
    marks: dict[str, Any] = field(default_factory=dict)

    @property
    def normal(self) -> np.ndarray:
        """Unit vector (3,) across the slice, in patient coordinates (LPS)."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def height(self) -> float:
        """Position along the normal in mm."""
        return float(self.position @ self.normal)

    def fits(self, other: "Slice") -> bool:
        """Whether both may lie in one volume."""
        kind = [(s.file.header.Rows, s.file.header.Columns, s.file.header.Modality) for s in (self, other)]
        return (
            kind[0] == kind[1]
            and np.allclose(self.orientation, other.orientation, atol=2e-3)
            and np.allclose(self.pixel_spacing, other.pixel_spacing, rtol=1e-3)
        )


def list_slices(header: Dataset, file: DicomFile) -> list[Slice]:
    """The frames of a file: one for classic objects, many for enhanced ones."""
    shared = _first(header, "SharedFunctionalGroupsSequence")
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if int(header.get("NumberOfFrames", 1) or 1) > 1:
            raise UnusableFileError("it holds several frames without the position of each")
        return [_make_slice(file, 0, [header])]
    count = int(header.get("NumberOfFrames", 1) or 1)
    if count != len(frames):
        raise UnusableFileError(f"it says that it holds {count} frames and describes {len(frames)}")
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


def _first(dataset: Dataset, name: str):
    sequence = dataset.get(name) if dataset is not None else None
    return sequence[0] if sequence else None


def _make_slice(file: DicomFile, frame: int, groups: list[Any]) -> Slice:
    def find(*names: str) -> Any:
        """The first value that one of the fields has in one of the groups."""
        for name in names:
            for group in groups:
                element = group.get(name)
                value = element.value if hasattr(element, "value") else element
                if value is not None and str(value) != "":
                    return value
        return None

    position = _numbers(find, "ImagePositionPatient", 3, "position")
    orientation = _unit_vectors(_numbers(find, "ImageOrientationPatient", 6, "orientation"))
    spacing = _numbers(find, "PixelSpacing", 2, "pixel spacing")
    if not (spacing > 0).all():
        raise UnusableFileError("its pixel spacing is not positive")
    if spacing.min() < 1e-3 or spacing.max() > 1e3:
        raise UnusableFileError("its pixel spacing is damaged (PixelSpacing)")
    marks = _read_marks(file.header, find)
    return Slice(file, frame, position, orientation, (spacing[0], spacing[1]), _rescale(find), marks)


def _numbers(find: Callable[..., Any], name: str, count: int, what: str) -> np.ndarray:
    found = find(name)
    if found is None:
        raise UnusableFileError(f"it has no {what} ({name})")
    values = np.array([float(number) for number in found])
    if values.shape != (count,) or not np.isfinite(values).all() or np.abs(values).max() > 1e5:
        raise UnusableFileError(f"its {what} is damaged ({name})")
    return values


def _unit_vectors(orientation: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(orientation[:3]), np.linalg.norm(orientation[3:])
    if not np.allclose(lengths, 1, atol=1e-2) or abs(orientation[:3] @ orientation[3:]) > 1e-2:
        raise UnusableFileError(
            "its orientation is damaged (ImageOrientationPatient): not two unit vectors at a right angle"
        )
    return np.concatenate([orientation[:3] / lengths[0], orientation[3:] / lengths[1]])


def _rescale(find: Callable[..., Any]) -> tuple[float, float] | None:
    slope, intercept = find("RescaleSlope"), find("RescaleIntercept")
    if (slope is None) != (intercept is None):
        raise UnusableFileError("it has a rescale slope or intercept without the other one")
    if slope is None:
        return None
    rescale = float(slope), float(intercept)
    if not np.isfinite(rescale).all() or rescale[0] == 0:
        raise UnusableFileError(f"its voxels would be scaled by {rescale[0]} and {rescale[1]}")
    return rescale


def _read_marks(header: Dataset, find: Callable[..., Any]) -> dict[str, Any]:
    """What may tell the volumes of one series apart; texts serve to compare and are never shown."""
    direction = find("DiffusionGradientOrientation")
    kinds = [str(part) for part in list(find("FrameType", "ImageType") or [])]
    b_value = find("DiffusionBValue")
    return {
        "stack": short_number(find("StackID")),
        "echo": short_number(find("EffectiveEchoTime", "EchoTime")),
        "b_value": short_number(private_b_value(header) if b_value is None else b_value),
        "kind": "-".join(kinds[2:])[:24],
        # A CT may be put together of slices that were scanned or added up in several ways.
        "signal": "-".join(kinds[2:]) if header.Modality == "MR" else None,
        "inversion": short_number(find("InversionTime", "InversionTimes")),
        "flip": short_number(find("FlipAngle")),
        "repetition": short_number(find("RepetitionTime")),
        "trigger": short_number(find("TriggerTime", "NominalCardiacTriggerDelayTime")),
        "time": short_number(find("TemporalPositionIndex", "TemporalPositionIdentifier")),
        "kernel": _text(find("ConvolutionKernel", "ReconstructionAlgorithm")),
        "contrast": _text(find("ContrastBolusAgent")),
        "derivation": kinds[0] if kinds else None,
        "series": short_number(header.get("SeriesNumber")),
        "description": _text(describe(header)),
        "frame_of_reference": _text(header.get("FrameOfReferenceUID")),
        "acquisition": short_number(find("AcquisitionNumber")),
        "direction": None if direction is None else tuple(round(float(x), 3) for x in direction),
        **{name: _text(header.get(name)) for name in OTHER_FIELDS},
    }


def _text(value: Any) -> str | None:
    """For comparison only."""
    return None if value is None or not str(value).strip() else str(value).strip().casefold()


def short_number(value: Any) -> str | None:
    """A number as short as it can be written; anything else is dropped, since it could be free text."""
    try:
        return None if value is None else f"{float(value):g}"
    except (TypeError, ValueError):
        return None
