"""
ItemizedCLIP (CVPR 2026; method 5): item-level local alignment, key-token alignment, inter-item separation and the
multi-positive sigmoid loss.

Data: a study and a list of independent items, any number of each, padded and masked.

    L = ila_weight * ILA + kta_weight * KTA + iis_weight * IIS + mps_weight * MPS

ILA and KTA are sums over the texts of a study divided by the studies, MPS and IIS are divided by all item slots, padding
included (as released; the paper prints 1/B for IIS).
"""

from typing import Any

import torch

from ..gather import gather_texts, rank, world_size
from ..losses.blocks import Block, SeededMask
from ..losses.functional import WORST_POSITIVE_RULES, draw_negatives, multi_positive_loss, normal_pairs
from ..losses.fused import fused_terms
from ..losses.plain import plain_terms
from ..objective import Draws, Features, Objective, draw_pairs

FORMULATIONS = ("fused", "plain")


class ItemizedCLIPObjective(Objective):
    """
    Compares each study with its items in four terms.

    Args:
        ila_weight, mps_weight, kta_weight, iis_weight: of the terms; a term of weight 0 or None is left out.
        keep_rate: probability of keeping a token in the ILA pass (1 - p_mask).
        key_token_rate: share of a study's tokens that are key tokens.
        worst_positive_factor: weight of the lowest-scored item of each study in ILA and KTA; 1 switches it off.
        worst_positive_select: `"reference"` or `"strict"`, see `functional.worst_positive`. The reference rule lets padded
            slots take part; here they hold zero vectors, so their logit is the bias.
        normal_check: never pair a normal study with an item of another normal study.
        formulation: `"fused"`, or `"plain"`: the same sums word by word, for comparison; slower, and it stores all attention.
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
        formulation: str = "fused",
    ):
        if formulation not in FORMULATIONS:
            raise ValueError(f"formulation is {formulation!r}, expected one of {list(FORMULATIONS)}.")
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
        self.formulation = formulation

    def draw(
        self, item_mask: torch.Tensor, num_tokens: int, num_heads: int, generator: torch.Generator | None = None
    ) -> Draws:
        """One item of every other study for each study, and the token masks of the ILA pass."""
        return draw_pairs(item_mask, num_tokens, num_heads, self.keep_rate, generator)

    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The loss of this file's formula, and its terms."""
        is_normal = x.is_normal & self.normal_check
        if draws is None:
            draws = Draws(draw_negatives(x.item_mask))
            if x.training:
                seeds = torch.randint(1 << 40, (world_size(),)).tolist()
                draws.keep_mask = [SeededMask(seed, self.keep_rate) for seed in seeds]
        blocks = []
        terms: dict[str, torch.Tensor] = {}
        for source, (items, mask, normal, negatives) in enumerate(
            gather_texts(x.item_embeds, x.item_mask, is_normal, draws.require_negatives())
        ):
            local = source == rank()
            dropped = normal_pairs(is_normal, normal, local)
            if self.mps_weight:
                term = multi_positive_loss(x.image_embeds, items, mask, x.logit_scale, x.logit_bias, local, dropped)
                terms["mps"] = terms["mps"] + term if "mps" in terms else term
            keep_mask = draws.keep_mask[source] if isinstance(draws.keep_mask, list) else draws.keep_mask
            blocks.append(Block(items, mask, negatives, dropped, local, keep_mask))
        loss: Any = self.mps_weight * terms["mps"] if terms else 0.0
        if self.ila_weight or self.kta_weight or self.iis_weight:
            compute = fused_terms if self.formulation == "fused" else plain_terms
            total, pooled = compute(
                x.pooler,
                x.image_tokens,
                blocks,
                x.token_mask,
                x.logit_scale,
                x.logit_bias,
                ila_weight=self.ila_weight,
                kta_weight=self.kta_weight,
                iis_weight=self.iis_weight,
                key_token_rate=self.key_token_rate,
                worst_positive_factor=self.worst_positive_factor,
                worst_positive_select=self.worst_positive_select,
            )
            loss, terms = loss + total, {**pooled, **terms}
        return {"loss": loss, **terms}
