"""What made the objects: codes, texts and the equipment that each of them names."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from ...version import __version__
from ..result import StudyResult

SCHEME = "99ITEMIZEDCLIP"
"""Designator of the codes that are our own: findings are free texts, which no public scheme holds."""
NAME = "ItemizedCLIP"
STATEMENT = (
    "Research only: output of an algorithm, not calibrated and not for diagnosis. Scores rank studies by a finding and are not "
    "probabilities of a disease; heat maps show what a score rests on, not the extent of a lesion."
)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Patient coordinates of NIfTI (RAS+) -> those of DICOM (LPS+), and back."""
MEANINGS = {
    "similarity": "Cosine similarity of study and finding",
    "logit": "Logit of the finding",
    "sigmoid": "Sigmoid of the logit, uncalibrated",
    "share": "Share of the attribution on the series",
    "attention": "Attention over mean attention",
    "attribution": "Attribution of the score to a place over mean attribution",
    "finding": "Finding looked for by an algorithm",
}
"""Our own codes -> what they mean."""


@dataclass(frozen=True)
class Author:
    """
    The algorithm behind a result.

    Args:
        model: hash of the model.
        parameters: what else identifies the result, `name=value`.
    """

    model: str
    parameters: dict[str, str]

    @classmethod
    def of(cls, result: StudyResult) -> "Author":
        """
        The author that `StudyResult.about` names.

        Raises:
            ValueError: it does not.
        """
        model, processor = (result.about.get(name) or {} for name in ("model", "processor"))
        if not model.get("sha256"):
            raise ValueError(
                "the result does not say which model it is of, which DICOM objects have to: make it with "
                "about=provenance.describe_model(model, hash_model(model), hash_processor(processor))."
            )
        parameters = {
            "model_sha256": str(model["sha256"]),
            "processor_sha256": str(processor.get("sha256") or "unknown"),
            "domain": str(model.get("domain") or "unknown"),
            "quantity": result.quantity,
            "attribution": result.attribution,
            "calibrated": "no",
        }
        return cls(str(model["sha256"]), parameters)

    @property
    def equipment(self) -> dict[str, Any]:
        """As the constructors of all objects take it."""
        return {
            "manufacturer": "itemized-clip-hf",
            "manufacturer_model_name": NAME,
            "software_versions": __version__,
            "device_serial_number": self.model[:64],
        }

    def identification(self) -> AlgorithmIdentificationSequence:
        """As image objects hold it."""
        return AlgorithmIdentificationSequence(
            name=NAME,
            family=codes.DCM.ArtificialIntelligence,
            version=__version__,
            source="itemized-clip-hf",
            parameters=self.parameters,
        )


def own_code(name: str) -> CodedConcept:
    """A concept of our own, see `MEANINGS`."""
    return CodedConcept(name.upper(), SCHEME, MEANINGS[name])


def finding_code(label: str) -> CodedConcept:
    """A code for the text of a finding, the same for the same text."""
    digest = hashlib.sha256(label.encode("utf-8", "backslashreplace")).hexdigest()
    return CodedConcept(f"F{digest[:15]}", SCHEME, short_text(label))


def coding_schemes() -> list[CodingSchemeIdentificationItem]:
    """What an object says of the codes that are our own."""
    return [CodingSchemeIdentificationItem(SCHEME, name="Findings and quantities of itemized-clip-hf")]


def plain_text(text: str) -> str:
    """On one line, without characters that DICOM or UTF-8 cannot hold."""
    text = text.encode("utf-8", "replace").decode()
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).strip() or "-"


def short_text(text: str, length: int = 64) -> str:
    """A text as a description of a series or the meaning of a code; longer ones end in dots."""
    text = plain_text(text).replace("\\", "/")
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."
