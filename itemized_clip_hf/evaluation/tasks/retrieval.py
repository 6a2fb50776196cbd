"""Images by text and texts by image: COCO, Flickr30k and lists of one's own (method 8.2)."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ...data.studies.records import Records, read_records
from ...modeling.modeling_itemized_clip import ItemizedCLIPModel
from ...processing.processing_itemized_clip import ItemizedCLIPProcessor
from .. import bootstrap as boot
from ..encode import encode_studies, encode_texts
from ..estimates import Estimates
from ..metrics import best_ranks, retrieval_summary
from ..results import TaskResult
from ..zero_shot import score_encoded, score_top
from . import TaskOptions

logger = logging.get_logger(__name__)

MODES = ("full", "accelerated", "global")
LEVELS = (1, 5, 10, 50, 100)
_NOT_SCORED = -1e10


@dataclass
class CaptionedImages:
    """Images, a sequence of anything the processor takes as one study, and the captions of each."""

    images: Any
    captions: list[list[str]]

    def __post_init__(self):
        if len(self.images) != len(self.captions):
            raise ValueError(f"{len(self.images)} images, but captions of {len(self.captions)}.")
        empty = [number for number, texts in enumerate(self.captions) if not texts]
        if empty:
            raise ValueError(f"{len(empty)} images have no caption, e.g. number {empty[0]}.")


def read_captions(
    source: str | os.PathLike, image_folder: str | os.PathLike | None = None, split: str | None = None
) -> CaptionedImages:
    """
    Args:
        source: COCO's JSON (`images`, `annotations`), the JSON of the Karpathy splits (`images` with `sentences`), or a list of
            studies with items (`.jsonl`, `.parquet`, ...).
        image_folder: where the images are; the JSON's folder by default.
        split: of the Karpathy JSON: `"test"`, `"val"`, ...; all images by default.

    Raises:
        ValueError: another layout, no image of that split, or images without captions.
    """
    path = Path(source)
    content = json.loads(path.read_text()) if path.suffix == ".json" else None
    if not isinstance(content, dict) or "images" not in content:
        records = read_records(path)
        if records.items_column is None:
            raise ValueError(f"{path.name} has no column of captions; columns: {records.columns}.")
        return CaptionedImages(_Images(records), list(records.items()))
    folder = Path(image_folder) if image_folder is not None else path.parent
    if "annotations" not in content:
        return _read_karpathy(path.name, content, folder, split)
    if split is not None:
        raise ValueError(f"{path.name} is COCO's JSON of one split: leave out split {split!r}.")
    return _read_coco(path.name, content, folder)


def _read_coco(name: str, content: dict[str, Any], folder: Path) -> CaptionedImages:
    texts: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in texts:
            raise ValueError(f"{name}: a caption belongs to image {annotation['image_id']}, which is not there.")
        texts[annotation["image_id"]].append(annotation["caption"])
    captioned = [image for image in content["images"] if texts[image["id"]]]
    if len(captioned) < len(texts):
        logger.warning(f"{name}: {len(texts) - len(captioned)} images without a caption are left out.")
    files = [str(folder / image["file_name"]) for image in captioned]
    return CaptionedImages(files, [texts[image["id"]] for image in captioned])


def _read_karpathy(name: str, content: dict[str, Any], folder: Path, split: str | None) -> CaptionedImages:
    chosen = [image for image in content["images"] if split is None or image.get("split") == split]
    if not chosen:
        known = sorted({str(image.get("split")) for image in content["images"]})
        raise ValueError(f"{name} has no image of the split {split!r}; splits: {known}.")
    files = [str(folder / image.get("filepath", "") / image["filename"]) for image in chosen]
    return CaptionedImages(files, [[sentence["raw"] for sentence in image["sentences"]] for image in chosen])


class _Images:
    """Images of records, opened one by one."""

    def __init__(self, records: Records):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int):
        return self.records[number].get("images")

    def __iter__(self):
        return (self[number] for number in range(len(self)))


@torch.no_grad()
def score_pairs(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    data: CaptionedImages,
    mode: str = "full",
    top_k: int = 128,
    batch_size: int = 32,
    progress: bool = False,
    on_error: Callable[[int, Exception], None] | None = None,
    num_workers: int = 0,
) -> np.ndarray:
    """
    Scores (images, captions) of every image with every caption, captions in the order of the images.

    Args:
        on_error: called with the number of an image that cannot be read, and why; its row is NaN. Without it the error is
            raised.
        mode: `"full"`: TCSim of every pair, features as they are into the pooler; `"accelerated"`: TCSim of the `top_k`
            captions by global cosine of each image, -1e10 for all others; `"global"`: cosine of the global embeddings.
        num_workers: see `encode_studies`.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {list(MODES)}.")
    texts = encode_texts(model, processor, [caption for own in data.captions for caption in own])
    scores = np.full((len(data.images), len(texts)), np.nan, dtype=np.float32)
    bar = "scoring" if progress else None
    for encoded in encode_studies(model, processor, data.images, batch_size, bar, on_error, num_workers=num_workers):
        if mode == "full":
            table = score_encoded(model, texts, encoded, normalize_pool_inputs=False)
        elif mode == "global":
            table = model.score_global(texts, encoded.image_embeds).cpu().numpy()
        else:
            places, best = score_top(model, texts, encoded, top_k, normalize_pool_inputs=False)
            table = np.full((len(places), len(texts)), _NOT_SCORED, dtype=np.float32)
            np.put_along_axis(table, places, best, axis=1)
        scores[encoded.numbers] = table
    return scores


def summarize_pairs(
    scores: np.ndarray, captions_per_image: Sequence[int], resamples: int = boot.RESAMPLES, seed: int = 0
) -> dict[str, Estimates]:
    """
    `text_to_image`: rank of a caption's image; `image_to_text`: rank of the best of an image's captions. R@1, 5, 10, 50, 100,
    mean and median rank (1-based), with intervals over images.

    Args:
        scores: (images, captions).
    """
    starts = np.concatenate([[0], np.cumsum(captions_per_image)])
    if starts[-1] != scores.shape[1] or len(captions_per_image) != len(scores):
        raise ValueError(f"scores are {scores.shape}, expected {(len(captions_per_image), int(starts[-1]))}.")
    owner = np.repeat(np.arange(len(scores)), captions_per_image)
    ranks = {
        "text_to_image": best_ranks(scores.T, [[int(image)] for image in owner]),
        "image_to_text": best_ranks(scores, [range(a, b) for a, b in zip(starts, starts[1:])]),
    }
    counts = boot.study_counts(len(scores), resamples, seed)
    return {
        direction: _summarize_ranks(
            found, counts if counts is None or direction == "image_to_text" else counts[:, owner]
        )
        for direction, found in ranks.items()
    }


def _summarize_ranks(ranks: np.ndarray, counts: np.ndarray | None) -> Estimates:
    """Estimates of 1-based ranks (Q,); counts (R, Q) of the queries."""
    estimates = {}
    for metric, value in retrieval_summary(ranks, LEVELS).items():
        resampled = None
        if counts is not None and metric != "median_rank":
            per_query = ranks if metric == "mean_rank" else ranks <= int(metric.removeprefix("R@"))
            resampled = boot.resampled_mean(per_query, counts)
        estimates[metric] = boot.estimate(value, resampled, metric, len(ranks))
    return estimates


def evaluate_retrieval(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    data: CaptionedImages,
    resamples: int = boot.RESAMPLES,
    seed: int = 0,
    **scoring,
) -> dict[str, Estimates]:
    """
    Scores and figures in one; images that cannot be read are left out.

    Args:
        resamples, seed: see `summarize_pairs`.
        scoring: arguments of `score_pairs`.
    """
    scores = score_pairs(model, processor, data, **scoring)
    read = ~np.isnan(scores).all(1)
    if not read.any():
        raise ValueError(f"none of the {len(scores)} images can be read.")
    counts = np.array([len(texts) for texts in data.captions])
    return summarize_pairs(scores[read][:, np.repeat(read, counts)], counts[read].tolist(), resamples, seed)


def run(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    data: str | os.PathLike,
    options: TaskOptions,
    *,
    mode: str = "full",
    top_k: int = 128,
    split: str | None = None,
    image_folder: str | None = None,
) -> TaskResult:
    """Text to image and image to text: see `read_captions` and `score_pairs`."""
    pairs = read_captions(data, image_folder, split)
    failed: dict[int, str] = {}
    figures = evaluate_retrieval(
        model,
        processor,
        pairs,
        options.resamples,
        options.seed,
        mode=mode,
        top_k=top_k,
        batch_size=options.batch_size or 32,
        progress=options.progress,
        on_error=lambda number, error: failed.update({number: str(error)}),
        num_workers=options.num_workers,
    )
    mode = "global" if model.config.scoring == "global" else mode
    facts = {"images": len(pairs.images), "captions": sum(map(len, pairs.captions)), "mode": mode, "split": split}
    if mode == "accelerated":
        facts["top_k"] = top_k
    unreadable = [{"number": number, "reason": reason} for number, reason in failed.items()]
    return TaskResult("retrieval", figures, facts, {"unreadable": unreadable})
