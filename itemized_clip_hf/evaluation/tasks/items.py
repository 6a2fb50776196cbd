"""What the paper claims of items, as figures: found completely, matched well, told apart, in the right series (method 8.3)."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from ...data.layout import Layout
from ...data.studies.records import read_records
from ...explain.maps import attend
from ...modeling.modeling_itemized_clip import ItemizedCLIPModel
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from .. import bootstrap as boot
from ..encode import Closed, EncodedStudies, encode_studies, encode_texts
from ..estimates import Estimates
from ..metrics import best_ranks, worst_ranks
from ..protocols.images import open_record
from ..results import TaskResult
from ..training_notes import task_notes
from ..zero_shot import score_encoded
from . import TaskOptions

logger = logging.get_logger(__name__)

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

    def summary(self, resamples: int = boot.RESAMPLES, seed: int = 0) -> Estimates:
        """Means with intervals, over studies or, for `T2I@k`, over texts."""
        figures: Estimates = {}
        for values in (self.per_study(), self.per_text()):
            counts = boot.study_counts(max(map(len, values.values()), default=0), resamples, seed)
            figures |= {name: boot.mean_estimate(own, counts, name) for name, own in values.items()}
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
    model: ItemizedCLIPModel, embeds: torch.Tensor, studies: EncodedStudies, normalize_queries: bool = True
) -> torch.Tensor:
    """(B, K, L) attention of items (B, K, P) over the tokens, mean over heads, without the empty slot."""
    return attend(model, embeds, studies.tokens, studies.keep_mask, normalize_queries)


def evaluate_items(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
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
    without_items = [number for number, own in enumerate(items) if not own]
    if without_items and on_error is None:
        raise ValueError(f"{len(without_items)} studies have no item, e.g. number {without_items[0]}.")
    for number in without_items:
        on_error(number, ValueError("it has no item"))  # type: ignore[misc]  # None has raised above
    texts = list(dict.fromkeys([*(bank or ()), *(item for own in items for item in own)]))
    embeds = encode_texts(model, processor, texts)
    result = ItemEvaluation([], texts, np.zeros((0, len(texts)), np.float32), np.zeros(0), [], [])
    scores, overlaps = [], []
    # Numbers of the studies with items, which `encode_studies` counts from 0.
    number_of = [number for number in range(len(rows)) if items[number]]
    reported = None if on_error is None else lambda number, error: on_error(number_of[number], error)
    bad_scan = None if on_bad_scan is None else lambda number, scan, error: on_bad_scan(number_of[number], scan, error)
    closed = [Closed(partial(_images_of, rows[number])) for number in number_of]
    bar = "scoring" if progress else None
    for encoded in encode_studies(
        model, processor, closed, batch_size, bar, reported, bad_scan, num_workers=num_workers
    ):
        encoded.numbers = [number_of[number] for number in encoded.numbers]
        own_items = [items[number] for number in encoded.numbers]
        result.numbers += encoded.numbers
        result.items += own_items
        scores.append(score_encoded(model, embeds, encoded, normalize_pool_inputs))
        own_overlaps, own_shares = _attention_figures(model, embeds, texts, own_items, encoded)
        overlaps += own_overlaps
        result.shares += own_shares
    if not scores:
        raise ValueError(f"none of the {len(rows)} studies can be read.")
    result.scores, result.overlaps = np.concatenate(scores), np.array(overlaps)
    return result


def _attention_figures(
    model: ItemizedCLIPModel, embeds: torch.Tensor, texts: list[str], items: list[list[str]], encoded: EncodedStudies
) -> tuple[list[float], list[dict[str, np.ndarray]]]:
    """Overlap of the maps of each study's items, and shares of each scan; NaN and none without a trained pooler."""
    if model.config.scoring == "global":
        return [float("nan")] * len(items), []
    places = {text: place for place, text in enumerate(texts)}
    slots = max(map(len, items))
    padded = [[places[item] for item in own] + [0] * (slots - len(own)) for own in items]
    attention = item_attention(model, embeds[torch.tensor(padded, device=embeds.device)], encoded).float()
    overlaps, shares = [], []
    for all_maps, own, scans in zip(attention, items, encoded.scans):
        maps = all_maps[: len(own)]
        overlaps.append(map_overlap(maps[[own.index(item) for item in dict.fromkeys(own)]]))
        per_scan = maps.shape[1] // max(map(len, encoded.scans))
        total = maps.sum(1).clamp(min=1e-12)
        by_scan: dict[str, np.ndarray] = {}
        for number, scan in enumerate(scans):
            share = (maps[:, number * per_scan : (number + 1) * per_scan].sum(1) / total).cpu().numpy()
            name = str(scan.name)
            by_scan[name] = by_scan[name] + share if name in by_scan else share
        shares.append(by_scan)
    return overlaps, shares


def map_overlap(maps: torch.Tensor) -> float:
    """Mean cosine between all pairs of attention maps (K, L) of a study's items; NaN for one item."""
    if len(maps) < 2:
        return float("nan")
    unit = F.normalize(maps.float(), dim=-1)
    cosines = unit @ unit.t()
    return float(cosines[~torch.eye(len(maps), dtype=torch.bool, device=maps.device)].mean())


def _images_of(row: Mapping):
    return row["images"]() if callable(row["images"]) else row["images"]


def run(
    model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, data: str | os.PathLike, options: TaskOptions
) -> TaskResult:
    """Item retrieval, COMPLETE@k, MLL, mAMS and the share of each series: see `evaluate_items`."""
    rule = Layout.of_processor(processor)
    open_study = options.open_study or partial(open_record, layout=rule)
    records = read_records(data, layout=rule)
    if records.items_column is None:
        raise ValueError(f"{data} has no column of items; columns: {records.columns}.")
    rows = [
        {"items": items, "images": lambda number=number: open_study(records[number])}
        for number, items in enumerate(records.items())
    ]
    failed: dict[int, str] = {}
    evaluated = evaluate_items(
        model,
        processor,
        rows,
        batch_size=options.batch_size or 8,
        progress=options.progress,
        on_error=lambda number, error: failed.update({number: str(error)}),
        on_bad_scan=lambda number, scan, error: logger.warning(
            f"{records.id_of(number)}, scan {scan} left out: {error}"
        ),
        num_workers=options.num_workers,
    )
    unreadable = [{"id": records.id_of(number), "reason": reason} for number, reason in failed.items()]
    return TaskResult(
        "items",
        {"": evaluated.summary(options.resamples, options.seed)},
        {"studies": len(evaluated.items), "texts": len(evaluated.texts)},
        {
            "series": evaluated.series_shares(),
            "unreadable": unreadable,
            **task_notes(model, options.trained_on, records),
        },
    )
