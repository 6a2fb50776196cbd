"""Scores of studies in a file that a killed run goes on with."""

import json
import os
from pathlib import Path

import numpy as np


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
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(first + "\n", encoding="utf-8")
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        if not lines or lines[0].strip() != first:
            raise ValueError(
                f"{self.path} holds scores of another model, of other prompts or studies: choose another output, or delete it."
            )
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):  # cut off in the middle of a line
            self.path.write_text("".join(whole), encoding="utf-8")
        for line in whole[1:]:
            entry = json.loads(line)
            if "scores" in entry:  # what could not be read is tried again
                self.scores[entry["id"]] = np.array(entry["scores"], dtype=np.float32)

    def add(self, study: str, scores: np.ndarray) -> None:
        self.scores[study] = np.asarray(scores, dtype=np.float32)
        self._write({"id": study, "scores": [float(f"{value:.9g}") for value in scores]})

    def refuse(self, study: str, error: Exception) -> None:
        self.errors[study] = str(error)
        self._write({"id": study, "error": str(error)})

    def _write(self, entry: dict) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def __contains__(self, study: str) -> bool:
        return study in self.scores
