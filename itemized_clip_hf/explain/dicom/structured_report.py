"""Scores of a study as Comprehensive 3D SR Storage (PS3.3 A.35.13), by template TID 1500 (PS3.16), a group per finding."""

from typing import Any

import numpy as np
from highdicom import sr
from highdicom.uid import UID
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ...version import __version__
from ..result import StudyResult
from .author import LPS, NAME, STATEMENT, Author, coding_schemes, finding_code, own_code, plain_text
from .source import SourceSeries


def make_structured_report(result: StudyResult, sources: list[SourceSeries], author: Author, **numbers: Any) -> Dataset:
    """
    Per finding its text, its score at the place of the most attention, and the share of the attention on every series.

    Args:
        sources: of each scan of the result.
        numbers: UIDs and numbers of the object and its series.
    """
    equipment = author.equipment
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=UID(),
        name=NAME,
        manufacturer_name=equipment["manufacturer"],
        model_name=f"{NAME} {__version__}",
        serial_number=author.model,
    )
    observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=[_group(result, number, sources, author) for number in range(len(result.findings))],
        title=codes.DCM.ImagingMeasurementReport,
    )
    report[0].ContentSequence.append(
        sr.TextContentItem(name=codes.DCM.Comment, value=STATEMENT, relationship_type="CONTAINS")
    )
    evidence = {id(source): source for source in sources}.values()
    return sr.Comprehensive3DSR(
        evidence=[image for source in evidence for image in source.images],
        content=report,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description="Scores of findings; research only, not calibrated",
        coding_schemes=coding_schemes(),
        **equipment,
        **numbers,
    )


def _group(result: StudyResult, number: int, sources: list[SourceSeries], author: Author) -> Any:
    """One finding: its code and text, the algorithm, the score and the shares."""
    finding = result.findings[number]
    series: dict[int, list[int]] = {}  # the windows of one series are looked at together
    for scan, source in enumerate(sources):
        series.setdefault(id(source), []).append(scan)
    shares = {max(scans, key=lambda scan: finding.shares[scan]): scans for scans in series.values()}
    points = {scan: _point(result, number, scan) for scan in {finding.strongest_scan, *shares}}
    strongest = finding.strongest_scan
    measurements = [_measurement(own_code(result.quantity), finding.score, points[strongest], sources[strongest])]
    for best, scans in shares.items():
        share = float(sum(finding.shares[scan] for scan in scans))
        measurements.append(_measurement(own_code("share"), share, points[best], sources[best]))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=UID(), identifier=plain_text(finding.label)),
        finding_category=own_code("finding"),
        finding_type=finding_code(finding.label),
        algorithm_id=sr.AlgorithmIdentification(
            name=NAME,
            version=__version__,
            parameters=[f"{name}={value}" for name, value in author.parameters.items()],
        ),
        measurements=measurements,
    )


def _point(result: StudyResult, finding: int, scan: int) -> np.ndarray | None:
    """(3,) in LPS mm; None where nothing in the scan speaks for the finding."""
    peak = result.peak(finding, scan)
    return None if peak is None else np.asarray(LPS[:3, :3] @ peak)


def _measurement(name: sr.CodedConcept, value: float, point: np.ndarray | None, source: SourceSeries) -> sr.Measurement:
    if point is None:
        return sr.Measurement(name=name, value=float(value), unit=codes.UCUM.NoUnits)
    image, frame = source.nearest(point)
    return sr.Measurement(
        name=name,
        value=float(value),
        unit=codes.UCUM.NoUnits,
        referenced_images=[
            sr.SourceImageForMeasurement(image.SOPClassUID, image.SOPInstanceUID, None if frame is None else [frame])
        ],
        referenced_coordinates=[
            sr.CoordinatesForMeasurement3D(
                graphic_type=sr.GraphicTypeValues3D.POINT,
                graphic_data=point[None],
                frame_of_reference_uid=source.frame_of_reference,
            )
        ],
    )
