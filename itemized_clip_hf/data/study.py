"""A study as it comes from disk: named scans with their geometry."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..processing.geometry_itemized_clip import axis_codes, axis_spacing

Visits = tuple[list[dict[str, str]], list[dict[str, str]]]
"""Digests of the fields that tell patients apart, and of those that tell studies apart."""


Stage = Literal["list", "read", "check", "process"]


@dataclass(frozen=True)
class Skipped:
    """
    What was left out of a study, or a study that was left out, and why.

    Args:
        study: its id.
        scan: name of the file, series or scan; None where it is the whole study.
        stage: where it was left out: `"list"` (its row holds no images, report or items), `"read"` (the file), `"check"`
            (refused by `data.checks`) or `"process"` (refused by the image processor).
        reason: what was found, in words that hold no patient data.
    """

    study: str | None
    scan: str | None
    stage: Stage
    reason: str

    def __str__(self) -> str:
        return f"{self.scan or self.study}: {self.reason}"


@dataclass
class Scan:
    """
    One volume.

    Args:
        array: voxels (D, H, W), depth first: slices of a DICOM series, the third axis of a NIfTI file.
        affine: (4, 4), indices of `array` -> mm in RAS+ scanner space; None where the file has no geometry.
        name: name of the series; the file's name without suffix where nothing better is known.
        path: where it was read from.
        modality: "CT", "MR" or None where the file does not say.
        history: what the reader did to it, step by step, in words that hold no patient data.
        notes: code -> what `data.checks` should know of the file beyond voxels and affine.
        private_fields: names (never values) of header fields that may identify the patient.
        prepared: it went through `ItemizedCLIPImageProcessor.standardize_scan` already.
        checked: the domain and the accepted codes that `data.open` let it pass with.
        report: what `data.checks` said of it then, a `Report`.
        visits: see `Study`; None where the file does not say whose it is.
        instances: of each slice the SOPInstanceUID of the DICOM image that it was read from, and its frame, from 0 on; by them
            the images are found again. Not for logs or results: they are numbers of a patient's images.
        place: keeps the temporary folder that it was read from, where there is one, as long as the scan is there.
    """

    array: np.ndarray
    affine: np.ndarray | None
    name: str | None = None
    path: str | None = None
    modality: str | None = None
    history: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    private_fields: tuple[str, ...] = ()
    prepared: bool = False
    checked: tuple[str | None, frozenset[str]] | None = field(default=None, compare=False, repr=False)
    report: Any = field(default=None, compare=False, repr=False)
    visits: Visits | None = field(default=None, compare=False, repr=False)
    instances: tuple[tuple[str, int], ...] = field(default=(), compare=False, repr=False)
    place: Any = field(default=None, compare=False, repr=False)

    def _repr_png_(self) -> bytes | None:
        """For notebooks: slices through the body; None where matplotlib is missing."""
        from ..explain.plots import scan_png

        return scan_png(self)

    def require_visit_of(self, other: "Scan") -> None:
        """
        Raises:
            ValueError: the headers of the two scans name different patients or studies.
        """
        if self.visits and other.visits and self.visits is not other.visits:
            refuse_other_visit(self.visits, other.visits)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel spacing in mm, depth first."""
        if self.affine is None:
            return None
        return tuple(float(step) for step in axis_spacing(self.affine))

    @property
    def orientation(self) -> str | None:
        """Directions in which depth, height and width run, e.g. "SPL": slices towards Superior, rows towards Posterior."""
        return None if self.affine is None else axis_codes(self.affine)


@dataclass
class Study:
    """
    Scans of one visit by sequence name, in the order of reading; `skipped` holds what was left out; `visits` holds
    digests of the patient and the study of DICOM files, by which `take` refuses to mix them.
    """

    scans: dict[str, Scan]
    id: str | None = None
    skipped: list[Skipped] = field(default_factory=list)
    visits: Visits | None = field(default=None, repr=False, compare=False)

    def add(self, scan: Scan) -> None:
        """Adds a scan; a name that is taken gets a number."""
        name, number = scan.name or "scan", 2
        while name in self.scans:
            name, number = f"{scan.name or 'scan'}-{number}", number + 1
        scan.name = name
        self.scans[name] = scan

    def skip(self, scan: str, reason: str) -> None:
        """Lists a file or series of the study that is left out."""
        self.skipped.append(Skipped(self.id, scan, "read", reason))

    def take(self, opened: "Scan | Study") -> None:
        """
        Adds what a file held: one scan, or several with what was skipped.

        Raises:
            ValueError: they are of another patient or study than those before.
        """
        if isinstance(opened, Study) and opened.visits:
            if self.visits:
                refuse_other_visit(self.visits, opened.visits)
            else:
                self.visits = opened.visits
        for scan in opened.scans.values() if isinstance(opened, Study) else [opened]:
            self.add(scan)
        if isinstance(opened, Study):
            self.skipped += [replace(skipped, study=self.id) for skipped in opened.skipped]


def refuse_other_visit(first: Visits, second: Visits) -> None:
    """
    Raises:
        ValueError: two `Study.visits` differ in a field that both have.
    """
    for what, ours, theirs in zip(("patients", "studies of one patient"), first, second):
        for one in ours:
            for other in theirs:
                if any(one[name] != other[name] for name in one.keys() & other.keys()):
                    raise ValueError(
                        f"the images are of several {what}, expected one: give each study a row of its own."
                    )
