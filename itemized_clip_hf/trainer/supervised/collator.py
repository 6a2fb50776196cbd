"""Studies with labels or masks -> a batch; what the heads share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ...data.study import Skipped
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from ...processing.scans_itemized_clip import ProcessedScan
from ..augmentation import Augmentation
from ..sampler import DATA_ERRORS, skipped_study
from ..study_scans import StudyScans


@dataclass
class PreparedExample:
    """One study as it enters a batch; without scans it could not be used, and its target is None."""

    scans: list[ProcessedScan]
    target: Any = None


@dataclass
class SupervisedCollator(StudyScans, ABC):
    """
    Makes batches of studies with their targets. A head says in `read_target` and `collate_targets` what these are.

    Args:
        processor: [`ItemizedCLIPProcessor`].
        max_scans: most scans of a study in training.
        accept: codes of the checks that a scan is used in spite of; the image processor's own if None.
        quarantine: file that lists what could not be read: study, or study and scan, and reason.
        augmentation: random changes to the scans of a visit with a seed, see `trainer/augmentation.py`.

    An example holds `images` (anything the processor takes as one study) or `pixel_values` (N, C, D, H, W) with `scan_names`,
    and what the head reads; `id` if known, and `seed` in training. Without a seed nothing is random.

    In training another study takes the place of one that cannot be used (`SeededDataset`). In evaluation its row stays, so that
    row i of the predictions is study i: the pixels are zeros, and the target is None, to be collated as unknown.
    """

    scan_fill = "mask"

    processor: ItemizedCLIPProcessor
    max_scans: int = 10
    accept: list[str] | None = None
    quarantine: str | Path | None = None
    augmentation: Augmentation | None = None
    _reported: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        self.check_settings()

    @abstractmethod
    def read_target(
        self, example: dict[str, Any], scans: list[ProcessedScan], generator: torch.Generator | None
    ) -> Any:
        """
        The target of a study whose scans are processed.

        Raises:
            ValueError: the study has none that can be used.
        """

    @abstractmethod
    def collate_targets(self, studies: list[PreparedExample]) -> dict[str, torch.Tensor]:
        """Arguments of the head's forward pass; a target of None is unknown."""

    def prepare(self, example: dict[str, Any]) -> PreparedExample:
        """One example, processed; raises where the study cannot be used."""
        seed = example.get("seed")
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        scans, _ = self.draw_scans(example, generator, [])
        return PreparedExample(scans, self.read_target(example, scans, generator))

    def __call__(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """Batch of examples, or of what `prepare` made of them; see `modeling` for names and shapes of the images."""
        prepared = [x if isinstance(x, PreparedExample) else self._prepare_or_report(x) for x in examples]
        blank = self._blank(prepared)
        scans = [study.scans or [blank] for study in prepared]
        batch = dict(self.processor.image_processor.collate(scans, return_tensors="pt"))
        batch.update(self.collate_targets(prepared))
        return batch

    def _prepare_or_report(self, example: dict[str, Any]) -> PreparedExample:
        try:
            return self.prepare(example)
        except DATA_ERRORS as error:
            self.report(skipped_study(example.get("id"), error))
            return PreparedExample([])

    def _blank(self, prepared: list[PreparedExample]) -> ProcessedScan:
        """Stands for the scans of a study that could not be used."""
        own: Any = self.processor.image_processor
        shapes = [study.scans[0].pixel_values.shape for study in prepared if study.scans]
        return ProcessedScan(
            None, torch.zeros(*(shapes[0] if shapes else (own.num_channels, *own.scan_size))), None, None
        )


class EveryRow(Dataset[Any]):
    """
    Studies of an evaluation, one row each: of a study that cannot be read an empty one, which is reported.

    Args:
        studies: map-style, closed.
        report: called with what is left out.
    """

    def __init__(self, studies: Any, report: Callable[[Skipped], None]):
        self.studies = studies
        self.report = report
        self.id_column = getattr(studies, "id_column", None)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.studies[index]
        except DATA_ERRORS as error:
            name = self.id_of(index) if hasattr(self.studies, "id_of") else str(index)
            self.report(skipped_study(name, error))
            return PreparedExample([])

    def id_of(self, index: int) -> str:
        """Id of a study, its images left closed."""
        name: str = self.studies.id_of(index)
        return name
