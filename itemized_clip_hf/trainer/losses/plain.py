"""The pooled terms of ItemizedCLIP word by word (method 5.2 to 5.6 and 5.10): what the fused formulation has to agree with."""

import torch

from ...modeling.pooling_itemized_clip import ItemizedCLIPItemPooler
from .blocks import Block, SeededMask
from .functional import cosine_logits, item_separation_loss, key_tokens, sigmoid_loss, worst_positive


def plain_terms(
    pooler: ItemizedCLIPItemPooler,
    image_tokens: torch.Tensor,
    blocks: list[Block],
    token_mask: torch.Tensor | None,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    *,
    ila_weight: float,
    kta_weight: float,
    iis_weight: float,
    key_token_rate: float,
    worst_positive_factor: float,
    worst_positive_select: str,
) -> tuple[torch.Tensor | float, dict[str, torch.Tensor]]:
    """
    One pass of the pooler for ILA and one for KTA per block, each on all texts of the table.

    Args:
        pooler: the item pooler.
        image_tokens: (B, L, P).
        blocks: one a rank.
        token_mask: (B, L), True for tokens of real scans.

    Returns:
        the weighted sum, and the unweighted terms.
    """
    batch = len(image_tokens)
    terms: dict[str, torch.Tensor] = {}

    def add(name: str, term: torch.Tensor) -> None:
        terms[name] = terms[name] + term if name in terms else term

    for block in blocks:
        texts = block.items.flatten(0, 1)[block.table]
        keep_mask = attended_tokens(block, pooler, image_tokens, token_mask)
        pooled, attention = pooler(texts, image_tokens, keep_mask, output_attentions=True)
        logits = cosine_logits(pooled, texts, logit_scale, logit_bias)
        labels = block.own.to(logits.dtype) * 2 - 1
        weights = block.counted.to(logits.dtype)
        if block.local and worst_positive_factor > 1:
            worst = worst_positive(logits, block.own, block.real, worst_positive_select)[:, None]
            weights = weights.scatter(1, worst, weights.gather(1, worst) * worst_positive_factor)
        if ila_weight:
            add("ila", sigmoid_loss(logits, labels, weights) / batch)
        if kta_weight:
            chosen = key_tokens(attention, key_token_rate, token_mask)[:, None]
            logits = cosine_logits(pooler(texts, image_tokens, chosen), texts, logit_scale, logit_bias)
            add("kta", sigmoid_loss(logits, labels, weights) / batch)
        if block.local and iis_weight:
            slots = block.item_mask.shape[1]
            own_columns = torch.arange(batch, device=texts.device)[:, None] + torch.arange(slots, device=texts.device)
            pooled = pooled.gather(1, own_columns[..., None].expand(-1, -1, pooled.shape[-1]))
            add("iis", item_separation_loss(pooled, block.items, block.item_mask, logit_scale, logit_bias))
    factors = {"ila": ila_weight, "kta": kta_weight, "iis": iis_weight}
    return sum(factors[name] * term for name, term in terms.items()), terms


def attended_tokens(
    block: Block, pooler: ItemizedCLIPItemPooler, image_tokens: torch.Tensor, token_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """(B, heads or 1, T or 1, L), True where a text of the block may attend to a token; None: everywhere."""
    keep_mask = block.keep_mask
    if isinstance(keep_mask, SeededMask):
        shape = (len(image_tokens), pooler.num_heads, block.table.shape[1], image_tokens.shape[1])
        keep_mask = keep_mask.rows(0, shape, image_tokens.device)
    if token_mask is None:
        return keep_mask
    real_tokens = token_mask[:, None, None]
    return real_tokens if keep_mask is None else keep_mask & real_tokens
