"""
The released networks as plain functions of their state dicts (method 2 to 4), one study at a time.

Conversions are checked against them: they share no code with the models of this package and read the source's own names.
"""

import math

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]

ROWS_AT_ONCE = 256
"""Queries whose scores are kept at a time: memory, nothing else."""


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Linear layer of that name; its bias where there is one."""
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm of that name over the last axis."""
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, hidden: torch.Tensor | None = None
) -> torch.Tensor:
    """(R, Q, C), (R, L, C), (R, L, C) -> (R, Q, C); `hidden` (Q, L) or (R, Q, L) is True where nothing may be attended to."""
    size = query.shape[-1] // heads
    results = torch.empty_like(query)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for start in range(0, query.shape[1], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            scores = query[:, rows, own] @ key[..., own].transpose(-1, -2) / math.sqrt(size)
            if hidden is not None:
                scores = scores.masked_fill(hidden[..., rows, :], -math.inf)
            results[:, rows, own] = scores.softmax(-1) @ value[..., own]
    return results


def volumes(
    state: State, scans: torch.Tensor, names: torch.Tensor | None, scopes: list[str], heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Vision tower of the volume models.

    Args:
        scans: (N, C, D, H, W).
        names: (N, T) characters of the sequence names, for models with an encoder of them.
        scopes: of each block.

    Returns:
        class token (P,) and patches (L, P), projected.
    """
    trunk = "visual.trunk."
    kernel = state[f"{trunk}patch_embed.proj.weight"]
    patches = F.conv3d(scans, kernel, state[f"{trunk}patch_embed.proj.bias"], stride=kernel.shape[2:])
    patches = patches.permute(0, 2, 3, 4, 1) + state[f"{trunk}spatial_posemb"]
    count, depth, width = len(scans), patches.shape[1], patches.shape[-1]
    scan_table = [
        state[f"{trunk}{name}"] for name in ("series_posemb", "sequential_posemb") if f"{trunk}{name}" in state
    ]
    if f"{trunk}sne_proj.weight" in state and names is not None:
        encoded = torch.stack([scan_name(state, own) for own in names])
        patches = patches + linear(state, f"{trunk}sne_proj", encoded)[:, None, None, None]
    elif scan_table:
        patches = patches + scan_table[0][0, :count, None, None, None]
    rows_of = {"slice": count * depth, "scan": count, "study": 1}
    tokens, first = patches.reshape(-1, width), state[f"{trunk}cls_token"].reshape(1, width)
    for number, scope in enumerate(scopes):
        rows, name = rows_of[scope], f"{trunk}blocks.{number}."
        first = regroup(first, rows)
        x = torch.cat([first[:, None], tokens.reshape(rows, -1, width)], 1)
        query, key, value = linear(state, f"{name}attn.qkv", norm(state, f"{name}norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(state, f"{name}attn.proj", attention(query, key, value, heads))
        inner = F.gelu(linear(state, f"{name}mlp.fc1", norm(state, f"{name}norm2", x, 1e-6)))
        x = x + linear(state, f"{name}mlp.fc2", inner)
        first, tokens = x[:, 0], x[:, 1:].reshape(-1, width)
    x = norm(state, f"{trunk}norm", torch.cat([regroup(first, 1), tokens]), 1e-6)
    projected = linear(state, "visual.head.proj", x)
    return projected[0], projected[1:]


def regroup(first: torch.Tensor, rows: int) -> torch.Tensor:
    """Class tokens of other rows: means where rows become wider, copies where they become narrower."""
    if rows < len(first):
        return first.reshape(rows, -1, first.shape[-1]).mean(1)
    return first.repeat_interleave(rows // len(first), 0)


def scan_name(state: State, characters: torch.Tensor) -> torch.Tensor:
    """Vector of one sequence name (T,) of character ids, which the id 46 ends."""
    encoder = "visual.trunk.serienameencoder."
    length = int((characters == 46).nonzero()[0, 0]) + 1
    place = torch.arange(length)[:, None] * 10000 ** (-torch.arange(5) / 5)
    code = torch.stack([place.sin(), place.cos()], -1).reshape(length, 10)
    x = torch.cat([state[f"{encoder}embed.weight"][characters[:length]], code], -1)[None]
    number = 0
    while f"{encoder}transformer.layers.{number}.0.norm.weight" in state:
        name = f"{encoder}transformer.layers.{number}."
        query, key, value = linear(state, f"{name}0.fn.to_qkv", norm(state, f"{name}0.norm", x, 1e-5)).chunk(3, -1)
        x = x + linear(state, f"{name}0.fn.to_out.0", attention(query, key, value, 4))
        inner = F.gelu(linear(state, f"{name}1.fn.net.0", norm(state, f"{name}1.norm", x, 1e-5)))
        x = x + linear(state, f"{name}1.fn.net.3", inner)
        number += 1
    return x[0, -1]


def bert_text(state: State, ids: torch.Tensor, mask: torch.Tensor, heads: int, eps: float = 1e-12) -> torch.Tensor:
    """BERT's first position, projected: ids and mask (M, T) -> (M, P)."""
    tower = "text.transformer."
    embeddings = f"{tower}embeddings."
    x = state[f"{embeddings}word_embeddings.weight"][ids]
    x = x + state[f"{embeddings}position_embeddings.weight"][: ids.shape[1]]
    x = norm(state, f"{embeddings}LayerNorm", x + state[f"{embeddings}token_type_embeddings.weight"][0], eps)
    number = 0
    while f"{tower}encoder.layer.{number}.output.dense.weight" in state:
        name = f"{tower}encoder.layer.{number}."
        query, key, value = (linear(state, f"{name}attention.self.{part}", x) for part in ("query", "key", "value"))
        mixed = linear(
            state,
            f"{name}attention.output.dense",
            attention(query, key, value, heads, ~mask[:, None].expand(-1, ids.shape[1], -1)),
        )
        x = norm(state, f"{name}attention.output.LayerNorm", x + mixed, eps)
        inner = linear(state, f"{name}output.dense", F.gelu(linear(state, f"{name}intermediate.dense", x)))
        x = norm(state, f"{name}output.LayerNorm", x + inner, eps)
        number += 1
    return linear(state, "text.proj", x[:, 0])


def clip_block(
    state: State, name: str, x: torch.Tensor, heads: int, hidden: torch.Tensor | None = None
) -> torch.Tensor:
    """One residual block of CLIP; `hidden` as in `attention`."""
    normed = norm(state, f"{name}ln_1", x, 1e-5)
    stacked = F.linear(normed, state[f"{name}attn.in_proj_weight"], state[f"{name}attn.in_proj_bias"])
    query, key, value = stacked.chunk(3, -1)
    x = x + linear(state, f"{name}attn.out_proj", attention(query, key, value, heads, hidden))
    inner = F.gelu(linear(state, f"{name}mlp.c_fc", norm(state, f"{name}ln_2", x, 1e-5)))
    return x + linear(state, f"{name}mlp.c_proj", inner)


def picture(state: State, pixels: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vision tower of the picture models: (C, H, W) -> class token (P,) and patches (L, P), projected."""
    kernel = state["visual.conv1.weight"]
    patches = F.conv2d(pixels[None], kernel, stride=kernel.shape[2:])[0].flatten(1).t()
    x = torch.cat([state["visual.class_embedding"][None], patches]) + state["visual.positional_embedding"]
    x = norm(state, "visual.ln_pre", x, 1e-5)[None]
    number = 0
    while f"visual.transformer.resblocks.{number}.ln_1.weight" in state:
        x = clip_block(state, f"visual.transformer.resblocks.{number}.", x, heads)
        number += 1
    projection = state["image_post2.proj"] if "image_post2.proj" in state else state["image_post.proj"]
    projected = norm(state, "visual.ln_post", x[0], 1e-5) @ projection
    return projected[0], projected[1:]


def clip_text(state: State, ids: torch.Tensor, heads: int) -> torch.Tensor:
    """CLIP's text tower at the highest id, projected: (M, T) -> (M, P). What stands behind that id changes nothing."""
    length = ids.shape[1]
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][:length]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    number = 0
    while f"transformer.resblocks.{number}.ln_1.weight" in state:
        x = clip_block(state, f"transformer.resblocks.{number}.", x, heads, future)
        number += 1
    ends = norm(state, "ln_final", x, 1e-5)[torch.arange(len(ids)), ids.argmax(1)]
    return ends @ state["text_post.proj"]


def pool(state: State, queries: torch.Tensor, tokens: torch.Tensor, heads: int, name: str) -> torch.Tensor:
    """Item pooler under the prefix `name`: (M, P) and (L, P) -> (M, P)."""
    weight, bias = state[f"{name}attn.in_proj_weight"].chunk(3), state[f"{name}attn.in_proj_bias"].chunk(3)
    inputs = (("q", queries), ("k", tokens), ("v", tokens))
    query, key, value = (
        F.linear(norm(state, f"{name}ln_{part}", x, 1e-5), weight[i], bias[i]) for i, (part, x) in enumerate(inputs)
    )
    key, value = (F.pad(x, (0, 0, 0, 1)) for x in (key, value))  # a slot of zeros: attend to nothing
    return linear(state, f"{name}attn.out_proj", attention(query[None], key[None], value[None], heads)[0])
