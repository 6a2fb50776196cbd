"""
ItemizedCLIP (CVPR 2026; spec 5): item-level local alignment, key-token alignment, inter-item separation and the
multi-positive sigmoid loss.

Data: a study and a list of independent items, any number of each, padded and masked.

    L = ila_weight * ILA + kta_weight * KTA + iis_weight * IIS + mps_weight * MPS

ILA and KTA are sums over the texts of a study divided by the studies, MPS and IIS are divided by all item slots, padding
included (as released; the paper prints 1/B for IIS).
"""

from typing import Any

import torch

from ..gather import gather_texts, rank
from .base import Draws, Objective, draw_pairs
from .functional import (
    WORST_POSITIVE_RULES,
    cosine_logits,
    item_separation_loss,
    key_tokens,
    multi_positive_loss,
    normal_pairs,
    sigmoid_loss,
    table_queries,
    worst_positive,
)


class ItemizedCLIPObjective(Objective):
    """
    Args:
        ila_weight, mps_weight, kta_weight, iis_weight: of the terms; a term of weight 0 or None is left out.
        keep_rate: probability of keeping a token in the ILA pass (1 - p_mask).
        key_token_rate: share of a study's tokens that are key tokens.
        worst_positive_factor: weight of the lowest-scored item of each study in ILA and KTA; 1 switches it off.
        worst_positive_select: `"reference"` or `"strict"`, see `functional.worst_positive`. The reference rule lets padded
            slots take part; here they hold zero vectors, so their logit is the bias.
        normal_check: never pair a normal study with an item of another normal study.
    """

    def __init__(
        self,
        ila_weight: float = 1.0,
        mps_weight: float = 0.1,
        kta_weight: float = 1.0,
        iis_weight: float = 1.0,
        keep_rate: float = 0.9,
        key_token_rate: float = 0.05,
        worst_positive_factor: float = 1.5,
        worst_positive_select: str = "reference",
        normal_check: bool = True,
    ):
        if not 0 < keep_rate <= 1 or not 0 < key_token_rate <= 1:
            raise ValueError(f"keep_rate {keep_rate} and key_token_rate {key_token_rate} must lie in (0, 1].")
        if worst_positive_select not in WORST_POSITIVE_RULES:
            raise ValueError(
                f"worst_positive_select is {worst_positive_select!r}, expected one of {list(WORST_POSITIVE_RULES)}."
            )
        self.ila_weight = ila_weight or 0.0
        self.mps_weight = mps_weight or 0.0
        self.kta_weight = kta_weight or 0.0
        self.iis_weight = iis_weight or 0.0
        if not (self.ila_weight or self.mps_weight or self.kta_weight or self.iis_weight):
            raise ValueError("all weights are 0: there is nothing to train.")
        self.keep_rate = keep_rate
        self.key_token_rate = key_token_rate
        self.worst_positive_factor = worst_positive_factor
        self.worst_positive_select = worst_positive_select
        self.normal_check = normal_check

    def draw(self, item_mask, num_tokens, num_heads, generator=None) -> Draws:
        return draw_pairs(item_mask, num_tokens, num_heads, self.keep_rate, generator)

    def __call__(
        self,
        image_embeds,
        image_tokens,
        item_embeds,
        item_mask,
        is_normal,
        logit_scale,
        logit_bias,
        pooler,
        draws=None,
        token_mask=None,
        training=True,
        **unused,
    ):
        item_mask, is_normal = self.complete(item_embeds, item_mask, is_normal)
        if not self.normal_check:
            is_normal = torch.zeros_like(is_normal)
        if draws is None:
            draws = self.draw(item_mask, image_tokens.shape[1], pooler.num_heads)
            if not training:
                draws.keep_mask = None
        scale_and_bias = (logit_scale, logit_bias)
        key, value = pooler.project_tokens(image_tokens)
        terms: dict[str, torch.Tensor] = {}

        def add(name, term):
            terms[name] = terms[name] + term if name in terms else term

        for source, (items, mask, normal, negatives) in enumerate(
            gather_texts(item_embeds, item_mask, is_normal, draws.negatives)
        ):
            local = source == rank()
            keep_mask = draws.keep_mask[source] if isinstance(draws.keep_mask, list) else draws.keep_mask
            dropped = normal_pairs(is_normal, normal, local)
            if self.mps_weight:
                add("mps", multi_positive_loss(image_embeds, items, mask, *scale_and_bias, local, dropped))
            if self.ila_weight or self.kta_weight or self.iis_weight:
                for name, term in self.pooled_terms(
                    pooler, key, value, items, mask, negatives, keep_mask, token_mask, dropped, local, scale_and_bias
                ).items():
                    add(name, term)

        weights = {"ila": self.ila_weight, "kta": self.kta_weight, "iis": self.iis_weight, "mps": self.mps_weight}
        return {"loss": sum(weights[name] * term for name, term in terms.items()), **terms}

    def pooled_terms(
        self, pooler, key, value, items, item_mask, negatives, keep_mask, token_mask, dropped, local, scale_and_bias
    ) -> dict[str, torch.Tensor]:
        """ILA, KTA and IIS of the own images against one rank's texts."""
        batch, slots = item_mask.shape
        study = negatives // slots
        row = torch.arange(batch, device=items.device)[:, None]
        own = (study == row) & local
        column_mask = item_mask.flatten()[negatives]

        texts = items.flatten(0, 1)[negatives]
        query = table_queries(pooler, items, negatives)
        if token_mask is not None:
            real = token_mask[:, None, None]
            keep_mask = real if keep_mask is None else keep_mask & real
        attention: Any = None
        if self.kta_weight:
            pooled, attention = pooler.attend(query, key, value, keep_mask, output_attentions=True)
        else:
            pooled = pooler.attend(query, key, value, keep_mask)
        logits = cosine_logits(pooled, texts, *scale_and_bias)
        weights = (column_mask & ~dropped.gather(1, study)).to(logits.dtype)
        labels = own.to(logits.dtype) * 2 - 1
        if local and self.worst_positive_factor > 1:
            worst = worst_positive(logits, own, column_mask, self.worst_positive_select)[:, None]
            weights = weights.scatter(1, worst, weights.gather(1, worst) * self.worst_positive_factor)

        terms = {}
        if self.ila_weight:
            terms["ila"] = sigmoid_loss(logits, labels, weights) / batch
        if self.kta_weight:
            chosen = key_tokens(attention, self.key_token_rate, token_mask)[:, None]
            pooled_keys = pooler.attend(query, key, value, chosen)
            logits = cosine_logits(pooled_keys, texts, *scale_and_bias)
            terms["kta"] = sigmoid_loss(logits, labels, weights) / batch
        if local and self.iis_weight:
            columns = (row + torch.arange(slots, device=items.device))[..., None].expand(-1, -1, pooled.shape[-1])
            terms["iis"] = item_separation_loss(pooled.gather(1, columns), items, item_mask, *scale_and_bias)
        return terms
