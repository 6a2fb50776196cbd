"""The one way in: whoever opens a file or takes a scan, shell or Python, has it read and checked here."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..processing.pictures_itemized_clip import open_picture
from .checks import Report, check_scan
from .codes import REFUSALS, known_codes
from .dicomweb import is_study_url
from .layout import Layout, only_picture
from .study import Scan, Study

__all__ = ["REFUSALS", "Warnings", "known_codes", "open_image", "require_usable"]

logger = logging.get_logger(__name__)


class Warnings:
    """
    Gives the warnings about scans: each kind in full for the first scan that has it, then by count, at 10, 100, 1,000 scans ...

    Args:
        write: called with each line; the package's logger if None.
    """

    def __init__(self, write: Callable[[str], Any] | None = None):
        self.write = write or logger.warning
        self.counts: Counter[str] = Counter()

    def __call__(self, report: Report, where: str) -> None:
        """Gives the warnings of a report; `where` names the scan."""
        for problem in report.problems:
            if problem.level != "warn":
                continue
            self.counts[problem.code] += 1
            count = self.counts[problem.code]
            if count == 1:
                self.write(f"{where}: [{problem.code}] {problem.found}: {problem.advice}")
            elif count == 2:
                self.write(f"[{problem.code}] holds for further scans, too: `inspect` lists them")
            elif count >= 10 and set(str(count)[1:]) == {"0"} and str(count)[0] == "1":
                self.write(f"[{problem.code}] holds for {count:,} scans so far")


_log = Warnings()


def require_usable(
    scan: Any,
    domain: str | None = None,
    accept: Iterable[str] = (),
    where: str | None = None,
    warn: Callable[[Report, str], None] = _log,
) -> Any:
    """
    The scan, once `data.checks` has no reason left to refuse it.

    Args:
        scan: a [`Scan`], or anything with an `array` (D, H, W) and an `affine`.
        domain: what it is meant for.
        accept: codes that are no reason to refuse it.
        where: how messages call it.
        warn: called with the report of a scan that is used.

    Raises:
        ValueError: with every reason to refuse the scan, its code, and how to use the scan all the same.
    """
    accept = known_codes(accept)
    checked = (domain, accept)
    if getattr(scan, "checked", None) == checked:
        return scan
    subject = scan if isinstance(scan, Scan) else _as_scan(scan)
    if subject is None or subject.prepared:
        return scan
    report = check_scan(subject, domain, accept)
    if report.verdict == "refuse":
        codes = [problem.code for problem in report.problems if problem.level == "refuse"]
        shell, python = " ".join(f"--accept {code}" for code in codes), ", ".join(map(repr, codes))
        raise ValueError(f"{report.reason()} ({shell}, in Python accept=[{python}], to use it all the same)")
    warn(report, where or str(subject.name or "a scan"))
    if scan is subject:
        scan.checked, scan.report = checked, report
    return scan


def open_image(
    source: Any,
    domain: str | None = None,
    accept: Iterable[str] = (),
    layout: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """
    What an image processor is given -> a checked scan, or a study whose scans are checked when their turn comes.

    Args:
        source: a path or the address of a study, or a scan in memory. Arrays and pictures pass as they are.
        domain, accept: see `require_usable`.
        layout: what the files of a folder are, `"study"` or `"cohort"`, where it cannot be told.
        settings: of the image processor, by which studies have one scan or several; the domain's if None.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read, the folder holds several studies, or the scan is refused.
    """
    from .readers.read import read_file

    if is_study_url(source):
        opened: Any = read_file(source)
    elif isinstance(source, (str, bytes)) or hasattr(source, "__fspath__"):
        rule = Layout.of_domain(domain, layout) if settings is None else Layout.of_settings(settings, layout)
        place = Path(os.fsdecode(source))
        if picture := only_picture(place, rule):
            return open_picture(picture)
        opened = read_file(place, layout=rule)
    else:
        opened = source
    return opened if isinstance(opened, Study) else require_usable(opened, domain, accept)


def _as_scan(scan: Any) -> Scan | None:
    """A look at somebody else's scan object; None where the processor itself has to say what is wrong with it."""
    array, affine = getattr(scan, "array", None), getattr(scan, "affine", None)
    if affine is None or not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "buif":
        return None
    if not array.size or np.shape(affine) != (4, 4):
        return None
    return Scan(array, np.asarray(affine, float), getattr(scan, "name", None))
