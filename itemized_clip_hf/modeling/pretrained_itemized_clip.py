"""What the models share: their output, how weights start, and what the library may do with them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_itemized_clip import ItemizedCLIPConfig
from .scan_names_itemized_clip import ItemizedCLIPScanNameEncoder
from .vision_itemized_clip import ItemizedCLIPVisionEmbeddings, sincos_1d, sincos_3d


@dataclass
class ItemizedCLIPOutput(ModelOutput):
    """
    What [`ItemizedCLIPModel`] returns.

    Args:
        loss: scalar, when `return_loss=True`.
        loss_terms: the loss's terms, unweighted and detached, when `return_loss=True`.
        logits_per_image: (B, M), exp(logit_scale) * TCSim + logit_bias of every study with every text, M = B * K for
            items; columns of padded items hold the dtype's minimum.
        logits_per_text: (M, B).
        item_embeds: (B, K, P) or (M, P) as the texts came; zeros where an item is padding. Not normalized.
        image_embeds: (B, P) of the class token. Not normalized.
        image_tokens: (B, L, P) in (scan, depth, height, width) order. Not normalized.
        text_model_output, vision_model_output: of the towers; text rows are the real items.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    item_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    loss_terms: dict[str, torch.Tensor] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """The outputs that are there, the towers' own as tuples, too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class ItemizedCLIPPreTrainedModel(PreTrainedModel):
    """What the models share: how weights start, and which ways of attention and sharding they allow."""

    config: ItemizedCLIPConfig
    base_model_prefix = "itemized_clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # the library's annotation is that of one model
    supports_gradient_checkpointing = True
    _no_split_modules = ["ItemizedCLIPVisionEmbeddings", "ItemizedCLIPVisionLayer", "ItemizedCLIPItemPooler"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether loaded weights have to be protected from `_init_weights`."""
        # Weights are written through `transformers.initialization` only, which leaves loaded ones alone.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]  # of the library, without types
        if (bound := getattr(module, "init_bound", None)) is not None:
            weight: Any = module.weight
            init.uniform_(weight, -bound, bound)
        elif isinstance(module, ItemizedCLIPVisionEmbeddings):
            config = module.config
            init.normal_(module.patch_embedding.weight, std=module.patch_embedding.weight[0].numel() ** -0.5)
            init.normal_(module.class_embedding, std=config.initializer_range)
            init.copy_(module.position_embedding, sincos_3d(config.grid_size, config.hidden_size))
            if module.scan_embedding is not None:
                init.copy_(module.scan_embedding, sincos_1d(config.max_num_scans, config.hidden_size))
        elif isinstance(module, ItemizedCLIPScanNameEncoder):
            init.normal_(module.embedding.weight)
