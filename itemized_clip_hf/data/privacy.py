"""Which header fields may identify a patient, and how text is kept free of them."""

import re
from collections.abc import Iterable

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
)
NUMBER_FIELDS = (
    "PatientID",
    "OtherPatientIDs",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
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
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{6,}")


def identifying_fields(header) -> tuple[str, ...]:
    """Names of the fields of a DICOM header that hold something, never what they hold."""
    return tuple(name for name in IDENTIFYING_FIELDS if str(header.get(name, "") or "").strip())


def identifying_words(header) -> set[str]:
    """Words and numbers of the identifying fields of a DICOM header, lower case, three characters and longer."""
    words = set()
    for name in IDENTIFYING_FIELDS:
        value = str(header.get(name, "") or "").lower()
        parts = set(re.findall(r"[^\W_]+", value)) | {value.strip()}
        if name in PLACE_FIELDS:
            parts -= _IMAGING_WORDS
        words |= {part for part in parts if len(part) >= 3}
    return words


def scrub(text: str, words: Iterable[str]) -> str:
    """The text with each of the words starred, in whatever case."""
    found = sorted((word for word in words if word in text.lower()), key=len, reverse=True)
    for word in found:
        text = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", "*", text, flags=re.IGNORECASE)
    return text


def clean_description(text: str, words: Iterable[str] = ()) -> str:
    """
    A series description without what may identify a patient: the given words, dates, long numbers, unusual characters; at most
    64 characters.
    """
    text = _DATE.sub(" ", scrub(str(text), words).replace("*", " "))
    text = re.sub(r"[^A-Za-z0-9 _+\-.,()]+", " ", text)
    return re.sub(r"\s+", " ", text).strip(" _-.,")[:64].strip()
