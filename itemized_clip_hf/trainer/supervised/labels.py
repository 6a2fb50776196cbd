"""Studies with labels -> batches of a classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...modeling.classification_itemized_clip import UNKNOWN
from ...processing.scans_itemized_clip import ProcessedScan
from .collator import PreparedExample, SupervisedCollator


class LabeledStudies:
    """
    Some studies of a list with their labels, as the Trainer takes them.

    Args:
        studies: map-style, e.g. [`Records`]; images are opened when an example is read.
        labels: (S, F) of 0, 1 and NaN for unknown, or (S,) numbers of classes, -100 for unknown; a row for each of `numbers`.
        numbers: places of the studies in the list; all of them if None.
    """

    def __init__(self, studies: Any, labels: np.ndarray, numbers: Sequence[int] | None = None):
        self.studies = studies
        self.numbers = list(range(len(studies))) if numbers is None else [int(number) for number in numbers]
        self.labels = labels
        self.id_column = getattr(studies, "id_column", None)
        if len(labels) != len(self.numbers):
            raise ValueError(f"there are {len(labels)} rows of labels for {len(self.numbers)} studies.")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.studies[self.numbers[index]], "labels": self.labels[index]}

    def id_of(self, index: int) -> str:
        """Id of a study, its images left closed."""
        name: str = self.studies.id_of(self.numbers[index])
        return name

    def choose(self, rows: Sequence[int] | np.ndarray) -> "LabeledStudies":
        """Some of these studies, by their rows here."""
        return LabeledStudies(self.studies, self.labels[rows], [self.numbers[row] for row in rows])


@dataclass
class ClassificationCollator(SupervisedCollator):
    """
    Studies with `labels`: F values of 0, 1 and NaN for unknown, or the number of a class.

    Args:
        num_labels: F, of studies that can have several labels; None where each has one class.
    """

    num_labels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augmentation is not None and self.augmentation.mirror_prob:
            raise ValueError(
                "augmentation mirrors studies, and what a label says of the left and the right would not follow: leave out "
                "RandFlipd."
            )

    def read_target(
        self, example: dict[str, Any], scans: list[ProcessedScan], generator: torch.Generator | None
    ) -> torch.Tensor:
        """(F,) float32, or () int64."""
        dtype = torch.long if self.num_labels is None else torch.float32
        target = torch.as_tensor(example["labels"], dtype=dtype)
        expected = () if self.num_labels is None else (self.num_labels,)
        if target.shape != expected:
            raise ValueError(f"the study has labels of the shape {tuple(target.shape)}, expected {expected}.")
        return target

    def collate_targets(self, studies: list[PreparedExample]) -> dict[str, torch.Tensor]:
        """`labels` (B, F) or (B,)."""
        unknown = torch.tensor(UNKNOWN) if self.num_labels is None else torch.full((self.num_labels,), torch.nan)
        return {"labels": torch.stack([unknown if study.target is None else study.target for study in studies])}
