"""
HLIP (method 6.6): CLIP or SigLIP of a study and its whole report.

Data: a study and its findings, joined to one text: prefix + items, single spaces between them, in random order in training and
in their own order in evaluation. The prefix is a fact of the domain (`domains/*.yaml`): HLIP's for brain MRI, none for chest
CT; elsewhere the variant of the ItemizedCLIP code.

    form "clip":    as `clip`; with `normal_check` the targets are max(I, z z^T), rows not normalized
    form "siglip":  as `siglip`; with `normal_check` pairs of two normal studies are left out, a study's own pair never

Inferred: across processes the same targets and pairs over the global batch, where a normal study of this process and the normal
study of the same row elsewhere are a pair like any other.
"""

import torch

from ..gather import gather_rows, identity_rows, world_size
from ..losses.functional import contrastive_loss, unit
from ..objective import Draws, Features, StudyTextObjective
from .mps import MPSObjective

FORMS = ("clip", "siglip")


class HLIPObjective(StudyTextObjective):
    """
    Compares each study with its report, or its findings joined to one.

    Args:
        form: `"clip"` (the published models) or `"siglip"`.
        prefix: start of every text.
        normal_check: normal studies are no negatives of each other.
    """

    def __init__(self, form: str = "clip", prefix: str = "This study shows: ", normal_check: bool = False):
        if form not in FORMS:
            raise ValueError(f"form is {form!r}, expected one of {list(FORMS)}.")
        self.form = form
        self.prefix = prefix
        self.normal_check = normal_check
        if form == "clip":
            self.unused = ("item_pooler", "logit_bias")

    def join_items(self, items: list[str], generator: torch.Generator | None = None) -> str:
        """The prefix and all items, in random order with a generator."""
        if generator is not None:
            items = [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]
        return self.prefix + " ".join(items)

    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The loss of this file's formula, and its terms."""
        study_embeds = self.study_embeds(x)
        if self.form == "siglip":
            loss = MPSObjective(self.normal_check).compute(x, draws)["loss"]  # of one positive
            return {"loss": loss, "siglip": loss}
        images, texts = unit(x.image_embeds), unit(study_embeds)
        (all_images, all_texts, all_normal), own = gather_rows(images, texts, x.is_normal)
        targets, studies = identity_rows(own, len(all_images), images.device), len(all_images) / world_size()
        if self.normal_check:
            targets = targets | x.is_normal[:, None] & all_normal[None]
        loss = contrastive_loss(images, texts, all_images, all_texts, targets, x.logit_scale) / studies
        return {"loss": loss, "clip": loss}
