"""Ragged examples -> a padded, masked batch; scans and items are chosen, never duplicated."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..data.items import choose_items, sample_diverse
from ..processing.image_processing_itemized_clip import ProcessedScan

logger = logging.get_logger(__name__)


@dataclass
class ItemizedCLIPCollator:
    """
    Args:
        processor: [`ItemizedCLIPProcessor`].
        max_items: item slots K of every study; the loss counts padded slots in its divisors, so K is fixed.
        max_scans: most scans of a study.
        scan_fill: `"mask"` pads the missing scans and masks them; `"repeat"` repeats the study's scans up to `max_scans`, as
            the released code does.
        diverse_sampling: arguments of `sample_diverse`; plain items if None.
        is_normal: rule on the items of a study, for studies that do not say it themselves.
        quarantine: file that lists examples that could not be read: id and reason. They are left out of their batch.

    An example holds `items` (list of strings) and either `images` (anything the processor takes as one study) or
    `pixel_values` (N, C, D, H, W), processed, with `scan_names`; `is_normal` and `id` if known, and `seed` in training.
    Without a seed nothing is random: the first scans and items are taken.
    """

    processor: Any
    max_items: int = 7
    max_scans: int = 10
    scan_fill: str = "mask"
    diverse_sampling: dict | None = None
    is_normal: Callable[[list[str]], bool] | None = None
    quarantine: str | Path | None = None
    lost: int = field(default=0, init=False)

    def __post_init__(self):
        if self.scan_fill not in ("mask", "repeat"):
            raise ValueError(f"scan_fill is {self.scan_fill!r}, expected 'mask' or 'repeat'.")

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        studies, items, normal, last_error = [], [], [], None
        for example in examples:
            seed = example.get("seed")
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            try:
                if not example["items"]:
                    raise ValueError("the study has no item.")
                chosen = self._items(example["items"], generator)
                scans = self._scans(example, generator)
            except (OSError, ValueError) as error:
                self._report(example.get("id"), error)
                last_error = error
                continue
            studies.append(scans)
            items.append(chosen)
            flag = example.get("is_normal")
            if flag is None:
                flag = self.is_normal(example["items"]) if self.is_normal else False
            normal.append(bool(flag))
        if not studies:
            raise ValueError(
                f"none of the {len(examples)} studies of this batch could be used; the last error: {last_error}"
            )
        batch = dict(self.processor.image_processor.collate(studies, return_tensors="pt"))
        batch.update(self._tokenize(items))
        batch["is_normal"] = torch.tensor(normal)
        return batch

    def _items(self, items: list[str], generator: torch.Generator | None) -> list[str]:
        if self.diverse_sampling is not None and generator is not None:
            return sample_diverse(items, self.max_items, generator, **self.diverse_sampling)
        return choose_items(items, self.max_items, generator)

    def _scans(self, example: dict, generator: torch.Generator | None) -> list[ProcessedScan]:
        if "pixel_values" in example:
            pixel_values = torch.as_tensor(example["pixel_values"])
            names = example.get("scan_names") or [None] * len(pixel_values)
            order = self._choose(len(pixel_values), generator)
            return [ProcessedScan(names[i], pixel_values[i].float(), None, None) for i in order]
        study = example["images"]
        study = getattr(study, "scans", study)
        if isinstance(study, dict):
            names = [name for name, scan in study.items() if scan is not None]
            study = {names[i]: study[names[i]] for i in self._choose(len(names), generator)}
        elif isinstance(study, (list, tuple)):
            study = [study[i] for i in self._choose(len(study), generator)]
        scans = self.processor.image_processor.process_study(study, generator)
        order = self._choose(len(scans), generator) if len(scans) > self.max_scans else list(range(len(scans)))
        scans = [scans[i] for i in order]
        if self.scan_fill == "repeat":
            scans = [scans[i % len(scans)] for i in range(self.max_scans)]
        return scans

    def _choose(self, count: int, generator: torch.Generator | None) -> list[int]:
        """A random subset of at most `max_scans` scans, in their own order."""
        if count <= self.max_scans or generator is None:
            return list(range(min(count, self.max_scans)))
        return sorted(torch.randperm(count, generator=generator)[: self.max_scans].tolist())

    def _tokenize(self, items: list[list[str]]) -> dict[str, torch.Tensor]:
        encoded = self.processor.encode_text(items, num_slots=self.max_items)
        return {name: torch.as_tensor(value) for name, value in encoded.items()}

    def _report(self, study_id, error: Exception):
        self.lost += 1
        logger.warning(f"study {study_id} is left out: {error}")
        if self.quarantine is not None:
            path = Path(self.quarantine)
            new = not path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["study", "reason"])
                writer.writerow([study_id, str(error)])
