"""
Which studies a model was trained on, as far as an evaluation has to know: salted hashes of their ids, never ids.

They stay on this machine: `push` does not upload the file, because whoever has it can try ids out.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..files import write_text
from .records import study_name

logger = logging.get_logger(__name__)

FILE = "training_ids.json"
_NUMBERED = re.compile(r"row-\d+")
"""What a row without an id is called."""


class TrainingIds:
    """
    Salted hashes of the ids of studies.

    Args:
        salt, hashes: as in the file; a fresh salt if None.
    """

    def __init__(self, salt: str | None = None, hashes: Iterable[str] = ()):
        self.salt = salt or secrets.token_hex(16)
        self.hashes = set(hashes)

    @classmethod
    def read(cls, folder: str | os.PathLike | None) -> "TrainingIds | None":
        """Those of a model's folder; None where nothing is known."""
        if not folder:
            return None
        path = Path(folder) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(content["salt"]), map(str, content["ids"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning(f"{path} cannot be read: whether studies were trained on is not known.")
            return None

    def write(self, folder: str | os.PathLike) -> None:
        """Into a model folder."""
        write_text(Path(folder) / FILE, json.dumps({"salt": self.salt, "ids": sorted(self.hashes)}) + "\n")

    def add(self, ids: Iterable[str]) -> None:
        """Adds studies; ids that are mere numbers of rows tell nothing and are left out."""
        self.hashes.update(self._hash(name) for name in ids if not _NUMBERED.fullmatch(name))

    def count(self, ids: Iterable[str]) -> int:
        """How many of the ids are those of training studies."""
        return sum(self._hash(name) in self.hashes for name in ids)

    def _hash(self, name: str) -> str:
        plain = study_name(name).casefold()  # a label table may write `7.nii.gz` where a list writes `7`
        return hashlib.sha256(f"{self.salt} {plain}".encode()).hexdigest()[:16]


def ids_of(studies: Any) -> list[str]:
    """Ids of a list of studies, images left closed; none where it has no ids of its own."""
    column = getattr(studies, "id_column", None)
    if column is None:
        return []
    rows: Any = getattr(studies, "rows", None)
    if hasattr(rows, "column_names"):
        return [str(name) for name in rows[column] if name is not None]
    return [studies.id_of(number) for number in range(len(studies))]


def remember(folder: str | os.PathLike, ids: Iterable[str], start: str | os.PathLike | None = None) -> None:
    """
    Writes into a model's folder what it was trained on, together with what the model that training started from was trained on.

    Args:
        start: folder of that model, or of the checkpoint.
    """
    known = TrainingIds.read(folder) or TrainingIds.read(start) or TrainingIds()
    known.add(ids)
    if known.hashes:
        known.write(folder)


def warn_of_training(folder: str | os.PathLike | None, ids: Iterable[str]) -> str | None:
    """A sentence where studies of an evaluation have the ids of studies that the model of a folder was trained on."""
    ids = list(ids)
    known = TrainingIds.read(folder)
    count = known.count(ids) if known is not None else 0
    if not count:
        return None
    return (
        f"{count} of {len(ids)} studies have ids of studies that this model was trained on: if they are the same, the figures "
        "say how well it remembers, not how well it does on unseen studies."
    )
