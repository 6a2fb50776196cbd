"""
FLAIR (method 6.4): text-conditioned sigmoid loss over sampled texts plus the multi-positive sigmoid loss, equal weights.

Data: an image and K strings, all of them real in the original (diverse sampling of captions). For ragged items padded slots
are dropped from both terms and never drawn [inferred]; normal studies are not known to it. TCS is divided by its K + B - 1
texts, where ItemizedCLIP's ILA is divided by the studies.
"""

from typing import Any

import torch

from ..gather import gather_texts, rank
from ..losses.functional import cosine_logits, multi_positive_loss, sigmoid_loss, table_queries
from ..objective import Draws, Features, Objective, draw_pairs


class FLAIRObjective(Objective):
    """
    Compares each study with its items, and one item of every other study, through the pooler.

    Args:
        tcs_weight, mps_weight: of the two terms.
    """

    def __init__(self, tcs_weight: float = 0.5, mps_weight: float = 0.5):
        self.tcs_weight = tcs_weight
        self.mps_weight = mps_weight

    def draw(
        self, item_mask: torch.Tensor, num_tokens: int, num_heads: int, generator: torch.Generator | None = None
    ) -> Draws:
        """One item of every other study for each study."""
        return draw_pairs(item_mask, num_tokens, num_heads, 1.0, generator)

    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The loss of this file's formula, and its terms."""
        if draws is None:
            draws = self.draw(x.item_mask, x.image_tokens.shape[1], x.pooler.num_heads)
        key, value = x.pooler.project_tokens(x.image_tokens)
        keep_mask = None if x.token_mask is None else x.token_mask[:, None, None]
        tcs: Any = 0.0
        mps: Any = 0.0
        for source, (items, mask, _, negatives) in enumerate(
            gather_texts(x.item_embeds, x.item_mask, x.is_normal, draws.require_negatives())
        ):
            local = source == rank()
            query = table_queries(x.pooler, items, negatives)
            pooled: Any = x.pooler.attend(query, key, value, keep_mask)
            logits = cosine_logits(pooled, items.flatten(0, 1)[negatives], x.logit_scale, x.logit_bias)
            own = (negatives // mask.shape[1] == torch.arange(len(x.item_mask), device=items.device)[:, None]) & local
            real = mask.flatten()[negatives].to(logits.dtype)
            tcs = tcs + sigmoid_loss(logits, own.to(logits.dtype) * 2 - 1, real) / negatives.shape[1]
            mps = mps + multi_positive_loss(x.image_embeds, items, mask, x.logit_scale, x.logit_bias, local)
        return {"loss": self.tcs_weight * tcs + self.mps_weight * mps, "tcs": tcs, "mps": mps}
