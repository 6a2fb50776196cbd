"""
Large batches on small machines: contrastive training with cached features (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup").

The towers encode a batch without a graph, micro-batch by micro-batch; the objective sees the features of the whole batch; its
gradients with respect to them are carried on through the towers in the backward pass, where each micro-batch is encoded once
more, with the same random numbers. Features are all that is kept, and the gradients are those of the whole batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling


class HostTensor:
    """Hides a tensor from whatever moves batches to the accelerator: its micro-batches move one at a time."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def numel(self) -> int:
        return self.tensor.numel()

    def pin_memory(self) -> "HostTensor":
        return HostTensor(self.tensor.pin_memory())


FEWEST_TEXTS = 16
"""Texts of one pass: fewer save no memory beside the images."""


class KeepPixelsOnHost:
    """A collator whose `pixel_values` stay where they are."""

    def __init__(self, collator: Callable):
        self.collator = collator

    def __call__(self, examples: list) -> dict:
        batch = dict(self.collator(examples))
        return {**batch, "pixel_values": HostTensor(batch["pixel_values"])}


def get_random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of the CPU and of the accelerator in use."""
    return torch.get_rng_state(), None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()


def set_random_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])


class CachedEncoding(torch.autograd.Function):
    """
    Features of all micro-batches, concatenated; the backward pass encodes each once more and returns every parameter's
    gradient once, so that data-parallel hooks fire as in an ordinary step.
    """

    @staticmethod
    def forward(ctx, encode, chunks, device, *parameters):
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
    def backward(ctx, *gradients):
        parameters = ctx.saved_tensors
        totals: list[torch.Tensor | None] = [None] * len(parameters)
        parts = [[None] * len(ctx.sizes) if g is None else g.split(ctx.sizes) for g in gradients]
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
                found = torch.autograd.grad(outputs, parameters, grad_outputs, allow_unused=True)
                del features, used, outputs
                totals = [b if a is None else a if b is None else a + b for a, b in zip(totals, found)]
        finally:
            set_random_state(before, ctx.device)
        return None, None, None, *totals


def split(batch: torch.Tensor | None, size: int, count: int) -> list[torch.Tensor | None]:
    return [None] * count if batch is None else list(batch.split(size))


def trainable(*modules) -> list[torch.nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


@contextmanager
def cached_encoding(model, micro_batch_size: int, fewest_texts: int = FEWEST_TEXTS) -> Iterator[None]:
    """
    Within this context `model(..., return_loss=True)` keeps features only, and a backward pass from the loss may follow at any
    time. Outputs hold no hidden states of the towers.

    Args:
        model: [`ItemizedCLIPModel`], not its data-parallel wrapper, which is the one to call.
        micro_batch_size: studies that are encoded at a time; their texts are encoded in as many parts.
        fewest_texts: of such a part.
    """
    encode_images, get_text_features = model.encode_images, model.get_text_features
    needs_tokens = getattr(model.loss_function, "uses_item_tokens", False)
    device, count = model.device, 1

    def images(pixel_values, scan_mask=None, scan_name_ids=None, **kwargs):
        nonlocal count
        pixels = pixel_values.tensor if isinstance(pixel_values, HostTensor) else pixel_values
        parts = pixels.split(micro_batch_size)
        count = len(parts)
        masks, names = (split(x, micro_batch_size, count) for x in (scan_mask, scan_name_ids))

        def encode(pixels, scan_mask, scan_name_ids):
            return encode_images(pixels.to(device, non_blocking=True), scan_mask, scan_name_ids, **kwargs)[:2]

        parameters = trainable(model.vision_model, model.visual_projection)
        return *CachedEncoding.apply(encode, list(zip(parts, masks, names)), device, *parameters), None

    def texts(input_ids, attention_mask=None, **kwargs):
        layout = input_ids.shape[:-1]
        ids = input_ids.flatten(0, -2)
        size = max(-(-len(ids) // count), fewest_texts)
        parts = ids.split(size)
        masks = split(None if attention_mask is None else attention_mask.flatten(0, -2), size, len(parts))

        def encode(ids, mask):
            outputs = get_text_features(ids, mask, **kwargs)
            return (outputs.pooler_output, outputs.last_hidden_state)[: 1 + needs_tokens]

        parameters = trainable(model.text_model, model.text_projection)
        features = CachedEncoding.apply(encode, list(zip(parts, masks)), device, *parameters)
        embeds, *tokens = (x.unflatten(0, layout) for x in features)
        return BaseModelOutputWithPooling(last_hidden_state=tokens[0] if tokens else None, pooler_output=embeds)

    model.encode_images, model.get_text_features = images, texts
    try:
        yield
    finally:
        del model.encode_images, model.get_text_features
