"""Means of the terms of a loss, of training and of each evaluation apart."""

from collections.abc import Callable, Mapping

import torch


class LossTerms:
    """
    Sums of named terms since they were last taken.

    >>> terms = LossTerms()
    >>> terms.add({"mps": torch.tensor(2.0)})
    >>> terms.add({"mps": torch.tensor(4.0)}, weight=3)
    >>> terms.take("eval_"), terms.take("eval_")
    ({'eval_loss_mps': 3.5}, {})
    """

    def __init__(self) -> None:
        self._totals: dict[str, torch.Tensor] = {}
        self._weights: dict[str, float] = {}

    def clear(self) -> None:
        """Starts again."""
        self._totals.clear()
        self._weights.clear()

    def add(self, terms: Mapping[str, torch.Tensor] | None, weight: float = 1) -> None:
        """Adds scalars, each `weight` times."""
        for name, term in (terms or {}).items():
            self._totals[name] = self._totals.get(name, 0) + weight * term.detach().float()
            self._weights[name] = self._weights.get(name, 0) + weight

    def take(self, prefix: str, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums) -> dict[str, float]:
        """
        Means since the last time, under `prefix` and their names; starts again.

        Args:
            reduce: adds up sums over all processes, all of which take the same terms.
        """
        if not self._totals:
            return {}
        names = list(self._totals)
        weights = [torch.as_tensor(self._weights[name]).to(self._totals[name]) for name in names]
        sums = reduce(torch.stack([torch.stack([self._totals[name].mean() for name in names]), torch.stack(weights)]))
        self.clear()
        return {f"{prefix}loss_{name}": round(mean, 6) for name, mean in zip(names, (sums[0] / sums[1]).tolist())}
