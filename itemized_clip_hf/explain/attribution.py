"""
How much each token of a study has to do with the score of an item. One function per method, by its name in `ATTRIBUTIONS`.

The score is cos(t, p) of the item t with what the pooler gathers for it,

    p = b + sum over tokens l and heads h of W_h (a_hl v_hl),

a: attention, v: values, W and b: output projection. All methods give numbers of at least 0, one per token; the empty slot of
the pooler, whose value is 0, gets none. A token that speaks against the item counts 0, but for `attention`, which does not
know for from against.

Gradient times token is not among them: the pooler's norms make the score blind to the length of a token, so it is 0.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..modeling.pooling_itemized_clip import ItemizedCLIPItemPooler
from ..specs import nearest

Attribution = Callable[
    [ItemizedCLIPItemPooler, torch.Tensor, torch.Tensor, torch.Tensor | None],
    torch.Tensor,
]
"""(pooler, items (B, M, P), tokens (B, L, P), mask broadcastable to (B, heads, M, L) or None) -> (B, M, L), at least 0."""

ATTRIBUTIONS: dict[str, Attribution] = {}
"""Name -> method."""

ATTENTION = "attention"
BEST = "contribution"
"""Of the methods in `benchmarks/attribution.py`: what results and reports show unless told otherwise."""
TOKENS_AT_ONCE = 1024
"""Tokens that `by_occlusion` leaves out, each by itself, in one pass."""


def attribution(name: str) -> Callable[[Attribution], Attribution]:
    """Adds a method to `ATTRIBUTIONS`."""

    def add(method: Attribution) -> Attribution:
        ATTRIBUTIONS[name] = method
        return method

    return add


def check_attribution(name: str) -> str:
    """
    Raises:
        ValueError: there is no such method.
    """
    if name not in ATTRIBUTIONS:
        near = nearest(name, ATTRIBUTIONS)
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(f"unknown attribution {name!r}, expected one of {list(ATTRIBUTIONS)}{hint}")
    return name


def require_pooler(model: ItemizedCLIPModel) -> None:
    """Raises for a model whose pooler was not trained: its attention would show nothing but its random start."""
    if model.config.scoring == "global":
        raise ValueError(
            "this model was trained by an objective of global embeddings (scoring: global): its item pooler is untrained and "
            "has no attention to show. Objectives itemized_clip and flair train it."
        )


def attribute(
    model: ItemizedCLIPModel,
    item_embeds: torch.Tensor,
    tokens: torch.Tensor,
    keep_mask: torch.Tensor | None = None,
    method: str = ATTENTION,
    normalize_queries: bool = True,
) -> torch.Tensor:
    """
    What each token has to do with the score of each item.

    Args:
        item_embeds: (B, M, P), items of each study.
        tokens: (B, L, P), projected; they are taken as constants, whatever the vision tower mixed into them.
        keep_mask: broadcastable to (B, heads, M, L), True where an item may attend.
        method: a name of `ATTRIBUTIONS`.
        normalize_queries: L2-normalise the items before the pooler, as `attention_maps` does.

    Returns:
        (B, M, L), at least 0; all 0 where no token speaks for the item.

    Raises:
        ValueError: there is no such method, or the model's pooler is untrained.
    """
    check_attribution(method)
    require_pooler(model)
    with torch.inference_mode(False), torch.enable_grad():
        # Copies: what an inference mode around this made cannot take part in gradients.
        items = item_embeds.detach().clone()
        mask = None if keep_mask is None else keep_mask.detach().clone()
        items = F.normalize(items, dim=-1) if normalize_queries else items
        return ATTRIBUTIONS[method](model.item_pooler, items, tokens.detach().clone(), mask).detach()


@attribution(ATTENTION)
def by_attention(
    pooler: ItemizedCLIPItemPooler, items: torch.Tensor, tokens: torch.Tensor, keep_mask: torch.Tensor | None
) -> torch.Tensor:
    """Mean of a_hl over the heads: where the item looks, whether that raises its score, lowers it or leaves it."""
    return pooler(items, tokens, keep_mask, output_attentions=True)[1]


@attribution("gradient-weighted")
def by_weighted_attention(
    pooler: ItemizedCLIPItemPooler, items: torch.Tensor, tokens: torch.Tensor, keep_mask: torch.Tensor | None
) -> torch.Tensor:
    """
    Mean over the heads of max(0, a_hl times the gradient of the score with respect to it): attention of the heads in which
    more of it would raise the score (Chefer et al. 2021, arXiv:2103.15679, for one layer of cross-attention).
    """
    attention, value = _weigh(pooler, items, tokens, keep_mask)
    attention.requires_grad_()
    score = _cosine(items, pooler.merge(attention.to(value.dtype) @ value))
    (gradient,) = torch.autograd.grad(score.sum(), attention)
    return (gradient * attention).clamp(min=0).mean(1)


@attribution("contribution")
def by_contribution(
    pooler: ItemizedCLIPItemPooler, items: torch.Tensor, tokens: torch.Tensor, keep_mask: torch.Tensor | None
) -> torch.Tensor:
    """The terms of `contributions` above 0: what each token adds to the score."""
    return contributions(pooler, items, tokens, keep_mask)[0].clamp(min=0)


def contributions(
    pooler: ItemizedCLIPItemPooler, items: torch.Tensor, tokens: torch.Tensor, keep_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The score as a sum, exact for the attention and the length of p as they are: of each token
    t / |t| . sum over heads of W_h (a_hl v_hl) / |p|, of either sign, and the term of the bias, t / |t| . b / |p|.

    Returns:
        (B, M, L) and (B, M); the terms of a row and its bias sum to cos(t, p).
    """
    attention, value = _weigh(pooler, items, tokens, keep_mask)
    with torch.enable_grad():
        heads = (attention.to(value.dtype) @ value).requires_grad_()
        pooled = pooler.merge(heads)
        length = pooled.detach().float().norm(dim=-1, keepdim=True)
        along = (F.normalize(items.detach().float(), dim=-1) * pooled / length).sum(-1)
        (direction,) = torch.autograd.grad(along.sum(), heads)  # W_h^T t / |t| |p|, also of weights that are packed
    terms = (attention * (direction @ value.transpose(-1, -2))).sum(1)
    return terms, along.detach() - terms.sum(-1)


@attribution("occlusion")
@torch.no_grad()
def by_occlusion(
    pooler: ItemizedCLIPItemPooler, items: torch.Tensor, tokens: torch.Tensor, keep_mask: torch.Tensor | None
) -> torch.Tensor:
    """
    max(0, fall of the score when the item may not attend to the token). Exact and without a pass per token: the attention
    that is left is that of all tokens, divided by 1 - a_hl.
    """
    attention, value = _weigh(pooler, items, tokens, keep_mask, wide=True)
    heads = attention @ value  # (B, heads, M, d)
    left = (1 - attention).clamp(min=1e-12)
    rows = []
    for k in range(items.shape[1]):
        whole = _cosine(items[:, k : k + 1], pooler.merge(heads[:, :, k : k + 1].to(tokens.dtype)))
        falls = []
        for some in torch.arange(tokens.shape[1], device=tokens.device).split(TOKENS_AT_ONCE):
            taken = attention[:, :, k, some, None] * value[:, :, some]
            without = (heads[:, :, k, None] - taken) / left[:, :, k, some, None]
            falls.append(whole - _cosine(items[:, k : k + 1], pooler.merge(without.to(tokens.dtype))))
        rows.append(torch.cat(falls, 1).clamp(min=0))
    # Rounding: a token without attention cannot change anything.
    return torch.stack(rows, 1) * (attention > 0).any(1)


def _weigh(
    pooler: ItemizedCLIPItemPooler,
    items: torch.Tensor,
    tokens: torch.Tensor,
    keep_mask: torch.Tensor | None,
    wide: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (B, heads, M, L) and values (B, heads, L, d) as constants; `wide`: in float64, where the device has it."""
    with torch.no_grad():
        query, (key, value) = pooler.project_queries(items), pooler.project_tokens(tokens)
        if wide and query.device.type != "mps":
            query, key, value = query.double(), key.double(), value.double()
        return pooler.weigh(query, key, keep_mask), value


def _cosine(items: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """(B, M), as `score_items` compares them."""
    return F.cosine_similarity(pooled.float(), items.float(), dim=-1, eps=1e-6)
