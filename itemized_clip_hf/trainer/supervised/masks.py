"""Studies with masks -> batches of a model that draws them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...data.studies.masks import UNKNOWN, StudyMasks, labels_of_classes, labels_of_items
from ...processing.processing_itemized_clip import PLACEHOLDER
from ...processing.scans_itemized_clip import ProcessedScan
from .collator import PreparedExample, SupervisedCollator


@dataclass
class MaskTarget:
    """
    What is known of one study: `texts`, and `labels` of them in every scan (N, K, D, H, W), uint8; without texts numbers of
    classes (N, D, H, W).
    """

    texts: list[str]
    labels: np.ndarray


@dataclass
class MaskCollator(SupervisedCollator):
    """
    As `SupervisedCollator`, of studies with masks, see `data.studies.masks.StudyMasks`.

    Args:
        num_labels: of a model of classes; None: a mask for every item.
        max_items: most items of a study at a step; at least one of them is a finding that it does not have, where such are
            known and there is room.
        drawn_scans: scans of a study that a training step draws, chosen at random; the towers see the others, too. All if None.
    """

    num_labels: int | None = None
    max_items: int = 3
    drawn_scans: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("max_items", self.max_items), ("drawn_scans", self.drawn_scans)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more.")
        if self.num_labels is not None and self.augmentation is not None and self.augmentation.mirror_prob:
            raise ValueError(
                "augmentation mirrors studies, and classes of the left and the right would not follow: leave out RandFlipd."
            )

    def prepare(self, example: dict[str, Any]) -> PreparedExample:
        """One example, processed; augmentation changes scans, masks and texts together."""
        if self.augmentation is None or example.get("seed") is None:
            return super().prepare(example)
        generator = torch.Generator().manual_seed(example["seed"])
        scans = self.choose_scans(example, generator, do_normalize=False)
        target = self.read_target(example, scans, generator)
        masks: list[torch.Tensor | None] = [
            torch.from_numpy(own if target.texts else own[None]) for own in target.labels
        ]
        study = self.augment(example, scans, target.texts, masks)
        labels = np.stack(
            [mask.numpy() if target.texts else mask[0].numpy() for mask in study.masks if mask is not None]
        )
        return PreparedExample(self.fill_scans(study.scans), MaskTarget(study.texts, labels))

    def read_target(
        self, example: dict[str, Any], scans: list[ProcessedScan], generator: torch.Generator | None
    ) -> MaskTarget:
        """
        Masks of the chosen items in the grid of the processed scans.

        Raises:
            OSError, ValueError: a mask cannot be read or laid over the scans, or there is none.
        """
        known = StudyMasks.of_record(example)
        texts: list[str] = []
        if self.num_labels is not None:
            if known.label_map is None:
                raise ValueError("the study has no `label_map`, which a model of classes learns from.")
            labels = labels_of_classes(known, scans, self.num_labels)
        else:
            if known.label_map is not None:
                raise ValueError("the study has a `label_map` and no `masks`: items learn from a mask of each.")
            chosen = self._choose_items(known, generator)
            every = [*known.items, *known.absent]
            texts, labels = [every[place] for place in chosen], labels_of_items(known, chosen, scans)
        return MaskTarget(texts, self._leave_scans(labels, generator))

    def _choose_items(self, known: StudyMasks, generator: torch.Generator | None) -> list[int]:
        drawn = _shuffled([n for n, mask in enumerate(known.masks) if mask is not None], generator)
        absent = _shuffled([len(known.items) + n for n in range(len(known.absent))], generator)
        if not drawn and not absent:
            raise ValueError("none of the study's items has a mask.")
        room = self.max_items - 1 if absent and self.max_items > 1 else self.max_items
        chosen = drawn[:room]
        return chosen + absent[: self.max_items - len(chosen)]

    def _leave_scans(self, labels: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        """Labels with all but `drawn_scans` of the scans that have any unknown, at random; without a generator all stay."""
        if generator is None or self.drawn_scans is None:
            return labels
        usable = [n for n, own in enumerate(labels) if (own != UNKNOWN).any()]
        for number in _shuffled(usable, generator)[self.drawn_scans :]:
            labels[number] = UNKNOWN
        return labels

    def collate_targets(self, studies: list[PreparedExample]) -> dict[str, torch.Tensor]:
        """`labels`, padded by `UNKNOWN`, and the items where there are any."""
        scans = max([len(study.scans) for study in studies] + [1])
        targets: list[MaskTarget | None] = [study.target for study in studies]
        size = self._blank(studies).pixel_values.shape[1:]
        slots = max([len(target.texts) for target in targets if target is not None] + [1])
        shape = (len(studies), scans, *size) if self.num_labels is not None else (len(studies), scans, slots, *size)
        labels = np.full(shape, UNKNOWN, np.uint8)
        for row, target in zip(labels, targets):
            if target is not None:
                row[tuple(slice(n) for n in target.labels.shape)] = target.labels
        batch = {"labels": torch.from_numpy(labels)}
        if self.num_labels is None:
            texts = [target.texts if target is not None else [PLACEHOLDER] for target in targets]
            encoded = self.processor.encode_text(texts, num_slots=slots)
            batch.update({name: torch.as_tensor(value) for name, value in encoded.items()})
        return batch


def _shuffled(places: list[int], generator: torch.Generator | None) -> list[int]:
    if generator is None:
        return places
    return [places[n] for n in torch.randperm(len(places), generator=generator).tolist()]
