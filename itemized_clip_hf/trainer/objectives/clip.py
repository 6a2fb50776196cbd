"""
CLIP (Radford et al. 2021; method 6.1): softmax contrast of global embeddings, here the baseline "all items in one string".

Data: an image or study and one text; a list of items is joined by ". " [inferred for itemized data].

    L = (CE(tau g t^T) + CE(tau t g^T)) / 2 with unit g and t, over the studies of all processes

The bias of the model takes no part.
"""

import torch

from ...data.studies.items import join_sentences
from ..gather import gather_rows, identity_rows, world_size
from ..losses.functional import contrastive_loss, unit
from ..objective import Draws, Features, StudyTextObjective


class CLIPObjective(StudyTextObjective):
    """
    Compares each study with one text of all its items.

    Args:
        global_loss: every process computes the loss of the whole global batch, with gradients to its own embeddings only
            (OpenCLIP's default; averaged over W processes the step is 1 / W of the exact one). False: each process scores
            its own studies against all, gradients flow to every process, and their mean is the exact gradient (OpenCLIP's
            `local_loss` with `gather_with_grad`).
    """

    unused = ("item_pooler", "logit_bias")

    def __init__(self, global_loss: bool = False):
        self.global_loss = global_loss

    def join_items(self, items: list[str], generator: torch.Generator | None = None) -> str:
        """All items, ". " between them."""
        return join_sentences(items)

    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The loss of this file's formula, and its terms."""
        images, texts = unit(x.image_embeds), unit(self.study_embeds(x))
        (all_images, all_texts), own = gather_rows(images, texts, with_gradient=not self.global_loss)
        targets, studies = identity_rows(own, len(all_images), images.device), len(all_images) / world_size()
        if self.global_loss:
            images, texts, studies = all_images, all_texts, len(all_images)
            targets = torch.eye(studies, device=images.device).bool()
        loss = contrastive_loss(images, texts, all_images, all_texts, targets, x.logit_scale) / studies
        return {"loss": loss, "clip": loss}
