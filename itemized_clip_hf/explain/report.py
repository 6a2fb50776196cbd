"""A result as one HTML file that works from disk: findings beside a viewer of the scans with the heat map over them."""

import base64
import gzip
import io
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data.files import whole_file
from ..processing.geometry_itemized_clip import scaling
from ..version import __version__
from .result import StudyResult

VIEWER = "niivue-0.69.0.umd.js"
"""NiiVue, BSD-2-Clause, licence beside it; it is written into every report of volumes."""
MAX_BYTES = 8 << 20
"""Of all scans in a report, compressed; in-plane resolution is halved until they fit."""
FINER = 2
"""Steps that a token is divided into, along each axis, before the viewer interpolates."""


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
        "SCRIPT": (folder / "report.js").read_text(encoding="utf-8"),
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
    described["scans"] = _pictures(result) if result.is_picture else _volumes(result)
    for number, finding in enumerate(described["findings"]):
        finding["highest"] = float(result.findings[number].attention.max())
    return described


def _volumes(result: StudyResult) -> list[dict[str, Any]]:
    packed: list[bytes] = []
    for shrink in (1, 2, 4):
        packed = [_pack_scan(result, number, shrink) for number in range(len(result.scans))]
        if sum(map(len, packed)) <= MAX_BYTES:
            break
    return [
        {
            "name": result.scan_names[number],
            "geometry": result.affine(number) is not None,
            "volume": _text(packed[number]),
            "maps": [_text(_pack_map(result, k, number)) for k in range(len(result.findings))],
        }
        for number in range(len(result.scans))
    ]


def _pack_scan(result: StudyResult, number: int, shrink: int) -> bytes:
    pixels = result.pixels(number)
    affine = result.affine(number)
    affine = upright() if affine is None else affine
    size = pixels.shape
    smaller = (size[0], *(max(n // shrink, 1) for n in size[1:]))
    if smaller != size:
        tensor = torch.from_numpy(pixels)[None, None].float()
        pixels = F.interpolate(tensor, smaller, mode="area")[0, 0].round().to(torch.uint8).numpy()
        affine = affine @ scaling(size, smaller)
    return _nifti(pixels, affine)


def _pack_map(result: StudyResult, finding: int, number: int) -> bytes:
    tokens = result.findings[finding].attention[number]
    finer = tuple(n * FINER for n in tokens.shape)
    tensor = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.float32))[None, None]
    values = F.interpolate(tensor, finer, mode="trilinear", align_corners=False)[0, 0].numpy()
    affine = result.scans[number].token_affine(finer)
    if affine is None:
        affine = upright() @ scaling(result.scans[number].pixel_values.shape[1:], finer)
    return _nifti(values.astype(np.float32), affine)


def upright() -> np.ndarray:
    """For arrays without geometry: depth upwards, rows backwards, columns to the patient's left, 1 mm each."""
    return np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


def _nifti(array: np.ndarray, affine: np.ndarray) -> bytes:
    try:
        import nibabel
    except ImportError:
        raise ImportError("reports of volumes need nibabel: pip install 'itemized-clip-hf[volumes]'.") from None
    image: Any = nibabel.Nifti1Image  # untyped
    return gzip.compress(image(array, affine).to_bytes(), 6, mtime=0)


def _pictures(result: StudyResult) -> list[dict[str, Any]]:
    from PIL import Image

    entries = []
    for number in range(len(result.scans)):
        stream = io.BytesIO()
        Image.fromarray(result.pixels(number)).save(stream, "PNG")
        maps = [one.attention[number, 0].round(3).tolist() for one in result.findings]
        entries.append({"name": result.scan_names[number], "image": _text(stream.getvalue()), "maps": maps})
    return entries


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
