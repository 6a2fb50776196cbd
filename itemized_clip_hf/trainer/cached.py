"""
Large batches on small machines: contrastive training with cached features (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup").

The towers encode a batch without a graph, micro-batch by micro-batch; the objective sees the features of the whole batch; its
gradients with respect to them are carried on through the towers in the backward pass, where each micro-batch is encoded once
more, with the same random numbers. Features are all that is kept, and the gradients are those of the whole batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from .temporarily import temporarily


class HostTensor:
    """Hides a tensor from whatever moves batches to the accelerator: its micro-batches move one at a time."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def numel(self) -> int:
        """Values of the tensor."""
        return self.tensor.numel()

    def pin_memory(self) -> "HostTensor":
        """Keeps the tensor in memory that the accelerator can read."""
        return HostTensor(self.tensor.pin_memory())


MIN_TEXTS = 16
"""Texts of one pass: fewer save no memory beside the images."""


class KeepPixelsOnHost:
    """A collator whose `pixel_values` stay where they are."""

    def __init__(self, collator: Callable[[list[Any]], Any]):
        self.collator = collator

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """The collator's batch, its pixels a `HostTensor`."""
        batch = dict(self.collator(examples))
        return {**batch, "pixel_values": HostTensor(batch["pixel_values"])}


def get_random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of the CPU and of the accelerator in use."""
    return torch.get_rng_state(), None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


def set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    """Puts back what `get_random_state` gave."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])


class CachedEncoding(torch.autograd.Function):
    """
    Features of all micro-batches, concatenated.

    The backward pass encodes each once more and returns every parameter's gradient once, so that data-parallel hooks fire as in
    an ordinary step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        encode: Callable[..., tuple[torch.Tensor, ...]],
        chunks: list[tuple[Any, ...]],
        device: torch.device,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """What `encode` makes of all chunks, without a graph; `parameters` are those that it uses."""
        ctx.encode, ctx.chunks, ctx.device = encode, chunks, device
        ctx.autocast = {
            "device_type": device.type,
            "dtype": torch.get_autocast_dtype(device.type),
            "enabled": torch.is_autocast_enabled(device.type),
            "cache_enabled": False,  # weights cast here without a graph must not turn up in a pass that needs one
        }
        ctx.states, features = [], []
        with torch.autocast(**ctx.autocast):
            for chunk in chunks:
                ctx.states.append(get_random_state(device))
                features.append(encode(*chunk))
        ctx.sizes = [len(parts[0]) for parts in features]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*parameters)
        return tuple(torch.cat(parts) for parts in zip(*features))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        """Gradients of the parameters."""
        parameters = ctx.saved_tensors
        totals: list[torch.Tensor | None] = [None] * len(parameters)
        parts: list[Any] = [[None] * len(ctx.sizes) if g is None else torch.split(g, ctx.sizes) for g in gradients]
        before = get_random_state(ctx.device)
        try:
            for state, chunk, *wanted in zip(ctx.states, ctx.chunks, *parts):
                set_random_state(state, ctx.device)
                with torch.enable_grad(), torch.autocast(**ctx.autocast):
                    features = ctx.encode(*chunk)
                used = [(x, g) for x, g in zip(features, wanted) if g is not None and x.requires_grad]
                if not used:
                    continue
                outputs, grad_outputs = zip(*used)
                new = torch.autograd.grad(outputs, parameters, grad_outputs, allow_unused=True)
                del features, used, outputs
                totals = [b if a is None else a if b is None else a + b for a, b in zip(totals, new)]
        finally:
            set_random_state(before, ctx.device)
        return None, None, None, *totals


def split_or_none(batch: torch.Tensor | None, size: int, count: int) -> list[torch.Tensor | None]:
    """Parts of a batch; as many times None where there is none."""
    return [None] * count if batch is None else list(torch.split(batch, size))


def trainable(*modules: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Parameters of the modules that are trained."""
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


@contextmanager
def cached_encoding(model: ItemizedCLIPModel, micro_batch_size: int, min_texts: int = MIN_TEXTS) -> Iterator[None]:
    """
    Within this context `model(..., return_loss=True)` keeps features only; outputs hold no hidden states of the towers.

    A backward pass from the loss may follow at any time. The model's own encoding methods are back after the context.

    Args:
        model: [`ItemizedCLIPModel`], not its data-parallel wrapper, which is the one to call.
        micro_batch_size: studies that are encoded at a time; their texts are encoded in as many parts.
        min_texts: of such a part.
    """
    towers = CachedTowers(model, micro_batch_size, min_texts)
    with temporarily(model, encode_images=towers.encode_images, get_text_features=towers.get_text_features):
        yield


class CachedTowers:
    """The two encoding methods of a model, over cached features."""

    def __init__(self, model: ItemizedCLIPModel, micro_batch_size: int, min_texts: int):
        self.model, self.micro_batch_size, self.min_texts = model, micro_batch_size, min_texts
        self.of_model = model.encode_images, model.get_text_features
        self.device = model.device
        self.needs_tokens = bool(getattr(model.loss_function, "uses_item_tokens", False))
        self.num_parts = 1
        """Of the images of the last batch."""

    def encode_images(
        self,
        pixel_values: torch.Tensor | HostTensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """As the model's, without its last output."""
        pixels = pixel_values.tensor if isinstance(pixel_values, HostTensor) else pixel_values
        parts = torch.split(pixels, self.micro_batch_size)
        self.num_parts = len(parts)
        masks, names = (split_or_none(x, self.micro_batch_size, len(parts)) for x in (scan_mask, scan_name_ids))

        def encode(pixels: torch.Tensor, mask: torch.Tensor | None, names: torch.Tensor | None) -> Any:
            return self.of_model[0](pixels.to(self.device, non_blocking=True), mask, names, **kwargs)[:2]

        parameters = trainable(self.model.vision_model, self.model.visual_projection)
        return *self._cache(encode, list(zip(parts, masks, names)), parameters), None

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """As the model's; hidden states only where the objective uses them."""
        layout = input_ids.shape[:-1]
        ids = input_ids.flatten(0, -2)
        size = max(-(-len(ids) // self.num_parts), self.min_texts)
        parts = torch.split(ids, size)
        masks = split_or_none(None if attention_mask is None else attention_mask.flatten(0, -2), size, len(parts))

        def encode(ids: torch.Tensor, mask: torch.Tensor | None) -> Any:
            outputs = self.of_model[1](ids, mask, **kwargs)
            return (outputs.pooler_output, outputs.last_hidden_state)[: 1 + self.needs_tokens]

        parameters = trainable(self.model.text_model, self.model.text_projection)
        features = self._cache(encode, list(zip(parts, masks)), parameters)
        embeds, *tokens = (torch.unflatten(x, 0, layout) for x in features)
        return BaseModelOutputWithPooling(last_hidden_state=tokens[0] if tokens else None, pooler_output=embeds)

    def _cache(
        self, encode: Callable[..., Any], chunks: list[tuple[Any, ...]], parameters: list[torch.nn.Parameter]
    ) -> tuple[torch.Tensor, ...]:
        features: tuple[torch.Tensor, ...] = CachedEncoding.apply(  # type: ignore[no-untyped-call]  # torch's
            encode, chunks, self.device, *parameters
        )
        return features
