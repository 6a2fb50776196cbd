"""
FLAIR (spec 6.4): text-conditioned sigmoid loss over sampled texts plus the multi-positive sigmoid loss, equal weights.

Data: an image and K strings, all of them real in the original (diverse sampling of captions). For ragged items padded slots
are dropped from both terms and never drawn [inferred]; normal studies are not known to it. TCS is divided by its K + B - 1
texts, where ItemizedCLIP's ILA is divided by the studies.
"""

import torch

from ..gather import gather_texts, rank
from .base import Draws, Objective, draw_pairs
from .functional import cosine_logits, multi_positive_loss, sigmoid_loss, table_queries


class FLAIRObjective(Objective):
    """
    Args:
        tcs_weight, mps_weight: of the two terms.
    """

    def __init__(self, tcs_weight: float = 0.5, mps_weight: float = 0.5):
        self.tcs_weight = tcs_weight
        self.mps_weight = mps_weight

    def draw(self, item_mask, num_tokens, num_heads, generator=None) -> Draws:
        return draw_pairs(item_mask, num_tokens, num_heads, 1.0, generator)

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
        **unused,
    ):
        item_mask, _ = self.complete(item_embeds, item_mask, is_normal)
        batch = len(item_mask)
        no_normal = torch.zeros(batch, dtype=torch.bool, device=item_embeds.device)
        if draws is None:
            draws = self.draw(item_mask, image_tokens.shape[1], pooler.num_heads)
        key, value = pooler.project_tokens(image_tokens)
        keep_mask = None if token_mask is None else token_mask[:, None, None]
        tcs = mps = 0.0
        for source, (items, mask, _, negatives) in enumerate(
            gather_texts(item_embeds, item_mask, no_normal, draws.negatives)
        ):
            local = source == rank()
            query = table_queries(pooler, items, negatives)
            pooled = pooler.attend(query, key, value, keep_mask)
            logits = cosine_logits(pooled, items.flatten(0, 1)[negatives], logit_scale, logit_bias)
            own = (negatives // mask.shape[1] == torch.arange(batch, device=items.device)[:, None]) & local
            real = mask.flatten()[negatives].to(logits.dtype)
            tcs = tcs + sigmoid_loss(logits, own.to(logits.dtype) * 2 - 1, real) / negatives.shape[1]
            mps = mps + multi_positive_loss(image_embeds, items, mask, logit_scale, logit_bias, local)
        return {"loss": self.tcs_weight * tcs + self.mps_weight * mps, "tcs": tcs, "mps": mps}
