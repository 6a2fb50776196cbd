"""ItemizedCLIP: a vision tower, a text tower and an item pooler that scores every item against a study by itself."""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_itemized_clip import ItemizedCLIPConfig, ItemizedCLIPVisionConfig
from .inflation_itemized_clip import MAE_LICENSE, brain_mri_geometry, fill_from_mae, read_mae
from .pooling_itemized_clip import ItemizedCLIPItemPooler, global_similarity, loaded_weights, pooled_similarity
from .pretrained_itemized_clip import ItemizedCLIPOutput, ItemizedCLIPPreTrainedModel
from .text_batching_itemized_clip import MAX_GROUPS, encode_by_length, fill_slots, real_rows
from .text_tower_itemized_clip import build_text_model, choose_text_pooling, pool_text
from .vision_itemized_clip import (
    ItemizedCLIPVisionAttention,
    ItemizedCLIPVisionEmbeddings,
    ItemizedCLIPVisionEncoder,
    ItemizedCLIPVisionLayer,
    spread_scan_mask,
)


class ItemizedCLIPVisionModel(ItemizedCLIPPreTrainedModel):
    """The vision tower alone, before the projection."""

    config: ItemizedCLIPVisionConfig  # type: ignore[assignment]  # of the tower alone
    base_model_prefix = "vision_model"
    input_modalities = ("image",)  # type: ignore[assignment]  # as above
    _input_embed_layer = "patch_embedding"
    _can_record_outputs = {"hidden_states": ItemizedCLIPVisionLayer, "attentions": ItemizedCLIPVisionAttention}

    def __init__(self, config: ItemizedCLIPVisionConfig):
        super().__init__(config)
        self.embeddings = ItemizedCLIPVisionEmbeddings(config)
        self.pre_layer_norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_pre_layernorm else None
        )
        self.encoder = ItemizedCLIPVisionEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()  # type: ignore[no-untyped-call]  # of the library, without types

    @merge_with_config_defaults  # type: ignore[untyped-decorator]  # of the library, without types
    @capture_outputs(tie_last_hidden_states=False)  # type: ignore[untyped-decorator, no-untyped-call]  # of the library, without types
    def forward(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Encodes a batch of studies.

        Args:
            pixel_values: (B, N, C, D, H, W), or (B, C, H, W) for pictures.
            scan_mask: (B, N), True for real scans; the others change nothing.
            scan_name_ids: (B, N, T) characters of the sequence names.

        Returns:
            `last_hidden_state` (B, 1 + L, C), class token first; `pooler_output` (B, C), the class token.
        """
        hidden_states, grid = self.embeddings(pixel_values, scan_name_ids, scan_mask)
        if self.pre_layer_norm is not None:
            hidden_states = self.pre_layer_norm(hidden_states)
        hidden_states = self.encoder(hidden_states, grid, scan_mask, **kwargs)
        hidden_states = self.final_layer_norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])

    @classmethod
    def from_mae(
        cls,
        weights: str | os.PathLike[str] | Mapping[str, Any],
        config: ItemizedCLIPVisionConfig | None = None,
        accept_license: bool = False,
    ) -> "ItemizedCLIPVisionModel":
        """
        Vision tower initialized from a 2-D MAE ViT, inflated to the config's patches and grid (method 2.6).

        Args:
            weights: the MAE state dict, or the path of a `.safetensors` or `.pth` file (read with `weights_only=True`).
            config: [`ItemizedCLIPVisionConfig`] with sin-cos positions and one channel; its width must be that of
                the weights. The brain MRI geometry, without a name encoder, if None.
            accept_license: the published MAE weights are CC-BY-NC-4.0 (no commercial use), and so is what is trained
                from them. Pass True to accept that.

        Raises:
            ValueError: the license is not accepted, or the weights do not fit the config.
        """
        if not accept_license:
            raise ValueError(
                f"The published MAE weights are licensed {MAE_LICENSE}: not for commercial use, and models trained from "
                "them inherit that. Pass accept_license=True to use them on these terms."
            )
        model = cls(brain_mri_geometry() if config is None else config)
        fill_from_mae(model, model.config, read_mae(weights))
        return model


@torch.no_grad()
def scale_and_bias(model: "ItemizedCLIPModel") -> tuple[torch.Tensor, torch.Tensor]:
    """Factor exp(logit_scale) and logit_bias of a model, (1,) each, float32 on the CPU, wherever its weights are kept."""
    with loaded_weights(model):
        return model.logit_scale.float().exp().cpu(), model.logit_bias.float().cpu()


class ItemizedCLIPModel(ItemizedCLIPPreTrainedModel):
    """
    Images or studies and lists of items in one space; see [`ItemizedCLIPOutput`] for what comes out.

    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    >>> config = ItemizedCLIPConfig(
    ...     vision_config={**sizes, "image_size": [4, 16, 16], "patch_size": [4, 8, 8], "num_channels": 1},
    ...     text_config={**sizes, "model_type": "bert", "vocab_size": 50},
    ...     projection_dim=16,
    ... )
    >>> model = ItemizedCLIPModel(config).eval()
    >>> studies = torch.randn(2, 3, 1, 4, 16, 16)  # two studies of three scans
    >>> items = torch.randint(1, 50, (2, 5, 7))  # five items of seven tokens for each
    >>> with torch.no_grad():
    ...     outputs = model(pixel_values=studies, input_ids=items)
    >>> outputs.logits_per_image.shape, outputs.item_embeds.shape, outputs.image_tokens.shape
    (torch.Size([2, 10]), torch.Size([2, 5, 16]), torch.Size([2, 12, 16]))
    """

    _can_record_outputs: dict[str, Any] = {}
    # Parameters of a training objective, and of the decoder of a model that draws masks.
    _keys_to_ignore_on_load_unexpected = [r"^objective_module\.", r"^mask_decoder\."]
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever its number of items

    def __init__(self, config: ItemizedCLIPConfig):
        super().__init__(config)
        vision_config, text_config = config.vision, config.text
        self.vision_model = ItemizedCLIPVisionModel._from_config(vision_config)  # type: ignore[no-untyped-call]  # as above
        self.text_model = build_text_model(text_config)
        self.visual_projection = nn.Linear(vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(text_config.hidden_size, config.projection_dim, bias=False)
        self.item_pooler = ItemizedCLIPItemPooler(config.projection_dim, config.num_pooler_heads)
        # One element instead of a scalar: sharded training cannot split 0-dimensional parameters.
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))
        auto = config.text_pooling == "auto"
        self.text_pooling = choose_text_pooling(text_config) if auto else config.text_pooling
        self.loss_type = "ItemizedCLIP"
        self.post_init()  # type: ignore[no-untyped-call]  # of the library, without types

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ItemizedCLIPModel):
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)
            init.constant_(module.logit_bias, module.config.logit_bias_init_value)
            for projection in (module.visual_projection, module.text_projection):
                init.normal_(projection.weight, std=projection.in_features**-0.5)

    def get_input_embeddings(self) -> nn.Module:
        """Of the text tower, as the library's own two-tower models."""
        embeddings: nn.Module = self.text_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Of the text tower."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple  # type: ignore[untyped-decorator]  # of the library, without types
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Encodes texts.

        Args:
            input_ids, attention_mask: (M, T) or (B, K, T).

        Returns:
            `pooler_output` (M, P) or (B, K, P), projected, not normalized; `last_hidden_state` (..., T, hidden_size).
        """
        layout = input_ids.shape[:-1]
        mask = None if attention_mask is None else attention_mask.flatten(0, -2)
        # A setting of decoders that BERT has too; switched on it warns while activations are recomputed.
        uncached = {"use_cache": False} if hasattr(self.text_model.config, "use_cache") else {}
        outputs: BaseModelOutputWithPooling = self.text_model(
            input_ids=input_ids.flatten(0, -2), attention_mask=mask, **{**uncached, **kwargs, "return_dict": True}
        )
        embeds: torch.Tensor = self.text_projection(pool_text(outputs, mask, self.text_pooling))
        hidden_states: Any = outputs.last_hidden_state
        outputs.last_hidden_state = hidden_states.unflatten(0, layout)
        outputs.pooler_output = embeds.view(*layout, -1)
        return outputs

    @can_return_tuple  # type: ignore[untyped-decorator]  # of the library, without types
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Encodes studies; the projected tokens are those of `encode_images`.

        Args:
            pixel_values, scan_mask, scan_name_ids: as in the vision tower.

        Returns:
            `pooler_output` (B, P), projected, not normalized; `last_hidden_state` (B, L, hidden_size), patches only.
        """
        outputs = self._encode_scans(pixel_values, scan_mask, scan_name_ids, **kwargs)
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        outputs.last_hidden_state = _without_class_token(outputs)
        return outputs

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, BaseModelOutputWithPooling]:
        """Class token (B, P) and patch tokens (B, L, P), both projected, and the outputs of the vision tower."""
        outputs = self._encode_scans(pixel_values, scan_mask, scan_name_ids, **kwargs)
        tokens = self.visual_projection(_without_class_token(outputs))
        return self.visual_projection(outputs.pooler_output), tokens, outputs

    def _encode_scans(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None,
        scan_name_ids: torch.Tensor | None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        outputs: BaseModelOutputWithPooling = self.vision_model(
            pixel_values, scan_mask=scan_mask, scan_name_ids=scan_name_ids, **{**kwargs, "return_dict": True}
        )
        return outputs

    def encode_items(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        item_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """
        Item embeddings (B, K, P) and the outputs of the text tower; only real items go through it.

        Args:
            input_ids, attention_mask: (B, K, T), or (M, T).
            item_mask: (B, K), True for real items; embeddings of the others are zeros.

        Raises:
            ValueError: there is no real item.
        """
        if item_mask is None or torch.compiler.is_compiling():
            outputs = self.get_text_features(input_ids, attention_mask, **kwargs)
            embeds: Any = outputs.pooler_output
            return embeds if item_mask is None else embeds * item_mask[..., None].to(embeds.dtype), outputs
        rows = real_rows(item_mask)
        if len(rows) == 0:
            raise ValueError("item_mask marks no item as real: at least one study needs at least one item.")
        ids = input_ids.flatten(0, -2)[rows]
        if attention_mask is None:
            outputs = self.get_text_features(ids, None, **kwargs)
        else:
            records = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
            encode = partial(self.get_text_features, **kwargs)
            mask = attention_mask.flatten(0, -2)[rows]
            outputs = encode_by_length(encode, ids, mask, max_groups=1 if records else MAX_GROUPS)
        real_embeds: Any = outputs.pooler_output
        return fill_slots(real_embeds, rows, item_mask), outputs

    def item_tokens(
        self, outputs: BaseModelOutputWithPooling, attention_mask: torch.Tensor | None, item_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (B, K, T, C) and mask (B, K, T) of the items that `encode_items` encoded, zeros for the others."""
        tokens: Any = outputs.last_hidden_state
        if tokens.ndim == 3 and item_mask is not None:  # the real items, cut to the longest
            tokens = fill_slots(tokens, real_rows(item_mask), item_mask)
        if attention_mask is None:
            return tokens, torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
        return tokens, attention_mask[..., : tokens.shape[2]].bool()

    def score_items(
        self, item_embeds: torch.Tensor, image_tokens: torch.Tensor, token_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Text-conditioned similarity TCSim = cos(t, Pool(t, V)) of every study with every text (method 8.1).

        Args:
            item_embeds: (M, P), shared by all studies.
            image_tokens: (B, L, P).
            token_mask: (B, L), True for tokens of real scans.

        Returns:
            (B, M) in [-1, 1], without scale and bias, float32.
        """
        return pooled_similarity(self.item_pooler, item_embeds, image_tokens, token_mask)

    @staticmethod
    def score_global(item_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Cosine (B, M), float32, of texts (M, P) with class tokens (B, P): plain CLIP's score."""
        return global_similarity(item_embeds, image_embeds)

    @can_return_tuple  # type: ignore[untyped-decorator]  # of the library, without types
    def forward(  # type: ignore[misc]  # two flags are parameters of their own and keys of the library's arguments
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        item_mask: torch.Tensor | None = None,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        is_normal: torch.Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        return_logits: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ItemizedCLIPOutput:
        """
        Scores studies with texts, and the loss where it is asked for.

        Args:
            pixel_values: (B, N, C, D, H, W), or (B, C, H, W) for pictures.
            input_ids, attention_mask: (B, K, T), the items of each study, or (M, T), prompts shared by all studies.
            item_mask: (B, K), True for real items; the others are not encoded and change nothing.
            scan_mask: (B, N), True for real scans; the others change nothing.
            scan_name_ids: (B, N, T) characters of the sequence names.
            is_normal: (B,), studies without findings, for the normal check of the loss.
            return_loss: compute the loss; needs items of each study.
            return_logits: False leaves out `logits_per_image`, which training does not need.
        """
        kwargs.pop("num_items_in_batch", None)
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        kwargs.update({name: value for name, value in asked.items() if value is not None})
        image_embeds, image_tokens, vision = self.encode_images(pixel_values, scan_mask, scan_name_ids, **kwargs)
        token_mask = None if scan_mask is None else spread_scan_mask(scan_mask, image_tokens.shape[1])
        item_embeds, text_outputs = self.encode_items(input_ids, attention_mask, item_mask, **kwargs)
        loss = loss_terms = None
        logits = self._logits(image_embeds, image_tokens, item_embeds, item_mask, token_mask) if return_logits else None
        if return_loss:
            self._require_loss(input_ids)
            terms = self.loss_function(
                image_embeds=image_embeds,
                image_tokens=image_tokens,
                item_embeds=item_embeds,
                item_mask=item_mask,
                is_normal=is_normal,
                token_mask=token_mask,
                **self._loss_extras(text_outputs, attention_mask, item_mask),
            )
            loss = terms["loss"]
            loss_terms = {name: term.detach() for name, term in terms.items() if name != "loss"}
        return ItemizedCLIPOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.t(),
            item_embeds=item_embeds,
            image_embeds=image_embeds,
            image_tokens=image_tokens,
            text_model_output=text_outputs,
            vision_model_output=vision,
            loss_terms=loss_terms,
        )

    def _logits(
        self,
        image_embeds: torch.Tensor,
        image_tokens: torch.Tensor,
        item_embeds: torch.Tensor,
        item_mask: torch.Tensor | None,
        token_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """`logits_per_image` (B, M), in the precision of the tokens."""
        texts = item_embeds.flatten(0, -2)
        if self.config.scoring == "global":
            scores = self.score_global(texts, image_embeds)
        else:
            scores = self.score_items(texts, image_tokens, token_mask)
        logits = (scores * self.logit_scale.float().exp() + self.logit_bias.float()).to(image_tokens.dtype)
        if item_mask is not None:
            logits = logits.masked_fill(~item_mask.bool().flatten()[None], torch.finfo(logits.dtype).min)
        return logits

    def _require_loss(self, input_ids: torch.Tensor) -> None:
        """Refuses a loss without the items of each study, or where the package that computes it is not installed."""
        if input_ids.ndim != 3:
            raise ValueError(
                f"return_loss needs the items of each study, input_ids of shape (B, K, T), got {tuple(input_ids.shape)}."
            )
        if getattr(self, "_loss_function", None) is None and self.loss_type not in LOSS_MAPPING:
            raise ImportError(
                "Training losses are part of the package: install itemized_clip_hf from a clone of its repository "
                "(pip install -e .), then import it."
            )

    def _loss_extras(
        self,
        text_outputs: BaseModelOutputWithPooling,
        attention_mask: torch.Tensor | None,
        item_mask: torch.Tensor | None,
    ) -> dict[str, Any]:
        """Arguments of the loss besides the features: the model's own parts, and what some objectives ask for."""
        extras: dict[str, Any] = {
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "pooler": self.item_pooler,
            "config": self.config,
            "training": self.training,
        }
        if getattr(self, "objective_module", None) is not None:
            extras["objective_module"] = self.objective_module
        if getattr(self.loss_function, "uses_item_tokens", False):
            tokens, mask = self.item_tokens(text_outputs, attention_mask, item_mask)
            extras.update(item_tokens=tokens, item_token_mask=mask)
        return extras


def _without_class_token(outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Patch tokens (B, L, C) of the vision tower."""
    assert outputs.last_hidden_state is not None  # declared as optional by the library
    return outputs.last_hidden_state[:, 1:]
