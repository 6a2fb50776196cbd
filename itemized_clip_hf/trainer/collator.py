"""Ragged examples -> a padded, masked batch; scans and items are chosen, never duplicated."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.studies.items import choose_items, sample_diverse
from ..data.truth_values import read_truth_value
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..processing.scans_itemized_clip import ProcessedScan
from .augmentation import Augmentation
from .sampler import DATA_ERRORS, skipped_study
from .study_scans import StudyScans


@dataclass
class ItemizedCLIPCollator(StudyScans):
    """
    Makes batches of studies.

    Args:
        processor: [`ItemizedCLIPProcessor`].
        max_items: item slots K of every study; the loss counts padded slots in its divisors, so K is fixed.
        max_scans: most scans of a study.
        scan_fill: `"mask"` pads the missing scans and masks them; `"repeat"` repeats the study's scans up to `max_scans`, as
            the released code does.
        diverse_sampling: arguments of `sample_diverse`; plain items if None.
        join_items: makes one text of all items of a study and a generator (None in evaluation), for objectives that take
            one text per study; `max_items` and `diverse_sampling` then have no effect.
        accept: codes of the checks that a scan is used in spite of; the image processor's own if None.
        is_normal: rule on the items of a study, for studies that do not say it themselves.
        augmentation: random changes to the scans of a visit with a seed, see `trainer/augmentation.py`.
        quarantine: file that lists what could not be read: study, or study and scan, and reason. A bad scan is left out of its
            study, a study without a scan or an item is left out of its batch.

    An example holds `items` (list of strings) and either `images` (anything the processor takes as one study) or
    `pixel_values` (N, C, D, H, W), processed, with `scan_names`; `is_normal` and `id` if known, and `seed` in training.
    Without a seed nothing is random: all scans and the first items are taken.
    """

    processor: ItemizedCLIPProcessor
    max_items: int = 7
    max_scans: int = 10
    scan_fill: str = "mask"
    accept: list[str] | None = None
    diverse_sampling: dict[str, Any] | None = None
    is_normal: Callable[[list[str]], bool] | None = None
    quarantine: str | Path | None = None
    join_items: Callable[[list[str], torch.Generator | None], str] | None = None
    augmentation: Augmentation | None = None
    _reported: set[str] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        self.check_settings()

    def __call__(self, examples: list[Any]) -> dict[str, torch.Tensor]:
        """
        Batch of examples, or of what `prepare` made of them; see `modeling` for names and shapes.

        Raises:
            ValueError: none of the studies could be used.
        """
        prepared: list[PreparedStudy] = []
        last_error: Exception | None = None
        for example in examples:
            try:
                prepared.append(example if isinstance(example, PreparedStudy) else self.prepare(example))
            except DATA_ERRORS as error:
                self.report(skipped_study(example.get("id"), error))
                last_error = error
        if not prepared:
            raise ValueError(
                f"none of the {len(examples)} studies of this batch could be used; the last error: {last_error}"
            )
        batch = dict(self.processor.image_processor.collate([study.scans for study in prepared], return_tensors="pt"))
        batch.update(self.encode([study.items for study in prepared]))
        batch["is_normal"] = torch.tensor([study.is_normal for study in prepared])
        return batch

    def prepare(self, example: dict[str, Any]) -> "PreparedStudy":
        """Scans and items of one example, chosen and processed; raises where the study cannot be used."""
        seed = example.get("seed")
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        items = example.get("items")
        if not items:
            raise ValueError("the study has no item.")
        chosen = self.choose_texts(items, generator)
        scans, chosen = self.draw_scans(example, generator, chosen)
        return PreparedStudy(scans, chosen, self.flag(items, example.get("is_normal")))

    def encode(self, texts: list[list[str]]) -> dict[str, torch.Tensor]:
        """Token ids and masks of the texts of a batch, in slots of a fixed number."""
        slots = self.max_items if self.join_items is None else 1
        encoded = self.processor.encode_text(texts, num_slots=slots)
        return {name: torch.as_tensor(value) for name, value in encoded.items()}

    def flag(self, items: list[str], stated: Any = None) -> bool:
        """Whether a study is normal: as stated, or by the rule where nothing is."""
        known = read_truth_value(stated, "`is_normal`")
        if known is not None:
            return known
        return bool(self.is_normal(items)) if self.is_normal else False

    def choose_texts(self, items: list[str], generator: torch.Generator | None) -> list[str]:
        """What of a study's items is encoded at a visit."""
        if self.join_items is not None:
            return [self.join_items(items, generator)]
        if self.diverse_sampling is not None and generator is not None:
            return sample_diverse(items, self.max_items, generator, **self.diverse_sampling)
        return choose_items(items, self.max_items, generator)


@dataclass
class PreparedStudy:
    """One study as it enters a batch."""

    scans: list[ProcessedScan]
    items: list[str]
    is_normal: bool
