"""Order and seeds of training: every visit of an example has its own seed, whatever the workers and after any resume."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers.utils import logging

from ..data.study import Skipped

logger = logging.get_logger(__name__)

DATA_ERRORS = (OSError, ValueError)
"""What reading and checking a study raises for damaged data. Anything else is an error of the program and ends the run."""


class SeededSampler(Sampler[tuple[int, int]]):
    """
    A new permutation each epoch; yields (index, seed of this visit).

    >>> first = list(SeededSampler(4, seed=3))
    >>> sorted(index for index, seed in first), first == list(SeededSampler(4, seed=3))
    ([0, 1, 2, 3], True)

    The seed depends on the run's seed, the epoch and the index alone, so that random scans, items and crops are the same
    with any number of workers and in a run that was interrupted.

    Args:
        shuffle: False keeps the order of the list in every epoch.
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True):
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Order and seeds of another epoch, from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        return ((index, seeds[index]) for index in (order if self.shuffle else range(self.length)))


class SeededDataset(Dataset[Any]):
    """
    A map-style dataset whose examples are prepared for the collator with the seed of their visit.

    A study that cannot be read or used is reported, and another one, drawn from the seed of the visit, takes its place: batches
    keep their size on every rank, and a restarted run draws the same.

    Args:
        dataset: examples as the collator takes them.
        prepare: makes a study ready for a batch, or raises one of `DATA_ERRORS`.
        report: called with what is left out: the id (or number) of a study that cannot be used, and why.
    """

    _ATTEMPTS = 20

    def __init__(self, dataset: Any, prepare: Callable[[dict[str, Any]], Any], report: Callable[[Skipped], None]):
        self.dataset = dataset
        self.prepare = prepare
        self.report = report

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, seed = key
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self._ATTEMPTS):
            example = None
            try:
                example = self.dataset[index]
                return self.prepare({**example, "seed": seed})
            except DATA_ERRORS as error:
                self.report(skipped_study(self._id_of(index, example), error))
                last_error = error
            except Exception:  # raised again: only the name of the study is added
                logger.error(f"study {self._id_of(index, example)}: the program failed, not the study; training ends")
                raise
            index = int(torch.randint(len(self.dataset), (1,), generator=generator))
        raise ValueError(f"{self._ATTEMPTS} studies in a row could not be used; the last error: {last_error}")

    def _id_of(self, index: int, example: dict[str, Any] | None) -> Any:
        """Id of a study, read or not; its number where it has none."""
        try:
            return self.dataset.id_of(index) if example is None else example.get("id", index)
        except (AttributeError, *DATA_ERRORS):  # a list without ids, or a damaged one
            return index


def reason_of(error: Exception) -> str:
    """
    Why something is left out, in words.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "scan.nii.gz"))
    'there is no file scan.nii.gz.'
    """
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"there is no file {error.filename}."
    return str(error)


def skipped_study(study_id: Any, error: Exception) -> Skipped:
    """A whole study that is left out of training."""
    return Skipped(str(study_id), None, "read" if isinstance(error, OSError) else "process", reason_of(error))
