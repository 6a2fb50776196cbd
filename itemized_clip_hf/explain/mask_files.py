"""Masks of studies as files: one folder per study, which a run that was stopped passes over."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import file_name, remove_parts, whole_file, write_text
from ..data.readers.nifti import write_nifti
from .masks import DrawnMask, DrawnStudy
from .plots import slug
from .studies import unique

LISTED = "masks.json"


def write_masks(folder: Path, study: str, drawn: DrawnStudy) -> list[dict[str, Any]]:
    """
    Writes the masks of a study, each file whole or not there: uint8 NIfTI in the grid of its scan, PNG (0, 255) of a picture.

    Returns:
        Per item and scan: `id`, `item`, `scan`, `file`, `voxels`, `volume_ml` (None without geometry), `share` and `score`
        (None for classes), `field`, the share of the scan that the model saw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, masks in enumerate(drawn.masks):
        names: set[str] = set()
        for index, mask in enumerate(masks):
            scan = unique(file_name(mask.scan_name or f"scan-{index}", "scan"), names)
            target = folder / f"{number:02d}_{slug(mask.item)}__{scan}{_suffix(mask.values)}"
            _write(target, mask.values, mask.affine, mask.item)
            entries.append({**_describe(mask), "id": study, "file": str(target)})
    for index, (label_map, mask) in enumerate(zip(drawn.label_maps, drawn.masks[0] if drawn.masks else [])):
        name = file_name(mask.scan_name or f"scan-{index}", "scan")
        _write(folder / f"classes__{name}{_suffix(label_map)}", label_map, mask.affine, "classes", scale=1)
    return entries


def _suffix(values: np.ndarray) -> str:
    return ".png" if values.ndim == 2 else ".nii.gz"


def _describe(mask: DrawnMask) -> dict[str, Any]:
    facts = {"item": mask.item, "scan": mask.scan_name, "voxels": int(mask.values.sum()), "volume_ml": mask.volume_ml}
    return {**facts, "share": mask.share, "score": mask.score, "field": mask.field}


def _write(target: Path, values: np.ndarray, affine: Any, description: str, scale: int = 255) -> None:
    with whole_file(target) as path:
        if values.ndim == 2:
            from PIL import Image

            Image.fromarray(values * np.uint8(scale)).save(path)
        else:
            write_nifti(path, values, affine, f"mask: {description.encode('ascii', 'replace').decode()}", (0.0, 1.0))


def list_masks(folder: Path, facts: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """masks.json, the last file of a study: `facts`, and what `write_masks` returned, files by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{**entry, "file": Path(entry["file"]).name} for entry in entries]
    write_text(folder / LISTED, json.dumps({**facts, "masks": listed}, indent=1) + "\n")


def known_masks(folder: Path, made_of: str) -> dict[str, Any] | None:
    """What an earlier run wrote into a folder, if it was the same; what it left there unfinished is removed."""
    if not folder.is_dir():
        return None
    remove_parts(folder)
    try:
        known: dict[str, Any] = json.loads((folder / LISTED).read_text(encoding="utf-8"))
        if known["made_of"] != made_of:
            return None
        known["masks"] = [{**entry, "file": str(folder / entry["file"])} for entry in known["masks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if all(Path(entry["file"]).exists() for entry in known["masks"]) else None
