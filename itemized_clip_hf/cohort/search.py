"""What is looked for in a cohort: a study, a text, a region, near-duplicates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..evaluation.encode import encode_studies, encode_texts
from ..explain.maps import touched_tokens
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.precision import working_precision
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..provenance import hash_model, hash_processor
from .file import Cohort, CohortFacts, StudyTokens, unit
from .index import CohortIndex
from .rows import Row, RowMaker

CANDIDATES = 400
"""Studies that the first stage of a search for a text leaves to the second; `benchmarks/search.py` measures what is lost."""
STUDIES_AT_ONCE = 32
ROWS_AT_ONCE = 256
MOST_PAIRS = 1_000_000

Box = Sequence[tuple[int, int]]
"""(start, stop) voxels of every axis of a scan as it came in, depth first; (row, column) ranges for a picture."""


@dataclass(frozen=True)
class Hit:
    """
    A study that was found.

    Args:
        id: of the study.
        score: by which it stands where it stands.
        first_stage: score by which it became a candidate; None where there was one stage.
        scan: of the place that is most similar to a region; None for other queries.
        voxel: center of that place in the scan as it came in, (d, h, w).
    """

    id: str
    score: float
    first_stage: float | None = None
    scan: str | None = None
    voxel: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Found:
    """
    Results of a search, best first.

    Args:
        query: what was looked for, for people.
        quantity: what the scores are.
        hits: best first.
        candidates: studies that were scored in the last stage.
        studies: in the cohort.
        notes: for people.
    """

    query: str
    quantity: str
    hits: list[Hit]
    candidates: int
    studies: int
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; what a hit does not have is left out."""
        hits = [{name: value for name, value in asdict(hit).items() if value is not None} for hit in self.hits]
        return {**asdict(self), "hits": hits}


def require_model(facts: CohortFacts, model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor) -> None:
    """
    Raises:
        ValueError: the cohort was embedded by another model, or with another preprocessing or tokenizer.
    """
    if hash_model(model) != facts.model["sha256"]:
        raise ValueError(
            f"the model is not the one that the cohort was embedded by ({facts.model['name']}, hash "
            f"{facts.model['sha256'][:12]}): their embeddings cannot be compared."
        )
    if hash_processor(processor) != facts.processor["sha256"]:
        raise ValueError("the preprocessing or tokenizer is not that of the cohort: embed it again by this one.")


def nearest(directions: np.ndarray, query: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """
    The rows with the largest cosine, exactly.

    Args:
        directions: (S, P) of length 1.
        query: (P,).

    Returns:
        cosines and rows (top,), best first.
    """
    return best(directions @ unit(query), top)


def best(scores: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest scores and their places, best first, the first of equal ones first."""
    top = min(top, len(scores))
    places = np.argpartition(-scores, top - 1)[:top] if top < len(scores) else np.arange(top)
    places = places[np.lexsort((places, -scores[places]))]
    return scores[places], places


def search_study(
    cohort: Cohort,
    embedding: np.ndarray,
    query: str,
    top: int = 10,
    index: CohortIndex | None = None,
    leave_out: str | None = None,
) -> Found:
    """
    Studies by the cosine of their global embeddings.

    Args:
        embedding: (P,), of the study that others are to be like.
        query: what results call it.
        index: searches approximately; all studies are compared without one.
        leave_out: id of the study itself, where it is in the cohort.
    """
    wanted = top + (leave_out is not None)
    if index is None:
        cosines, places = nearest(cohort.directions, embedding, wanted)
    else:
        cosines, places = (found[0] for found in index.search(unit(embedding)[None], wanted))
    rows = [(float(cosine), int(place)) for cosine, place in zip(cosines, places) if place >= 0]
    hits = [Hit(cohort.ids[place], cosine) for cosine, place in rows if cohort.ids[place] != leave_out]
    return Found(query, "cosine of global embeddings", hits[:top], len(cohort), len(cohort))


@torch.no_grad()
def search_text(
    cohort: Cohort,
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    text: str,
    top: int = 10,
    candidates: int | None = CANDIDATES,
    index: CohortIndex | None = None,
    progress: bool = False,
) -> Found:
    """
    Studies by the text-conditioned similarity of a text, as `predict` scores it, in two stages: candidates by what is cheap,
    then the similarity on their kept tokens, which are float16.

    Candidates are chosen by the largest cosine of the text with the item embeddings of the cohort's prompts; with the global
    embedding where there are none, or an index is used. A model that is scored globally, and a cohort without tokens, have one
    stage: the cosine with the global embedding.

    Args:
        candidates: studies of the second stage; all if None.
        index: finds the candidates approximately.

    Raises:
        ValueError: the model is not the cohort's.
    """
    require_model(cohort.facts, model, processor)
    with working_precision(model, cohort.facts.precision):
        embed = encode_texts(model, processor, [text])[0]
        direction = unit(embed.float().cpu().numpy())
        if model.config.scoring == "global" or not cohort.facts.tokens:
            found = search_study(cohort, direction, text, top, index)
            notes = (
                [] if model.config.scoring == "global" else ["the cohort has no tokens (embed --tokens): one stage."]
            )
            return Found(text, "cosine of text and global embedding", found.hits, len(cohort), len(cohort), notes)
        count = len(cohort) if candidates is None else min(max(candidates, top), len(cohort))
        first, places = first_stage(cohort, direction, count, index)
        scores = dict(score_places(cohort, model, embed[None], places, progress))
    found_scores, order = best(np.array([scores[int(place)][0] for place in places]), top)
    stage = {int(place): float(score) for score, place in zip(first, places)}
    hits = [Hit(cohort.ids[places[n]], float(score), stage[int(places[n])]) for score, n in zip(found_scores, order)]
    return Found(text, "text-conditioned cosine similarity", hits, len(places), len(cohort))


def first_stage(
    cohort: Cohort, direction: np.ndarray, count: int, index: CohortIndex | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Candidates for a text.

    Args:
        direction: (P,), of the text, of length 1.
        count: candidates.

    Returns:
        scores and rows (count,), best first.
    """
    if index is not None:
        scores, places = (found[0] for found in index.search(direction[None], count))
        return scores[places >= 0], places[places >= 0]
    if not cohort.has_item_embeddings:
        return nearest(cohort.directions, direction, count)
    best_of = np.full(len(cohort), -np.inf, np.float32)
    for label in cohort.facts.prompts:
        np.maximum(best_of, unit(cohort.item_embeddings(label)) @ direction, out=best_of)
    return best(best_of, count)


def score_places(
    cohort: Cohort,
    model: ItemizedCLIPModel,
    text_embeds: torch.Tensor,
    places: Sequence[int] | np.ndarray,
    progress: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """
    Rows and their text-conditioned similarity with every text, (M,) float32.

    Args:
        text_embeds: (M, P).
        places: rows.
    """
    queries = F.normalize(text_embeds, dim=-1)
    read = tqdm(cohort.tokens_of(places), "scoring", len(places), unit="study", disable=not progress)
    for _, group in groupby(read, lambda found: found[1].values.size):
        for batch in _in_batches(group):
            tokens = torch.from_numpy(np.stack([own.flat for _, own in batch])).to(text_embeds)
            scores = model.score_items(queries, F.normalize(tokens, dim=-1)).float().cpu().numpy()
            yield from zip((place for place, _ in batch), scores)


def _in_batches(group: Iterator[tuple[int, StudyTokens]]) -> Iterator[list[tuple[int, StudyTokens]]]:
    batch: list[tuple[int, StudyTokens]] = []
    for found in group:
        batch.append(found)
        if len(batch) == STUDIES_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def describe_region(tokens: StudyTokens, regions: Mapping[str | None, Box]) -> np.ndarray:
    """
    The mean direction (P,) of the tokens that boxes touch.

    Args:
        regions: name of a scan -> box in it; the name of the only scan may be None.

    Raises:
        ValueError: there is no such scan, a box does not lie in it, or no token is touched.
    """
    grid = tokens.values.shape[1:4]
    kept = np.zeros(tokens.values.shape[:4], bool)
    for name, box in regions.items():
        if name is None and len(tokens.scan_names) == 1:
            number = 0
        elif name in tokens.scan_names:
            number = tokens.scan_names.index(name)
        else:
            raise ValueError(f"the study has no scan {name!r}; it has {tokens.scan_names}: --region NAME:BOX.")
        shape = tokens.scan_shapes[number]
        ranges = [(0, 1), *box] if len(box) == 2 else list(box)
        if len(ranges) != 3 or any(not 0 <= start < stop <= size for (start, stop), size in zip(ranges, shape)):
            raise ValueError(f"the box {list(box)} does not lie in a scan of {tuple(map(int, shape))} voxels.")
        mask = np.zeros(shape, bool)
        mask[tuple(slice(start, stop) for start, stop in ranges)] = True
        kept[number] |= touched_tokens(mask, np.linalg.inv(tokens.to_voxel[number]), grid)
    if not kept.any():
        raise ValueError("the box touches no token: it lies outside of what the model sees.")
    return unit(unit(tokens.values[kept].astype(np.float32)).mean(0))


@torch.no_grad()
def embed_study(
    model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, images: Any, facts: CohortFacts, tokens: bool = False
) -> Row:
    """
    The row of a study that is in no cohort, as the cohort's own are, without prompts.

    Args:
        images: anything the processor takes as one study.
        facts: of the cohort that it is compared with.

    Raises:
        OSError, ValueError: the study cannot be used, or the model is not the cohort's.
    """
    require_model(facts, model, processor)
    with working_precision(model, facts.precision):
        encoded = next(encode_studies(model, processor, [images], 1, on_bad_scan=lambda number, scan, error: None))
        return RowMaker(model, processor, {}, tokens)(encoded)[0]


def search_region(
    cohort: Cohort,
    region: np.ndarray,
    query: str,
    top: int = 10,
    leave_out: str | None = None,
    progress: bool = False,
) -> Found:
    """
    Studies by the largest cosine of one of their tokens with the mean direction of a region, and where that token lies.

    Args:
        region: (P,), from `describe_region`.
        query: what results call it.
        leave_out: id of the study itself.

    Raises:
        ValueError: the cohort has no tokens.
    """
    scores = np.full(len(cohort), -np.inf, np.float32)
    strongest: dict[int, tuple[str | None, tuple[int, ...]]] = {}
    read = tqdm(cohort.tokens_of(range(len(cohort))), "comparing", len(cohort), unit="study", disable=not progress)
    for place, tokens in read:
        if cohort.ids[place] == leave_out:
            continue
        cosines = unit(tokens.flat) @ region
        scores[place] = cosines.max()
        scan, *token = np.unravel_index(cosines.argmax(), tokens.values.shape[:4])
        voxel = np.rint(tokens.to_voxel[scan] @ [*token, 1])[:3].astype(int)
        strongest[place] = tokens.scan_names[scan], tuple(int(v) for v in voxel)
    values, places = best(scores, min(top, len(strongest)))
    hits = [Hit(cohort.ids[p], float(v), None, *strongest[int(p)]) for v, p in zip(values, places)]
    return Found(query, "largest cosine of a token with the region", hits, len(strongest), len(cohort))


@dataclass(frozen=True)
class Pair:
    """Two studies whose global embeddings have nearly one direction; `second` is of the other cohort where there is one."""

    first: str
    second: str
    cosine: float


@dataclass(frozen=True)
class Duplicates:
    """
    Near-duplicates.

    Args:
        threshold: of the cosine.
        pairs: at or above it, most similar first.
        nearest: quantile -> cosine of a study and the one most similar to it, over all studies: what the threshold is to be
            judged by.
        studies, others: that were compared; `others` is None within one cohort.
    """

    threshold: float
    pairs: list[Pair]
    nearest: dict[str, float]
    studies: int
    others: int | None = None

    @property
    def found(self) -> list[str]:
        """Studies that have a near-duplicate, in the order of their most similar one; both of a pair within one cohort."""
        names = [
            name
            for pair in self.pairs
            for name in ((pair.first, pair.second) if self.others is None else (pair.first,))
        ]
        return list(dict.fromkeys(names))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "found": self.found}


def find_duplicates(
    cohort: Cohort, threshold: float = 0.999, other: Cohort | None = None, progress: bool = False
) -> Duplicates:
    """
    Pairs of studies whose global embeddings have at least that cosine, exactly.

    Args:
        threshold: 0 to 1. What is near depends on the model: see `Duplicates.nearest`.
        other: looks for duplicates of the cohort's studies there, as of test studies among those of training.

    Raises:
        ValueError: the cohorts are of different models, the threshold is no cosine, or there are more pairs than
            `MOST_PAIRS`.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}, expected a cosine above 0, at most 1.")
    if other is not None:
        cohort.facts.require_same_model(other.facts, str(other.path))
    mine, theirs = cohort.directions, cohort.directions if other is None else other.directions
    pairs: list[tuple[float, int, int]] = []
    highest = np.full(len(mine), -1.0, np.float32)
    starts = range(0, len(mine), ROWS_AT_ONCE)
    for start in tqdm(starts, "comparing", unit=f"{ROWS_AT_ONCE} studies", disable=not progress):
        rows = slice(start, start + ROWS_AT_ONCE)
        cosines = mine[rows] @ theirs.T
        if other is None:
            own = np.arange(len(cosines))
            cosines[own, own + start] = -1
        highest[rows] = cosines.max(1, initial=-1)
        found = np.argwhere(cosines >= threshold - 1e-6)
        pairs += [(float(cosines[i, j]), int(i) + start, int(j)) for i, j in found if other or i + start < j]
        if len(pairs) > MOST_PAIRS:
            raise ValueError(f"more than {MOST_PAIRS:,} pairs have a cosine of {threshold}: raise the threshold.")
    names = cohort.ids if other is None else other.ids
    listed = [
        Pair(cohort.ids[i], names[j], min(cosine, 1.0)) for cosine, i, j in sorted(pairs, key=lambda p: (-p[0], *p[1:]))
    ]
    quantiles = {str(q): float(np.quantile(highest, q)) for q in (0.5, 0.9, 0.99, 1.0)} if len(highest) else {}
    return Duplicates(threshold, listed, quantiles, len(mine), None if other is None else len(theirs))
