"""Whether a model looks where the finding is: heat maps against masks."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .metrics import pointing_hit


@dataclass
class PointingGame:
    """
    Pointing game: the hottest voxel of an item's heat map, summed over the scans of a study, lies in the item's mask or not.

    Chance is the mask's share of the volume, what a voxel drawn at random would hit. `add` takes one item, `table` gives
    (name, items, hit rate, chance) for every kind of finding.
    """

    hits: dict[str, list[bool]] = field(default_factory=dict)
    chances: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, heat_map: np.ndarray, mask: np.ndarray) -> None:
        """
        Args:
            name: kind of finding.
            heat_map: (D, H, W).
            mask: (D, H, W) boolean, not empty.
        """
        self.hits.setdefault(name, []).append(pointing_hit(heat_map, mask))
        self.chances.setdefault(name, []).append(float(np.mean(mask)))

    def rates(self, names: Iterable[str] | None = None) -> tuple[int, float, float]:
        """Items, hit rate and chance, over all items of these findings."""
        names = list(self.hits) if names is None else [name for name in names if name in self.hits]
        hits = [hit for name in names for hit in self.hits[name]]
        chances = [chance for name in names for chance in self.chances[name]]
        if not hits:
            return 0, float("nan"), float("nan")
        return len(hits), float(np.mean(hits)), float(np.mean(chances))

    def table(self) -> list[tuple[str, int, float, float]]:
        return [(name, *self.rates([name])) for name in sorted(self.hits)]
