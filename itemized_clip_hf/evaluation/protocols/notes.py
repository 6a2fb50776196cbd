"""Sentences that results of a protocol carry for people."""

from __future__ import annotations

from collections.abc import Mapping

from ..calibration import Calibration
from ..results import TableResult
from .schema import Protocol
from .subgroups import MIN_GROUP
from .summary import Thresholds


def protocol_notes(protocol: Protocol, thresholds: Thresholds | None, tables: Mapping[str, TableResult]) -> list[str]:
    """How thresholds and prompts were chosen, and where the studies are not as many as were published."""
    notes = []
    if protocol.findings is not None:
        chosen = "on a validation split" if thresholds is not None else "on the test labels, as the reference does"
        kind = (
            f"a grid of {protocol.threshold_points} points"
            if protocol.threshold_points
            else "all that tell scores apart"
        )
        notes.append(f"Thresholds next to the ROC corner among {kind}, chosen {chosen}.")
    if protocol.best_prompt and thresholds is None:
        notes.append("The prompt of a finding was selected by its AUC on the test labels: its figures are too good.")
    published = protocol.published.get("studies")
    largest = max(table.studies for table in tables.values())
    if published and largest != published:
        notes.append(f"{largest} studies; the published data set has {published}.")
    return notes


def calibration_notes(
    calibration: Calibration | None, tables: Mapping[str, TableResult], images_sha256: str
) -> list[str]:
    """
    What the figures of a calibration mean, or that there is none; what groups are marked.

    Args:
        images_sha256: of the studies of the evaluation.
    """
    notes = []
    held = [
        name
        for table in tables.values()
        for name, row in (table.findings or {}).items()
        if "calibration_error" in row.estimates
    ]
    if calibration is None or not held:
        notes.append("Uncalibrated: no score is a probability.")
    else:
        notes.append(
            "calibration_error is the expected calibration error in 10 even bins; as many studies show that by_chance where "
            f"nothing is wrong. sensitivity and specificity are those at the operating point {calibration.point}, both as "
            f"calibrated on {calibration.data['studies']} studies."
        )
        if calibration.data.get("sha256") == images_sha256:
            notes.append("The model was calibrated on these very studies: the figures of the calibration are too good.")
    if any(table.by for table in tables.values()):
        notes.append(
            f"Groups of fewer than {MIN_GROUP} studies are small and do not count for the gap; the interval of a gap holds for "
            "all pairs of groups at once."
        )
    return notes
