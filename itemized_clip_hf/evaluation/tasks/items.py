"""What the paper claims of items, as figures: found completely, matched well, told apart, in the right series (spec 8.3)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from ...explain.maps import attend
from .. import bootstrap as boot
from ..encode import Closed, EncodedStudies, encode_studies, encode_texts
from ..metrics import best_ranks, worst_ranks
from ..zero_shot import score_encoded

COMPLETE_LEVELS = (10, 100, 1000)
TEXT_LEVELS = (1, 10, 100)


@dataclass
class ItemEvaluation:
    """
    Per study and per item, before any mean.

    Args:
        items: items of each study.
        texts: the bank: all different items.
        scores: (S, M) TCSim of every study with every text.
        overlaps: mean cosine between the attention maps of a study's items; NaN with fewer than two.
        shares: of each study, scan name -> share of the attention of each item; empty for a model without trained pooler.
        numbers: places of the studies among those that were passed.
    """

    items: list[list[str]]
    texts: list[str]
    scores: np.ndarray
    overlaps: np.ndarray
    shares: list[dict[str, np.ndarray]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def places(self) -> list[list[int]]:
        """Places of each study's items in the bank."""
        known = {text: place for place, text in enumerate(self.texts)}
        return [[known[item] for item in dict.fromkeys(own)] for own in self.items]

    def per_study(self) -> dict[str, np.ndarray]:
        """
        One value a study, (S,): `MLL` (its lowest-scored item, x 100), `mAMS`, `mean_rank` and `worst_rank` of its items in the
        bank (0-based), `I2T@k` (its best item is among the first k), `COMPLETE@k` (all of them are).
        """
        ranks = np.array([_mean_rank(row, own) for row, own in zip(self.scores, self.places)])
        best, worst = best_ranks(self.scores, self.places) - 1, worst_ranks(self.scores, self.places) - 1
        lowest = [100 * row[own].min() for row, own in zip(self.scores, self.places)]
        found = {"MLL": np.array(lowest), "mAMS": self.overlaps, "mean_rank": ranks, "worst_rank": worst}
        for name, values in (("I2T", best), ("COMPLETE", worst)):
            found |= {f"{name}@{k}": (values < k).astype(float) for k in COMPLETE_LEVELS if k < len(self.texts)}
        return found

    def per_text(self) -> dict[str, np.ndarray]:
        """One value a text that a study has: `T2I@k`, whether such a study is among the first k."""
        owners: list[list[int]] = [[] for _ in self.texts]
        for study, own in enumerate(self.places):
            for place in own:
                owners[place].append(study)
        owned = [place for place, own in enumerate(owners) if own]  # the bank may hold more
        ranks = best_ranks(self.scores.T[owned], [owners[place] for place in owned]) - 1
        return {f"T2I@{k}": (ranks < k).astype(float) for k in TEXT_LEVELS if k < len(self.scores)}

    def summary(self, resamples: int = boot.RESAMPLES, seed: int = 0) -> dict[str, dict[str, float]]:
        """Means with intervals, over studies or, for `T2I@k`, over texts."""
        figures: dict[str, dict[str, float]] = {}
        for values in (self.per_study(), self.per_text()):
            counts = boot.study_counts(max(map(len, values.values()), default=0), resamples, seed)
            figures |= {name: boot.mean_figure(own, counts) for name, own in values.items()}
        return figures

    def series_shares(self, chosen: Callable[[int, int], str | None] | None = None) -> dict[str, dict[str, float]]:
        """
        Mean share of the attention that falls on each series, series in the order of it, of all items or by group.

        Args:
            chosen: (study, item) -> group of that item, or None to leave it out.
        """
        sums: dict[str, dict[str, list[float]]] = {}
        for study, by_scan in enumerate(self.shares):
            for item in range(len(self.items[study])):
                group = "all" if chosen is None else chosen(study, item)
                if group is not None:
                    for scan, values in by_scan.items():
                        sums.setdefault(group, {}).setdefault(scan, []).append(float(values[item]))
        means = {group: {scan: float(np.mean(v)) for scan, v in scans.items()} for group, scans in sums.items()}
        return {group: dict(sorted(scans.items(), key=lambda entry: -entry[1])) for group, scans in means.items()}


def _mean_rank(scores: np.ndarray, own: Sequence[int]) -> float:
    """0-based, equal scores count half."""
    values = scores[list(own)][:, None]
    return float(np.mean((scores[None] > values).sum(1) + ((scores[None] == values).sum(1) - 1) / 2))


@torch.no_grad()
def item_attention(
    model, embeds: torch.Tensor, studies: EncodedStudies, normalize_queries: bool = True
) -> torch.Tensor:
    """(B, K, L) attention of items (B, K, P) over the tokens, mean over heads, without the empty slot."""
    return attend(model, embeds, studies.tokens, studies.keep_mask, normalize_queries)


def evaluate_items(
    model,
    processor,
    studies: Iterable[Mapping],
    bank: Sequence[str] | None = None,
    batch_size: int = 8,
    progress: bool = False,
    normalize_pool_inputs: bool = True,
    on_error: Callable[[int, Exception], None] | None = None,
    on_bad_scan: Callable[[int, str | None, Exception], None] | None = None,
    num_workers: int = 0,
) -> ItemEvaluation:
    """
    Scores and attention of every item of every study.

    Args:
        studies: each with `images` (anything the processor takes as one study, or a function that opens it) and `items`.
        bank: texts to retrieve from; all different items of the studies by default, to which these are added otherwise.
        on_error: called with the number of a study that cannot be read or has no item, and why; it is left out. Without it
            the error is raised.
        on_bad_scan: called with the number of a study, the name of a scan that is left out of it, and why.
        num_workers: see `encode_studies`.

    Raises:
        ValueError: a study has no item, or none can be read.
    """
    rows = list(studies)
    items = [list(row["items"]) for row in rows]
    empty = [number for number, own in enumerate(items) if not own]
    if empty and on_error is None:
        raise ValueError(f"{len(empty)} studies have no item, e.g. number {empty[0]}.")
    for number in empty:
        on_error(number, ValueError("it has no item"))  # type: ignore[misc]
    texts = list(dict.fromkeys([*(bank or ()), *(item for own in items for item in own)]))
    places = {text: place for place, text in enumerate(texts)}
    embeds = encode_texts(model, processor, texts)
    scores, overlaps, shares, kept = [], [], [], []
    bar = "scoring" if progress else None
    full = [number for number in range(len(rows)) if items[number]]
    reported = None if on_error is None else lambda number, error: on_error(full[number], error)
    bad_scan = None if on_bad_scan is None else lambda number, scan, error: on_bad_scan(full[number], scan, error)
    opened = [Closed(partial(_images_of, rows[number])) for number in full]
    for encoded in encode_studies(
        model, processor, opened, batch_size, bar, reported, bad_scan, num_workers=num_workers
    ):
        encoded.numbers = [full[number] for number in encoded.numbers]
        kept += encoded.numbers
        scores.append(score_encoded(model, embeds, encoded, normalize_pool_inputs))
        own_items = [items[number] for number in encoded.numbers]
        if model.config.scoring == "global":
            overlaps += [float("nan")] * len(own_items)
            continue
        slots = max(map(len, own_items))
        padded = [[places[item] for item in own] + [0] * (slots - len(own)) for own in own_items]
        attention = item_attention(model, embeds[torch.tensor(padded, device=embeds.device)], encoded).float()
        for maps, own, scans in zip(attention, own_items, encoded.scans):
            maps = maps[: len(own)]
            overlaps.append(map_overlap(maps[[own.index(item) for item in dict.fromkeys(own)]]))
            per_scan = maps.shape[1] // max(map(len, encoded.scans))
            total = maps.sum(1).clamp(min=1e-12)
            by_scan: dict[str, np.ndarray] = {}
            for number, scan in enumerate(scans):
                share = (maps[:, number * per_scan : (number + 1) * per_scan].sum(1) / total).cpu().numpy()
                name = str(scan.name)
                by_scan[name] = by_scan[name] + share if name in by_scan else share
            shares.append(by_scan)
    if not kept:
        raise ValueError(f"none of the {len(rows)} studies can be read.")
    return ItemEvaluation(
        [items[number] for number in kept], texts, np.concatenate(scores), np.array(overlaps), shares, kept
    )


def map_overlap(maps: torch.Tensor) -> float:
    """Mean cosine between all pairs of attention maps (K, L) of a study's items; NaN for one item."""
    if len(maps) < 2:
        return float("nan")
    unit = F.normalize(maps.float(), dim=-1)
    cosines = unit @ unit.t()
    return float(cosines[~torch.eye(len(maps), dtype=torch.bool, device=maps.device)].mean())


def _images_of(row: Mapping):
    return row["images"]() if callable(row["images"]) else row["images"]
