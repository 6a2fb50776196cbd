"""
The pooled terms of ItemizedCLIP, image by image: loss and gradients in one visit (`fused_pass`), so that tokens' projections
and attention scores of one chunk of images are all that ever exists of them.

What is shared: the projections of an image between all ranks' texts and both passes; the query of a text between the images;
the exponentials between ILA, the choice of key tokens and KTA. With E = exp(S - m), m = max(0, row maximum), the empty slot
adds exp(-m) to each normalizer, and both passes are E under another mask.

Where the texts of an image are few, keys and values are never made (absorption): with x the normalized token,
q . (W x + b) = (W^T q) . x + q . b, and a weighted sum of values is W (weighted sum of x) + b (sum of weights).
"""

from typing import Any

import torch

from ...modeling.pooling_itemized_clip import ItemizedCLIPItemPooler, loaded_weights
from .blocks import Block
from .columns import Columns
from .functional import full, full_precision, unit
from .fused_pass import INPUTS, TERMS, FusedPass, PassSettings

# Scores held at once: few enough for the caches of a CPU, many enough for the cores of a GPU. Where one image has more, its
# texts are visited in groups, whose gradients are added up in memory: on a CPU few large groups are faster.
CHUNK_SCORES = {"cpu": 1 << 19, "cuda": 1 << 27}
GROUP_SCORES = {"cpu": 1 << 21, "cuda": 1 << 27}
ABSORB_BELOW = 44
"""Texts of an image below which absorption needs fewer operations, at the published width and heads."""


def fused_terms(
    pooler: ItemizedCLIPItemPooler,
    image_tokens: torch.Tensor,
    blocks: list[Block],
    token_mask: torch.Tensor | None,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    chunk_scores: int | None = None,
    absorb: bool | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    The same as `plain_terms`, whose arguments these are; the terms carry no gradient of their own, the sum does.

    Args:
        chunk_scores: attention scores (heads * texts * tokens, summed over images) held at once.
        absorb: never project tokens; chosen by the number of texts if None.
    """
    # The own texts come first: their weights depend on all of their logits, so they are never split.
    blocks = sorted(blocks, key=lambda block: not block.local)
    texts = torch.cat([block.items.flatten(0, 1) for block in blocks])
    columns = Columns.of(blocks, full(texts).dtype)
    weight, bias = pooler.fold_norms()
    with loaded_weights(pooler.out_proj):
        output = pooler.out_proj.weight, pooler.out_proj.bias
    query = pooler.project_queries(texts[None])[0] * pooler.head_dim**-0.5
    shift = None
    if absorb if absorb is not None else columns.table.shape[1] < ABSORB_BELOW:
        query, shift = absorb_keys(query, weight.chunk(2)[0], bias.chunk(2)[0], pooler.num_heads)
    device = image_tokens.device.type
    if torch.is_autocast_enabled(device):
        image_tokens = image_tokens.to(torch.get_autocast_dtype(device))
    rules = PassSettings(**settings, eps=pooler.layer_norm_k.eps, num_heads=pooler.num_heads)
    total, *terms = _FusedTerms.apply(  # type: ignore[no-untyped-call]  # torch's
        *(image_tokens, query, shift, weight, bias, unit(texts), *output, logit_scale, logit_bias),
        columns,
        token_mask,
        rules,
        chunk_scores or CHUNK_SCORES.get(device, CHUNK_SCORES["cuda"]),
        chunk_scores or GROUP_SCORES.get(device, GROUP_SCORES["cuda"]),
    )
    present = {
        name: term
        for name, term in zip(TERMS, terms)
        if rules.weight(name) and (name != "iis" or columns.local is not None)
    }
    return total, present


def absorb_keys(
    query: torch.Tensor, key_weight: torch.Tensor, key_bias: torch.Tensor, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries (heads, T, P) of the normalized tokens themselves, and what each score (heads, T) is shifted by."""
    with full_precision(query):
        query = full(query)
        shift = (query * full(key_bias).view(num_heads, 1, -1)).sum(-1)
        return query @ full(key_weight).view(num_heads, -1, key_weight.shape[1]), shift


class _FusedTerms(torch.autograd.Function):
    """
    Everything between tokens, queries and the weighted sum.

    Gradients are made in `forward`, while the scores of a chunk are there, and scaled in `backward`.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[torch.Tensor, ...]:
        """The sum and the three terms; arguments: `INPUTS`, then what needs no gradient."""
        tensors, (columns, token_mask, settings, chunk_scores, group_scores) = args[: len(INPUTS)], args[len(INPUTS) :]
        inputs = dict(zip(INPUTS, tensors))
        needs_gradient = any(ctx.needs_input_grad)
        with full_precision(inputs["tokens"]):
            fused_pass = FusedPass(inputs, columns, token_mask, settings, needs_gradient)
            fused_pass.run(chunk_scores, group_scores)
        ctx.gradients = [fused_pass.gradient(name) for name in INPUTS] if needs_gradient else None
        for term in fused_pass.terms.values():
            ctx.mark_non_differentiable(term)
        return (fused_pass.total, *fused_pass.terms.values())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the inputs times that of the sum."""
        saved, ctx.gradients = ctx.gradients, None
        if saved is None:
            raise RuntimeError(
                "the fused loss keeps its gradients for one backward pass; formulation='plain' allows more."
            )
        of_sum = gradients[0]
        return (*[None if x is None else x.mul_(of_sum.to(x.dtype)) for x in saved], None, None, None, None, None)
