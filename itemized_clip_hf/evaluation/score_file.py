"""Scores of studies in a file that a killed run goes on with."""

import json
import os
from pathlib import Path

import numpy as np

from ..data.files import write_text


class ScoreFile:
    """
    A JSONL file: a first line that says what the scores are of, then `{"id", "scores"}` or `{"id", "error"}` a study.

    Args:
        path: of the file; None keeps the scores in memory only.
        described: what they are of, as JSON; the file of anything else is refused.

    Raises:
        ValueError: the file holds other scores.
    """

    def __init__(self, path: str | os.PathLike | None, described: dict):
        self.path = None if path is None else Path(path)
        self.scores: dict[str, np.ndarray] = {}
        self.errors: dict[str, str] = {}
        first = json.dumps(described, sort_keys=True)
        if self.path is None:
            return
        lines = self._read_lines()
        if not lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, first + "\n")
            return
        if lines[0].strip() != first:
            raise ValueError(
                f"{self.path} holds scores of another model, of other prompts or studies: choose another output, or delete it."
            )
        if not lines[-1].endswith("\n"):  # cut off in the middle of a line
            lines.pop()
            write_text(self.path, "".join(lines))
        for number, line in enumerate(lines[1:], 2):
            try:
                entry = json.loads(line)
                if "scores" in entry:  # what could not be read is tried again
                    self.scores[str(entry["id"])] = np.array(entry["scores"], dtype=np.float32)
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{self.path}, line {number}: it is damaged; delete the file to score anew.") from None

    def _read_lines(self) -> list[str]:
        """Lines with their ends; none where there is no file, or the first line was not written to its end."""
        if self.path is None or not self.path.exists():
            return []
        try:
            lines = self.path.read_bytes().decode().split("\n")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is no file of scores: choose another output, or delete it.") from None
        ended = [line + "\n" for line in lines[:-1]]
        return ended + [lines[-1]] if ended and lines[-1] else ended

    def add(self, study: str, scores: np.ndarray) -> None:
        """Keeps the scores (M,) of a study."""
        self.scores[study] = np.asarray(scores, dtype=np.float32)
        self._write({"id": study, "scores": [float(f"{value:.9g}") for value in scores]})

    def refuse(self, study: str, error: Exception) -> None:
        """Keeps why a study has no scores."""
        self.errors[study] = str(error)
        self._write({"id": study, "error": str(error)})

    def _write(self, entry: dict) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def __contains__(self, study: str) -> bool:
        return study in self.scores
