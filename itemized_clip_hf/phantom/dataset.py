"""A map-style dataset of phantom studies with separate training and test splits."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import numpy as np

from .study import DEFAULT_SHAPE, PhantomStudy, generate_study

SPLITS = ("train", "test")


class PhantomDataset:
    """
    Studies generated when they are asked for.

    The splits' random streams have different spawn keys, so no training study is a test study, whatever their numbers.
    Items of the test split also use templates that the training split never uses.

    >>> train, test = (PhantomDataset(split, 3, shape=(4, 16, 16)) for split in ("train", "test"))
    >>> len(train), train[0].id, test[0].id
    (3, 'train-0-000000', 'test-0-000000')

    Args:
        split: "train" or "test".
        num_studies: length of the dataset; a longer one starts with the studies of a shorter one.
        seed: seed of the whole dataset.
        shape: ``(D, H, W)`` of every scan in voxels.
        spacing: voxel size in mm, depth first; by default the grid covers `geometry.FIELD_OF_VIEW`.
    """

    def __init__(
        self,
        split: str = "train",
        num_studies: int = 1000,
        seed: int = 0,
        shape: tuple[int, int, int] = DEFAULT_SHAPE,
        spacing: tuple[float, float, float] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        if num_studies < 0:
            raise ValueError(f"num_studies must not be negative, got {num_studies}")
        self.split = split
        self.num_studies = num_studies
        self.seed = seed
        self.shape = tuple(shape)
        self.spacing = spacing

    def __len__(self) -> int:
        return self.num_studies

    def __iter__(self) -> Iterator[PhantomStudy]:
        return (self[index] for index in range(self.num_studies))

    def seed_sequence(self, index: int) -> np.random.SeedSequence:
        """Return the seed of study ``index``, as `generate_study` takes it."""
        return np.random.SeedSequence(self.seed, spawn_key=(SPLITS.index(self.split), index))

    def __getitem__(self, index: int) -> PhantomStudy:
        index = operator.index(index)
        if index < 0:
            index += self.num_studies
        if not 0 <= index < self.num_studies:
            raise IndexError(f"study {index} of {self.num_studies}")
        return generate_study(
            self.seed_sequence(index),
            self.shape,
            spacing=self.spacing,
            held_out_templates=self.split == "test",
            study_id=f"{self.split}-{self.seed}-{index:06d}",
        )
