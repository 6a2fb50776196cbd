"""
MPS alone: the multi-positive sigmoid loss of global image embeddings (method 5.5 and 6.3), the paper's "multi-positive SigLIP".

Data: a study and a list of items; no pooler is trained.
"""

from typing import Any

import torch

from ..gather import gather_texts, rank
from ..losses.functional import multi_positive_loss, normal_pairs
from ..objective import Draws, Features, Objective


class MPSObjective(Objective):
    """
    Compares each study with every item by global embeddings.

    Args:
        normal_check: never pair a normal study with an item of another normal study.
    """

    unused = ("item_pooler",)

    def __init__(self, normal_check: bool = True):
        self.normal_check = normal_check

    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The loss of this file's formula, and its terms."""
        is_normal = x.is_normal & self.normal_check
        no_table = torch.zeros(len(x.item_mask), 1, dtype=torch.long, device=x.item_mask.device)
        loss: Any = 0.0
        for source, (items, mask, normal, _) in enumerate(
            gather_texts(x.item_embeds, x.item_mask, is_normal, no_table)
        ):
            dropped = normal_pairs(is_normal, normal, source == rank())
            loss = loss + multi_positive_loss(
                x.image_embeds, items, mask, x.logit_scale, x.logit_bias, source == rank(), dropped
            )
        return {"loss": loss, "mps": loss}
