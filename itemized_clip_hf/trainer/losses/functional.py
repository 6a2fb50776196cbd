"""
Pure maths and pure draws of the objectives (method 5 and 6).

Shapes: B studies, K item slots, T = B + K - 1 texts of a study, L tokens, P width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ...modeling.pooling_itemized_clip import ItemizedCLIPItemPooler

WORST_POSITIVE_RULES = ("reference", "strict")


def cosine_logits(
    pooled: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, logit_bias: torch.Tensor | None = None
) -> torch.Tensor:
    """exp(logit_scale) * cos + logit_bias along the last axis, in float32 or wider; a zero vector has cosine 0."""
    pooled, texts = full(pooled), full(texts)
    # Dividing the products of norms instead of both vectors: the vectors are the largest tensors of the loss.
    norms = pooled.norm(dim=-1).clamp(min=1e-12) * texts.norm(dim=-1).clamp(min=1e-12)
    logits: torch.Tensor = (pooled * texts).sum(-1) / norms * full(logit_scale).exp()
    return logits if logit_bias is None else logits + full(logit_bias)


def full(x: torch.Tensor) -> torch.Tensor:
    """At least float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: torch.Tensor) -> torch.autocast:
    """Matrix products keep the type of their inputs, autocast or not."""
    return torch.autocast(x.device.type, enabled=False)


def unit(x: torch.Tensor) -> torch.Tensor:
    """L2-normalized along the last axis."""
    return F.normalize(full(x), dim=-1)


def sigmoid_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """-sum of weights * log sigmoid(labels * logits), labels in {-1, +1}."""
    losses = -F.logsigmoid(labels * logits)
    return (losses if weights is None else losses * weights).sum()


def softmax_loss(
    logits: torch.Tensor, targets: torch.Tensor, candidate_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    -sum of targets * log softmax(logits): the sum of cross entropies where a row of targets is one-hot.

    Args:
        logits, targets: (..., rows, candidates).
        candidate_mask: (..., candidates), False for what is no candidate of any row.
    """
    if candidate_mask is not None:
        logits = logits.masked_fill(~candidate_mask[..., None, :], torch.finfo(logits.dtype).min)
    return -(targets * logits.log_softmax(-1)).sum()


def contrastive_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    all_images: torch.Tensor,
    all_texts: torch.Tensor,
    targets: torch.Tensor,
    logit_scale: torch.Tensor,
    candidate_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Both directions of InfoNCE, averaged, summed over rows: images against all texts, texts against all images.

    Args:
        images, texts: (..., B, P), L2-normalized; row i of the one belongs to row i of the other.
        all_images, all_texts: (..., N, P), the candidates.
        targets: (..., B, N), the same for both directions.
        candidate_mask: (..., N), False for pairs left out.
    """
    scale = full(logit_scale).exp()
    with full_precision(images):
        per_image = images @ all_texts.mT * scale
        per_text = texts @ all_images.mT * scale
    return (softmax_loss(per_image, targets, candidate_mask) + softmax_loss(per_text, targets, candidate_mask)) / 2


def draw_negatives(item_mask: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """
    One random real item of every other study for every study (method 5.1).

    Args:
        item_mask: (B, K), True for real items; every study has at least one.

    Returns:
        (B, B + K - 1) row numbers into the flattened items, ascending: all K own slots at the columns i .. i + K - 1 of row
        i, and between them one item of every other study.
    """
    batch, slots = item_mask.shape
    device = item_mask.device
    counts = item_mask.sum(1)
    uniform = torch.rand(batch, batch, generator=generator, device=generator.device if generator else device).to(device)
    nth = (uniform * counts).long().clamp(max=slots - 1)  # which of the real items of study j
    real_first = (~item_mask.bool()).to(torch.uint8).argsort(dim=1, stable=True)
    chosen = real_first[torch.arange(batch, device=device)[None], nth] + torch.arange(batch, device=device) * slots
    columns = torch.arange(batch + slots - 1, device=device)[None]
    row = torch.arange(batch, device=device)[:, None]
    study = torch.where(columns < row, columns, torch.where(columns < row + slots, row, columns - slots + 1))
    own = row * slots + columns - row
    return torch.where(study == row, own, chosen.gather(1, study))


def draw_keep_mask(
    shape: tuple[int, ...],
    keep_rate: float,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> torch.Tensor | None:
    """Random token mask, True = may attend, each entry with probability `keep_rate`; None where nothing is hidden."""
    if keep_rate >= 1:
        return None
    count = torch.Size(shape).numel()
    source = generator.device if generator is not None else device
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=source).random_(-(2**63), None, generator=generator)
    threshold = min(round(keep_rate * 65536), 65535) - 32768  # four 16-bit draws a word: far cheaper than a float each
    return (words.view(torch.int16)[:count] < threshold).view(shape).to(device)


def key_tokens(attention: torch.Tensor, rate: float, token_mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    The tokens that a text attends to most (method 5.4).

    Args:
        attention: (B, T, L).
        rate: share of the tokens of real scans; at least one token is taken.
        token_mask: (B, L).

    Returns:
        (B, T, L) boolean.
    """
    attention = attention.detach()
    max_tokens = max(1, int(rate * attention.shape[-1]))
    if token_mask is None:
        chosen = attention.topk(max_tokens, dim=-1).indices
        return torch.zeros_like(attention, dtype=torch.bool).scatter_(-1, chosen, True)
    count = (token_mask.sum(-1).double() * rate).floor().clamp(min=1)
    chosen = attention.masked_fill(~token_mask[:, None], -1.0).topk(max_tokens, dim=-1).indices
    wanted = torch.arange(max_tokens, device=attention.device) < count[:, None, None]
    picked = torch.zeros_like(attention, dtype=torch.bool).scatter_(-1, chosen, wanted.expand_as(chosen))
    return picked & token_mask[:, None]


def worst_positive(
    logits: torch.Tensor, own: torch.Tensor, column_mask: torch.Tensor, select: str = "reference"
) -> torch.Tensor:
    """
    Column (B,) of the positive item that is scored lowest (method 5.3).

    Args:
        logits: (B, T).
        own: (B, T), columns of the study's own slots.
        column_mask: (B, T), False for padded slots.
        select: `"strict"`: among the real own items. `"reference"`: arg-min of logit - 10 * mask - 10 * label over all
            columns, which can fall on a padded slot or a negative once logits span more than 10 (it then has no effect).
    """
    logits = logits.detach()
    if select == "strict":
        return logits.masked_fill(~(own & column_mask), float("inf")).argmin(1)
    labels = own.to(logits.dtype) * 2 - 1
    return (logits - 10 * column_mask.to(logits.dtype) - 10 * labels).argmin(1)


def normal_pairs(is_normal: torch.Tensor, other_is_normal: torch.Tensor, local: bool) -> torch.Tensor:
    """
    Pairs (B, B) of two normal studies, which the normal check drops; in the local block never a study with itself.

    Args:
        is_normal: (B,), of the images' studies.
        other_is_normal: (B,), of the texts' studies.
    """
    pairs = is_normal[:, None] & other_is_normal[None]
    return pairs & ~torch.eye(len(is_normal), dtype=torch.bool, device=is_normal.device) if local else pairs


def table_queries(pooler: ItemizedCLIPItemPooler, items: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """
    Projected queries (B, heads, T, d) of an index table (B, T) into the flattened items (B, K, P).

    A query depends on its text alone: every text is projected once, then looked up.
    """
    return pooler.project_queries(items.flatten(0, 1)[None])[0][:, negatives].transpose(0, 1)


def multi_positive_loss(
    image_embeds: torch.Tensor,
    item_embeds: torch.Tensor,
    item_mask: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    positive: bool = True,
    dropped: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    MPS: sigmoid loss of global image embeddings (B, P) against all items (B', K, P), divided by B' * K (method 5.5).

    Args:
        positive: own items are positives (the local block); False makes every pair a negative (remote blocks).
        dropped: (B, B') pairs of studies left out.
    """
    studies, slots = item_mask.shape
    with full_precision(image_embeds):
        cosines = unit(image_embeds) @ unit(item_embeds).flatten(0, 1).t()
    logits = cosines * full(logit_scale).exp() + full(logit_bias)
    logits = torch.unflatten(logits, 1, (studies, slots))
    labels = torch.full((len(image_embeds), studies, 1), -1.0, device=logits.device, dtype=logits.dtype)
    if positive:
        labels = labels + 2 * torch.eye(studies, device=logits.device, dtype=logits.dtype)[..., None]
    weights = item_mask.to(logits.dtype)[None]
    if dropped is not None:
        weights = weights * (~dropped).to(logits.dtype)[..., None]
    return sigmoid_loss(logits, labels, weights) / (studies * slots)


def item_separation_loss(
    pooled: torch.Tensor,
    item_embeds: torch.Tensor,
    item_mask: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
) -> torch.Tensor:
    """IIS: what item k gathered (B, K, P) speaks for item k and against the study's other items (method 5.6)."""
    batch, slots = item_mask.shape
    with full_precision(pooled):
        cosines = unit(pooled) @ unit(item_embeds).transpose(1, 2)
    logits = cosines * full(logit_scale).exp() + full(logit_bias)
    labels = 2 * torch.eye(slots, device=logits.device, dtype=logits.dtype) - 1
    mask = item_mask.to(logits.dtype)
    return sigmoid_loss(logits, labels, mask[:, :, None] * mask[:, None]) / (batch * slots)


def group_tokens(
    texts: torch.Tensor, tokens: torch.Tensor, threshold: float = 0.0, token_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    What each text finds in its own image (method 6.5).

    The tokens weighted by their similarity, min-max normalized over the tokens, cut off below a threshold and made to sum
    to one.

    Args:
        texts, tokens: (B, K, P) and (B, L, P), L2-normalized.
        threshold: weights below it are zero; below 0 it stands for one over the number of tokens.
        token_mask: (B, L), True for tokens of real scans.

    Returns:
        (B, K, P), L2-normalized.
    """
    with full_precision(texts):
        similarity = texts @ tokens.mT
        real = (
            torch.ones_like(similarity[:, :1], dtype=torch.bool) if token_mask is None else token_mask[:, None].bool()
        )
        lowest = similarity.masked_fill(~real, float("inf")).amin(-1, keepdim=True)
        highest = similarity.masked_fill(~real, -float("inf")).amax(-1, keepdim=True)
        weights = (similarity - lowest) / (highest - lowest + 1e-10)
        limit = 1 / real.sum(-1, keepdim=True) if threshold < 0 else threshold
        weights = weights.masked_fill(~real | (weights < limit), 0.0)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-10)
        return unit(weights @ tokens)


def straight_through(soft: torch.Tensor) -> torch.Tensor:
    """1 where `soft` >= 0.5, else 0, with the gradient of `soft`."""
    return (soft >= 0.5).to(soft.dtype) + (soft - soft.detach())


def masked_cosines(images: torch.Tensor, texts: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    Cosine (B, N) of every image, seen through the mask of a text, with that text (method 6.7).

    Args:
        images: (B, P).
        texts, masks: (N, P), the texts L2-normalized; the image is normalized after it was masked.
    """
    with full_precision(images):
        # Products of matrices instead of (B, N, P) masked images.
        products = images @ (masks * texts).t()
        squares = images.square() @ masks.square().t()
    return products / (squares.clamp(min=1e-24).sqrt() + 1e-6)
