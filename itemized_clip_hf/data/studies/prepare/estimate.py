"""How much a prepared folder takes, before any of it is read."""

import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ....processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ...kinds import is_volume, study_name, volume_suffixes
from ...scan_names import is_called_mask
from ...study import Scan
from .plan import Plan

SAMPLE = 200
"""Studies whose files are counted; of more, evenly spread ones stand for all."""


@dataclass(frozen=True)
class SizeEstimate:
    """
    Args:
        scans: number of volumes or pictures.
        num_bytes: of all of them before compression, which leaves a sixth to a half.
        free: bytes on the disk of the result.
        pictures: they are stored as they are.
    """

    scans: int
    num_bytes: int
    free: int
    pictures: bool = False

    def __str__(self) -> str:
        if self.pictures:
            text = f"pictures: {self.scans:,}; about {show_bytes(self.num_bytes)}, stored as they are"
        else:
            text = (
                f"volumes: {self.scans:,}; at most about {show_bytes(self.num_bytes)} before compression, which usually leaves "
                "half of chest CT, a third of MRI and a sixth of head CT"
            )
        return text + (f". Only {show_bytes(self.free)} are free there." if self.num_bytes > self.free else "")


def show_bytes(number: float) -> str:
    """`3.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def estimate_size(plan: Plan, output: str | os.PathLike[str]) -> SizeEstimate:
    """Size of the result of a plan: scans x voxels x bytes, by the names of files and what one volume of the domain takes."""
    place = Path(output).absolute()
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    rows = plan.rows
    if len(rows) > SAMPLE:
        rows = [rows[number] for number in np.linspace(0, len(rows) - 1, SAMPLE).astype(int)]
    scale = len(plan.rows) / len(rows)
    if plan.pictures:
        sizes = [os.path.getsize(row["images"]) for row in rows if os.path.isfile(str(row["images"]))]
        return SizeEstimate(len(plan.rows), round(scale * sum(sizes)), free, True)
    views, size = bytes_of_a_scan(plan.image_processor())
    scans = round(scale * sum(count_scans(row["images"]) for row in rows))
    return SizeEstimate(scans * views, scans * size, free)


def bytes_of_a_scan(processor: ItemizedCLIPImageProcessor) -> tuple[int, int]:
    """Volumes that are stored of one scan and their bytes, found with a small one that covers the model's field of view."""
    shape = (8, 16, 16)
    steps = np.asarray(processor.scan_size) * np.asarray(processor.spacing or (1, 1, 1)) / shape
    affine = np.eye(4)
    affine[:3, :3] = np.diag(steps)[:, ::-1]
    values = np.random.default_rng(0).uniform(-1000, 1000, shape).astype(np.float32)
    volumes = [stored.pixel_values for stored in processor.standardize_scan(Scan(values, affine, "AX"))]
    return len(volumes), sum(volume.numel() * volume.element_size() for volume in volumes)


def count_scans(images: Any) -> int:
    """Scans that paths of a study hold, as far as names tell: a file is a volume, a folder of DICOM files a series."""
    if isinstance(images, dict):
        return sum(count_scans(image) for image in images.values())
    if isinstance(images, list):
        return sum(count_scans(image) for image in images)
    path = Path(str(images))
    if path.is_dir():
        beside = [file for file in path.iterdir() if is_volume(file) and not is_called_mask(study_name(file))]
        if beside:  # what lies in folders next to them is left alone
            return len(beside)
        names = [str(Path(folder) / file) for folder, _, files in os.walk(path) for file in files]
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    else:
        return 1
    files = [PurePosixPath(name) for name in names if not PurePosixPath(name).name.startswith(".")]
    slices = {file.parent for file in files if file.suffix.lower() in ("", ".dcm")}
    volumes = [
        file for file in files if file.suffix.lower() != ".dcm" and file.name.lower().endswith(volume_suffixes())
    ]
    return max(len(volumes) + len(slices), 1)
