"""The source layout, evaluated as it is, against the converted model, on a fixed random input."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..processing.sequence_names_itemized_clip import encode_scan_name
from . import Conversion, reference

TOLERANCES = {"image_embeds": 1e-4, "image_tokens": 1e-4, "item_embeds": 1e-4, "similarity": 1e-5}
"""Largest differences: of a similarity (method 10.3), and of embeddings relative to the largest of them."""

_NAMES = ("AX_T2_FLAIR", "SAG_T1_BrainWindow")
_LENGTHS = (12, 5, 9)


@torch.no_grad()
def compare(conversion: Conversion, seed: int = 0) -> dict[str, float | bool]:
    """
    Largest differences of a study's class token, its patches, three texts and their similarities with the study: TCSim, or
    cosines of the class token where the source has no pooler. `clean` says whether they are within `TOLERANCES`.

    The study has two scans where the model takes several, else one, at the size of the configuration.
    """
    model, state = conversion.model, conversion.state
    config, vision = model.config, model.config.vision
    state = {name: tensor.float() for name, tensor in state.items()}
    generator = torch.Generator().manual_seed(seed)
    pictures = conversion.family == "pictures"
    several = vision.use_scan_name_encoder or vision.max_num_scans > 1
    pixels = torch.randn(2 if several else 1, vision.num_channels, *vision.image_shape, generator=generator)
    ids, mask = draw_texts(config.text, generator)
    names = torch.from_numpy(encode_names(len(pixels))) if vision.use_scan_name_encoder else None

    heads, text_heads = vision.num_attention_heads, config.text.num_attention_heads
    if pictures:
        image, tokens = reference.picture(state, pixels[0, :, 0], heads)
        texts = reference.clip_text(state, ids, text_heads)
    else:
        image, tokens = reference.volumes(state, pixels, names, list(vision.layer_scopes), heads)
        texts = reference.bert_text(state, ids, mask, text_heads, config.text.layer_norm_eps)
    own_image, own_tokens, _ = model.encode_images(pixels[None], None, None if names is None else names[None])
    own_texts = model.get_text_features(ids, mask.long()).pooler_output
    if conversion.fresh:
        expected = F.cosine_similarity(texts, image[None], dim=-1)
        found = model.score_global(own_texts, own_image)[0]
    else:
        pooler = "visual_proj." if pictures else "visual_attn."
        pooled = reference.pool(state, texts, tokens, config.num_pooler_heads, pooler)
        expected = F.cosine_similarity(texts, pooled, dim=-1)
        found = model.score_items(own_texts, own_tokens)[0]
    differences = {
        "image_embeds": relative(own_image[0], image),
        "image_tokens": relative(own_tokens[0], tokens),
        "item_embeds": relative(own_texts, texts),
        "similarity": float((found - expected).abs().max()),
    }
    return {**differences, "clean": all(differences[name] < limit for name, limit in TOLERANCES.items())}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def encode_names(count: int) -> np.ndarray:
    """Characters (N, 110) of the first names."""
    return np.stack([encode_scan_name(name) for name in _NAMES[:count]])


def draw_texts(config: Any, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids (M, T) of several lengths, each ended as the tower expects, and their mask; config: of the text tower."""
    longest = min(max(_LENGTHS), config.max_position_embeddings)
    lengths = [min(length, longest) for length in _LENGTHS]
    highest = config.vocab_size - 2
    ids = torch.randint(1, highest, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    if config.model_type == "clip_text_model":
        ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = config.eos_token_id
    return torch.where(mask, ids, 0), mask
