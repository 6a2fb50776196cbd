"""Zero-shot scores: every prompt against every study, by itself (method 8.1)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .encode import EncodedStudies, ImageEncoder, encode_prompts, encode_studies


def fold(name: str) -> str:
    """
    Letters and digits alone, lower case.

    >>> fold("CQ500-CT-0")
    'cq500ct0'
    """
    return "".join(character for character in str(name).lower() if character.isalnum())


def match_class(label: str, classes: Iterable[str]) -> str | None:
    """
    The class that a label of a data set names, compared by letters and digits alone: `BaseballField` is `baseball field`, and
    `DenseResidential`, which no class is called, is the only one that starts so: `dense residential area`. None if there is no
    such class.

    >>> match_class("BaseballField", ["baseball field", "beach"])
    'baseball field'
    """
    folded = {fold(name): name for name in classes}
    if fold(label) in folded:
        return folded[fold(label)]
    longer = [name for key, name in folded.items() if key.startswith(fold(label))]
    return longer[0] if len(longer) == 1 else None


@torch.no_grad()
def score_encoded(
    model: ItemizedCLIPModel, prompt_embeds: torch.Tensor, studies: EncodedStudies, normalize_pool_inputs: bool = True
) -> np.ndarray:
    """
    TCSim of encoded studies with every prompt: (B, M) in [-1, 1]; the global cosine of a model that is scored so.

    Args:
        prompt_embeds: (M, P) from `encode_prompts`.
        normalize_pool_inputs: L2-normalise prompts and tokens before the pooler, as the published protocols do.
    """
    if model.config.scoring == "global":
        return model.score_global(prompt_embeds, studies.image_embeds).cpu().numpy()
    tokens = studies.tokens
    if normalize_pool_inputs:
        prompt_embeds, tokens = F.normalize(prompt_embeds, dim=-1), F.normalize(tokens, dim=-1)
    return model.score_items(prompt_embeds, tokens, studies.token_mask).float().cpu().numpy()


@torch.no_grad()
def score_top(
    model: ItemizedCLIPModel,
    text_embeds: torch.Tensor,
    studies: EncodedStudies,
    top_k: int,
    normalize_pool_inputs: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Two stages for large banks of texts: of each study the `top_k` texts by cosine with the global embedding, scored by TCSim.

    Args:
        text_embeds: (M, P).

    Returns:
        places of the texts (B, k), best global cosine first, and their TCSim (B, k).
    """
    images, texts = F.normalize(studies.image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    cosines, places = (images @ texts.t()).topk(min(top_k, len(texts)), dim=1)
    if model.config.scoring == "global":
        return places.cpu().numpy(), cosines.float().cpu().numpy()
    tokens = studies.tokens
    if normalize_pool_inputs:
        text_embeds, tokens = texts, F.normalize(tokens, dim=-1)
    chosen = text_embeds[places]
    pooled = model.item_pooler(chosen, tokens, studies.keep_mask)
    scores = F.cosine_similarity(pooled.float(), chosen.float(), dim=-1, eps=1e-6)
    return places.cpu().numpy(), scores.cpu().numpy()


def score_studies(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    studies: Iterable,
    prompts: Sequence[str] | Mapping[str, str | Sequence[str]],
    batch_size: int = 8,
    normalize_pool_inputs: bool = True,
    progress: bool = False,
    on_error: Callable[[int, Exception], None] | None = None,
    on_bad_scan: Callable[[int, str | None, Exception], None] | None = None,
    on_scores: Callable[[int, np.ndarray], None] | None = None,
    num_workers: int = 0,
    append: tuple[int, Callable[[EncodedStudies], np.ndarray]] | None = None,
) -> tuple[list[str], np.ndarray]:
    """
    Args:
        studies, on_bad_scan, num_workers: see `encode_studies`.
        append: E, and what makes (B, E) of encoded studies, which are put behind their scores.
        on_error: called with the number of a study that cannot be read, and why; its scores are NaN. Without it the error is
            raised.
        prompts: as in `encode_prompts`.
        on_scores: called with the number of a study and its scores (M,) as soon as they are known.

    Returns:
        labels and scores (S, M), or (S, M + E).
    """
    labels, prompt_embeds = encode_prompts(model, processor, prompts)
    callbacks: dict[str, Any] = {"on_error": on_error, "on_bad_scan": on_bad_scan, "on_scores": on_scores}

    def score(encoded: EncodedStudies) -> np.ndarray:
        scores = score_encoded(model, prompt_embeds, encoded, normalize_pool_inputs)
        return scores if append is None else np.concatenate([scores, append[1](encoded)], 1)

    table = collect_scores(
        score,
        len(labels) + (0 if append is None else append[0]),
        model,
        processor,
        studies,
        batch_size=batch_size,
        progress=progress,
        num_workers=num_workers,
        **callbacks,
    )
    return labels, table


def collect_scores(
    score: Callable[[EncodedStudies], np.ndarray],
    width: int,
    model: ImageEncoder,
    processor: ItemizedCLIPProcessor,
    studies: Iterable,
    batch_size: int = 8,
    progress: bool = False,
    on_error: Callable[[int, Exception], None] | None = None,
    on_bad_scan: Callable[[int, str | None, Exception], None] | None = None,
    on_scores: Callable[[int, np.ndarray], None] | None = None,
    num_workers: int = 0,
) -> np.ndarray:
    """
    Scores (S, width) of studies, NaN for those that cannot be read.

    Args:
        score: scores (B, width) of encoded studies.
        model, processor, studies, batch_size, progress, on_error, on_bad_scan, on_scores, num_workers: as of `score_studies`.
    """
    scores: dict[int, np.ndarray | None] = {}

    def leave_out(number: int, error: Exception) -> None:
        if on_error is None:
            raise error
        scores[number] = None
        on_error(number, error)

    bar = "scoring" if progress else None
    for encoded in encode_studies(
        model, processor, studies, batch_size, bar, leave_out, on_bad_scan, num_workers=num_workers
    ):
        for number, row in zip(encoded.numbers, score(encoded)):
            scores[number] = row
            if on_scores is not None:
                on_scores(number, row)
    table = np.full((len(scores), width), np.nan, dtype=np.float32)
    for number, found in scores.items():
        if found is not None:
            table[number] = found
    return table
