"""What a card says of a calibration."""

from pathlib import Path
from typing import Any

from ..evaluation.calibration import Calibration, load_calibration
from ..models.load import load


def calibration_of_folder(folder: Path) -> dict[str, Any]:
    """
    What the card says of a folder's `calibration.json`.

    Raises:
        ValueError: it was made with other weights or another preprocessing than lie there.
    """
    model, processor = load(folder, "cpu")
    known = load_calibration(model, processor, folder)
    return {} if known is None else describe_calibration(known)


def describe_calibration(calibration: Calibration) -> dict[str, Any]:
    """`protocol`, `studies`, `operating_point`, and a row for every finding."""
    rows = []
    for name, finding in calibration.findings.items():
        point = finding.points.get(calibration.point)
        rows.append(
            {
                "finding": name,
                "positive": finding.positive,
                "negative": finding.negative,
                "method": f"none: {finding.reason}" if finding.scaling is None else finding.scaling.method,
                "threshold": "" if point is None else f"{point.threshold.value:.4f}",
                "sensitivity": "" if point is None else point.sensitivity.format(" to "),
                "specificity": "" if point is None else point.specificity.format(" to "),
            }
        )
    about = {"protocol": calibration.title or calibration.protocol, "studies": calibration.data["studies"]}
    return {**about, "operating_point": calibration.point, "findings": rows}
