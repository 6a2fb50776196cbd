"""Prepared scans as rows of a `datasets` table, and back, and the settings that they were prepared with."""

import math
import os
from typing import Any

import numpy as np

from ...processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ...processing.scans_itemized_clip import ProcessedScan
from ..study import Scan
from .prepared import PREPARED_FIELDS, prepared_fields, require_prepared_for

DTYPES = ("uint8", "int16")
ZSTD = "/zstd"
"""Behind the type of compressed voxels. Folders prepared before have none, and both kinds stand in one table."""
MOST_BYTES = 1 << 31
"""Of one volume."""


def scan_features() -> Any:
    """
    Features of the `scans` column: one entry a prepared volume, voxels in C order of `shape` (D, H, W), little-endian. Where
    `dtype` ends in `/zstd` they are one frame of zstd: the low bytes of all voxels, then the high ones, if there are any.
    """
    from datasets import List, Value

    return List(
        {
            "name": Value("string"),
            "modality": Value("string"),
            "dtype": Value("string"),
            "shape": List(Value("int32"), length=3),
            "affine": List(Value("float64")),
            "source_shape": List(Value("int32")),
            "source_spacing": List(Value("float32")),
            "history": List(Value("string")),
            "voxels": Value("large_binary"),
        }
    )


def store_scan(scan: Scan, prepared: ProcessedScan, name: str) -> dict:
    """A row of `scans`: a volume of `standardize_scan` with the affine of its voxels -> mm in RAS+ scanner space."""
    voxels = prepared.pixel_values.numpy()
    affine = [] if scan.affine is None else (np.asarray(scan.affine, float) @ prepared.to_source).ravel().tolist()
    return {
        "name": name,
        "modality": scan.modality,
        "dtype": f"{voxels.dtype}{ZSTD}",
        "shape": list(voxels.shape),
        "affine": affine,
        "source_shape": list(scan.array.shape),
        "source_spacing": list(scan.spacing or ()),
        "history": list(scan.history),
        "voxels": _compress(voxels),
    }


def _codec():
    """Fastest level: higher ones take three times as long for 2 % less."""
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=1)


def _compress(voxels: np.ndarray) -> bytes:
    """16-bit voxels as low bytes and high bytes, which makes them a fifth smaller, and faster to write and read."""
    if voxels.dtype != np.uint8:
        words = np.ascontiguousarray(voxels, "<i2").view("<u2").ravel()
        voxels = np.stack([words.astype(np.uint8), (words >> 8).astype(np.uint8)])
    return _codec().compress(np.ascontiguousarray(voxels), asbytes=True)


def _decompress(voxels: bytes, size: int, dtype: np.dtype) -> np.ndarray:
    single = np.frombuffer(_codec().decompress(voxels, size, asbytes=True), np.uint8)
    if dtype == np.uint8:
        return single
    words = single[size // 2 :].astype("<u2")
    words <<= 8
    words |= single[: size // 2]
    return words.view(dtype)


def load_scans(rows: list[dict]) -> dict[str, Scan]:
    """The scans of a study by name, ready for the processor of the domain that they were prepared for."""
    scans = {}
    for row in rows:
        array = _voxels_of(row)
        affine = np.array(row["affine"]).reshape(4, 4) if row["affine"] else None
        scans[row["name"]] = Scan(
            array, affine, row["name"], None, row["modality"], list(row["history"]), prepared=True
        )
    return scans


def _voxels_of(row: dict) -> np.ndarray:
    """(D, H, W)."""
    name, voxels = row["dtype"].removesuffix(ZSTD), row["voxels"]
    if name not in DTYPES:
        raise ValueError(
            f"prepared scan {row['name']!r} has voxels of type {row['dtype']!r}, expected one of {DTYPES}."
        )
    dtype = np.dtype(name).newbyteorder("<")
    size = math.prod(row["shape"]) * dtype.itemsize
    if row["dtype"].endswith(ZSTD):
        if not 0 < size <= MOST_BYTES:
            raise ValueError(f"prepared scan {row['name']!r} has the shape {row['shape']}: damaged.")
        try:
            return _decompress(voxels, size, dtype).reshape(row["shape"])
        except OSError as error:
            raise ValueError(f"prepared scan {row['name']!r} cannot be decompressed: {error}") from None
    if len(voxels) != size:
        raise ValueError(
            f"prepared scan {row['name']!r} has {len(voxels) // dtype.itemsize} voxels, its shape {row['shape']} says "
            "otherwise."
        )
    return np.frombuffer(voxels, dtype).reshape(row["shape"])


def preset_of(processor: ItemizedCLIPImageProcessor) -> dict:
    """The settings that `standardize_scan` depends on."""
    names = (*PREPARED_FIELDS, "scan_size")
    return prepared_fields({name: getattr(processor, name) for name in names})


def check_prepared(folder: str | os.PathLike, processor: ItemizedCLIPImageProcessor) -> None:
    """Refuses a processor other than the one that a prepared folder was made for; other folders pass."""
    require_prepared_for(folder, preset_of(processor))
