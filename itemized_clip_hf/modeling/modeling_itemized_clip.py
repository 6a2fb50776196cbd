"""ItemizedCLIP: a vision tower, a text tower and an item pooler that scores every item against a study by itself."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_itemized_clip import ItemizedCLIPConfig, ItemizedCLIPVisionConfig
from .inflation_itemized_clip import MAE_LICENSE, inflate_mae
from .pooling_itemized_clip import ItemizedCLIPItemPooler, weights_at_hand
from .scan_names_itemized_clip import ItemizedCLIPScanNameEncoder
from .vision_itemized_clip import (
    ItemizedCLIPVisionAttention,
    ItemizedCLIPVisionEmbeddings,
    ItemizedCLIPVisionEncoder,
    ItemizedCLIPVisionLayer,
    sincos_1d,
    sincos_3d,
)


@dataclass
class ItemizedCLIPOutput(ModelOutput):
    """
    Args:
        loss: scalar, when `return_loss=True`.
        loss_terms: the loss's terms, unweighted and detached, when `return_loss=True`.
        logits_per_image: (B, M), exp(logit_scale) * TCSim + logit_bias of every study with every text, M = B * K for
            items; columns of padded items hold the dtype's minimum.
        logits_per_text: (M, B).
        item_embeds: (B, K, P) or (M, P) as the texts came; zeros where an item is padding. Not normalised.
        image_embeds: (B, P) of the class token. Not normalised.
        image_tokens: (B, L, P) in (scan, depth, height, width) order. Not normalised.
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
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class ItemizedCLIPPreTrainedModel(PreTrainedModel):
    config: ItemizedCLIPConfig
    base_model_prefix = "itemized_clip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ItemizedCLIPVisionEmbeddings", "ItemizedCLIPVisionLayer", "ItemizedCLIPItemPooler"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def is_custom_code(cls) -> bool:
        # Weights are written through `transformers.initialization` only, which leaves loaded ones alone.
        return False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if hasattr(module, "init_bound"):
            init.uniform_(module.weight, -module.init_bound, module.init_bound)
        elif isinstance(module, ItemizedCLIPVisionEmbeddings):
            config = module.config
            init.normal_(module.patch_embedding.weight, std=module.patch_embedding.weight[0].numel() ** -0.5)
            init.normal_(module.class_embedding, std=config.initializer_range)
            init.copy_(module.position_embedding, sincos_3d(config.grid_size, config.hidden_size))
            if module.scan_embedding is not None:
                init.copy_(module.scan_embedding, sincos_1d(config.max_num_scans, config.hidden_size))
        elif isinstance(module, ItemizedCLIPScanNameEncoder):
            init.normal_(module.embedding.weight)
        elif isinstance(module, ItemizedCLIPModel):
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)
            init.constant_(module.logit_bias, module.config.logit_bias_init_value)
            for projection in (module.visual_projection, module.text_projection):
                init.normal_(projection.weight, std=projection.in_features**-0.5)


class ItemizedCLIPVisionModel(ItemizedCLIPPreTrainedModel):
    """The vision tower alone, before the projection."""

    config: ItemizedCLIPVisionConfig  # type: ignore[assignment]
    base_model_prefix = "vision_model"
    input_modalities = ("image",)  # type: ignore[assignment]
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
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
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
    def from_mae(cls, weights: str | dict[str, torch.Tensor], config=None, accept_license: bool = False):
        """
        Vision tower initialised from a 2-D MAE ViT, inflated to the config's patches and grid (spec 2.6).

        Args:
            weights: the MAE state dict, or the path of a `.safetensors` or `.pth` file (read with `weights_only=True`).
            config: [`ItemizedCLIPVisionConfig`] with sin-cos positions and one channel; its width must be that of
                the weights. The brain MRI geometry, without a name encoder, if None.
            accept_license: the published MAE weights are CC-BY-NC-4.0 (no commercial use), and so is what is trained
                from them. Pass True to accept that.
        """
        if not accept_license:
            raise ValueError(
                f"The published MAE weights are licensed {MAE_LICENSE}: not for commercial use, and models trained from "
                "them inherit that. Pass accept_license=True to use them on these terms."
            )
        if isinstance(weights, dict):
            state_dict: Any = weights
        elif str(weights).endswith(".safetensors"):
            from safetensors.torch import load_file

            state_dict = load_file(weights)
        else:
            state_dict = torch.load(weights, map_location="cpu", weights_only=True)
        state_dict = state_dict.get("model", state_dict)
        if config is None:
            scopes = ["scan", "scan", "study"] * 4
            config = ItemizedCLIPVisionConfig(
                num_channels=1, image_size=[48, 224, 224], patch_size=[8, 16, 16], attention_scopes=scopes
            )
        model = cls(config)
        if model.config.position_embedding_type != "sincos" or model.config.num_channels != 1:
            raise ValueError("from_mae fills towers with position_embedding_type='sincos' and num_channels=1.")
        inflated = inflate_mae(state_dict, model.config)
        missing, unexpected = model.load_state_dict(inflated, strict=False)
        missing = [name for name in missing if "scan_" not in name]
        if missing or unexpected:
            raise ValueError(f"MAE weights do not fit: missing {missing[:5]}, left over {unexpected[:5]}.")
        if model.embeddings.scan_embedding is not None:
            model.embeddings.scan_embedding.copy_(sincos_1d(model.config.max_num_scans, model.config.hidden_size))
        return model


TEXT_GROUPS = 4
"""Most passes of the text tower over items of similar length."""

SMALLEST_GROUP = {"cpu": 5, "cuda": 32}
"""Texts that are worth a pass of their own."""

TEXTS_AT_ONCE = 2048
"""Texts that a batch of studies is scored with at once."""


@torch.no_grad()
def scale_and_bias(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor exp(logit_scale) and logit_bias of a model, (1,) each, float32 on the CPU, wherever its weights are kept."""
    with weights_at_hand(model):
        return model.logit_scale.float().exp().cpu(), model.logit_bias.float().cpu()


def spread_scan_mask(scan_mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """(B, N) -> (B, L), True for the tokens of real scans."""
    return scan_mask.bool().repeat_interleave(num_tokens // scan_mask.shape[1], dim=1)


def group_by_length(mask: torch.Tensor, most: int) -> list[tuple[torch.Tensor, int]]:
    """
    Texts of similar length together, so that little padding is computed.

    Args:
        mask: (M, T), True for tokens.
        most: most groups.

    Returns:
        row numbers of each group, and the columns that it needs. One group where several would save less than a tenth.
    """
    most = max(min(most, len(mask) // SMALLEST_GROUP.get(mask.device.type, SMALLEST_GROUP["cuda"])), 1)
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths, order = (mask.bool() * places).amax(1).sort()
    longest = max(int(lengths[-1]), 1)
    groups = [(rows, max(int(own[-1]), 1)) for rows, own in zip(order.chunk(most), lengths.chunk(most))]
    if len(groups) == 1 or sum(len(g) * n for g, n in groups) > 0.9 * len(mask) * longest:
        return [(torch.arange(len(mask), device=mask.device), longest)]
    return groups


def build_text_model(config):
    """Text tower of any type `AutoModel` knows, without the pooling layer that BERT-like ones would add."""
    model_class = AutoModel._model_mapping[type(config)]
    takes_pooling = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if takes_pooling else {}))


class ItemizedCLIPModel(ItemizedCLIPPreTrainedModel):
    """Images or studies and lists of items in one space; see [`ItemizedCLIPOutput`] for what comes out."""

    _can_record_outputs = {}
    _keys_to_ignore_on_load_unexpected = [r"^objective_module\."]  # parameters of a training objective
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever its number of items

    def __init__(self, config: ItemizedCLIPConfig):
        super().__init__(config)
        vision_config, text_config = config.vision_config, config.text_config
        self.vision_model = ItemizedCLIPVisionModel._from_config(vision_config)
        self.text_model = build_text_model(text_config)
        self.visual_projection = nn.Linear(vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(text_config.hidden_size, config.projection_dim, bias=False)
        self.item_pooler = ItemizedCLIPItemPooler(config.projection_dim, config.num_pooler_heads)
        # One element instead of a scalar: sharded training cannot split 0-dimensional parameters.
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))
        self.text_pooling = config.text_pooling
        if self.text_pooling == "auto":
            self.text_pooling = "eos" if "clip" in text_config.model_type else "first"
        self.loss_type = "ItemizedCLIP"
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids, attention_mask: (M, T) or (B, K, T).

        Returns:
            `pooler_output` (M, P) or (B, K, P), projected, not normalised; `last_hidden_state` (..., T, hidden_size).
        """
        layout = input_ids.shape[:-1]
        # A setting of decoders that BERT has too; switched on it warns while activations are recomputed.
        uncached = {"use_cache": False} if hasattr(self.text_model.config, "use_cache") else {}
        outputs = self.text_model(
            input_ids=input_ids.flatten(0, -2),
            attention_mask=None if attention_mask is None else attention_mask.flatten(0, -2),
            **{**uncached, **kwargs, "return_dict": True},
        )
        hidden_states = outputs.last_hidden_state
        if self.text_pooling == "eos":
            pooled = outputs.pooler_output
        elif self.text_pooling == "first":
            pooled = hidden_states[:, 0]
        else:
            weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            weights = weights.flatten(0, -2)[..., None].to(hidden_states.dtype)
            pooled = (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
        outputs.last_hidden_state = hidden_states.unflatten(0, layout)
        outputs.pooler_output = self.text_projection(pooled).unflatten(0, layout)
        return outputs

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values, scan_mask, scan_name_ids: as in the vision tower.

        Returns:
            `pooler_output` (B, P), projected, not normalised; `last_hidden_state` (B, L, hidden_size), patches only.
        """
        outputs = self.vision_model(
            pixel_values, scan_mask=scan_mask, scan_name_ids=scan_name_ids, **{**kwargs, "return_dict": True}
        )
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        outputs.last_hidden_state = outputs.last_hidden_state[:, 1:]
        return outputs

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor, BaseModelOutputWithPooling]:
        """Class token (B, P) and patch tokens (B, L, P), both projected, and the outputs of the vision tower."""
        outputs = self.vision_model(
            pixel_values, scan_mask=scan_mask, scan_name_ids=scan_name_ids, **{**kwargs, "return_dict": True}
        )
        tokens = self.visual_projection(outputs.last_hidden_state[:, 1:])
        return self.visual_projection(outputs.pooler_output), tokens, outputs

    def encode_items(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, item_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """Item embeddings (B, K, P), zeros where `item_mask` is False; only real items go through the text tower."""
        if item_mask is None or torch.compiler.is_compiling():
            outputs = self.get_text_features(input_ids, attention_mask, **kwargs)
            embeds = outputs.pooler_output
            if item_mask is not None:
                embeds = embeds * item_mask[..., None].to(embeds.dtype)
            return embeds, outputs
        rows = item_mask.flatten().nonzero()[:, 0]
        if len(rows) == 0:
            raise ValueError("item_mask marks no item as real: at least one study needs at least one item.")
        ids = input_ids.flatten(0, -2)[rows]
        if attention_mask is None:
            outputs = self.get_text_features(ids, None, **kwargs)
        else:
            mask = attention_mask.flatten(0, -2)[rows]
            whole = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
            groups = group_by_length(mask, 1 if whole else TEXT_GROUPS)
            parts = [self.get_text_features(ids[g, :length], mask[g, :length], **kwargs) for g, length in groups]
            outputs = parts[0] if len(parts) == 1 else self._merge_texts(parts, [g for g, _ in groups])
        real: Any = outputs.pooler_output
        embeds = real.new_zeros(item_mask.numel(), real.shape[-1]).index_copy(0, rows, real)
        return embeds.unflatten(0, item_mask.shape), outputs

    @staticmethod
    def _merge_texts(parts: list, groups: list[torch.Tensor]) -> BaseModelOutputWithPooling:
        """Outputs of groups of texts in the texts' order; hidden states, if they are kept, padded with zeros to the longest."""
        order = torch.cat(groups).argsort()
        pooled = torch.cat([part.pooler_output for part in parts])[order]
        if any(part.last_hidden_state is None for part in parts):
            return BaseModelOutputWithPooling(last_hidden_state=None, pooler_output=pooled)
        length = max(part.last_hidden_state.shape[1] for part in parts)
        states = [F.pad(p.last_hidden_state, (0, 0, 0, length - p.last_hidden_state.shape[1])) for p in parts]
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat(states)[order], pooler_output=pooled)

    def item_tokens(
        self, outputs: BaseModelOutputWithPooling, attention_mask: torch.Tensor | None, item_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (B, K, T, C) and mask (B, K, T) of the items that `encode_items` encoded, zeros for the others."""
        tokens: Any = outputs.last_hidden_state
        if tokens.ndim == 3 and item_mask is not None:  # the real items, cut to the longest
            layout = tokens.new_zeros(item_mask.numel(), *tokens.shape[1:])
            tokens = layout.index_copy(0, item_mask.flatten().nonzero()[:, 0], tokens).unflatten(0, item_mask.shape)
        if attention_mask is None:
            return tokens, torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
        return tokens, attention_mask[..., : tokens.shape[2]].bool()

    def score_items(
        self, item_embeds: torch.Tensor, image_tokens: torch.Tensor, token_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Text-conditioned similarity TCSim = cos(t, Pool(t, V)) of every study with every text (spec 8.1).

        Args:
            item_embeds: (M, P), shared by all studies.
            image_tokens: (B, L, P).
            token_mask: (B, L), True for tokens of real scans.

        Returns:
            (B, M) in [-1, 1], without scale and bias, float32.
        """
        pooler = self.item_pooler
        key, value = pooler.project_tokens(image_tokens)
        keep_mask = None if token_mask is None else token_mask[:, None, None]
        scores = []
        for embeds in item_embeds.split(TEXTS_AT_ONCE):
            query = pooler.project_queries(embeds[None]).expand(len(image_tokens), -1, -1, -1)
            pooled = pooler.attend(query, key, value, keep_mask)
            scores.append(F.cosine_similarity(pooled.float(), embeds.float()[None], dim=-1, eps=1e-6))
        return torch.cat(scores, 1)

    @staticmethod
    def score_global(item_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Cosine (B, M), float32, of texts (M, P) with class tokens (B, P): plain CLIP's score."""
        return F.normalize(image_embeds.float(), dim=-1) @ F.normalize(item_embeds.float(), dim=-1).t()

    @can_return_tuple
    def forward(  # type: ignore[misc]
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
        for name, value in (("output_attentions", output_attentions), ("output_hidden_states", output_hidden_states)):
            if value is not None:
                kwargs[name] = value

        image_embeds, image_tokens, vision_outputs = self.encode_images(
            pixel_values, scan_mask, scan_name_ids, **kwargs
        )
        token_mask = None
        if scan_mask is not None:
            token_mask = spread_scan_mask(scan_mask, image_tokens.shape[1])
        item_embeds, text_outputs = self.encode_items(input_ids, attention_mask, item_mask, **kwargs)

        logits_per_image = logits_per_text = None
        if return_logits:
            texts = item_embeds.flatten(0, -2)
            if self.config.scoring == "global":
                scores = self.score_global(texts, image_embeds)
            else:
                scores = self.score_items(texts, image_tokens, token_mask)
            logits_per_image = scores * self.logit_scale.float().exp() + self.logit_bias.float()
            logits_per_image = logits_per_image.to(image_tokens.dtype)
            if item_mask is not None:
                minimum = torch.finfo(logits_per_image.dtype).min
                logits_per_image = logits_per_image.masked_fill(~item_mask.bool().flatten()[None], minimum)
            logits_per_text = logits_per_image.t()

        loss = loss_terms = None
        if return_loss:
            if input_ids.ndim != 3:
                raise ValueError(
                    f"return_loss needs the items of each study, input_ids of shape (B, K, T), got {tuple(input_ids.shape)}."
                )
            if getattr(self, "_loss_function", None) is None and self.loss_type not in LOSS_MAPPING:
                raise ImportError(
                    "Training losses are part of the package: install itemized_clip_hf from a clone of its repository "
                    "(pip install -e .), then import it."
                )
            more: dict[str, Any] = {}
            if getattr(self, "objective_module", None) is not None:
                more["objective_module"] = self.objective_module
            if getattr(self.loss_function, "uses_item_tokens", False):
                more["item_tokens"], more["item_token_mask"] = self.item_tokens(text_outputs, attention_mask, item_mask)
            terms = self.loss_function(
                image_embeds=image_embeds,
                image_tokens=image_tokens,
                item_embeds=item_embeds,
                item_mask=item_mask,
                is_normal=is_normal,
                logit_scale=self.logit_scale,
                logit_bias=self.logit_bias,
                pooler=self.item_pooler,
                token_mask=token_mask,
                config=self.config,
                training=self.training,
                **more,
            )
            loss = terms["loss"]
            loss_terms = {name: term.detach() for name, term in terms.items() if name != "loss"}

        return ItemizedCLIPOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            item_embeds=item_embeds,
            image_embeds=image_embeds,
            image_tokens=image_tokens,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
            loss_terms=loss_terms,
        )
