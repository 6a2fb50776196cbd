"""A result in a notebook: the viewer of the report, with the scans and maps of this session."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from .packed import pack_map, pack_scan
from .report import report_html
from .result import StudyResult

if TYPE_CHECKING:
    from IPython.display import HTML
    from ipywidgets import VBox

HEIGHT = 420
"""Pixels of the viewer."""
LOWEST = 0.2
"""Part of a map's maximum below which it is not drawn, as in the report."""


def view(result: StudyResult, finding: int = 0, height: int = HEIGHT) -> VBox | HTML:
    """
    Findings and scans to choose from above a viewer that shows the scan with the map over it; the report's page for pictures.

    Args:
        result: from `explain_result`.
        finding: number of the finding that is shown first.
        height: pixels.

    Raises:
        ImportError: ipyniivue or IPython is not installed.
        IndexError: there is no such finding.

    Example:
        view(explain_result(model, processor, "study/", ["glioma", "acute stroke"]))
    """
    if not 0 <= finding < len(result.findings):
        raise IndexError(f"there is no finding {finding}; the result has {len(result.findings)}, counted from 0.")
    try:
        if result.is_picture:
            return _embed(report_html(result), height)
        return _volumes(result, finding, height)
    except ModuleNotFoundError as error:
        if error.name not in ("IPython", "ipyniivue", "ipywidgets"):
            raise
        raise ImportError("viewers in notebooks need ipyniivue: pip install 'itemized-clip-hf[notebook]'.") from None


def _embed(page: str, height: int) -> HTML:
    from IPython.display import HTML

    frame = f'<div><iframe sandbox="allow-scripts" style="width: 100%; height: {height}px; border: 0" srcdoc="'
    return HTML(f'{frame}{html.escape(page)}"></iframe></div>')


def _volumes(result: StudyResult, finding: int, height: int) -> VBox:
    from ipyniivue import NiiVue
    from ipywidgets import Dropdown, HBox, VBox

    labels = [(f"{one.label}: {result.quantity} {one.score:.3f}", number) for number, one in enumerate(result.findings)]
    findings = Dropdown(options=labels, value=finding, description="finding")
    scan = result.findings[finding].strongest_scan
    scans = Dropdown(options=[(name, n) for n, name in enumerate(result.scan_names)], value=scan, description="scan")
    viewer = NiiVue(height=height, is_radiological_convention=True)

    def show(_: Any = None) -> None:
        highest = float(result.findings[findings.value].attention.max())
        overlay: dict[str, Any] = {
            "colormap": "inferno",
            "opacity": 0.6,
            "cal_min": LOWEST * highest,
            "cal_max": highest,
        }
        viewer.load_volumes(
            [
                {"data": pack_scan(result, scans.value).content(), "name": "scan.nii.gz", "colormap": "gray"},
                {"data": pack_map(result, findings.value, scans.value), "name": "map.nii.gz", **overlay},
            ]
        )

    findings.observe(show, names="value")
    scans.observe(show, names="value")
    show()
    return VBox([HBox([findings, scans]), viewer])
