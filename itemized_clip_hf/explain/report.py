"""A result as one HTML file that works from disk: findings beside a viewer of the scans with the heat map over them."""

import base64
import io
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import whole_file
from ..processing.geometry_itemized_clip import axis_spacing, scaling
from ..version import __version__
from .packed import PackedScan, affine_of, nifti_bytes, pack_scan, steps_of_tokens
from .result import StudyResult

VIEWER = "niivue-0.69.0.umd.js"
"""NiiVue, BSD-2-Clause, its license beside it; it is written into every report of volumes."""
SCRIPTS = ("maps.js", "panels.js", "montage.js", "report.js")
MAX_BYTES = 8 << 20
"""Of all scans in a report, compressed; in-plane resolution is halved until they fit."""


def write_report(path: str | os.PathLike[str], result: StudyResult, title: str | None = None) -> Path:
    """
    Writes the report of one study.

    Args:
        path: of the HTML file, which is written whole or not at all.
        result: from `explain_result`.
        title: heading; the id of the study if None.

    Returns:
        the path.
    """
    content = report_html(result, title)
    with whole_file(path) as part:
        Path(part).write_text(content, encoding="utf-8")
    return Path(path)


def report_html(result: StudyResult, title: str | None = None) -> str:
    """The report as text: nothing in it is fetched from anywhere."""
    content = json.dumps({"title": title or result.study, **_content(result)}, ensure_ascii=True)
    folder = files("itemized_clip_hf.explain") / "viewer"
    parts = {
        "STYLE": (folder / "report.css").read_text(encoding="utf-8"),
        "VIEWER": "" if result.is_picture else (folder / VIEWER).read_text(encoding="utf-8"),
        "SCRIPT": "".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "CONTENT": content.replace("<", "\\u003c"),  # nothing that a name holds ends the script
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"{{{{{name}}}}}", text, 1)
    return page


def _content(result: StudyResult) -> dict[str, Any]:
    described = result.to_dict()
    described["version"] = __version__
    described["picture"] = result.is_picture
    described["grid"] = list(result.grid)
    described["scans"] = _pictures(result) if result.is_picture else _volumes(result)
    for number, finding in enumerate(described["findings"]):
        attention = result.findings[number].attention
        finding["highest"] = float(attention.max())
        for n, scan in enumerate(finding["scans"]):
            scan["tokens"] = _text(np.ascontiguousarray(attention[n], dtype="<f4").tobytes())
    return described


def _volumes(result: StudyResult) -> list[dict[str, Any]]:
    for shrink in (1, 2, 4):
        packed = [pack_scan(result, number, shrink) for number in range(len(result.scans))]
        contents = [one.content() for one in packed]
        if sum(map(len, contents)) <= MAX_BYTES:
            break
    return [_describe(result, number, packed[number], contents[number]) for number in range(len(packed))]


def _describe(result: StudyResult, number: int, packed: PackedScan, content: bytes) -> dict[str, Any]:
    scan_size = result.scans[number].pixel_values.shape[1:]
    voxel_to_token = np.linalg.inv(scaling(scan_size, result.grid)) @ packed.to_scan
    token_to_voxel = np.linalg.inv(voxel_to_token)
    finer = steps_of_tokens(scan_size, result.grid)
    fine_grid = tuple(count * steps for count, steps in zip(result.grid, finer))
    peaks = []
    for finding in result.findings:
        tokens = finding.attention[number]
        center = (np.array(tokens.shape) - 1) / 2
        place = np.unravel_index(tokens.argmax(), tokens.shape) if tokens.max() > 0 else center
        peaks.append((token_to_voxel @ [*place, 1.0])[:3].tolist())
    overlay = nifti_bytes(np.zeros(fine_grid, np.float32), affine_of(result, number) @ scaling(scan_size, fine_grid))
    return {
        "name": result.scan_names[number],
        "geometry": result.affine(number) is not None,
        "volume": _text(content),
        "overlay": _text(overlay),
        "white": int(max(np.percentile(packed.array[packed.array > 0], 99.5), 64)) if packed.array.any() else 255,
        "size": list(packed.array.shape),
        "spacing": axis_spacing(packed.affine).tolist(),
        "finer": finer,
        "voxel_to_token": voxel_to_token[:3].tolist(),
        "mm_to_token": (voxel_to_token @ np.linalg.inv(packed.affine))[:3].tolist(),
        "peaks": peaks,
    }


def _pictures(result: StudyResult) -> list[dict[str, Any]]:
    from PIL import Image

    entries = []
    for number in range(len(result.scans)):
        stream = io.BytesIO()
        Image.fromarray(result.pixels(number)).save(stream, "PNG")
        entries.append({"name": result.scan_names[number], "image": _text(stream.getvalue())})
    return entries


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
