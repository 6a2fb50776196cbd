"""One study of a plan as a row of the prepared set."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....domains import load_domain
from ....processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ....processing.pictures_itemized_clip import PICTURE_SUFFIXES, open_picture
from ...checks import check_study
from ...layout import Layout, only_picture, require_one_scan
from ...readers.read import read_study
from ...study import Skipped, Study
from ..storage import scan_features, store_scan
from .plan import Plan


def features_of(plan: Plan) -> Any:
    """Columns of the result."""
    from datasets import Features, Image, List, Value

    columns: dict[str, Any] = {"id": Value("string")}
    columns |= {"image": Image()} if plan.pictures else {"scans": scan_features()}
    columns |= {"items": List(Value("string")), "is_normal": Value("bool")}
    if plan.labels:
        columns["labels"] = {label: Value("int8") for label in plan.labels}
    if any(row["label"] is not None for row in plan.rows):
        columns["label"] = Value("string")
    return Features(columns)


def prepare_study(
    row: dict,
    plan: Plan,
    processor: ItemizedCLIPImageProcessor,
    on_skipped: Callable[[Skipped], Any],
    thumbnail: bool = False,
) -> tuple[dict, dict]:
    """
    One study of a plan as a row of the result, and what the summary tells of it.

    Args:
        on_skipped: called with what is left out of the study.

    Raises:
        OSError, ValueError: nothing of it can be used.
    """
    stored: dict[str, Any] = {
        "id": row["id"],
        "items": row["items"],
        "is_normal": load_domain(plan.domain).is_normal(row["items"]),
    }
    if plan.labels:
        stored["labels"] = {label: row["labels"].get(label) for label in plan.labels}
    if row["label"] is not None:
        stored["label"] = str(row["label"])
    facts: dict[str, Any] = {
        "id": row["id"],
        "items": len(row["items"]),
        "is_normal": stored["is_normal"],
        "warnings": [],
    }
    if plan.pictures:
        stored["image"], facts["thumbnail"] = _prepare_picture(row["images"], thumbnail, plan.rule)
        return stored, facts
    study = _read_study(row, plan, on_skipped)
    for report in check_study(study, plan.domain, plan.accept):
        facts["warnings"] += [problem.code for problem in report.problems if problem.level == "warn"]
        if report.verdict == "refuse" and report.scan is not None:
            on_skipped(Skipped(row["id"], report.scan, "check", report.reason()))
            del study.scans[report.scan]
    scans: list[dict] = []
    for scan in study.scans.values():
        try:
            for standard in processor.standardize_scan(scan):
                name = standard.name or "scan"
                scans.append(store_scan(scan, standard, name))
                if thumbnail and "thumbnail" not in facts:
                    facts["thumbnail"] = _draw_slice(
                        standard.pixel_values.numpy(), load_domain(plan.domain).display_window
                    )
        except ValueError as error:
            on_skipped(Skipped(row["id"], str(scan.name), "process", str(error)))
    if not scans:
        raise ValueError("none of its scans can be used")
    stored["scans"] = scans
    facts["scans"] = [scan["name"] for scan in scans]
    return stored, facts


def _read_study(row: dict, plan: Plan, on_skipped: Callable[[Skipped], Any]) -> Study:
    """All scans of a row; what cannot be read is listed."""
    study = read_study(row["images"], row["id"], plan.volume_index, skip_unreadable=True, layout=plan.rule)
    for skipped in study.skipped:
        on_skipped(skipped)
    if not study.scans:
        raise ValueError("none of its files can be read")
    return study


def _prepare_picture(path: Any, thumbnail: bool, layout: Layout) -> tuple[dict, str | None]:
    """The file's own bytes, once they are known to decode."""
    require_one_scan(path, layout)
    if isinstance(path, str):
        path = str(only_picture(Path(path), layout) or path)
    if not isinstance(path, str) or not path.lower().endswith(PICTURE_SUFFIXES):
        raise ValueError(f"expected a picture file ({', '.join(PICTURE_SUFFIXES)})")
    data = Path(path).read_bytes()
    picture = open_picture(io.BytesIO(data))
    shown = picture.convert("RGB") if thumbnail else None
    return {"bytes": data, "path": Path(path).name}, None if shown is None else _encode(shown)


def _draw_slice(volume: np.ndarray, window: Sequence[float] | None) -> str:
    """The middle slice as a small picture: 8 bits as they are, HU in the window, or from percentile 0.5 to 99.5."""
    from PIL import Image

    plane = volume[len(volume) // 2].astype(np.float32)
    low, high = (0, 255) if volume.dtype == np.uint8 else window or np.percentile(plane, [0.5, 99.5])
    return _encode(Image.fromarray((np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)))


def _encode(picture: Any) -> str:
    picture.thumbnail((112, 112))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
