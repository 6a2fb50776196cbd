"""A calibration for people."""

from .calibrate import Calibrated
from .calibration import CalibratedFinding
from .text_table import format_table


def format_calibration(result: Calibrated) -> str:
    """Findings with their method and operating point, as plain text."""
    calibration = result.calibration
    header = ["", "positive", "negative", "method", "probability at", "sensitivity (%)", "specificity (%)"]
    rows = [[name, *_row(finding, calibration.point)] for name, finding in calibration.findings.items()]
    lines = [
        calibration.title or calibration.protocol,
        "",
        f"{calibration.data['studies']} studies",
        format_table(header, rows),
    ]
    reasons = {name: finding.reason for name, finding in calibration.findings.items() if finding.reason}
    lines += [f"not calibrated: {name}: {reason}" for name, reason in reasons.items()]
    lines += ["", f"Yes from the operating point {calibration.point} on; 95 % intervals over studies."]
    if result.missing:
        lines.append(f"without images: {len(result.missing)} studies, e.g. {', '.join(result.missing[:5])}")
    lines += [f"could not be read: {one['id']}: {one['reason']}" for one in result.unreadable[:5]]
    if len(result.unreadable) > 5:
        lines.append(f"could not be read: {len(result.unreadable)} studies in all")
    return "\n".join([*lines, *result.notes])


def _row(finding: CalibratedFinding, name: str) -> list[str]:
    method = "none" if finding.scaling is None else finding.scaling.method
    point = finding.points.get(name)
    about = [str(finding.positive), str(finding.negative), method]
    if point is None:
        return [*about, "-", "-", "-"]
    at = "-" if finding.scaling is None else f"{finding.scaling.probability([point.threshold.value])[0]:.2f}"
    return [*about, at, point.sensitivity.format(), point.specificity.format()]
