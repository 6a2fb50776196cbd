"""
The pooled terms of ItemizedCLIP, image by image: loss and gradients in one visit, so that tokens' projections and attention
scores of one chunk of images are all that ever exists of them.

What is shared: the projections of an image between all ranks' texts and both passes; the query of a text between the images;
the exponentials between ILA, the choice of key tokens and KTA. With E = exp(S - m), m = max(0, row maximum), the empty slot
adds exp(-m) to each normaliser, and both passes are E under another mask.

Where the texts of an image are few, keys and values are never made (absorption): with x the normalised token,
q . (W x + b) = (W^T q) . x + q . b, and a weighted sum of values is W (weighted sum of x) + b (sum of weights).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ...modeling.pooling_itemized_clip import loaded_weights
from .blocks import Block, SeededMask
from .functional import full, full_precision, item_separation_loss, key_tokens, sigmoid_loss, unit, worst_positive

# Scores held at once: few enough for the caches of a CPU, many enough for the cores of a GPU. Where one image has more, its
# texts are visited in groups, whose gradients are added up in memory: on a CPU few large groups are faster.
CHUNK_SCORES = {"cpu": 1 << 19, "cuda": 1 << 27}
GROUP_SCORES = {"cpu": 1 << 21, "cuda": 1 << 27}
ABSORB_BELOW = 44
"""Texts of an image below which absorption needs fewer operations, at the published width and heads."""


@dataclass
class _Columns:
    """All texts that the images are scored against: those of every block, side by side."""

    table: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    own: torch.Tensor
    real: torch.Tensor
    masks: list[tuple[slice, Any]]
    local: slice | None
    item_mask: torch.Tensor | None

    @classmethod
    def of(cls, blocks: list[Block], dtype: torch.dtype) -> "_Columns":
        offsets, start, masks = [], 0, []
        first = 0
        for block in blocks:
            offsets.append(first)
            first += block.item_mask.numel()
            width = block.table.shape[1]
            masks.append((slice(start, start + width), block.keep_mask))
            start += width
        own = torch.cat([block.own for block in blocks], 1)
        return cls(
            table=torch.cat([block.table + offset for block, offset in zip(blocks, offsets)], 1),
            labels=own.to(dtype) * 2 - 1,
            weights=torch.cat([block.counted for block in blocks], 1).to(dtype),
            own=own,
            real=torch.cat([block.real for block in blocks], 1),
            masks=masks,
            local=masks[0][0] if blocks[0].local else None,
            item_mask=blocks[0].item_mask if blocks[0].local else None,
        )

    def keep_mask(self, images: slice, columns: slice, shape: tuple[int, ...], device) -> torch.Tensor | None:
        """(images, heads, columns, L), or None where no text of these columns is kept from a token."""
        parts, hidden = [], False
        for place, mask in self.masks:
            start, stop = max(place.start, columns.start), min(place.stop, columns.stop)
            if start >= stop:
                continue
            inner = slice(start - place.start, stop - place.start)
            if isinstance(mask, SeededMask):
                whole = (shape[0], shape[1], place.stop - place.start, shape[3])
                drawn = mask.rows(images.start, whole, device)
                part = None if drawn is None else drawn[:, :, inner]
            else:
                part = None if mask is None else mask[images, :, inner]
            hidden |= part is not None
            parts.append((part, stop - start))
        if not hidden:
            return None
        ones = [(p if p is not None else torch.ones(1, 1, n, 1, dtype=torch.bool, device=device)) for p, n in parts]
        return torch.cat([p.expand(shape[0], shape[1], -1, shape[3]) for p in ones], 2) if len(ones) > 1 else ones[0]


def fused_terms(
    pooler,
    image_tokens: torch.Tensor,
    blocks: list[Block],
    token_mask: torch.Tensor | None,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    chunk_scores: int | None = None,
    absorb: bool | None = None,
    **settings,
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
    columns = _Columns.of(blocks, full(texts).dtype)
    weight, bias = pooler.fold_norms()
    with loaded_weights(pooler.out_proj):
        output = pooler.out_proj.weight, pooler.out_proj.bias
    query = pooler.project_queries(texts[None])[0] * pooler.head_dim**-0.5
    shift = None
    if absorb if absorb is not None else columns.table.shape[1] < ABSORB_BELOW:
        key_weight, key_bias = weight.chunk(2)[0], bias.chunk(2)[0]
        with full_precision(query):
            query = full(query)
            shift = (query * full(key_bias).view(pooler.num_heads, 1, -1)).sum(-1)
            query = query @ full(key_weight).view(pooler.num_heads, -1, weight.shape[1])
    device = image_tokens.device.type
    if torch.is_autocast_enabled(device):
        image_tokens = image_tokens.to(torch.get_autocast_dtype(device))
    total, *terms = _FusedTerms.apply(
        image_tokens,
        query,
        shift,
        weight,
        bias,
        unit(texts),
        *output,
        logit_scale,
        logit_bias,
        columns,
        token_mask,
        {**settings, "eps": pooler.layer_norm_k.eps, "num_heads": pooler.num_heads},
        (
            chunk_scores or CHUNK_SCORES.get(device, CHUNK_SCORES["cuda"]),
            chunk_scores or GROUP_SCORES.get(device, GROUP_SCORES["cuda"]),
        ),
    )
    weights = {"ila": settings["ila_weight"], "kta": settings["kta_weight"], "iis": settings["iis_weight"]}
    present = {
        name: term
        for name, term in zip(weights, terms)
        if weights[name] and (name != "iis" or columns.local is not None)
    }
    return total, present


_INPUTS = ("tokens", "query", "shift", "weight", "bias", "texts", "out_weight", "out_bias", "scale", "offset")


class _FusedTerms(torch.autograd.Function):
    """
    Everything between tokens, queries and the weighted sum. Gradients are made in `forward`, while the scores of a chunk are
    there, and scaled in `backward`.
    """

    @staticmethod
    def forward(ctx, *args):
        *inputs, columns, token_mask, settings, chunk_scores = args
        inputs = dict(zip(_INPUTS, inputs))
        needed = any(ctx.needs_input_grad)
        with full_precision(inputs["tokens"]):
            run = _Run(inputs, columns, token_mask, settings, needed)
            run.visit(*chunk_scores)
        ctx.gradients = [run.gradient(name) for name in _INPUTS] if needed else None
        for term in run.terms.values():
            ctx.mark_non_differentiable(term)
        return (run.total, *run.terms.values())

    @staticmethod
    def backward(ctx, gradient, *_):
        saved, ctx.gradients = ctx.gradients, None
        if saved is None:
            raise RuntimeError(
                "the fused loss keeps its gradients for one backward pass; formulation='plain' allows more."
            )
        return (*[None if x is None else x.mul_(gradient.to(x.dtype)) for x in saved], None, None, None, None)


class _Run:
    """One pass over all images and texts."""

    def __init__(self, inputs, columns: _Columns, token_mask, settings: dict, needs_gradient: bool):
        self.inputs: dict[str, Any] = {name: None if x is None else x.detach() for name, x in inputs.items()}
        self.columns, self.token_mask, self.needs_gradient = columns, token_mask, needs_gradient
        self.settings = settings
        self.both = bool(settings["kta_weight"])
        tokens = self.inputs["tokens"]
        self.absorbed = self.inputs["shift"] is not None
        # 16-bit floats of little range would lose small gradients.
        self.product_dtype = torch.float32 if tokens.dtype == torch.float16 else tokens.dtype
        self.dtype = full(tokens[:0]).dtype
        self.batch, self.length, self.width = tokens.shape
        self.heads = settings["num_heads"]
        self.weight = self.inputs["weight"].to(self.product_dtype)
        self.gradients: dict[str, Any] = {}
        if needs_gradient:
            self.gradients = {
                name: None if x is None else torch.zeros_like(x, dtype=self.dtype if name != "tokens" else None)
                for name, x in self.inputs.items()
            }
        self.total = tokens.new_zeros((), dtype=self.dtype)
        self.terms = {name: tokens.new_zeros((), dtype=self.dtype) for name in ("ila", "kta", "iis")}

    def gradient(self, name: str) -> torch.Tensor | None:
        found = self.gradients[name]
        return None if found is None else found.to(self.inputs[name].dtype)

    def visit(self, chunk_scores: int, group_scores: int) -> None:
        width = self.columns.table.shape[1]
        per_text = self.heads * self.length
        images = max(min(chunk_scores // (per_text * width), self.batch), 1)
        texts = max(group_scores // per_text, 1)
        first = max(self.columns.local.stop if self.columns.local else 0, 1)
        edges = [0, width]
        if images == 1 and max(texts, first) < width:
            edges = [0, *range(max(texts, first), width, texts), width]
        for start in range(0, self.batch, images):
            self.visit_images(slice(start, min(start + images, self.batch)), edges)

    def visit_images(self, images: slice, edges: list[int]) -> None:
        """Projects tokens of some images once, and visits their texts in groups."""
        tokens = self.inputs["tokens"][images].to(self.product_dtype)
        normed, mean, deviation = torch.native_layer_norm(tokens, [self.width], None, None, self.settings["eps"])
        if self.absorbed:
            key = value = normed[:, None]
            normed_gradient = torch.zeros_like(normed, dtype=self.dtype) if self.needs_gradient else None
        else:
            projected = F.linear(normed, self.weight, self.inputs["bias"].to(self.product_dtype))
            key, value = projected.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            gradient = torch.zeros_like(projected, dtype=self.dtype) if self.needs_gradient else None
            parts: Any = (
                gradient.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4) if gradient is not None else None
            )
        for left, right in zip(edges, edges[1:]):
            columns = slice(left, right)
            query, scores, weights, gathered = self.attend(images, columns, key, value)
            found = self.head(images, columns, weights, gathered)
            if found is None:
                continue
            query_part, key_part, value_part = self.attend_backward(
                query, key, value, weights, gathered, scores, *found
            )
            table = self.columns.table[images, columns].flatten()
            self.gradients["query"].index_add_(1, table, query_part[0])
            if self.absorbed:
                self.gradients["shift"].index_add_(1, table, query_part[1])
                normed_gradient += key_part
            else:
                parts[0].add_(key_part)
                parts[1].add_(value_part)
        if not self.needs_gradient:
            return
        if not self.absorbed:
            flat = gradient.flatten(0, 1).to(self.product_dtype)
            self.gradients["weight"] += full(flat.t() @ normed.flatten(0, 1))
            self.gradients["bias"] += gradient.sum((0, 1))
            normed_gradient = (flat @ self.weight).view_as(normed)
        self.gradients["tokens"][images] = torch.ops.aten.native_layer_norm_backward(
            normed_gradient.to(self.product_dtype),
            tokens,
            [self.width],
            mean,
            deviation,
            None,
            None,
            [True, False, False],
        )[0]

    def attend(self, images: slice, columns: slice, key: torch.Tensor, value: torch.Tensor):
        """Queries, and the weights (images, heads, 1 or 2 * texts, L) of both passes, with what they gather."""
        table = self.columns.table[images, columns]
        count = table.shape[1]
        query = self.inputs["query"][:, table].transpose(0, 1).to(self.product_dtype)
        scores = full(_products(query, key.transpose(-1, -2)))
        if self.absorbed:
            scores += self.inputs["shift"][:, table].transpose(0, 1)[..., None]
        real_tokens = None if self.token_mask is None else self.token_mask[images]
        if real_tokens is not None:
            scores.masked_fill_(~real_tokens[:, None, None], float("-inf"))
        top = scores.amax(-1, keepdim=True).clamp_(min=0)
        scores.sub_(top).exp_()
        empty = top.neg_().exp_()
        # Rows of both passes below each other, so that they share their products.
        weights = scores.new_empty(*scores.shape[:2], count * (2 if self.both else 1), self.length)
        masked = weights[:, :, :count]
        keep = self.columns.keep_mask(images, columns, tuple(scores.shape), scores.device)
        if keep is None:
            masked.copy_(scores)
        else:
            torch.mul(scores, keep, out=masked)
        masked.div_(masked.sum(-1, keepdim=True).add_(empty))
        if self.both:
            chosen = key_tokens(masked.mean(1), self.settings["key_token_rate"], real_tokens)
            keys = weights[:, :, count:]
            torch.mul(scores, chosen[:, None], out=keys)
            keys.div_(keys.sum(-1, keepdim=True).add_(empty))
        gathered = full(_products(weights.to(self.product_dtype), value))
        return query, scores, weights, gathered

    def attend_backward(self, query, key, value, weights, gathered, buffer, gradient, sum_gradient):
        """Gradients of the queries (and their shifts), and of keys and values, or of the tokens that are both."""
        count = buffer.shape[2]
        narrow = gradient.to(self.product_dtype)
        score_gradient = full(_products(narrow, value.transpose(-1, -2)))
        inner = (gradient * gathered).sum(-1, keepdim=True)
        if self.absorbed:
            inner += sum_gradient * (weights.sum(-1, keepdim=True) - 1)
        score_gradient.sub_(inner).mul_(weights)
        if self.both:
            torch.add(score_gradient[:, :, :count], score_gradient[:, :, count:], out=buffer)
            score_gradient = buffer
        score_gradient = score_gradient.to(self.product_dtype)
        query_gradient = [full(_products(score_gradient, key)).transpose(0, 1).flatten(1, 2)]
        if not self.absorbed:
            value_gradient = weights.to(self.product_dtype).transpose(-1, -2) @ narrow
            return query_gradient, score_gradient.transpose(-1, -2) @ query, value_gradient
        query_gradient.append(full(score_gradient).sum(-1).transpose(0, 1).flatten(1, 2))
        token_gradient = score_gradient.flatten(1, 2).transpose(-1, -2) @ query.flatten(1, 2)
        token_gradient += weights.to(self.product_dtype).flatten(1, 2).transpose(-1, -2) @ narrow.flatten(1, 2)
        return query_gradient, token_gradient, None

    def head(self, images: slice, columns: slice, weights: torch.Tensor, gathered: torch.Tensor):
        """
        Adds losses, and gradients of what does not depend on the tokens.

        Args:
            weights: (images, heads, 1 or 2 * texts, L) of both passes.
            gathered: (images, heads, 1 or 2 * texts, d), or P wide where the values are absorbed.

        Returns:
            gradients of `gathered` and of the sums of `weights`; None where none are needed.
        """
        settings, table = self.settings, self.columns.table[images, columns]
        count = table.shape[1]
        local = self.columns.local is not None and columns.start == 0
        names = ["out_weight", "out_bias", "scale", "offset"] + (["weight", "bias"] if self.absorbed else [])
        with torch.set_grad_enabled(self.needs_gradient):

            def leaf(x: torch.Tensor) -> torch.Tensor:
                return full(x).detach().requires_grad_(self.needs_gradient)

            leaves = {"gathered": leaf(gathered), "texts": leaf(self.inputs["texts"][table])}
            leaves |= {name: leaf(self.inputs[name]) for name in names}
            values = leaves["gathered"]
            if self.absorbed:
                leaves["sums"] = leaf(weights.sum(-1, keepdim=True))
                value_weight = leaves["weight"].chunk(2)[1].unflatten(0, (self.heads, -1))
                value_bias = leaves["bias"].chunk(2)[1].view(self.heads, 1, -1)
                values = values @ value_weight.transpose(-1, -2) + leaves["sums"] * value_bias
            pooled = F.linear(values.transpose(1, 2).flatten(2), leaves["out_weight"], leaves["out_bias"])
            texts = leaves["texts"] if not self.both else torch.cat([leaves["texts"], leaves["texts"]], 1)
            cosines = (pooled * texts).sum(-1) / pooled.norm(dim=-1).clamp(min=1e-12)
            logits = cosines * leaves["scale"].exp() + leaves["offset"]
            labels, counted = self.columns.labels[images, columns], self.columns.weights[images, columns]
            if local and settings["worst_positive_factor"] > 1:
                width = self.columns.local.stop  # type: ignore[union-attr]
                worst = worst_positive(
                    logits[:, :width],
                    self.columns.own[images, :width],
                    self.columns.real[images, :width],
                    settings["worst_positive_select"],
                )[:, None]
                counted = counted.scatter(1, worst, counted.gather(1, worst) * settings["worst_positive_factor"])
            terms = {}
            if settings["ila_weight"]:
                terms["ila"] = sigmoid_loss(logits[:, :count], labels, counted) / self.batch
            if self.both:
                terms["kta"] = sigmoid_loss(logits[:, count:], labels, counted) / self.batch
            if local and settings["iis_weight"]:
                leaves["items"] = leaf(self.inputs["texts"][self.own_rows(images)])
                terms["iis"] = self.separation(images, pooled, leaves)
            total = sum(settings[f"{name}_weight"] * term for name, term in terms.items())
        for name, term in terms.items():
            self.terms[name] += term.detach()
        if not terms:
            return None
        self.total += total.detach()
        if not self.needs_gradient:
            return None
        found = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)))
        self.gradients["texts"].index_add_(0, table.flatten(), found["texts"].flatten(0, 1))
        if "items" in found:
            self.gradients["texts"].index_add_(0, self.own_rows(images).flatten(), found["items"].flatten(0, 1))
        for name in names:
            self.gradients[name] += found[name]
        return found["gathered"], found.get("sums")

    def own_rows(self, images: slice) -> torch.Tensor:
        """(images, K), rows of the images' own items in the table of texts."""
        slots = self.columns.item_mask.shape[1]  # type: ignore[union-attr]
        first = torch.arange(images.start, images.stop, device=self.columns.table.device)[:, None] * slots
        return first + torch.arange(slots, device=first.device)

    def separation(self, images: slice, pooled: torch.Tensor, leaves: dict) -> torch.Tensor:
        """IIS of some images, in units of the whole batch."""
        item_mask = self.columns.item_mask[images]  # type: ignore[index]
        places = torch.arange(images.start, images.stop, device=pooled.device)[:, None]
        places = places + torch.arange(item_mask.shape[1], device=pooled.device)
        own = pooled.gather(1, places[..., None].expand(-1, -1, pooled.shape[-1]))
        loss = item_separation_loss(own, leaves["items"], item_mask, leaves["scale"], leaves["offset"])
        return loss * (len(item_mask) / self.batch)


def _products(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """(images, heads, rows, d) times (images, heads or 1, d, n); heads that share a matrix become rows of one product."""
    if matrix.shape[1] == rows.shape[1]:
        return rows @ matrix
    return (rows.flatten(1, 2) @ matrix[:, 0]).unflatten(1, rows.shape[1:3])
