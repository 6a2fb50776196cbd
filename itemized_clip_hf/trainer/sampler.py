"""Order and seeds of training: every visit of an example has its own seed, whatever the workers and after any resume."""

from collections.abc import Iterator

import torch
from torch.utils.data import Dataset, Sampler


class SeededSampler(Sampler):
    """
    A new permutation each epoch; yields (index, seed of this visit).

    The seed depends on the run's seed, the epoch and the index alone, so that random scans, items and crops are the same
    with any number of workers and in a run that was interrupted.
    """

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        return ((index, seeds[index]) for index in order)


class SeededDataset(Dataset):
    """A map-style dataset whose examples carry the seed of their visit for the collator."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, seed = key
        return {**self.dataset[index], "seed": seed}
