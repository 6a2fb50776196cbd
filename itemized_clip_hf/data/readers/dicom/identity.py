"""Whether files are of one patient and one visit, compared as digests: no value is kept."""

import hashlib
import re
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

_PATIENT = ("PatientID", "PatientName", "PatientBirthDate")
_VISIT = ("StudyInstanceUID", "StudyDate")


@dataclass
class Visits:
    """The patients and studies of the files seen so far; a field that one of two files lacks does not tell them apart."""

    patients: list[dict[str, str]] = field(default_factory=list)
    studies: list[dict[str, str]] = field(default_factory=list)

    def add(self, header: Dataset) -> None:
        """Takes the digests of one file."""
        _join(self.patients, _digests(header, _PATIENT))
        _join(self.studies, _digests(header, (*_PATIENT, *_VISIT)))

    def refuse_several(self, name: str) -> None:
        """
        Raises:
            ValueError: with how many patients or studies there are.
        """
        advice = "put each study into a folder or zip of its own"
        if len(self.patients) > 1:
            raise ValueError(f"{name} holds {len(self.patients)} patients, expected one: {advice}.")
        if len(self.studies) > 1:
            raise ValueError(
                f"{name} holds {len(self.studies)} studies of one patient (by their UID and date), expected one: {advice}."
            )


def _digests(header: Dataset, names: tuple[str, ...]) -> dict[str, str]:
    digests = {}
    for name in names:
        value = re.sub(r"[\s^=\0]+", " ", str(header.get(name, "") or "")).strip().casefold()
        if value:
            digests[name] = hashlib.sha256(value.encode(errors="replace")).hexdigest()
    return digests


def name_visit(header: Dataset) -> str:
    """A digest of the visit: of its UID, or, where there is none, of patient and date; empty where there is no patient."""
    digests = _digests(header, (*_PATIENT, *_VISIT))
    known = digests.keys() & {"StudyInstanceUID", *_PATIENT}
    return digests.get("StudyInstanceUID") or " ".join(digests[name] for name in sorted(digests) if known)


def _join(known: list[dict[str, str]], found: dict[str, str]) -> None:
    """Adds what was found to the known ones that it does not contradict, which thereby become one."""
    fitting = [one for one in known if all(one.get(name, value) == value for name, value in found.items())]
    if fitting:
        fitting[0].update({name: value for name, value in found.items() if name not in fitting[0]})
    else:
        known.append(dict(found))
