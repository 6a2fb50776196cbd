"""What can be wrong with a scan before a model sees it: orientation, spacing, coverage, units, and what to do about it."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..domains import Domain, load_domain
from ..processing.geometry_itemized_clip import axis_spacing
from .masks import mask_reason
from .study import Scan, Study

LEVELS = ("note", "warn", "refuse")
VERDICTS = ("ok", "warn", "refuse")
_MAX_SAMPLE = 60_000


@dataclass
class Problem:
    """One thing found in a scan or study: a code for `accept`, how bad it is, what was found and what to do."""

    code: str
    level: str
    found: str
    advice: str


@dataclass
class Report:
    """What was found in one scan, with its facts; `scan` is None for what concerns the study as a whole."""

    scan: str | None
    facts: dict[str, Any]
    problems: list[Problem]

    @property
    def verdict(self) -> str:
        """`"ok"`, `"warn"` or `"refuse"`; notes leave it at ok."""
        worst = max((LEVELS.index(problem.level) for problem in self.problems), default=0)
        return VERDICTS[worst]

    def reason(self) -> str:
        """The refusals in one line."""
        return "; ".join(f"{p.found} [{p.code}]: {p.advice}" for p in self.problems if p.level == "refuse")

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "scan": self.scan,
            "verdict": self.verdict,
            **self.facts,
            "problems": [asdict(p) for p in self.problems],
        }


def check_scan(scan: Scan, domain: str | None = None, accept: Iterable[str] = ()) -> Report:
    """
    Every check that one scan allows.

    Args:
        scan: as it was read.
        domain: what it is meant for, by name or file; without it only the checks that hold for every volume, and those of its
            own modality.
        accept: codes that are reported but no longer refused.
    """
    problems: list[Problem] = []

    def add(code: str, level: str, found: str, advice: str):
        if level == "refuse" and code in set(accept):
            level = "warn"
        problems.append(Problem(code, level, found, advice))

    facts = _facts(scan)
    meant = load_domain(domain) if domain else None
    if _check_voxels(scan, add):
        _check_intensities(scan, meant, add, facts)
    if scan.affine is None:
        add(
            "no-geometry",
            "warn",
            "the file holds no geometry",
            "it is taken as stored, depth first; check a heat map by eye",
        )
    else:
        _check_geometry(scan, meant, add, facts)
    if scan.private_fields:
        found = f"the header holds {', '.join(scan.private_fields)}"
        add(
            "private-fields",
            "note",
            found,
            "they never leave the reader; remove them before the file itself is passed on",
        )
    return Report(scan.name, facts, problems)


def check_study(study: Study, domain: str | None = None, accept: Iterable[str] = ()) -> list[Report]:
    """Reports of all scans; then of the study, if there is something to say of it: repeats, missing and left out series."""
    reports = [check_scan(scan, domain, accept) for scan in study.scans.values()]
    problems: list[Problem] = []
    _warn_of_stripped_neighbors(study, reports)
    for first, second in _repeats(list(study.scans.values())):
        found = f"{first} and {second} hold the same voxels"
        problems.append(
            Problem("repeated-scan", "warn", found, "leave one of them out: repeats get too much attention")
        )
    if domain and (expected := load_domain(domain).expected_series):
        names = " ".join(str(name).lower() for name in study.scans)
        missing = [kind for kind, words in expected.items() if not any(word in names for word in words)]
        if missing:
            found = f"no series is named like {', '.join(missing)}"
            problems.append(Problem("missing-series", "note", found, "findings that only they show will be missed"))
    for skipped in study.skipped:
        if skipped.reason.startswith(_NO_LOSS):
            level, advice = "note", "nothing, unless it should have been used"
        else:
            level, advice = "warn", "findings that only it shows will be missed: repair or convert it, or take it away"
        problems.append(Problem("left-out", level, str(skipped), advice))
    if problems:
        reports.append(Report(None, {}, problems))
    return reports


_NO_LOSS = (
    "it is a localizer",
    "it is a projection",
    "it is a secondary capture",
    "it is not a DICOM file",
    "its modality is",
    "another file holds the same image",
    "another slice of the series holds the same image",
    "a zip beside volume files",
    "a folder beside volume files",
)
"""Reasons for which something is left out of every study and nothing of the patient is missed."""


def _facts(scan: Scan) -> dict[str, Any]:
    array = scan.array
    facts: dict = {
        "modality": scan.modality,
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "history": list(scan.history),
    }
    if scan.affine is not None:
        facts["orientation"] = scan.orientation
        facts["spacing_mm"] = [round(step, 4) for step in scan.spacing or ()]
        facts["extent_mm"] = [round(step * count, 1) for step, count in zip(scan.spacing or (), array.shape)]
    return facts


def _check_voxels(scan: Scan, add: Callable[..., None]) -> bool:
    """Whether there are intensities to look at."""
    array = scan.array
    lowest, highest = array.min(), array.max()
    if not np.isfinite(lowest) or not np.isfinite(highest):
        found = f"{int(array.size - np.isfinite(array).sum())} of {array.size} voxels are NaN or infinite"
        add("not-finite", "refuse", found, "replace them by a value that means air or background")
        return False
    if lowest == highest:
        add("constant", "refuse", f"every voxel is {array.flat[0]}", "convert the series again")
        return False
    reason = mask_reason(array)
    if reason:
        add("mask", "refuse", f"it looks like a mask: {reason}", "leave it out")
        return False
    return True


def _check_intensities(scan: Scan, domain: Domain | None, add: Callable[..., None], facts: dict[str, Any]) -> None:
    if scan.prepared:
        return
    array = scan.array
    step = max(int(round((array.size / _MAX_SAMPLE) ** (1 / 3))), 1)
    sample = np.asarray(array[::step, ::step, ::step], dtype=np.float32).ravel()
    low, middle, high = (float(value) for value in np.percentile(sample, [0.5, 50, 99.5]))
    facts["intensity"] = {"p0.5": low, "median": middle, "p99.5": high}
    expected = domain.modality if domain else None
    if domain and {scan.modality, expected} == {"CT", "MR"}:
        add("modality", "refuse", f"it is {scan.modality}", f"the domain {domain.name} takes the other kind")
    elif scan.modality == "CT" or expected == "CT":
        _check_ct(scan, domain, sample, low, high, add)
    elif domain and expected == "MR":
        _check_mr(scan, domain, sample, low, high, add)
    elif domain is None and scan.modality is None and not _plausible_hu(sample):
        advice = "name the domain, for the checks of its units"
        if low < -0.02 * high:
            found = f"values {low:.2f} to {high:.2f} are neither Hounsfield units nor raw MR intensities"
            add("units", "warn", found, advice)
        else:
            add("units", "note", "the file does not say whether it is CT or MR", advice)


def _check_ct(
    scan: Scan, domain: Domain | None, sample: np.ndarray, low: float, high: float, add: Callable[..., None]
) -> None:
    """Whether values are Hounsfield units, of the part of the body that the domain is about."""
    if scan.array.dtype == np.uint8:
        add("not-hu", "refuse", "its voxels have 8 bits, which cannot be HU", "convert the original series again")
    elif (problem := hu_problem(sample)) is not None:
        code, found, advice = problem
        if code == "inverted" and "no-rescale" in scan.notes:
            code, found, advice = "missing-rescale", scan.notes["no-rescale"], _MISSING_RESCALE
        add(code, "refuse", f"values {low:.0f} to {high:.0f}: {found}", advice)
    elif "no-rescale" in scan.notes:
        add("no-rescale", "warn", scan.notes["no-rescale"], "the values are plausible HU, taken as they are")
    if (other_part := body_part_problem(scan, domain)) is not None:
        add("body-part", "warn", *other_part)


def _check_mr(
    scan: Scan, domain: Domain, sample: np.ndarray, low: float, high: float, add: Callable[..., None]
) -> None:
    """Whether values are raw intensities of a head with its skull."""
    if scan.modality is None and _plausible_hu(sample):
        found = f"it looks like CT: values {low:.0f} to {high:.0f}, air and tissue at their Hounsfield units"
        add("modality", "refuse", found, f"the domain {domain.name} takes MR")
    elif low < -0.02 * high:
        found = f"not raw intensities: values {low:.2f} to {high:.2f}, MR magnitudes are not negative"
        advice = "use the series before normalization; or accept it, if skull and background are as in training"
        add("not-raw", "refuse", found, advice)
    elif (sample == 0).mean() > _STRIPPED_SHARE and _has_hard_edge(sample):
        add("skull-stripped", "warn", "most voxels are exactly 0: it looks skull-stripped", _STRIPPED_ADVICE)


def hu_problem(sample: np.ndarray) -> tuple[str, str, str] | None:
    """
    Why values are not Hounsfield units: (code, found, advice); None where they are plausible.

    A scan of a body in HU has voxels in the range of soft tissue (-150 to 150 HU) and of air (-1100 to -850 HU).
    """
    if _plausible_hu(sample):
        return None
    for code, shifts, sign, found, advice in _WRONG_SCALES:
        for shift in shifts:
            moved = sign * sample + shift
            # Without negative values, air lies at 0, however little of it there is.
            unsigned = code == "missing-rescale" and sample.min() >= -100
            if _plausible_hu(moved) and (unsigned or _most_common(moved) < -850):
                return code, found, advice
    if sample.min() >= 0 and sample.max() <= 255:
        return "not-hu", "they are windowed already", "use the original series"
    return "not-hu", "not in Hounsfield units", "use the original series with its rescale slope and intercept"


_MISSING_RESCALE = "apply the header's intercept (-1024) once"
_WRONG_SCALES = (
    (
        "missing-rescale",
        (-1024, -1000),
        1,
        "air lies at 0, tissue near 1024",
        _MISSING_RESCALE,
    ),
    (
        "double-rescale",
        (1024, 1000),
        1,
        "air lies near -2048, tissue near -1024",
        "the intercept was applied twice: add 1024",
    ),
    ("inverted", (0, -1024, 1024), -1, "air is brighter than bone", "negate the values"),
)


def body_part_problem(scan: Scan, domain: Domain | None) -> tuple[str, str] | None:
    """
    Whether a CT shows another part of the body than the domain's, by the volume of its voxels with the density of lung (-900 to
    -600 HU), of which a chest holds liters and a head none but sinuses and the edges of skin: (found, advice).
    """
    if domain is None or domain.lung_volume is None or scan.affine is None or scan.prepared or scan.modality == "MR":
        return None
    array = scan.array[::2, ::2, ::2]
    if array.dtype == np.uint8:
        return None
    liters = 8 * float(((array > -900) & (array < -600)).sum()) * float(np.prod(scan.spacing or ())) / 1e6
    least, most = domain.lung_volume
    if most is not None and liters > most:
        return f"it looks like a chest: {liters:.1f} liters of the density of lung", "use a model of domain chest-ct"
    if least is not None and liters < least:
        return (
            f"no chest is seen: {liters:.1f} liters of the density of lung",
            "use a model of the part that was scanned",
        )
    return None


def _plausible_hu(values: np.ndarray) -> bool:
    tissue = float(((values > -150) & (values < 150)).mean())
    air = float(((values > -1100) & (values < -850)).mean())
    between = float(((values > -850) & (values < -150)).mean())
    beyond = float((values < -1100).mean())
    bright = float((values > 400).mean())
    return tissue > 0.02 and air > 0.005 and bright < 0.35 and beyond < 0.6 and tissue > 0.15 * between


def _most_common(values: np.ndarray) -> float:
    counts, edges = np.histogram(values, bins=128)
    return float(edges[int(counts.argmax())])


def _warn_of_stripped_neighbors(study: Study, reports: list[Report]) -> None:
    """One mask strips all series of a study, and shows in the contrast of some only: the others are told by its shape."""
    known: list[np.ndarray] = []
    others: list[tuple[np.ndarray, Report]] = []
    for scan, report in zip(study.scans.values(), reports):
        if any(problem.code == "skull-stripped" for problem in report.problems):
            known.append(scan.array == 0)
        else:
            others.append((scan.array, report))
    for array, report in others if known else ():
        outside = array == 0
        if outside.mean() > _STRIPPED_SHARE and any(
            mask.shape == outside.shape and (mask == outside).mean() > 0.99 for mask in known
        ):
            found = "its zeros are those of a series of the study that looks skull-stripped"
            report.problems.append(Problem("skull-stripped", "warn", found, _STRIPPED_ADVICE))


_STRIPPED_SHARE = 0.6
"""Share of voxels that are exactly 0, at least, where the skull was taken away."""
_STRIPPED_ADVICE = "use the series with the skull, as in training, or expect other scores"


def _has_hard_edge(sample: np.ndarray) -> bool:
    """Whether background is exactly 0 and ends abruptly, as after a mask, rather than in noise."""
    inside = sample[sample > 0]
    return len(inside) > 0 and float(np.percentile(inside, 1)) > 0.05 * float(np.percentile(inside, 99))


def _check_geometry(scan: Scan, domain: Domain | None, add: Callable[..., None], facts: dict[str, Any]) -> None:
    for code, (level, advice) in _NOTES.items():
        if code in scan.notes:
            add(code, level, scan.notes[code], advice)
    affine = np.asarray(scan.affine, float)
    spacing = axis_spacing(affine)
    if spacing.max() > 20 or spacing.min() < 0.05:
        found = f"voxels of {' x '.join(f'{step:.3g}' for step in spacing)} mm"
        add("spacing", "refuse", found, "check the units of the header: these are not millimeters")
    elif spacing.max() > 10:
        add("spacing", "warn", f"slices {spacing.max():.1f} mm apart", "small findings lie between them")
    directions = affine[:3, :3] / spacing
    skew = np.abs(directions.T @ directions - np.eye(3)).max()
    if skew > 0.02:
        found = f"its axes are not at right angles (off by {np.degrees(np.arcsin(min(skew, 1))):.1f} degrees)"
        add("sheared", "refuse", found, "resample it to an upright grid, or read the DICOM series instead")
    oblique = float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), -1, 1))).max())
    facts["oblique_degrees"] = round(oblique, 1)
    if oblique > 30:
        found = f"slices are turned by {oblique:.0f} degrees against the scanner's axes"
        add("oblique", "warn", found, "voxels are not resampled for it; the model sees it turned")
    if min(scan.array.shape) < 8:
        add("few-slices", "warn", f"only {min(scan.array.shape)} slices", "check that the series is complete")
    if domain and (usual := domain.coverage):
        extent = dict(zip(scan.orientation or "", spacing * np.array(scan.array.shape)))
        axial = next(length for code, length in extent.items() if code in "SI")
        others = [length for code, length in extent.items() if code not in "SI"]
        outside = [length for length in others if not usual["across"][0] <= length <= usual["across"][1]]
        if outside or not usual["head_to_foot"][0] <= axial <= usual["head_to_foot"][1]:
            across = " x ".join(f"{length:.0f}" for length in others)
            found = f"it covers {axial:.0f} mm from head to foot and {across} mm across"
            add(
                "coverage",
                "warn",
                found,
                f"unusual for {domain.name}: check units and that the whole region was scanned",
            )


_NOTES = {
    "orientation-unknown": ("refuse", "left and right may be swapped: convert the original series again"),
    "two-orientations": ("refuse", "one of them is wrong: convert the original series again"),
    "two-spacings": ("warn", "check the size of a heat map against the anatomy"),
    "qform": ("note", "its sform was used"),
    "uneven": ("warn", "values between the slices are interpolated"),
    "tilted": ("note", "nothing; heat maps lie on the upright grid"),
    "shifted": ("warn", "the patient may have moved between slices: look at a sagittal view"),
    "lost-slices": ("warn", "export the series again"),
}


def _repeats(scans: list[Scan]) -> Iterable[tuple[str | None, str | None]]:
    for number, first in enumerate(scans):
        for second in scans[number + 1 :]:
            if first.array.shape == second.array.shape and np.array_equal(first.array, second.array):
                yield first.name, second.name
