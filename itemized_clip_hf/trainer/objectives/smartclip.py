"""
SmartCLIP (Xie et al. 2025; method 6.7): each text is contrasted with the part of the embedding that it speaks of.

Data: an image and one caption per step, of varying length; of a list of items a random non-empty subset, joined by ". " in its
own order, the size drawn uniformly [inferred]; all items in evaluation.

    m_j = mask of text j, t_j its unit embedding, v_i an image embedding
    Q_ij = scale * cos(v_i * m_j, t_j)
    L = alignment_weight * (SIDM + DISM) + sparsity_weight * mean |m|

SIDM is the cross entropy of one image with candidate texts, each under its own mask, DISM of one text and its mask with
candidate images, both over the studies of all processes. The scale is fixed; that of the model is set to it, and neither it
nor the bias is trained. Scores at inference use no mask.

Inferred: the mask network (layers below) and the sizes it takes from the text tower.
"""

import math
from typing import Any

import torch
from torch import nn

from ...data.studies.items import join_sentences
from ...modeling.configuration_itemized_clip import ItemizedCLIPConfig
from ...modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..gather import gather_rows, identity_rows, world_size
from ..losses.functional import full, masked_cosines, softmax_loss, straight_through, unit
from ..objective import Draws, Features, StudyTextObjective


class MaskNetwork(nn.Module):
    """
    One pre-norm transformer block over the tokens of a text, attention pooling and a projection.

    Args:
        hidden_size, num_heads: of the text tower.
        projection_dim: length of the mask.
    """

    def __init__(self, hidden_size: int, num_heads: int, projection_dim: int):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            hidden_size, num_heads, 4 * hidden_size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.score = nn.Linear(hidden_size, 1)
        self.projection = nn.Linear(hidden_size, projection_dim)

    def forward(self, tokens: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        """Logits (B, P) of the mask from tokens (B, T, C), of which padding is neither attended to nor pooled."""
        tokens = self.block(tokens, src_key_padding_mask=~token_mask)
        shares = self.score(tokens)[..., 0].masked_fill(~token_mask, -float("inf")).softmax(-1)
        logits: torch.Tensor = self.projection((shares[..., None] * tokens).sum(1))
        return logits


class SmartCLIPObjective(StudyTextObjective):
    """
    Compares each study with one text, under the mask of that text.

    Args:
        alignment_weight, sparsity_weight: of the contrast and of the mask's size.
        scale: of the logits.
        hard_mask: zeros and ones with the gradient of the sigmoid; False: the sigmoid itself.
        mask_learning_rate: of the mask network, without weight decay or warm-up.
    """

    unused = ("item_pooler", "logit_scale", "logit_bias")
    uses_item_tokens = True

    def __init__(
        self,
        alignment_weight: float = 10.0,
        sparsity_weight: float = 2.0,
        scale: float = 100.0,
        hard_mask: bool = True,
        mask_learning_rate: float = 1e-3,
    ):
        self.alignment_weight = alignment_weight
        self.sparsity_weight = sparsity_weight
        self.scale = scale
        self.hard_mask = hard_mask
        self.mask_learning_rate = mask_learning_rate

    def build_module(self, config: ItemizedCLIPConfig) -> MaskNetwork:
        """The mask network, in the sizes of the text tower."""
        text: Any = config.text_config
        return MaskNetwork(text.hidden_size, text.num_attention_heads, config.projection_dim)

    def attach(self, model: ItemizedCLIPModel) -> None:
        """Sets the scale of the logits too."""
        super().attach(model)
        with torch.no_grad():
            model.logit_scale.fill_(math.log(self.scale))

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The mask network has a rate of its own."""
        parameters = list(module.parameters())
        return [{"params": parameters, "lr": self.mask_learning_rate, "weight_decay": 0.0, "warmup_steps": 0}]

    def join_items(self, items: list[str], generator: torch.Generator | None = None) -> str:
        """A random subset of the items in their own order; all of them without a generator."""
        if generator is not None:
            count = 1 + int(torch.randint(len(items), (1,), generator=generator))
            items = [items[i] for i in sorted(torch.randperm(len(items), generator=generator)[:count].tolist())]
        return join_sentences(items)

    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The loss of this file's formula, and its terms."""
        images, texts = full(x.image_embeds), unit(self.study_embeds(x))
        if x.objective_module is None or x.item_tokens is None or x.item_token_mask is None:
            raise ValueError(
                "smartclip needs its mask network and the hidden states of the texts: call objective.attach(model), then "
                "model(..., return_loss=True), as the Trainer does."
            )
        # Detached: no gradient reaches the text tower through the masks.
        masks = full(x.objective_module(x.item_tokens[:, 0].detach(), x.item_token_mask[:, 0].bool())).sigmoid()
        if self.hard_mask:
            masks = straight_through(masks)
        (all_images, all_texts, all_masks), own = gather_rows(images, texts, masks)
        targets, studies = identity_rows(own, len(all_images), images.device), len(all_images) / world_size()
        per_image = self.scale * masked_cosines(images, all_texts, all_masks)
        per_text = self.scale * masked_cosines(all_images, texts, masks).t()
        terms = {
            "sidm": softmax_loss(per_image, targets) / studies,
            "dism": softmax_loss(per_text, targets) / studies,
            "sparsity": masks.abs().mean() * (len(masks) / studies),
        }
        loss = self.alignment_weight * (terms["sidm"] + terms["dism"]) + self.sparsity_weight * terms["sparsity"]
        return {"loss": loss, **terms}
