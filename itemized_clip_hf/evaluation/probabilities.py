"""What a calibration says of similarities, for the tables, JSON and CSV files of `predict` and the entries of pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..provenance import hash_json
from .calibration import Calibration, Judgment
from .encode import EncodedStudies
from .outliers import Distance, unit
from .quantity import normalizes_pool_inputs, without_calibration

PARTS = ("probability", "low", "high", "positive")
FAR = "distance percentile"


class Probabilities:
    """
    What a calibration says of labels.

    Args:
        calibration: None says nothing.
        prompts: label -> prompts.
    """

    def __init__(self, calibration: Calibration | None, prompts: Mapping[str, list[str]]):
        self.calibration = calibration
        self.prompts = {label: list(texts) for label, texts in prompts.items()}
        self.labels = [
            label for label, texts in self.prompts.items() if calibration and calibration.of_prompts(texts) is not None
        ]
        self.cover_all = bool(self.labels) and len(self.labels) == len(self.prompts)
        self.distance = calibration.distance if calibration is not None and self.labels else None

    @property
    def columns(self) -> list[str]:
        """Of the CSV file, behind the scores."""
        columns = [f"{label} {part}" for label in self.labels for part in PARTS]
        return [*columns, FAR] if self.distance is not None else columns

    def append(self) -> tuple[int, Callable[[EncodedStudies], np.ndarray]] | None:
        """What `score_studies` puts behind the scores: how far a study lies, in percent."""
        distance = self.distance
        if distance is None:
            return None
        return 1, lambda studies: _percentiles(distance, studies)[:, None]

    def percentiles(self, studies: EncodedStudies) -> list[float | None]:
        """How far encoded studies lie, in percent, (B,); None where that is not known."""
        if self.distance is None:
            return [None] * len(studies.image_embeds)
        return _percentiles(self.distance, studies).tolist()

    def stated(self) -> dict[str, Any]:
        """What a file of scores says of the column behind them."""
        return {} if self.distance is None else {"distance": hash_json(self.distance.percentiles.tolist())}

    def of(self, similarities: np.ndarray) -> list[dict[str, Judgment]]:
        """Of similarities (S, M) one dictionary a study, empty where they are NaN."""
        found: list[dict[str, Judgment]] = [{} for _ in similarities]
        known = np.flatnonzero(~np.isnan(similarities).any(1))
        for place, (label, texts) in enumerate(self.prompts.items()):
            judged = None if self.calibration is None else self.calibration.judge(texts, similarities[known, place])
            for study, judgment in zip(known, judged or ()):
                found[study][label] = judgment
        return found

    def table(self, judged: list[dict[str, Judgment]]) -> np.ndarray:
        """Probabilities (S, M), NaN where a study has none."""
        known = [[own[label].probability if own else np.nan for label in self.prompts] for own in judged]
        return np.array(known, dtype=np.float32).reshape(len(judged), len(self.prompts))

    def entry(self, judgment: Judgment | None, percentile: float | None) -> dict[str, Any]:
        """What the entry of a label says beside its score."""
        if judgment is None:
            return {"calibrated": False}
        far = {} if percentile is None else {"distance_percentile": percentile}
        return {"calibrated": True, **judgment.to_dict(), **far}

    def cells(self, judged: dict[str, Judgment], percentile: float | None) -> list[Any]:
        """A row of the CSV file, behind the scores; empty cells where a study has none."""
        cells: list[Any] = []
        for label in self.labels:
            own = judged.get(label)
            said = [None] * len(PARTS) if own is None else [own.probability, own.low, own.high, _yes(own)]
            cells += ["" if cell is None else cell for cell in said]
        return cells if self.distance is None else [*cells, "" if percentile is None else round(percentile, 2)]

    def as_json(self, judged: dict[str, Judgment], percentile: float | None) -> dict[str, Any]:
        """Of a study `probabilities` and `distance_percentile`."""
        content: dict[str, Any] = {}
        if judged:
            content["probabilities"] = {label: own.to_dict() for label, own in judged.items()}
        return content if percentile is None else {**content, "distance_percentile": round(percentile, 2)}

    def facts(self) -> dict[str, Any]:
        """`calibration`, and the labels that have none."""
        if not self.labels or self.calibration is None:
            return {"calibration": None}
        left = [label for label in self.prompts if label not in self.labels]
        return {"calibration": self.calibration.describe(), **({"uncalibrated": left} if left else {})}

    def describe(self) -> str:
        """A line for people."""
        if not self.labels or self.calibration is None:
            return "Uncalibrated: no score is a probability."
        studies, point = self.calibration.data["studies"], self.calibration.point
        about = (
            f"Probabilities (95 % interval), yes or no at the operating point {point}: calibrated on {studies} studies."
        )
        left = [label for label in self.prompts if label not in self.labels]
        return f"{about} Uncalibrated: {', '.join(left)}." if left else about


def choose_quantity(
    calibration: Calibration | None, prompts: Mapping[str, list[str]], quantity: str
) -> tuple[Probabilities, str]:
    """
    What is said of labels, and the quantity that their scores are: a probability where the calibration holds for all of them,
    else the sigmoid of the logit, which is called so. Logits and sigmoids are uncalibrated.
    """
    said = Probabilities(calibration, prompts)
    quantity = quantity if said.cover_all else without_calibration(quantity)
    return said if normalizes_pool_inputs(quantity) else Probabilities(None, prompts), quantity


def _percentiles(distance: Distance, studies: EncodedStudies) -> np.ndarray:
    return distance.percentile(unit(studies.image_embeds.float().cpu().numpy()))


def _yes(judgment: Judgment) -> str | None:
    return None if judgment.positive is None else "yes" if judgment.positive else "no"
