"""Text-prompted segmentation: the whole ItemizedCLIP model and a decoder that draws what an item speaks of."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .configuration_itemized_clip import ItemizedCLIPConfig
from .mask_decoder_itemized_clip import ItemizedCLIPMaskDecoder, ItemizedCLIPMaskSettings, item_maps, mask_loss
from .modeling_itemized_clip import ItemizedCLIPModel
from .vision_itemized_clip import spread_scan_mask

logger = logging.get_logger(__name__)

IGNORE = 255
"""In labels: a voxel whose truth is not known."""


@dataclass
class ItemizedCLIPSegmentationOutput(ModelOutput):
    """
    What [`ItemizedCLIPForSemanticSegmentation`] returns.

    Args:
        loss: scalar, when there are `labels`.
        logits: (B, N, K, D, H, W), of every item in every scan, above 0 inside; or (B, N, classes, D, H, W). Of pictures that
            came as (B, C, H, W): (B, K, H, W) or (B, classes, H, W). Padded items and scans hold the dtype's minimum.
        hidden_states, attentions: of the vision tower, where asked for.
        item_scores: (B, K), cos of each item with what the pooler gathers for it; None for classes.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    item_scores: torch.Tensor | None = None


class ItemizedCLIPForSemanticSegmentation(ItemizedCLIPModel):
    """
    [`ItemizedCLIPModel`] with a mask decoder, so `from_pretrained` of its folder fills all but the decoder.

    `config.mask_decoder` says how masks are made, see [`ItemizedCLIPMaskSettings`]. The decoder is guided by the item's words
    and by what the base model's pooler says of each token for it (attention, exact terms of the score): findings that the
    model knows from reports are drawn, too, where masks of others were trained on.

    Raises:
        ImportError: MONAI is not installed (the extra `monai`).
    """

    _no_split_modules = [*ItemizedCLIPModel._no_split_modules, "ItemizedCLIPMaskDecoder"]

    def __init__(self, config: ItemizedCLIPConfig):
        settings = ItemizedCLIPMaskSettings.of(getattr(config, "mask_decoder", None))
        config.mask_decoder = settings.to_dict()
        if config.vision.patch_dropout:
            logger.warning_once(
                f"patch_dropout is {config.vision.patch_dropout}: it is switched off, as masks need every patch."
            )
            config.vision.patch_dropout = 0.0
        super().__init__(config)
        self.mask_decoder = ItemizedCLIPMaskDecoder(config, settings)
        self.post_init()  # type: ignore[no-untyped-call]  # of the library, without types
        unused: list[torch.nn.Parameter] = [self.logit_scale, self.logit_bias]
        if settings.mode == "classes":
            for module in (self.text_model, self.text_projection, self.visual_projection, self.item_pooler):
                unused += module.parameters()
        for parameter in unused:
            parameter.requires_grad_(False)

    @classmethod
    def from_model(
        cls,
        model: ItemizedCLIPModel,
        mask_decoder: dict[str, Any] | None = None,
        classes: Sequence[str] = (),
        seed: int = 0,
    ) -> "ItemizedCLIPForSemanticSegmentation":
        """
        A model with a fresh decoder on copies of another model's weights.

        Args:
            model: that knows the findings.
            mask_decoder: see [`ItemizedCLIPMaskSettings`].
            classes: names of the classes behind the background, which is class 0; in mode `"classes"`.
            seed: of the decoder's weights; other random numbers stay where they are.

        Raises:
            ValueError: there are classes in mode `"items"`, or none in mode `"classes"`.
        """
        config = copy.deepcopy(model.config)
        config.mask_decoder = ItemizedCLIPMaskSettings.of(mask_decoder).to_dict()
        if bool(classes) != (config.mask_decoder["mode"] == "classes"):
            raise ValueError(
                f"mask_decoder.mode is {config.mask_decoder['mode']!r} and there are {len(classes)} classes."
            )
        if classes:
            config.id2label = dict(enumerate(["background", *classes]))
            config.label2id = {name: number for number, name in config.id2label.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            created = cls(config)
        found = created.load_state_dict(model.state_dict(), strict=False)
        strays = [name for name in found.missing_keys if not name.startswith("mask_decoder.")]
        if strays or found.unexpected_keys:
            raise ValueError(
                f"the model lacks {strays[:3]} and has {found.unexpected_keys[:3]} besides: it is no plain model."
            )
        created.to(dtype=model.dtype)  # type: ignore[call-arg]  # of the library, without types
        created.eval()  # type: ignore[no-untyped-call]  # as above
        return created

    @can_return_tuple  # type: ignore[untyped-decorator]  # of the library, without types
    def forward(  # type: ignore[misc]  # two flags are parameters of their own and keys of the library's arguments
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        item_mask: torch.Tensor | None = None,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ItemizedCLIPSegmentationOutput:
        """
        Draws items, or classes, in every scan.

        Args:
            pixel_values: (B, N, C, D, H, W), or (B, C, H, W) for pictures.
            input_ids, attention_mask: (B, K, T), items of each study, or (K, T), of all; in mode `"items"`.
            item_mask: (B, K) or (K,), True for real items.
            scan_mask: (B, N), True for real scans; the others change nothing.
            scan_name_ids: (B, N, T) characters of the sequence names.
            labels: as the logits, 0 or 1; in mode `"classes"` class numbers (B, N, D, H, W) or (B, H, W). 255 where the
                truth is not known: it counts nothing, and scans of nothing else are not drawn in training.

        Raises:
            ValueError: items are missing or not wanted, or labels have another shape.
        """
        kwargs.pop("num_items_in_batch", None)
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        towers: Any = {**kwargs, **{name: value for name, value in asked.items() if value is not None}}
        self._check_items(input_ids)
        pictures = pixel_values.ndim == 4
        scans = pixel_values[:, None, :, None] if pictures else pixel_values
        truth = labels[:, None] if labels is not None and pictures else labels
        rows = self._rows_to_draw(truth, scan_mask)
        recording = {**towers, "output_hidden_states": True}
        _, tokens, vision = self.encode_images(scans, scan_mask, scan_name_ids, **recording)
        features = self._encode_voxels(vision, scans, rows)
        scores = None
        if input_ids is None:
            drawn = self.mask_decoder(features)
        else:
            items, _ = self.encode_items(input_ids, attention_mask, item_mask, **towers)
            items = items.expand(len(scans), -1, -1)
            guides, scores = self._guide(items, tokens, scans, scan_mask)
            drawn = self.mask_decoder(features, *(guide[rows] for guide in guides))
            item_mask = torch.ones_like(scores) if item_mask is None else item_mask.expand(scores.shape)
        logits = _in_place(drawn, rows, scans)
        shown = _is_real(logits, scan_mask, None if input_ids is None else item_mask)
        loss = None if truth is None else self._mask_loss(logits, truth, shown)
        logits = logits.masked_fill(~shown, torch.finfo(logits.dtype).min)
        wanted = towers.get("output_hidden_states", self.config.vision.output_hidden_states)
        return ItemizedCLIPSegmentationOutput(
            loss=loss,
            logits=logits[:, 0, :, 0] if pictures else logits,
            hidden_states=_choose_states(vision.hidden_states, wanted),
            attentions=vision.attentions,
            item_scores=scores,
        )

    def _check_items(self, input_ids: torch.Tensor | None) -> None:
        if self.mask_decoder.by_item != (input_ids is not None):
            needs = "takes no items (input_ids)" if input_ids is not None else "needs items (input_ids)"
            raise ValueError(f"this model {needs}: mask_decoder.mode is {self.mask_decoder.settings.mode!r}.")

    def _rows_to_draw(self, labels: torch.Tensor | None, scan_mask: torch.Tensor | None) -> Any:
        """Which of the (B * N) scans are drawn: in training those of which any truth is known, else all."""
        if labels is None or not self.training or labels.ndim < 4:
            return slice(None)
        known = (labels != IGNORE).flatten(2).any(2)
        if scan_mask is not None and known.shape == scan_mask.shape:
            known = known & scan_mask.bool()
        rows = known.flatten().nonzero()[:, 0]
        return rows if len(rows) else slice(None)

    def _encode_voxels(self, vision: BaseModelOutputWithPooling, scans: torch.Tensor, rows: Any) -> list[torch.Tensor]:
        """What the decoder knows of each scan, whatever the items."""
        grid = self._grid(scans)
        states: Any = [*(vision.hidden_states or ())[:-1], vision.last_hidden_state]  # the last one after its norm
        length = scans.shape[1] * grid[0] * grid[1] * grid[2]
        spread = [
            states[layer][:, -length:].reshape(-1, *grid, states[layer].shape[-1])[rows].permute(0, 4, 1, 2, 3)
            for layer in self.mask_decoder.layers
        ]
        return self.mask_decoder.encode(scans.flatten(0, 1)[rows].to(self.mask_decoder.head.weight.dtype), spread)

    def _guide(
        self, items: torch.Tensor, tokens: torch.Tensor, scans: torch.Tensor, scan_mask: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Of items (B, K, P) and tokens (B, L, P): products and maps (B * N, K, features, d, h, w), and scores (B, K)."""
        token_mask = None if scan_mask is None else spread_scan_mask(scan_mask, tokens.shape[1])
        maps, scores = item_maps(self.item_pooler, items, tokens, token_mask)
        products = F.normalize(tokens, dim=-1)[:, None] * F.normalize(items, dim=-1)[:, :, None] * items.shape[-1]
        by_scan = [torch.unflatten(values, 2, (scans.shape[1], *self._grid(scans))) for values in (products, maps)]
        return [values.permute(0, 2, 1, 6, 3, 4, 5).flatten(0, 1) for values in by_scan], scores

    def _grid(self, scans: torch.Tensor) -> tuple[int, ...]:
        """Tokens of a scan, (d, h, w)."""
        return tuple(voxels // size for voxels, size in zip(scans.shape[-3:], self.config.vision.patch_shape))

    def _mask_loss(self, logits: torch.Tensor, labels: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        """Of logits (B, N, K or classes, D, H, W); `shown` as from `_is_real`."""
        by_item = self.mask_decoder.by_item
        expected = tuple(logits.shape if by_item else (*logits.shape[:2], *logits.shape[3:]))
        if labels.ndim == len(expected) - 1 and expected[-3] == 1:  # of pictures, without the depth
            labels = labels.unsqueeze(-3)
        if tuple(labels.shape) != expected:
            raise ValueError(f"labels has shape {tuple(labels.shape)}, expected {expected}.")
        if by_item:
            labels = labels.masked_fill(~shown, IGNORE)
            return mask_loss(logits.flatten(0, 2)[:, None], labels.flatten(0, 2), IGNORE, classes=False)
        labels = labels.masked_fill(~shown[:, :, 0], IGNORE)
        return mask_loss(logits.flatten(0, 1), labels.flatten(0, 1), IGNORE, classes=True)


def _choose_states(states: Any, wanted: bool | list[int] | None) -> Any:
    """All hidden states, or those of a list of layers with None for the others, as the library gives them."""
    if isinstance(wanted, (list, tuple)):
        return tuple(state if layer in wanted else None for layer, state in enumerate(states))
    return states if wanted else None


def _in_place(drawn: torch.Tensor, rows: Any, scans: torch.Tensor) -> torch.Tensor:
    """Logits (B, N, K, D, H, W) of those of the scans that were drawn; of the others the dtype's minimum."""
    if isinstance(rows, slice):
        return torch.unflatten(drawn, 0, tuple(scans.shape[:2]))
    batch, count = scans.shape[:2]
    logits = drawn.new_full((batch * count, *drawn.shape[1:]), torch.finfo(drawn.dtype).min)
    return torch.unflatten(logits.index_copy(0, rows, drawn), 0, (batch, count))


def _is_real(logits: torch.Tensor, scan_mask: torch.Tensor | None, item_mask: torch.Tensor | None) -> torch.Tensor:
    """Broadcast to the logits (B, N, K, D, H, W): whether scan and item are real; (B, N, 1, 1, 1, 1) without items."""
    batch, scans, items = logits.shape[:3]
    shown = torch.ones(batch, scans, 1 if item_mask is None else items, dtype=torch.bool, device=logits.device)
    if scan_mask is not None:
        shown = shown & scan_mask.bool()[:, :, None]
    if item_mask is not None:
        shown = shown & item_mask.bool()[:, None]
    return shown[..., None, None, None]
