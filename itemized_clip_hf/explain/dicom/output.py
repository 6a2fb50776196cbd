"""Where DICOM objects of a run go: a folder per study, a server, or both."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data.dicomweb import check_service, require_client, send
from ..result import StudyResult
from .write import check_threshold, require_highdicom, write_dicom

REPORT = "report.dcm"


@dataclass(frozen=True)
class DicomOutput:
    """
    What is to be written as DICOM, of a run or, with `of_study`, of one of its studies.

    Args:
        folder: None where objects are sent only.
        threshold, anonymous: as `write_dicom` takes them.
        server: address of a DICOMweb service that they are sent to.

    Raises:
        ImportError: highdicom, or for a server dicomweb-client, is not installed.
        ValueError: the objects would go nowhere, or a value cannot work.
    """

    folder: Path | None
    threshold: float | None = None
    anonymous: bool = False
    server: str | None = None

    def __post_init__(self) -> None:
        if self.folder is None and self.server is None:
            raise ValueError(
                "DICOM objects would go nowhere: name a folder (--dicom OUT), a server (--dicomweb URL) or both."
            )
        check_threshold(self.threshold)
        require_highdicom()
        if self.server is not None:
            check_service(self.server)
            require_client()

    def settings(self) -> list[Any]:
        """What tells the output of one run from that of another, as JSON."""
        return ["dicom", self.threshold, self.anonymous, self.server]

    def of_study(self, name: str, number: int) -> "DicomOutput":
        """
        The output of one study, in a folder of its own: of its name, or, where nothing may lead back to it, `study-0001` ...

        Args:
            name: how folders call it.
            number: its place among the inputs, from 0 on.
        """
        own = f"study-{number + 1:04d}" if self.anonymous else name
        return self if self.folder is None else replace(self, folder=self.folder / own)

    def is_written(self) -> bool:
        """Whether the objects of the study are in its folder."""
        return self.folder is None or (self.folder / REPORT).is_file()

    def write(self, result: StudyResult) -> int:
        """
        Writes and sends the objects of the study; how many there are.

        Raises:
            OSError, ValueError: as `write_dicom` and `data.dicomweb.send`.
        """
        if self.folder is not None:
            return self._write(self.folder, result)
        with tempfile.TemporaryDirectory(prefix="itemized-clip-") as place:
            return self._write(Path(place), result)

    def _write(self, place: Path, result: StudyResult) -> int:
        written = write_dicom(place, result, self.threshold, self.anonymous)
        if self.server is not None:
            send(self.server, written)
        return len(written)
