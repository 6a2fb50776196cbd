"""
DreamLIP (Zheng et al. 2024; method 6.5): every item by itself against the global embedding, and against the tokens like it.

Data: an image and K sub-captions; here the K items take their place, without a raw caption [inferred].

    L = clip_weight * CLIP + grouping_weight * grouping

CLIP is the symmetric InfoNCE of slot m's texts with the global embeddings, averaged over slots. Grouping is the symmetric
InfoNCE of all texts with their groups, e_k = sum_p w_kp v_p (`functional.group_tokens`), over all items of the global batch.

Inferred: the learned scale serves both terms (the release passes none to the second), texts and groups are paired by study and
slot (a reshape of the release mixes the two orders), padded slots are left out as rows and as candidates of both terms, the
means are over real items, and tokens of padded scans belong to no group. Normal studies are not known to it.
"""

import torch

from ..gather import gather_rows, identity_rows, padded, world_size
from ..losses.functional import contrastive_loss, group_tokens, unit
from ..objective import Draws, Features, Objective


class DreamLIPObjective(Objective):
    """
    Compares each study with its items, by global embeddings and by tokens.

    Args:
        clip_weight, grouping_weight: of the two terms.
        grouping_threshold: smallest weight of a token in a group, see `functional.group_tokens`.
    """

    unused = ("item_pooler", "logit_bias")

    def __init__(self, clip_weight: float = 1.0, grouping_weight: float = 1.0, grouping_threshold: float = 0.0):
        self.clip_weight = clip_weight
        self.grouping_weight = grouping_weight
        self.grouping_threshold = grouping_threshold

    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The loss of this file's formula, and its terms."""
        images, texts = unit(x.image_embeds), unit(x.item_embeds)
        groups = group_tokens(texts, unit(x.image_tokens), self.grouping_threshold, x.token_mask)
        (all_images, all_texts, all_groups, all_mask), own = gather_rows(images, texts, groups, x.item_mask)
        pairs = all_mask.sum() / world_size()
        slots = all_mask.shape[1]  # of the process that has most

        def identity(rows: slice, mask: torch.Tensor) -> torch.Tensor:
            """Targets of the own rows among all, none for padding."""
            return identity_rows(rows, len(mask), mask.device) & mask

        clip = sum(
            contrastive_loss(
                images,
                texts[:, m],
                all_images,
                all_texts[:, m],
                identity(own, all_mask[:, m]),
                x.logit_scale,
                all_mask[:, m],
            )
            for m in range(x.item_mask.shape[1])
        )
        flat_mask = all_mask.flatten()
        own_flat = slice(own.start * slots, own.stop * slots)
        shape = (len(texts), slots, texts.shape[-1])
        grouping = contrastive_loss(
            padded(groups, shape).flatten(0, 1),
            padded(texts, shape).flatten(0, 1),
            all_groups.flatten(0, 1),
            all_texts.flatten(0, 1),
            identity(own_flat, flat_mask),
            x.logit_scale,
            flat_mask,
        )
        terms = {"clip": clip / pairs, "grouping": grouping / pairs}
        return {"loss": self.clip_weight * terms["clip"] + self.grouping_weight * terms["grouping"], **terms}
