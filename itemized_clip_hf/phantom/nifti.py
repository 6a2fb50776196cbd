"""Writing phantom studies as NIfTI files with their items beside them (needs nibabel)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .reports import ZERO_SHOT_PROMPTS
from .study import PhantomStudy


def write_study(study: PhantomStudy, folder: str | os.PathLike) -> dict[str, str]:
    """
    Write ``<sequence>.nii.gz``, ``masks/item<k>_<finding>.nii.gz`` and ``items.json`` into ``folder``.

    Scans are float32 and masks uint8, both transposed to (x, y, z).

    Returns:
        sequence name to file name, relative to ``folder``; `mask_files` names the masks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name, scan in study.scans.items():
        images[name] = f"{name}.nii.gz"
        _save(scan.astype(np.float32), study.affine, folder / images[name])
    for mask, file in zip(study.masks, mask_files(study)):
        if mask is not None and file is not None:
            (folder / "masks").mkdir(exist_ok=True)
            _save(mask.astype(np.uint8), study.affine, folder / file)
    record = {"id": study.id, "items": study.items, "item_findings": study.item_findings, "labels": study.labels}
    (folder / "items.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return images


def mask_files(study: PhantomStudy) -> list[str | None]:
    """File of each item's mask, relative to the folder of the study; None for the sentence of a normal study."""
    return [
        None if mask is None else f"masks/item{index}_{finding}.nii.gz"
        for index, (finding, mask) in enumerate(zip(study.item_findings, study.masks))
    ]


def describe_study(study: PhantomStudy, images: dict[str, str], folder: str) -> dict[str, Any]:
    """
    The line of a list: "id", "images" (sequence name to path), "items", "findings" (what each item is about), "masks" (a path
    or null for each) and "absent" (prompts of the findings that the study does not have).

    Args:
        images: from `write_study`.
        folder: of the study, relative to that of the list.
    """
    return {
        "id": study.id,
        "images": {name: f"{folder}/{file}" for name, file in images.items()},
        "items": study.items,
        "findings": study.item_findings,
        "masks": [file and f"{folder}/{file}" for file in mask_files(study)],
        "absent": [ZERO_SHOT_PROMPTS[finding] for finding, present in study.labels.items() if not present],
    }


def write_dataset(dataset: Iterable[PhantomStudy], folder: str | os.PathLike) -> Path:
    """
    Write every study into ``folder/<id>`` and a ``studies.jsonl`` with one line a study.

    A line is `describe_study` and "labels".

    Returns:
        path of ``studies.jsonl``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "studies.jsonl"
    with table.open("w", encoding="utf-8") as lines:
        for study in dataset:
            images = write_study(study, folder / study.id)
            record = describe_study(study, images, study.id) | {"labels": study.labels}
            lines.write(json.dumps(record) + "\n")
    return table


def _save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
