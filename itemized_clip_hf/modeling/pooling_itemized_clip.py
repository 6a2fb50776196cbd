"""Item pooler: cross-attention that gathers, for every item, the tokens that speak about it (method 4)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, overload

import torch
from torch import nn
from torch.nn import functional as F

TEXTS_AT_ONCE = 2048
"""Texts that a batch of studies is scored with at once."""


@contextmanager
def loaded_weights(*modules: nn.Module) -> Iterator[None]:
    """Within the context modules hold their own weights, where accelerate keeps them elsewhere between forward passes."""
    hooked = [(module, hook) for module in modules if (hook := getattr(module, "_hf_hook", None)) is not None]
    for module, hook in hooked:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in hooked:
            hook.post_forward(module, None)


class ItemizedCLIPItemPooler(nn.Module):
    """
    Pool(q, V): three LayerNorms, multi-head attention with one extra key and value of zeros, output projection.

    The extra slot is never masked, so an item may attend to nothing: a query whose tokens are all masked gets the bias of
    the output projection.

    >>> pooler = ItemizedCLIPItemPooler(hidden_size=8, num_heads=2)
    >>> items, tokens = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    >>> pooled, attention = pooler(items, tokens, output_attentions=True)
    >>> pooled.shape, attention.shape, bool((attention.sum(-1) < 1).all())
    (torch.Size([1, 3, 8]), torch.Size([1, 3, 5]), True)
    >>> nothing = torch.zeros(1, 1, 3, 5, dtype=torch.bool)
    >>> torch.equal(pooler(items, tokens, nothing)[0, 0], pooler.out_proj.bias)
    True
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.layer_norm_q = nn.LayerNorm(hidden_size, eps=1e-5)
        self.layer_norm_k = nn.LayerNorm(hidden_size, eps=1e-5)
        self.layer_norm_v = nn.LayerNorm(hidden_size, eps=1e-5)
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        # PyTorch's multi-head attention: Xavier over the stacked input projections, its Linear default for the output.
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.init_bound = (6 / (4 * hidden_size)) ** 0.5
        self.out_proj.init_bound = hidden_size**-0.5

    def project_tokens(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, L, d) of the tokens (B, L, P); they do not depend on the queries."""
        key, value = self.k_proj(self.layer_norm_k(tokens)), self.v_proj(self.layer_norm_v(tokens))
        return self._split_heads(key), self._split_heads(value)

    def fold_norms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Weight (2 P, P) and bias (2 P,) that turn tokens, normalized without gain and shift, into keys and values: both norms
        differ in these alone, so one norm and one product serve both. For the training loss: weights are read here outside
        their layers, which quantized layers do not allow.
        """
        pairs = ((self.k_proj, self.layer_norm_k), (self.v_proj, self.layer_norm_v))
        weights, biases = [], []
        for projection, norm in pairs:
            with loaded_weights(projection, norm):
                weights.append(projection.weight * norm.weight)
                biases.append(F.linear(norm.bias, projection.weight, projection.bias))
        return torch.cat(weights), torch.cat(biases)

    def project_queries(self, queries: torch.Tensor) -> torch.Tensor:
        """(B, T, P) -> (B, heads, T, d)."""
        return self._split_heads(self.q_proj(self.layer_norm_q(queries)))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keep_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Pooled (B, T, P) of projected inputs.

        Args:
            query: (B, heads, T, d), see `project_queries`.
            key, value: (B, heads, L, d), see `project_tokens`.
            keep_mask: broadcastable to (B, heads, T, L), True where a query may attend.
        """
        mask = None if keep_mask is None else F.pad(keep_mask.bool(), (0, 1), value=True)
        pooled = F.scaled_dot_product_attention(query, F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1)), mask)
        return self.merge(pooled)

    def attend_with_map(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keep_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `attend`, and the attention map (B, T, L): mean over heads, without the extra slot."""
        attention = self.weigh(query, key, keep_mask)
        return self.merge(attention.to(value.dtype) @ value), attention.mean(1)

    def weigh(self, query: torch.Tensor, key: torch.Tensor, keep_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attention (B, heads, T, L) without the extra slot, so that its rows sum to less than 1; at least float32."""
        scores = query @ key.transpose(-1, -2) * self.head_dim**-0.5
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if keep_mask is not None:
            scores = scores.masked_fill(~keep_mask.bool(), float("-inf"))
        return F.softmax(F.pad(scores, (0, 1)), dim=-1)[..., :-1]

    def merge(self, heads: torch.Tensor) -> torch.Tensor:
        """What each head gathered, (B, heads, T, d), through the output projection: (B, T, P)."""
        pooled: torch.Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return pooled

    @overload
    def forward(
        self,
        queries: torch.Tensor,
        tokens: torch.Tensor,
        keep_mask: torch.Tensor | None = None,
        output_attentions: Literal[False] = False,
    ) -> torch.Tensor: ...

    @overload
    def forward(
        self,
        queries: torch.Tensor,
        tokens: torch.Tensor,
        keep_mask: torch.Tensor | None,
        output_attentions: Literal[True],
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def forward(
        self,
        queries: torch.Tensor,
        tokens: torch.Tensor,
        keep_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        What each query gathers from the tokens of its study.

        Args:
            queries: (B, T, P) item embeddings.
            tokens: (B, L, P) projected visual tokens.
            keep_mask: broadcastable to (B, heads, T, L), True where a query may attend.
            output_attentions: also return the attention map.

        Returns:
            pooled (B, T, P), not normalized; with `output_attentions` also the map (B, T, L), mean over heads, without
            the extra slot, so that its rows sum to at most 1.
        """
        query, (key, value) = self.project_queries(queries), self.project_tokens(tokens)
        if output_attentions:
            return self.attend_with_map(query, key, value, keep_mask)
        return self.attend(query, key, value, keep_mask)

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)


def pooled_similarity(
    pooler: ItemizedCLIPItemPooler,
    item_embeds: torch.Tensor,
    image_tokens: torch.Tensor,
    token_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Text-conditioned similarity TCSim = cos(t, Pool(t, V)) of every study with every text (method 8.1).

    Args:
        item_embeds: (M, P), shared by all studies.
        image_tokens: (B, L, P).
        token_mask: (B, L), True for tokens of real scans.

    Returns:
        (B, M) in [-1, 1], float32.
    """
    key, value = pooler.project_tokens(image_tokens)
    keep_mask = None if token_mask is None else token_mask[:, None, None]
    scores = []
    for embeds in torch.split(item_embeds, TEXTS_AT_ONCE):
        query = pooler.project_queries(embeds[None]).expand(len(image_tokens), -1, -1, -1)
        pooled = pooler.attend(query, key, value, keep_mask)
        scores.append(F.cosine_similarity(pooled.float(), embeds.float()[None], dim=-1, eps=1e-6))
    return torch.cat(scores, 1)


def global_similarity(item_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine (B, M), float32, of texts (M, P) with class tokens (B, P): plain CLIP's score."""
    return F.normalize(image_embeds.float(), dim=-1) @ F.normalize(item_embeds.float(), dim=-1).t()
