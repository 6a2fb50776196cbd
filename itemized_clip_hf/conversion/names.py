"""The encoder of sequence names from a Prima checkpoint, which ItemizedCLIP's own was started from (method 2.5, 10.1)."""

import re

import torch

from .checkpoint import Keys
from .radiology import count_layers, map_names

_ANCHOR = re.compile(r"^(|.+?\.)(transformer\.)?layers\.0\.0\.fn\.to_qkv\.weight$")


def recognize(state: dict[str, torch.Tensor]) -> bool:
    """Whether these are weights of a Prima model with an encoder of sequence names."""
    return find_encoder(state) is not None


def find_encoder(state: dict[str, torch.Tensor]) -> tuple[str, str] | None:
    """
    Prefix of the encoder among the keys of a whole Prima model, and that of its layers.

    Raises:
        ValueError: if several modules look like it.
    """
    found = []
    for name in state:
        match = _ANCHOR.match(name)
        if match and f"{match[1]}embed.weight" in state and not match[1].startswith("visual.trunk."):
            found.append((match[1], f"{match[1]}{match[2] or ''}layers."))
    if len(found) > 1:
        raise ValueError(f"several modules look like the encoder of sequence names: {[prefix for prefix, _ in found]}.")
    return found[0] if found else None


def map_encoder(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor | None], Keys]:
    """Weights under the names of the model; what else the file holds, Prima's own towers, stays in `Keys.left`."""
    found = find_encoder(state)
    assert found is not None
    prefix, layers = found
    keys = Keys(state)
    mapped = map_names(keys, prefix, layers, count_layers(state, layers))
    return mapped, keys


def vision_facts(state: dict[str, torch.Tensor]) -> dict:
    """What its shapes say about the vision config."""
    found = find_encoder(state)
    assert found is not None
    prefix, layers = found
    return {
        "use_scan_name_encoder": True,
        "scan_name_hidden_size": state[f"{layers}0.0.fn.to_qkv.weight"].shape[1],
        "scan_name_num_layers": count_layers(state, layers),
        "scan_name_intermediate_size": state[f"{layers}0.1.fn.net.0.weight"].shape[0],
    }
