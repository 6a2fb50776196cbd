"""What a model found in one study: scores, and where it looked. Reports, tables and maps are made of it."""

import csv
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data.checks import Report
from ..evaluation.quantity import DEFAULT, MEANINGS
from ..processing.scans_itemized_clip import ProcessedScan
from .maps import HeatMap, paint_scan, source_array, source_to_token

COLUMNS = ("id", "finding", "quantity", "score", "calibrated", "scan", "share", "peak_x_mm", "peak_y_mm", "peak_z_mm")
"""Of `StudyResult.to_csv`."""


@dataclass(frozen=True)
class Finding:
    """
    One label in one study.

    Args:
        label: its name.
        prompts: its texts; the embeddings of several are averaged.
        score: of the study, in the quantity of the result.
        shares: (N,), part of the attention over the study that falls on each scan.
        attention: (N, D, H, W), attention of each token, in units of the mean over the study.
    """

    label: str
    prompts: tuple[str, ...]
    score: float
    shares: np.ndarray
    attention: np.ndarray

    @property
    def strongest_scan(self) -> int:
        """Number of the scan with the largest share."""
        return int(self.shares.argmax())


@dataclass(frozen=True)
class StudyResult:
    """
    What a model found in one study.

    Args:
        study: id of the study.
        quantity: what scores are, see `evaluation.quantity`; none of them is calibrated.
        findings: in the order of the labels.
        scans: as the model saw them.
        mean, std: by which their pixels were normalized, one number per channel.
        similarities: text-conditioned cosine of each finding, whatever the quantity.
        reports: of `data.checks`, per scan that came from a file, in the order of the scans.
        notes: what was left out, for people.
        about: model, processor and whatever else identifies the result, ready for JSON.
        attribution: what the attention of the findings is, a name of `explain.attribution.ATTRIBUTIONS`.
        windows: HU that pictures of each scan show, None: by its percentiles; of all if empty.
    """

    study: str
    quantity: str
    findings: list[Finding]
    scans: list[ProcessedScan]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    similarities: tuple[float, ...] = ()
    reports: list[Report] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    attribution: str = "attention"
    windows: tuple[tuple[float, float] | None, ...] = ()

    def __repr__(self) -> str:
        scores = ", ".join(f"{one.label!r} {one.score:.3f}" for one in self.findings[:4])
        more = ", ..." if len(self.findings) > 4 else ""
        return f"StudyResult({self.study!r}, {len(self.scans)} scans, {self.quantity}: {scores}{more})"

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of a scan (D, H, W)."""
        depth, height, width = self.findings[0].attention.shape[1:]
        return depth, height, width

    @property
    def is_picture(self) -> bool:
        """Whether the study is a picture rather than volumes."""
        return self.scans[0].pixel_values.shape[1] == 1

    @property
    def scan_names(self) -> list[str]:
        """Name of each scan; `scan 2` for the second where it has none."""
        return [scan.name or ("picture" if self.is_picture else f"scan {n + 1}") for n, scan in enumerate(self.scans)]

    def pixels(self, number: int) -> np.ndarray:
        """What the model saw of a scan, 0 to 255: uint8 (D, H, W), or (H, W, 3) of a picture."""
        values = self.scans[number].pixel_values
        channels = (len(values), 1, 1, 1)
        restored = values * torch.tensor(self.std).view(channels) + torch.tensor(self.mean).view(channels)
        array: np.ndarray = (restored.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return np.moveaxis(array[:, 0], 0, -1) if self.is_picture else array[0]

    def affine(self, number: int) -> np.ndarray | None:
        """(4, 4), indices of `pixels` -> mm in RAS+ scanner space; None without geometry."""
        depth, height, width = self.scans[number].pixel_values.shape[1:]
        return self.scans[number].token_affine((depth, height, width))

    def heat_maps(self, finding: int, order: str = "linear") -> list[HeatMap]:
        """Maps of a finding in the grid of each scan's source; see `explain_items`."""
        chosen = self.findings[finding]
        similarity = self.similarities[finding] if self.similarities else None
        maps = [
            paint_scan(
                chosen.label,
                scan,
                source_array(scan),
                chosen.attention[number],
                float(chosen.shares[number]),
                order,
                similarity,
            )
            for number, scan in enumerate(self.scans)
        ]
        for heat, window in zip(maps, self.windows or [None] * len(maps)):
            heat.window = window
            heat.quantity, heat.score, heat.attribution = self.quantity, chosen.score, self.attribution
        return maps

    def peak(self, finding: int, scan: int) -> np.ndarray | None:
        """
        Where the source's voxel with the most attention is: mm in RAS+ scanner space, its indices (d, h, w) without geometry;
        None where the map is 0 everywhere.
        """
        processed = self.scans[scan]
        tokens = self.findings[finding].attention[scan]
        if not tokens.max() > 0:
            return None
        source = source_array(processed)
        shape = (1, *source.shape[:2]) if self.is_picture else source.shape
        assert processed.to_source is not None  # only training draws have none
        matrix = source_to_token(processed.to_source, processed.pixel_values.shape[1:], tokens.shape)
        voxel = strongest_voxel(tokens, matrix, shape)
        affine = getattr(processed.source, "affine", None)
        return voxel.astype(float) if affine is None else (np.asarray(affine, float) @ [*voxel, 1.0])[:3]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: scores, shares and places, without voxels."""
        return {
            "id": self.study,
            "quantity": self.quantity,
            "meaning": MEANINGS[self.quantity],
            "calibrated": False,
            "attribution": self.attribution,
            **self.about,
            "notes": list(self.notes),
            "scans": [
                {"name": name, "has_geometry": self.affine(number) is not None}
                for number, name in enumerate(self.scan_names)
            ],
            "checks": [report.to_dict() for report in self.reports],
            "findings": [self._finding(number) for number in range(len(self.findings))],
        }

    def _finding(self, number: int) -> dict[str, Any]:
        finding = self.findings[number]
        described: dict[str, Any] = {"label": finding.label, "prompts": list(finding.prompts), "score": finding.score}
        if self.similarities and self.quantity != DEFAULT:
            described["similarity"] = self.similarities[number]
        described["scans"] = []
        for n, name in enumerate(self.scan_names):
            place, highest = self.peak(number, n), float(finding.attention[n].max())
            rounded = None if place is None else [round(float(x), 3) for x in place]
            described["scans"].append(
                {"name": name, "share": float(finding.shares[n]), "highest": highest, "peak": rounded}
            )
        return described

    def to_csv(self) -> str:
        """One row per finding and scan, `COLUMNS`; places are empty where a scan has no geometry, or nothing speaks for it."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, finding in enumerate(self.findings):
            for n, name in enumerate(self.scan_names):
                peak = None if self.affine(n) is None else self.peak(number, n)
                place = ["", "", ""] if peak is None else [f"{x:.3f}" for x in peak]
                known = [self.study, finding.label, self.quantity, repr(finding.score), "no", name]
                writer.writerow([*known, f"{finding.shares[n]:.6f}", *place])
        return stream.getvalue()


def strongest_voxel(tokens: np.ndarray, voxel_to_token: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """
    Indices (3,) of the voxel with the most attention, interpolated between the centers of tokens.

    Args:
        tokens: (D, H, W).
        voxel_to_token: (4, 4), indices of voxels -> indices of tokens.
        shape: of the voxels, (D, H, W).
    """
    center = np.array(np.unravel_index(tokens.argmax(), tokens.shape), float)
    corners = np.array([[a, b, c, 0.0] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) + [*center, 1.0]
    voxels = corners @ np.linalg.inv(voxel_to_token).T
    low = np.clip(np.floor(voxels.min(0)[:3]).astype(int), 0, np.asarray(shape) - 1)
    high = np.clip(np.ceil(voxels.max(0)[:3]).astype(int), 0, np.asarray(shape) - 1) + 1
    box = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high)), indexing="ij"), -1)
    places = box @ voxel_to_token[:3, :3].T + voxel_to_token[:3, 3]
    size = np.array(tokens.shape)
    inside = ((places >= -0.5 - 1e-4) & (places <= size - 0.5 + 1e-4)).all(-1)
    grid = torch.from_numpy((places + 0.5) / size * 2 - 1).flip(-1).float()  # faces at -1 and 1, the last axis first
    values_in = torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.float32))[None, None]
    values = F.grid_sample(values_in, grid[None], padding_mode="border", align_corners=False)[0, 0].numpy()
    strongest: np.ndarray = low + np.array(np.unravel_index(np.where(inside, values, -1).argmax(), values.shape))
    return strongest
