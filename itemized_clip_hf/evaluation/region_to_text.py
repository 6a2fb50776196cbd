"""What is to be seen in a region: texts of a bank ranked for a box or a mask (method 8.4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..explain.maps import require_pooler, source_array, source_to_token, touched_tokens
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .encode import EncodedStudies, encode_studies, encode_texts

Box = Sequence[tuple[int, int]]
"""(start, stop) voxels of every axis of a scan as it came in; (row, column) ranges for a picture."""


@torch.no_grad()
def rank_texts(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: Any,
    texts: Sequence[str],
    regions: Mapping[str | None, np.ndarray | Box],
    top: int = 10,
    text_embeds: torch.Tensor | None = None,
    normalize_pool_inputs: bool = True,
) -> list[tuple[str, float]]:
    """
    Args:
        study: anything the processor takes as one study; or one that is encoded already, from `encode_studies`, which then
            does not pass through the vision tower again.
        texts: the bank.
        regions: name of a scan -> mask in the scan's own grid, or box. The name of the only scan may be None.
        top: texts to return.
        text_embeds: (M, P) of the bank, from `encode_texts`, where it is used more than once.

    Returns:
        (text, TCSim of the tokens that the regions touch), best first.

    Raises:
        ValueError: there is no scan of that name, the regions touch no token, or the model has no trained pooler.
    """
    require_pooler(model)
    encoded = study if isinstance(study, EncodedStudies) else next(encode_studies(model, processor, [study], 1))
    scans = encoded.scans[0]
    names = [scan.name for scan in scans]
    strangers = [name for name in regions if name not in names and not (name is None and len(scans) == 1)]
    if strangers:
        raise ValueError(f"the study has no scan {strangers}; it has {names}.")
    scan_size = tuple(scans[0].pixel_values.shape[1:])
    grid = tuple(n // p for n, p in zip(scan_size, model.config.vision.patch_shape))
    kept = np.zeros((len(scans), *grid), dtype=bool)
    for name, region in regions.items():
        number = names.index(name) if name in names else 0
        source = source_array(scans[number])
        shape = (1, *source.shape[:2]) if scan_size[0] == 1 else source.shape
        matrix = source_to_token(scans[number].to_source, scan_size, grid)
        kept[number] |= touched_tokens(_as_mask(region, shape), matrix, grid)
    if not kept.any():
        raise ValueError("the regions touch no token: they lie outside of what the model sees.")
    keep_mask = torch.from_numpy(kept.reshape(1, -1)).to(model.device)
    if encoded.token_mask is not None:
        keep_mask = keep_mask & encoded.token_mask
    embeds = encode_texts(model, processor, texts) if text_embeds is None else text_embeds
    tokens = encoded.tokens
    if normalize_pool_inputs:
        embeds, tokens = F.normalize(embeds, dim=-1), F.normalize(tokens, dim=-1)
    scores = model.score_items(embeds, tokens, keep_mask)[0].float().cpu().numpy()
    order = np.argsort(-scores, kind="stable")[:top]
    return [(texts[place], float(scores[place])) for place in order]


def _as_mask(region: np.ndarray | Box, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(region, np.ndarray):
        mask = region.reshape(shape) if region.ndim == 2 and shape[0] == 1 else region
        if mask.shape != shape:
            raise ValueError(f"the mask is {region.shape}, the scan {shape}: masks lie in the scan's own grid.")
        return mask.astype(bool)
    ranges = list(region) if len(region) == 3 else [(0, 1), *region]
    if len(ranges) != 3 or any(not 0 <= start < stop <= size for (start, stop), size in zip(ranges, shape)):
        raise ValueError(f"the box {list(region)} does not lie in a scan of {shape} voxels.")
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(start, stop) for start, stop in ranges)] = True
    return mask
