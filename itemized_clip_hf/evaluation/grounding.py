"""Whether a model looks where the finding is: heat maps against masks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class PointingGame:
    """
    Pointing game in the model's own resolution: the patch of a study that an item attends to most touches the item's mask, or
    it does not.

    Chance is the share of patches that touch the mask, what a patch drawn at random would hit.
    """

    hits: dict[str, list[bool]] = field(default_factory=dict)
    chances: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, maps: Sequence, masks: Sequence[np.ndarray]) -> None:
        """
        Args:
            name: kind of finding.
            maps: heat maps of one item, one per scan.
            masks: the item's mask in the grid of each scan's source.
        """
        touched = [heat.touched_tokens(mask) for heat, mask in zip(maps, masks)]
        hottest = max(range(len(maps)), key=lambda n: maps[n].tokens.max())
        self.hits.setdefault(name, []).append(bool(touched[hottest].flat[maps[hottest].tokens.argmax()]))
        self.chances.setdefault(name, []).append(float(np.mean([share.mean() for share in touched])))

    def rates(self, names: Iterable[str] | None = None) -> tuple[int, float, float]:
        """Items, hit rate and chance, over all items of these findings."""
        names = [name for name in (self.hits if names is None else names) if name in self.hits]
        hits = [hit for name in names for hit in self.hits[name]]
        chances = [chance for name in names for chance in self.chances[name]]
        if not hits:
            return 0, float("nan"), float("nan")
        return len(hits), float(np.mean(hits)), float(np.mean(chances))
