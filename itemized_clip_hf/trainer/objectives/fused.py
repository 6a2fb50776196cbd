"""
The pooled terms of ItemizedCLIP, image by image: loss and gradients in one visit, so that attention scores of one chunk of
images are all that ever exists of them.

What is shared: keys and values of an image between all ranks' texts and both passes; the query of a text between the images;
the exponentials between ILA, the choice of key tokens and KTA. With E = exp(S - m), m = max(0, row maximum), the empty slot
adds exp(-m) to each normaliser, and both passes are E under another mask.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .blocks import Block, SeededMask
from .functional import full, full_precision, item_separation_loss, key_tokens, sigmoid_loss, unit, worst_positive

# Scores held at once: few enough for the caches of a CPU, many enough for the cores of a GPU.
CHUNK_SCORES = {"cpu": 1 << 20, "cuda": 1 << 27}


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
    items: torch.Tensor | None
    item_mask: torch.Tensor | None

    @classmethod
    def of(cls, blocks: list[Block], dtype: torch.dtype) -> "_Columns":
        # The own texts come first: their weights depend on all of their logits, so they are never split.
        blocks = sorted(blocks, key=lambda block: not block.local)
        offsets, start, masks = [], 0, []
        first = 0
        for block in blocks:
            offsets.append(first)
            first += block.item_mask.numel()
            width = block.table.shape[1]
            masks.append((slice(start, start + width), block.keep_mask))
            start += width
        own = torch.cat([block.own for block in blocks], 1)
        head = blocks[0] if blocks[0].local else None
        return cls(
            table=torch.cat([block.table + offset for block, offset in zip(blocks, offsets)], 1),
            labels=own.to(dtype) * 2 - 1,
            weights=torch.cat([block.counted for block in blocks], 1).to(dtype),
            own=own,
            real=torch.cat([block.real for block in blocks], 1),
            masks=masks,
            local=masks[0][0] if head else None,
            items=head.items if head else None,
            item_mask=head.item_mask if head else None,
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
    **settings,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    The same as `plain_terms`, whose arguments these are; the terms carry no gradient of their own, the sum does.

    Args:
        chunk_scores: attention scores (heads * texts * tokens, summed over images) held at once.
    """
    ordered = sorted(blocks, key=lambda block: not block.local)
    texts = torch.cat([block.items.flatten(0, 1) for block in ordered])
    key, value = pooler.project_tokens(image_tokens)
    query = pooler.project_queries(texts[None])[0]
    columns = _Columns.of(blocks, full(texts).dtype)
    total, *terms = _FusedTerms.apply(
        query,
        key,
        value,
        unit(texts),
        pooler.out_proj.weight,
        pooler.out_proj.bias,
        logit_scale,
        logit_bias,
        columns,
        token_mask,
        settings,
        chunk_scores or CHUNK_SCORES.get(image_tokens.device.type, CHUNK_SCORES["cuda"]),
    )
    weights = {"ila": settings["ila_weight"], "kta": settings["kta_weight"], "iis": settings["iis_weight"]}
    present = {
        name: term
        for name, term in zip(weights, terms)
        if weights[name] and (name != "iis" or columns.local is not None)
    }
    return total, present


class _FusedTerms(torch.autograd.Function):
    """
    Everything between projected inputs and the weighted sum. Gradients are made in `forward`, while the scores of a chunk are
    there, and scaled in `backward`.
    """

    @staticmethod
    def forward(
        ctx, query, key, value, texts, out_weight, out_bias, scale, bias, columns, token_mask, settings, chunk_scores
    ):
        inputs = (query, key, value, texts, out_weight, out_bias, scale, bias)
        needed = any(ctx.needs_input_grad)
        with full_precision(key):
            run = _Run(inputs, columns, token_mask, settings, needed)
            run.visit(chunk_scores)
        if needed:
            ctx.save_for_backward(*[run.gradient(name) for name in _INPUTS])
        ctx.shapes = [x.shape for x in inputs]
        for term in run.terms.values():
            ctx.mark_non_differentiable(term)
        return (run.total, *run.terms.values())

    @staticmethod
    def backward(ctx, gradient, *_):
        return (*[saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors], None, None, None, None)


_INPUTS = ("query", "key", "value", "texts", "out_weight", "out_bias", "scale", "bias")


class _Run:
    """One pass over all images and texts."""

    def __init__(self, inputs, columns: _Columns, token_mask, settings: dict, needs_gradient: bool):
        self.inputs = dict(zip(_INPUTS, (x.detach() for x in inputs)))
        self.columns, self.token_mask, self.needs_gradient = columns, token_mask, needs_gradient
        self.settings = settings
        self.both = bool(settings["kta_weight"])
        key = self.inputs["key"]
        # 16-bit floats of little range would lose small gradients.
        self.product_dtype = torch.float32 if key.dtype == torch.float16 else key.dtype
        self.dtype = full(key[:0]).dtype
        self.batch, self.heads, self.length, self.head_dim = key.shape
        self.gradients = {}
        if needs_gradient:
            wide = {"query", "texts", "out_weight", "out_bias", "scale", "bias"}  # sums over many images
            self.gradients = {
                name: torch.zeros_like(x, dtype=self.dtype) if name in wide else torch.empty_like(x)
                for name, x in self.inputs.items()
            }
        self.total = key.new_zeros((), dtype=self.dtype)
        self.terms = {name: key.new_zeros((), dtype=self.dtype) for name in ("ila", "kta", "iis")}

    def gradient(self, name: str) -> torch.Tensor:
        return self.gradients[name].to(self.inputs[name].dtype)

    def visit(self, chunk_scores: int) -> None:
        width = self.columns.table.shape[1]
        per_text = self.heads * self.length
        images = max(min(chunk_scores // (per_text * width), self.batch), 1)
        texts = max(chunk_scores // per_text, 1)
        first = self.columns.local.stop if self.columns.local else 0
        edges = [0, width]
        if images == 1 and texts < width:
            edges = sorted({0, *range(max(first, texts) if first else texts, width, texts), width})
            edges = [edge for edge in edges if edge == 0 or edge >= first]
        for start in range(0, self.batch, images):
            chosen = slice(start, min(start + images, self.batch))
            if self.needs_gradient:
                self.key_gradient = torch.zeros_like(self.inputs["key"][chosen], dtype=self.dtype)
                self.value_gradient = torch.zeros_like(self.key_gradient)
            for left, right in zip(edges, edges[1:]):
                self.visit_chunk(chosen, slice(left, right))
            if self.needs_gradient:
                self.gradients["key"][chosen] = self.key_gradient.to(self.inputs["key"].dtype)
                self.gradients["value"][chosen] = self.value_gradient.to(self.inputs["value"].dtype)

    def visit_chunk(self, images: slice, columns: slice) -> None:
        table = self.columns.table[images, columns]
        count = table.shape[1]
        key = self.inputs["key"][images].to(self.product_dtype)
        value = self.inputs["value"][images].to(self.product_dtype)
        query = (self.inputs["query"][:, table] * self.head_dim**-0.5).transpose(0, 1).to(self.product_dtype)
        real_tokens = None if self.token_mask is None else self.token_mask[images]

        scores = full(query @ key.transpose(-1, -2))
        if real_tokens is not None:
            scores.masked_fill_(~real_tokens[:, None, None], float("-inf"))
        shift = scores.amax(-1, keepdim=True).clamp_(min=0)
        scores.sub_(shift).exp_()
        empty = shift.neg_().exp_()
        # Rows of both passes below each other, so that they share their products with the values.
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
        del scores
        gathered = weights.to(self.product_dtype) @ value
        gathered_gradient = self.head(images, columns, full(gathered))
        if not self.needs_gradient:
            return
        gradient = gathered_gradient.to(self.product_dtype)
        self.value_gradient += weights.to(self.product_dtype).transpose(-1, -2) @ gradient
        score_gradient = full(gradient @ value.transpose(-1, -2))
        score_gradient.sub_((gathered_gradient * full(gathered)).sum(-1, keepdim=True)).mul_(weights)
        if self.both:
            score_gradient = score_gradient[:, :, :count].add_(score_gradient[:, :, count:])
        score_gradient = score_gradient.to(self.product_dtype)
        self.key_gradient += score_gradient.transpose(-1, -2) @ query
        query_gradient = full(score_gradient @ key).transpose(0, 1).flatten(1, 2) * self.head_dim**-0.5
        self.gradients["query"].index_add_(1, table.flatten(), query_gradient)

    def head(self, images: slice, columns: slice, gathered: torch.Tensor) -> torch.Tensor:
        """Adds losses and gradients of what the texts gathered (images, heads, 1 or 2 * texts, d); returns its gradient."""
        settings, table = self.settings, self.columns.table[images, columns]
        count = table.shape[1]
        local = self.columns.local is not None and columns.start == 0
        names = ("out_weight", "out_bias", "scale", "bias")
        with torch.set_grad_enabled(self.needs_gradient):
            leaf = gathered.detach().requires_grad_(self.needs_gradient)
            texts = self.inputs["texts"][table].requires_grad_(self.needs_gradient)
            out_weight, out_bias, scale, bias = (
                full(self.inputs[name]).detach().requires_grad_(self.needs_gradient) for name in names
            )
            leaves = [leaf, texts, out_weight, out_bias, scale, bias]
            pooled = torch.nn.functional.linear(leaf.transpose(1, 2).flatten(2), out_weight, out_bias)
            both = texts if not self.both else torch.cat([texts, texts], 1)
            logits = (pooled * both).sum(-1) / pooled.norm(dim=-1).clamp(min=1e-12) * scale.exp() + bias
            labels, weights = self.columns.labels[images, columns], self.columns.weights[images, columns]
            if local and settings["worst_positive_factor"] > 1:
                width = self.columns.local.stop  # type: ignore[union-attr]
                worst = worst_positive(
                    logits[:, :width],
                    self.columns.own[images, :width],
                    self.columns.real[images, :width],
                    settings["worst_positive_select"],
                )[:, None]
                weights = weights.scatter(1, worst, weights.gather(1, worst) * settings["worst_positive_factor"])
            terms = {"ila": sigmoid_loss(logits[:, :count], labels, weights) / self.batch}
            if self.both:
                terms["kta"] = sigmoid_loss(logits[:, count:], labels, weights) / self.batch
            if local and settings["iis_weight"]:
                terms["iis"] = self.separation(images, pooled[:, :count], scale, bias, leaves)
            total = sum(settings[f"{name}_weight"] * term for name, term in terms.items())
        for name, term in terms.items():
            self.terms[name] += term.detach()
        self.total += total.detach() if isinstance(total, torch.Tensor) else total
        if not self.needs_gradient:
            return gathered
        parts = torch.autograd.grad(total, leaves, allow_unused=True)
        self.gradients["texts"].index_add_(0, table.flatten(), parts[1].flatten(0, 1))
        for name, part in zip(names, parts[2:6]):
            self.gradients[name] += part
        if len(leaves) > 6:
            self.gradients["texts"].index_add_(0, self.own_rows(images).flatten(), parts[6].flatten(0, 1))
        return parts[0]

    def own_rows(self, images: slice) -> torch.Tensor:
        """(images, K), rows of the images' own items in the table of texts."""
        slots = self.columns.item_mask.shape[1]  # type: ignore[union-attr]
        first = torch.arange(images.start, images.stop, device=self.columns.table.device)[:, None] * slots
        return first + torch.arange(slots, device=first.device)

    def separation(self, images: slice, pooled: torch.Tensor, scale, bias, leaves: list) -> torch.Tensor:
        """IIS of some images, in units of the whole batch."""
        item_mask = self.columns.item_mask[images]  # type: ignore[index]
        slots = item_mask.shape[1]
        places = torch.arange(images.start, images.stop, device=pooled.device)[:, None]
        places = places + torch.arange(slots, device=pooled.device)
        own = pooled.gather(1, places[..., None].expand(-1, -1, pooled.shape[-1]))
        items = self.inputs["texts"][self.own_rows(images)].requires_grad_(self.needs_gradient)
        leaves.append(items)
        return item_separation_loss(own, items, item_mask, scale, bias) * (len(item_mask) / self.batch)
