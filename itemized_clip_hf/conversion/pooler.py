"""Keys of the item pooler, the same in all families."""

import torch

from ..modeling.pooling_itemized_clip import ItemizedCLIPItemPooler
from .checkpoint import Keys


def map_pooler(keys: Keys, source: str, target: str) -> dict[str, torch.Tensor | None]:
    """The stacked input projection is split into query, key and value."""
    mapped = {}
    for norm in "qkv":
        for kind in ("weight", "bias"):
            name = f"{target}layer_norm_{norm}.{kind}"
            mapped[name] = keys.take(f"{source}ln_{norm}.{kind}", name)
    for kind in ("weight", "bias"):
        stacked = keys.take(f"{source}attn.in_proj_{kind}", f"{target}{{q,k,v}}_proj.{kind}")
        if stacked is not None:
            for part, tensor in zip("qkv", stacked.chunk(3)):
                mapped[f"{target}{part}_proj.{kind}"] = tensor.clone()
        name = f"{target}out_proj.{kind}"
        mapped[name] = keys.take(f"{source}attn.out_proj.{kind}", name)
    return mapped


def convert_pooler(state_dict: dict[str, torch.Tensor], num_heads: int = 8) -> ItemizedCLIPItemPooler:
    """Item pooler from its own source keys (`ln_q.weight`, `attn.in_proj_weight`, ...)."""
    keys = Keys(state_dict)
    mapped = map_pooler(keys, "", "")
    keys.check()
    bias = mapped["out_proj.bias"]
    assert bias is not None  # `keys.check` has seen every key
    pooler = ItemizedCLIPItemPooler(len(bias), num_heads)
    pooler.load_state_dict(mapped)
    return pooler
