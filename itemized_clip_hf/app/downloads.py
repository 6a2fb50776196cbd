"""Results of a session as files to take away, each written when it is fetched first."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from ..data.files import file_name, whole_file
from ..explain.maps import write_map
from ..explain.plots import slug
from ..explain.report import report_html
from ..explain.result import StudyResult
from ..explain.studies import unique
from .session import ServedFile, Session


def offer_files(session: Session, slot: str) -> dict[str, str]:
    """
    What can be fetched of the last run of a study.

    Returns:
        what it is -> address, from the page's own on.
    """
    held = session.slots[slot]
    result = held.result
    if result is None:
        return {}
    start = file_name(result.study, "study")
    folder = session.new_folder("files")
    kinds: dict[str, tuple[str, str, Callable[[Path], None]]] = {
        "HTML report": (f"{start}.html", "text/html", lambda path: _write_text(path, report_html(result))),
        "JSON": (f"{start}.json", "application/json", lambda path: _write_text(path, result_json(result))),
        "CSV": (f"{start}.csv", "text/csv", lambda path: _write_text(path, result.to_csv())),
    }
    if any(result.affine(number) is not None for number in range(len(result.scans))):
        kinds["NIfTI heat maps"] = (
            f"{start}-maps.zip",
            "application/zip",
            lambda path: write_maps_zip(path, result, session),
        )
    if held.opened.from_dicom:
        kinds["DICOM"] = (f"{start}-dicom.zip", "application/zip", lambda path: write_dicom_zip(path, result, session))
    return {
        what: session.serve(ServedFile(name, _once(session, folder / name, write), media_type))
        for what, (name, media_type, write) in kinds.items()
    }


def offer_viewer(session: Session, slot: str) -> str | None:
    """Address of the report of a study's last run, for a frame of the page; None where there was none."""
    result = session.slots[slot].result
    if result is None:
        return None
    path = session.new_folder("viewer") / "report.html"
    make = _once(session, path, lambda target: _write_text(target, report_html(result)))
    return session.serve(ServedFile("report.html", make, "text/html", page=True))


def _once(session: Session, path: Path, write: Callable[[Path], None]) -> Callable[[], Path]:
    """Writes a file whole when it is asked for the first time; one at a time in a session."""

    def make() -> Path:
        with session.lock:
            if session.closed:
                raise FileNotFoundError("the session has ended.")
            if not path.exists():
                with whole_file(path) as part:
                    write(Path(part))
        return path

    return make


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def result_json(result: StudyResult) -> str:
    """`StudyResult.to_dict` as text."""
    return json.dumps(result.to_dict(), indent=1) + "\n"


def write_maps_zip(path: Path, result: StudyResult, session: Session) -> None:
    """One NIfTI heat map per finding and scan with geometry, in the scan's own grid, in a zip."""
    names: set[str] = set()
    held = session.new_folder("maps")
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # the maps are compressed already
            for number, finding in enumerate(result.findings):
                for heat in result.heat_maps(number):
                    if session.closed:
                        raise FileNotFoundError("the session has ended.")
                    if heat.affine is None:
                        continue
                    scan = file_name(heat.scan_name or "scan", "scan")
                    name = unique(f"{number:02d}_{slug(finding.label)}__{scan}", names) + ".nii.gz"
                    write_map(held / name, heat)
                    archive.write(held / name, name)
                    (held / name).unlink()
    finally:
        shutil.rmtree(held, ignore_errors=True)


def write_dicom_zip(path: Path, result: StudyResult, session: Session) -> None:
    """
    Heat maps, scores and pictures as DICOM objects of the source's patient and study, in a zip.

    Raises:
        ImportError: names the extra that is missing.
        ValueError: see `explain.dicom.write_dicom`.
    """
    from ..explain.dicom import write_dicom

    held = session.new_folder("dicom")
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in write_dicom(held, result):
                archive.write(file, file.relative_to(held))
    finally:
        shutil.rmtree(held, ignore_errors=True)
