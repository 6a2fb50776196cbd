"""Scans and maps of a result as a viewer takes them: small NIfTI files of what the model saw."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..processing.geometry_itemized_clip import reorient, scaling
from .result import StudyResult

MAX_STEPS = 7
"""Steps at most that a token is divided into, along each axis."""
AXES = "LPS"
"""Directions in which the axes of a packed scan run."""


@dataclass
class PackedScan:
    """
    A scan of 8 bit whose axes run towards left, back and head.

    Args:
        array: (L, P, S).
        affine: (4, 4), its indices -> mm in RAS+ scanner space.
        to_scan: (4, 4), its indices -> those of `StudyResult.pixels`.
    """

    array: np.ndarray
    affine: np.ndarray
    to_scan: np.ndarray

    def content(self) -> bytes:
        """As a compressed NIfTI file."""
        return nifti_bytes(self.array, self.affine)


def steps_of_tokens(scan_size: Sequence[int], grid: Sequence[int]) -> list[int]:
    """Steps that a token is divided into along each axis; an odd number, so that centers of tokens stay."""
    steps = [min(voxels // tokens, MAX_STEPS) for voxels, tokens in zip(scan_size, grid)]
    return [max(count - (count + 1) % 2, 1) for count in steps]


def affine_of(result: StudyResult, number: int) -> np.ndarray:
    """Of `pixels`, with `upright` for arrays without geometry."""
    affine = result.affine(number)
    return upright() if affine is None else affine


def upright() -> np.ndarray:
    """For arrays without geometry: depth upwards, rows backwards, columns to the patient's left, 1 mm each."""
    return np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


def pack_scan(result: StudyResult, number: int, shrink: int = 1) -> PackedScan:
    """Scan `number` of a study, `shrink` times smaller along its rows and columns."""
    pixels = result.pixels(number)
    size = pixels.shape
    smaller = (size[0], *(max(n // shrink, 1) for n in size[1:]))
    if smaller != size:
        tensor = torch.from_numpy(pixels)[None, None].float()
        pixels = F.interpolate(tensor, smaller, mode="area")[0, 0].round().to(torch.uint8).numpy()
    to_scan = scaling(size, smaller)
    affine = affine_of(result, number)
    array, transform = reorient(pixels, affine @ to_scan, AXES)
    return PackedScan(array, affine @ to_scan @ transform, to_scan @ transform)


def pack_map(result: StudyResult, finding: int, number: int) -> bytes:
    """The map of a finding over scan `number` as a compressed NIfTI file, interpolated between tokens."""
    scan_size = result.scans[number].pixel_values.shape[1:]
    finer = [count * steps for count, steps in zip(result.grid, steps_of_tokens(scan_size, result.grid))]
    tokens = np.ascontiguousarray(result.findings[finding].attention[number], dtype=np.float32)
    values = F.interpolate(torch.from_numpy(tokens)[None, None], finer, mode="trilinear", align_corners=False)
    return nifti_bytes(values[0, 0].numpy(), affine_of(result, number) @ scaling(scan_size, finer))


def nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    """
    A compressed NIfTI file.

    Raises:
        ImportError: nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError:
        raise ImportError("reports of volumes need nibabel: pip install 'itemized-clip-hf[volumes]'.") from None
    image: Any = nibabel.Nifti1Image  # untyped
    return gzip.compress(image(array, affine).to_bytes(), 6, mtime=0)
