"""What the collators of all tasks share: scans are chosen and processed, and what cannot be used is told and listed."""

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..data.cells import neutralize
from ..data.open import known_codes
from ..data.study import Skipped
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..processing.scans_itemized_clip import ProcessedScan
from .augmentation import Augmentation, AugmentationError, AugmentedStudy
from .sampler import reason_of

logger = logging.get_logger(__name__)


class StudyScans:
    """
    Part of a collator; the collator's fields are its settings, see [`ItemizedCLIPCollator`].

    An example holds either `images` (anything the processor takes as one study) or `pixel_values` (N, C, D, H, W), processed,
    with `scan_names`; `id` if known.
    """

    processor: ItemizedCLIPProcessor
    max_scans: int
    scan_fill: str
    accept: list[str] | None
    quarantine: str | Path | None
    augmentation: Augmentation | None = None
    _reported: set[str]

    def check_settings(self) -> None:
        """
        Looks at the settings.

        Raises:
            ValueError: there is no such way to fill up scans, or no such code.
        """
        if self.scan_fill not in ("mask", "repeat"):
            raise ValueError(f"scan_fill is {self.scan_fill!r}, expected 'mask' or 'repeat'.")
        known_codes(self.accept or ())

    def draw_scans(
        self, example: dict[str, Any], generator: torch.Generator | None, texts: list[str]
    ) -> tuple[list[ProcessedScan], list[str]]:
        """Scans of one study as a visit shows them, augmented where it has a seed, and the texts that then hold for them."""
        if self.augmentation is None or generator is None:
            return self.fill_scans(self.choose_scans(example, generator)), texts
        study = self.augment(example, self.choose_scans(example, generator, do_normalize=False), texts)
        return self.fill_scans(study.scans), study.texts

    def augment(
        self,
        example: dict[str, Any],
        scans: list[ProcessedScan],
        texts: list[str],
        masks: list[torch.Tensor | None] | None = None,
    ) -> AugmentedStudy:
        """
        A study with the changes of its visit, normalized.

        Args:
            scans: chosen with `do_normalize=False`.
            texts, masks: as in [`Augmentation.apply`].
        """
        assert self.augmentation is not None
        processor = self.processor.image_processor
        study = self.augmentation.apply(scans, texts, example["seed"], processor.orientation, masks)
        if processor.do_normalize:
            processor.normalize_scans(study.scans)
        return study

    def fill_scans(self, scans: list[ProcessedScan]) -> list[ProcessedScan]:
        """Repeated up to `max_scans`, where `scan_fill` says so."""
        if self.scan_fill == "repeat":
            return [scans[i % len(scans)] for i in range(max(self.max_scans, len(scans)))]
        return scans

    def choose_scans(
        self, example: dict[str, Any], generator: torch.Generator | None, **settings: Any
    ) -> list[ProcessedScan]:
        """
        Processed scans of one study, at most `max_scans` of them where a generator chooses.

        Args:
            settings: changes to the image processor's own.
        """
        if "pixel_values" in example:
            if self.augmentation is not None and generator is not None:
                raise AugmentationError(
                    "augmentation changes scans before they are normalized, but the examples hold pixel_values, which are "
                    "normalized already: pass the scans as `images`."
                )
            pixel_values = torch.as_tensor(example["pixel_values"])
            names = example.get("scan_names") or [None] * len(pixel_values)
            order = self._choose(len(pixel_values), generator)
            scans = [ProcessedScan(names[i], pixel_values[i].float(), None, None) for i in order]
        else:
            study = example.get("images")
            if study is None:
                raise ValueError("the study has no images.")
            study = getattr(study, "scans", study)
            if isinstance(study, dict):
                names = [name for name, scan in study.items() if scan is not None]
                study = {names[i]: study[names[i]] for i in self._choose(len(names), generator)}
            elif isinstance(study, (list, tuple)):
                study = [study[i] for i in self._choose(len(study), generator)]
            scans = self.processor.image_processor.process_study(
                study,
                generator,
                on_error=lambda name, error: self.report(
                    Skipped(str(example.get("id")), str(name), "process", reason_of(error))
                ),
                **({} if self.accept is None else {"accept": self.accept}),
                **settings,
            )
            scans = [scans[i] for i in self._choose(len(scans), generator)]
        return scans

    def _choose(self, count: int, generator: torch.Generator | None) -> list[int]:
        """A random subset of at most `max_scans` scans in their own order; all of them without a generator."""
        if count <= self.max_scans or generator is None:
            return list(range(count))
        return sorted(torch.randperm(count, generator=generator)[: self.max_scans].tolist())

    def report(self, skipped: Skipped) -> None:
        """Logs a study or scan that is left out, and lists it in the quarantine once."""
        name = str(skipped.study) if skipped.scan is None else f"{skipped.study}/{skipped.scan}"
        if name in self._reported:
            return
        self._reported.add(name)
        logger.warning(f"study {name} is left out: {skipped.reason}")
        if self.quarantine is None:
            return
        path = Path(self.quarantine)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(["study", "reason"])
            writer.writerow([neutralize(name), neutralize(skipped.reason)])

    def studies_left_out(self, ids: Collection[str] = ()) -> int:
        """
        How many studies could not be used at all, whichever worker met them; scans that were left out alone do not count.

        Args:
            ids: of all studies; needed where ids hold a slash, which else parts a study from its scan.
        """
        known = {neutralize(study_id) for study_id in ids}
        return sum("/" not in name or name in known for name in self._quarantined())

    def _quarantined(self) -> set[str]:
        """Names of studies and scans (`study/scan`) that were reported."""
        if self.quarantine is None or not Path(self.quarantine).exists():
            return {neutralize(name) for name in self._reported}
        with Path(self.quarantine).open(newline="", encoding="utf-8") as file:
            return {row[0] for row in csv.reader(file) if row and row != ["study", "reason"]}
