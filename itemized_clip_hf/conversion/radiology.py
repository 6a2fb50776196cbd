"""Checkpoints of the volume models: ItemizedCLIP brain MRI, head CT and chest CT, and HLIP (method 10.1)."""

import re
from typing import Any

import torch

from .checkpoint import Keys
from .pooler import map_pooler

_LAYER = {
    "norm1": "layer_norm1",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_NAME_LAYER = {
    "0.norm.weight": "layer_norm1.weight",
    "0.norm.bias": "layer_norm1.bias",
    "0.fn.to_qkv.weight": "qkv.weight",
    "0.fn.to_out.0.weight": "out_proj.weight",
    "0.fn.to_out.0.bias": "out_proj.bias",
    "1.norm.weight": "layer_norm2.weight",
    "1.norm.bias": "layer_norm2.bias",
    "1.fn.net.0.weight": "fc1.weight",
    "1.fn.net.0.bias": "fc1.bias",
    "1.fn.net.3.weight": "fc2.weight",
    "1.fn.net.3.bias": "fc2.bias",
}


def count_layers(state: dict[str, torch.Tensor], prefix: str) -> int:
    """Number of layers whose keys start with the prefix and a number."""
    found = [int(m.group(1)) for name in state if (m := re.match(re.escape(prefix) + r"(\d+)\.", name))]
    return max(found, default=-1) + 1


def recognize(state: dict[str, torch.Tensor]) -> bool:
    """Whether these are weights of a volume model."""
    return any(name.startswith("visual.trunk.") for name in state)


def vision_facts(state: dict[str, torch.Tensor], trunk: str = "visual.trunk.") -> dict:
    """What shapes and family say about the vision config."""
    patch = state[f"{trunk}patch_embed.proj.weight"]
    grid = list(state[f"{trunk}spatial_posemb"].shape[1:4])
    patch_size = list(patch.shape[2:])
    scans = next(
        (
            state[f"{trunk}{name}"].shape[1]
            for name in ("series_posemb", "sequential_posemb")
            if f"{trunk}{name}" in state
        ),
        1,
    )
    named = f"{trunk}sne_proj.weight" in state
    facts = {
        "hidden_size": patch.shape[0],
        "num_hidden_layers": count_layers(state, f"{trunk}blocks."),
        "intermediate_size": state[f"{trunk}blocks.0.mlp.fc1.weight"].shape[0],
        "num_channels": patch.shape[1],
        "patch_size": patch_size,
        "image_size": [tokens * size for tokens, size in zip(grid, patch_size)],
        "position_embedding_type": "sincos",
        "use_scan_name_encoder": named,
        "use_pre_layernorm": False,
        "patch_bias": True,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    if not named:
        facts["max_num_scans"] = scans
    else:
        facts["scan_name_hidden_size"] = state[f"{trunk}sne_proj.weight"].shape[1]
        facts["scan_name_num_layers"] = count_layers(state, f"{trunk}serienameencoder.transformer.layers.")
        facts["scan_name_intermediate_size"] = state[
            f"{trunk}serienameencoder.transformer.layers.0.1.fn.net.0.weight"
        ].shape[0]
    return facts


def text_facts(state: dict[str, torch.Tensor]) -> dict:
    """What shapes and family say about the text config."""
    embeddings = "text.transformer.embeddings."
    words = state[f"{embeddings}word_embeddings.weight"]
    return {
        "model_type": "bert",
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": count_layers(state, "text.transformer.encoder.layer."),
        "intermediate_size": state["text.transformer.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": state[f"{embeddings}position_embeddings.weight"].shape[0],
        "type_vocab_size": state[f"{embeddings}token_type_embeddings.weight"].shape[0],
    }


def projection_dim(state: dict[str, torch.Tensor]) -> int:
    """Width of the projected embeddings."""
    return state["visual.head.proj.weight"].shape[0]


def map_trunk(keys: Keys, layers: int, trunk: str = "visual.trunk.", target: str = "vision_model.") -> dict:
    """Vision tower."""
    mapped = {}

    def copy(source: str, name: str, change: Any = lambda tensor: tensor):
        tensor = keys.take(trunk + source, target + name)
        mapped[target + name] = None if tensor is None else change(tensor)

    copy("cls_token", "embeddings.class_embedding", torch.Tensor.flatten)
    copy("spatial_posemb", "embeddings.position_embedding", lambda table: table[0])
    for kind in ("weight", "bias"):
        copy(f"patch_embed.proj.{kind}", f"embeddings.patch_embedding.{kind}")
        copy(f"norm.{kind}", f"final_layer_norm.{kind}")
        for layer in range(layers):
            for source, module in _LAYER.items():
                copy(f"blocks.{layer}.{source}.{kind}", f"encoder.layers.{layer}.{module}.{kind}")
    for table in ("series_posemb", "sequential_posemb"):
        if keys.has(trunk + table):
            copy(table, "embeddings.scan_embedding", lambda rows: rows[0])
    if keys.has(f"{trunk}serienameencoder.") or keys.has(f"{trunk}sne_proj."):
        blocks = f"{trunk}serienameencoder.transformer.layers."
        mapped |= map_names(keys, f"{trunk}serienameencoder.", blocks, count_layers(keys.left, blocks), target)
        copy("sne_proj.weight", "embeddings.scan_name_encoder.projection.weight")
        copy("sne_proj.bias", "embeddings.scan_name_encoder.projection.bias")
    return mapped


def map_names(keys: Keys, prefix: str, layers: str, count: int, target: str = "vision_model.") -> dict:
    """The encoder of sequence names, apart from its last projection."""
    target = f"{target}embeddings.scan_name_encoder."
    mapped = {f"{target}embedding.weight": keys.take(f"{prefix}embed.weight", f"{target}embedding.weight")}
    for layer in range(count):
        for source, module in _NAME_LAYER.items():
            name = f"{target}layers.{layer}.{module}"
            mapped[name] = keys.take(f"{layers}{layer}.{source}", name)
    return mapped


def map_keys(keys: Keys) -> dict[str, torch.Tensor | None]:
    """Whole model. A checkpoint without pooler and bias is HLIP's; both then keep their initial values."""
    mapped = map_trunk(keys, count_layers(keys.left, "visual.trunk.blocks."))
    for source, target in (
        ("visual.head.proj.weight", "visual_projection.weight"),
        ("text.proj.weight", "text_projection.weight"),
    ):
        mapped[target] = keys.take(source, target)
    for name in [name for name in keys.left if name.startswith("text.transformer.")]:
        target = "text_model." + name.removeprefix("text.transformer.")
        mapped[target] = keys.take(name, target)
    mapped["logit_scale"] = keys.take("logit_scale", "logit_scale")
    if keys.has("visual_attn.") or keys.has("logit_bias"):
        mapped["logit_bias"] = keys.take("logit_bias", "logit_bias")
        mapped.update(map_pooler(keys, "visual_attn.", "item_pooler."))
    return mapped
