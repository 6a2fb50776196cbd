"""
SigLIP (Zhai et al. 2023; method 6.2): sigmoid contrast of global embeddings, here the baseline "all items in one string".

Data: an image or study and one text; a list of items is joined by ". " [inferred for itemized data].

    L = -1/B * sum_ij log sigmoid(y_ij (tau g_i t_j + b)) with unit g and t, y = 1 for a study's own text and -1 for all
    others, those of other processes too
"""

import torch

from ...data.studies.items import join_sentences
from ..objective import Draws, Features, StudyTextObjective
from .mps import MPSObjective


class SigLIPObjective(StudyTextObjective):
    """Takes no arguments."""

    def join_items(self, items: list[str], generator: torch.Generator | None = None) -> str:
        """All items, ". " between them."""
        return join_sentences(items)

    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The loss of this file's formula, and its terms."""
        self.study_embeds(x)
        loss = MPSObjective(normal_check=False).compute(x, draws)["loss"]  # of one positive
        return {"loss": loss, "siglip": loss}
