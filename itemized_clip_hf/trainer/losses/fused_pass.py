"""One pass of the fused formulation over all images and texts: losses, and the gradients of everything that goes in."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .columns import Columns
from .functional import full, item_separation_loss, key_tokens, sigmoid_loss, worst_positive

INPUTS = ("tokens", "query", "shift", "weight", "bias", "texts", "out_weight", "out_bias", "scale", "offset")
"""What gradients are made of: image tokens, projected texts, the pooler's weights, unit texts, scale and bias of the logits."""

TERMS = ("ila", "kta", "iis")


@dataclass(frozen=True)
class PassSettings:
    """Weights and rules of `plain_terms`, and what the pass has to know of the pooler."""

    ila_weight: float
    kta_weight: float
    iis_weight: float
    key_token_rate: float
    worst_positive_factor: float
    worst_positive_select: str
    eps: float
    num_heads: int

    def weight(self, term: str) -> float:
        """Weight of a term by its name."""
        return {"ila": self.ila_weight, "kta": self.kta_weight, "iis": self.iis_weight}[term]


@dataclass
class Attention:
    """
    What one group of texts finds in some images. n texts, 2 n where the key tokens have a pass of their own.

    Args:
        query: (images, heads, T, d).
        scores: (images, heads, T, L), exponentials; may be written over once the weights are there.
        weights: (images, heads, n, L) of both passes.
        gathered: (images, heads, n, d), or P wide where the values are absorbed.
    """

    query: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor
    gathered: torch.Tensor


@dataclass
class Projected:
    """
    Tokens of some images, as keys and values or, where these are absorbed, normalized only, and their gradients.

    Args:
        tokens, normed: (images, L, P), before and after the pooler's LayerNorm; `mean` and `deviation` are its statistics.
        key, value: (images, heads or 1, L, d or P).
        gradient: like `normed`, or of the projection (images, L, 2 * P); None where none is needed.
    """

    tokens: torch.Tensor
    normed: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    gradient: torch.Tensor | None


class FusedPass:
    """
    Adds up `total`, `terms` and the gradients of the inputs, chunk by chunk of the images.

    Args:
        inputs: `INPUTS` by name; `shift` is None where keys are made.
        columns: the texts.
        token_mask: (B, L), True for tokens of real scans.
        needs_gradient: whether gradients are made.
    """

    def __init__(
        self,
        inputs: dict[str, Any],
        columns: Columns,
        token_mask: torch.Tensor | None,
        settings: PassSettings,
        needs_gradient: bool,
    ):
        self.inputs: dict[str, Any] = {name: None if x is None else x.detach() for name, x in inputs.items()}
        self.columns, self.token_mask, self.needs_gradient = columns, token_mask, needs_gradient
        self.settings, self.heads = settings, settings.num_heads
        self.has_key_pass = bool(settings.kta_weight)
        tokens = self.inputs["tokens"]
        self.is_absorbed = self.inputs["shift"] is not None
        # 16-bit floats of little range would lose small gradients.
        self.product_dtype = torch.float32 if tokens.dtype == torch.float16 else tokens.dtype
        self.dtype = full(tokens[:0]).dtype
        self.batch, self.length, self.width = tokens.shape
        self.weight = self.inputs["weight"].to(self.product_dtype)
        self.gradients: dict[str, Any] = {}
        if needs_gradient:
            self.gradients = {
                name: None if x is None else torch.zeros_like(x, dtype=self.dtype if name != "tokens" else None)
                for name, x in self.inputs.items()
            }
        self.total = tokens.new_zeros((), dtype=self.dtype)
        self.terms = {name: tokens.new_zeros((), dtype=self.dtype) for name in TERMS}

    def gradient(self, name: str) -> torch.Tensor | None:
        """Gradient of an input, in its type."""
        gradient: torch.Tensor | None = self.gradients[name]
        return None if gradient is None else gradient.to(self.inputs[name].dtype)

    def run(self, chunk_scores: int, group_scores: int) -> None:
        """
        Visits all images.

        Args:
            chunk_scores: attention scores held at once, over several images.
            group_scores: of one image, where it has more than that.
        """
        num_texts = self.columns.table.shape[1]
        per_text = self.heads * self.length
        images = max(min(chunk_scores // (per_text * num_texts), self.batch), 1)
        texts = max(group_scores // per_text, 1)
        first_group = max(self.columns.local.stop if self.columns.local else 0, 1)  # own texts are never split
        edges = [0, num_texts]
        if images == 1 and max(texts, first_group) < num_texts:
            edges = [0, *range(max(texts, first_group), num_texts, texts), num_texts]
        for start in range(0, self.batch, images):
            self.visit_images(slice(start, min(start + images, self.batch)), edges)

    def visit_images(self, images: slice, edges: list[int]) -> None:
        """Projects tokens of some images once, and visits their texts in groups between the edges."""
        projected = self.project(images)
        for left, right in zip(edges, edges[1:]):
            columns = slice(left, right)
            attention = self.attend(images, columns, projected)
            gradients = self.loss_and_gradients(images, columns, attention)
            if gradients is not None:
                self.attend_backward(self.columns.table[images, columns].flatten(), attention, projected, *gradients)
        if self.needs_gradient:
            self.project_backward(images, projected)

    def project(self, images: slice) -> Projected:
        """Keys and values of some images, or their normalized tokens in place of both."""
        tokens = self.inputs["tokens"][images].to(self.product_dtype)
        normed, mean, deviation = torch.native_layer_norm(tokens, [self.width], None, None, self.settings.eps)
        if self.is_absorbed:
            key = value = normed[:, None]
            template = normed
        else:
            template = F.linear(normed, self.weight, self.inputs["bias"].to(self.product_dtype))
            key, value = self.split_heads(template)
        gradient = torch.zeros_like(template, dtype=self.dtype) if self.needs_gradient else None
        return Projected(tokens, normed, mean, deviation, key, value, gradient)

    def split_heads(self, projected: torch.Tensor) -> torch.Tensor:
        """Views (2, images, heads, L, d) of keys and values (images, L, 2 * P)."""
        return torch.unflatten(projected, -1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def project_backward(self, images: slice, projected: Projected) -> None:
        """Gradients of tokens, weight and bias, once all texts of the images were visited."""
        gradient = projected.gradient
        assert gradient is not None
        if not self.is_absorbed:
            flat = gradient.flatten(0, 1).to(self.product_dtype)
            self.gradients["weight"] += full(flat.t() @ projected.normed.flatten(0, 1))
            self.gradients["bias"] += gradient.sum((0, 1))
            gradient = (flat @ self.weight).view_as(projected.normed)
        self.gradients["tokens"][images] = torch.ops.aten.native_layer_norm_backward(
            gradient.to(self.product_dtype),
            projected.tokens,
            [self.width],
            projected.mean,
            projected.deviation,
            None,
            None,
            [True, False, False],
        )[0]

    def attend(self, images: slice, columns: slice, projected: Projected) -> Attention:
        """Scores of both passes, and what they gather."""
        table = self.columns.table[images, columns]
        query = self.inputs["query"][:, table].transpose(0, 1).to(self.product_dtype)
        scores = full(multiply_heads(query, projected.key.transpose(-1, -2)))
        if self.is_absorbed:
            scores += self.inputs["shift"][:, table].transpose(0, 1)[..., None]
        real_tokens = None if self.token_mask is None else self.token_mask[images]
        if real_tokens is not None:
            scores.masked_fill_(~real_tokens[:, None, None], float("-inf"))
        top = scores.amax(-1, keepdim=True).clamp_(min=0)
        scores.sub_(top).exp_()
        empty_slot = top.neg_().exp_()
        # Rows of both passes below each other, so that they share their products.
        count = table.shape[1]
        weights = scores.new_empty(*scores.shape[:2], count * (2 if self.has_key_pass else 1), self.length)
        kept = weights[:, :, :count]
        keep_mask = self.columns.keep_mask(images, columns, tuple(scores.shape), scores.device)
        if keep_mask is None:
            kept.copy_(scores)
        else:
            torch.mul(scores, keep_mask, out=kept)
        kept.div_(kept.sum(-1, keepdim=True).add_(empty_slot))
        if self.has_key_pass:
            chosen = key_tokens(kept.mean(1), self.settings.key_token_rate, real_tokens)
            of_key_tokens = weights[:, :, count:]
            torch.mul(scores, chosen[:, None], out=of_key_tokens)
            of_key_tokens.div_(of_key_tokens.sum(-1, keepdim=True).add_(empty_slot))
        gathered = full(multiply_heads(weights.to(self.product_dtype), projected.value))
        return Attention(query, scores, weights, gathered)

    def attend_backward(
        self,
        rows: torch.Tensor,
        attention: Attention,
        projected: Projected,
        gradient: torch.Tensor,
        sum_gradient: torch.Tensor | None,
    ) -> None:
        """
        Adds the gradients of queries and shifts, and of keys and values, or of the tokens that are both.

        Args:
            rows: (images * T,) of the texts among the queries.
            gradient, sum_gradient: of `attention.gathered`, and of the sums of its weights where values are absorbed.
        """
        query, weights = attention.query, attention.weights
        count = attention.scores.shape[2]
        narrow = gradient.to(self.product_dtype)
        score_gradient = full(multiply_heads(narrow, projected.value.transpose(-1, -2)))
        inner = (gradient * attention.gathered).sum(-1, keepdim=True)
        if sum_gradient is not None:
            inner += sum_gradient * (weights.sum(-1, keepdim=True) - 1)
        score_gradient.sub_(inner).mul_(weights)
        if self.has_key_pass:  # both passes have the same scores
            torch.add(score_gradient[:, :, :count], score_gradient[:, :, count:], out=attention.scores)
            score_gradient = attention.scores
        score_gradient = score_gradient.to(self.product_dtype)
        query_gradient = full(multiply_heads(score_gradient, projected.key)).transpose(0, 1).flatten(1, 2)
        self.gradients["query"].index_add_(1, rows, query_gradient)
        assert projected.gradient is not None
        if self.is_absorbed:
            shift_gradient = full(score_gradient).sum(-1).transpose(0, 1).flatten(1, 2)
            self.gradients["shift"].index_add_(1, rows, shift_gradient)
            token_gradient = score_gradient.flatten(1, 2).transpose(-1, -2) @ query.flatten(1, 2)
            token_gradient += weights.to(self.product_dtype).flatten(1, 2).transpose(-1, -2) @ narrow.flatten(1, 2)
            projected.gradient += token_gradient
        else:
            key_gradient, value_gradient = self.split_heads(projected.gradient)
            value_gradient.add_(weights.to(self.product_dtype).transpose(-1, -2) @ narrow)
            key_gradient.add_(score_gradient.transpose(-1, -2) @ query)

    def loss_and_gradients(
        self, images: slice, columns: slice, attention: Attention
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """
        Adds losses, and gradients of what does not depend on the tokens.

        Returns:
            gradients of what was gathered and, where values are absorbed, of the sums of the weights; None where none are
            needed.
        """
        table = self.columns.table[images, columns]
        is_local = self.columns.local is not None and columns.start == 0
        names = ["out_weight", "out_bias", "scale", "offset"] + (["weight", "bias"] if self.is_absorbed else [])
        with torch.set_grad_enabled(self.needs_gradient):
            leaves = {"gathered": self.leaf(attention.gathered), "texts": self.leaf(self.inputs["texts"][table])}
            leaves |= {name: self.leaf(self.inputs[name]) for name in names}
            if self.is_absorbed:
                leaves["sums"] = self.leaf(attention.weights.sum(-1, keepdim=True))
            if is_local and self.settings.iis_weight:
                leaves["items"] = self.leaf(self.inputs["texts"][self.columns.own_rows(images)])
            pooled = self.pool(leaves)
            terms = self.terms_of(images, columns, pooled, leaves)
            total = sum(self.settings.weight(name) * term for name, term in terms.items())
        for name, term in terms.items():
            self.terms[name] += term.detach()
        if not isinstance(total, torch.Tensor):  # no term concerns these columns
            return None
        self.total += total.detach()
        if not self.needs_gradient:
            return None
        gradients = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)))
        self.gradients["texts"].index_add_(0, table.flatten(), gradients["texts"].flatten(0, 1))
        if "items" in gradients:
            own_rows = self.columns.own_rows(images).flatten()
            self.gradients["texts"].index_add_(0, own_rows, gradients["items"].flatten(0, 1))
        for name in names:
            self.gradients[name] += gradients[name]
        return gradients["gathered"], gradients.get("sums")

    def leaf(self, x: torch.Tensor) -> torch.Tensor:
        """A start of the small graph of one group."""
        return full(x).detach().requires_grad_(self.needs_gradient)

    def pool(self, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
        """(images, n, P), what the texts of both passes pool, behind the pooler's last projection."""
        values = leaves["gathered"]
        if self.is_absorbed:
            value_weight = torch.unflatten(leaves["weight"].chunk(2)[1], 0, (self.heads, -1))
            value_bias = leaves["bias"].chunk(2)[1].view(self.heads, 1, -1)
            values = values @ value_weight.transpose(-1, -2) + leaves["sums"] * value_bias
        return F.linear(values.transpose(1, 2).flatten(2), leaves["out_weight"], leaves["out_bias"])

    def terms_of(
        self, images: slice, columns: slice, pooled: torch.Tensor, leaves: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The terms of one group, unweighted, in units of the whole batch."""
        settings, count = self.settings, columns.stop - columns.start
        texts = leaves["texts"] if not self.has_key_pass else torch.cat([leaves["texts"], leaves["texts"]], 1)
        cosines = (pooled * texts).sum(-1) / pooled.norm(dim=-1).clamp(min=1e-12)
        logits = cosines * leaves["scale"].exp() + leaves["offset"]
        labels = self.columns.labels[images, columns]
        weights = self.weigh_worst_positive(images, columns, logits)
        terms = {}
        if settings.ila_weight:
            terms["ila"] = sigmoid_loss(logits[:, :count], labels, weights) / self.batch
        if self.has_key_pass:
            terms["kta"] = sigmoid_loss(logits[:, count:], labels, weights) / self.batch
        if "items" in leaves:
            terms["iis"] = self.separation(images, pooled, leaves)
        return terms

    def weigh_worst_positive(self, images: slice, columns: slice, logits: torch.Tensor) -> torch.Tensor:
        """Weights (images, T) of the texts, the worst positive's raised where the texts are the images' own."""
        weights, factor = self.columns.weights[images, columns], self.settings.worst_positive_factor
        local = self.columns.local
        if local is None or columns.start != 0 or factor <= 1:
            return weights
        worst = worst_positive(
            logits[:, : local.stop],
            self.columns.is_own[images, : local.stop],
            self.columns.is_real[images, : local.stop],
            self.settings.worst_positive_select,
        )[:, None]
        raised: torch.Tensor = weights.gather(1, worst) * factor
        return weights.scatter(1, worst, raised)

    def separation(self, images: slice, pooled: torch.Tensor, leaves: dict[str, torch.Tensor]) -> torch.Tensor:
        """IIS of some images, in units of the whole batch."""
        assert self.columns.item_mask is not None
        item_mask = self.columns.item_mask[images]
        places = torch.arange(images.start, images.stop, device=pooled.device)[:, None]
        places = places + torch.arange(item_mask.shape[1], device=pooled.device)
        of_own_items = pooled.gather(1, places[..., None].expand(-1, -1, pooled.shape[-1]))
        loss = item_separation_loss(of_own_items, leaves["items"], item_mask, leaves["scale"], leaves["offset"])
        share: float = len(item_mask) / self.batch
        return loss * share


def multiply_heads(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """(images, heads, rows, d) times (images, heads or 1, d, n); heads that share a matrix become rows of one product."""
    if matrix.shape[1] == rows.shape[1]:
        return rows @ matrix
    return torch.unflatten(rows.flatten(1, 2) @ matrix[:, 0], 1, rows.shape[1:3])
