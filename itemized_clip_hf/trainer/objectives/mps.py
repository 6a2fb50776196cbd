"""
MPS alone: the multi-positive sigmoid loss of global image embeddings (spec 5.5 and 6.3), the paper's "multi-positive SigLIP".

Data: a study and a list of items; no pooler is trained.
"""

import torch

from ..gather import gather_texts, rank
from .base import Objective
from .functional import multi_positive_loss, normal_pairs


class MPSObjective(Objective):
    """
    Args:
        normal_check: never pair a normal study with an item of another normal study.
    """

    unused = ("item_pooler",)

    def __init__(self, normal_check: bool = True):
        self.normal_check = normal_check

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
        **unused,
    ):
        item_mask, is_normal = self.complete(item_embeds, item_mask, is_normal)
        if not self.normal_check:
            is_normal = torch.zeros_like(is_normal)
        no_table = torch.zeros(len(item_mask), 1, dtype=torch.long, device=item_mask.device)
        loss = 0.0
        for source, (items, mask, normal, _) in enumerate(gather_texts(item_embeds, item_mask, is_normal, no_table)):
            dropped = normal_pairs(is_normal, normal, source == rank())
            loss = loss + multi_positive_loss(
                image_embeds, items, mask, logit_scale, logit_bias, source == rank(), dropped
            )
        return {"loss": loss, "mps": loss}
