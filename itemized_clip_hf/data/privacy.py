"""Which header fields may identify a patient, and how text is kept free of them."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

NAME_FIELDS = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "RequestingPhysician",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "OperatorsName",
    "ResponsiblePerson",
)
NUMBER_FIELDS = (
    "PatientID",
    "OtherPatientIDs",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientAge",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "AcquisitionDateTime",
    "AdmissionID",
    "DeviceSerialNumber",
    "StationName",
    "MilitaryRank",
    "PatientComments",
)
PLACE_FIELDS = ("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName")
IDENTIFYING_FIELDS = NAME_FIELDS + NUMBER_FIELDS + PLACE_FIELDS

# Words of places ("Brain Centre") that say what a series shows and stay.
_IMAGING_WORDS = {
    "brain",
    "head",
    "chest",
    "thorax",
    "spine",
    "neck",
    "body",
    "mri",
    "imaging",
    "scan",
    "contrast",
    "radiology",
}
# Words of two characters that are no names where they stand in a description.
_SHORT_IMAGING_WORDS = set("ax 2d 3d 4d t1 t2 pd mr ct dw te tr ti se ge fl ir fs wo hr sg ep pc md fa b0".split())
_MONTH = r"(?:jan|feb|m[aä]r|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])[a-zä]*"
_YEAR = r"(?<!\d)(?:19|20)\d\d(?!\d)"
_DATE = re.compile(
    rf"\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}|\d{{6,}}|{_YEAR}[_ ]\d{{1,2}}[_ ]\d{{1,2}}|\d{{1,2}}[_ ]\d{{1,2}}[_ ]{_YEAR}"
    rf"|\d{{1,2}}[-_ .,]*{_MONTH}[-_ .,]*\d{{2,4}}|{_MONTH}[-_ .]*\d{{1,2}}[-_ .,]+\d{{2,4}}",
    re.IGNORECASE,
)
_INSIDE_LENGTH = 5
"""Characters from which on a word is also starred inside of others ("JohnsonHead")."""


def _value(header: Any, name: str) -> str:
    try:
        return str(header.get(name, "") or "").strip()
    except Exception:  # damaged values raise whatever they like, with their content in the text
        return ""


def identifying_fields(header: Any) -> tuple[str, ...]:
    """Names of the fields of a DICOM header that hold something, never what they hold."""
    return tuple(name for name in IDENTIFYING_FIELDS if _value(header, name))


def identifying_words(header: Any) -> set[str]:
    """Words and numbers of the identifying fields of a DICOM header, lower case, with accents and without, as often joined."""
    words = set()
    for name in IDENTIFYING_FIELDS:
        value = _value(header, name).lower()
        parts = re.findall(r"[^\W_]+", value)
        found = {*parts, value}
        if name in NAME_FIELDS:
            found |= {first + second for first in parts for second in parts if first != second}
            found -= {part for part in parts if len(part) == 2 and part in _SHORT_IMAGING_WORDS}
        if name in PLACE_FIELDS:
            found -= _IMAGING_WORDS
        shortest = 2 if name in NAME_FIELDS else 3
        words |= {spelt for word in found for spelt in _spellings(word) if len(spelt) >= shortest}
    return words


def _spellings(word: str) -> set[str]:
    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    german = word.translate({ord("ä"): "ae", ord("ö"): "oe", ord("ü"): "ue", ord("ß"): "ss"})
    return {word, plain, german}


def scrub(text: str, words: Iterable[str]) -> str:
    """The text with each of the words starred, in whatever case; long words inside of others too."""
    found = sorted((word for word in words if word in text.lower()), key=len, reverse=True)
    for word in found:
        pattern = re.escape(word)
        if len(word) < _INSIDE_LENGTH:
            pattern = rf"(?<![^\W_]){pattern}(?![^\W_])"
        text = re.sub(pattern, "*", text, flags=re.IGNORECASE)
    return text


def clean_suffix(text: str, words: Iterable[str] = ()) -> str:
    """What tells the volumes of a series apart, as far as it is words and numbers without the given ones."""
    return re.sub(r"[^A-Za-z0-9_+\-.,()]+", "", scrub(text, words))


def clean_description(text: str, words: Iterable[str] = ()) -> str:
    """
    A series description without what may identify a patient: the given words, dates, long numbers, unusual characters; at most
    64 characters.
    """
    text = _DATE.sub(" ", scrub(str(text), words).replace("*", " "))
    text = re.sub(r"[^A-Za-z0-9 _+\-.,()]+", " ", text)
    return re.sub(r"\s+", " ", text).strip(" _-.,")[:64].strip()
