"""Checkpoints of the 2-D models: ItemizedCLIP on remote-sensing and natural images, and FLAIR (method 10.2)."""

from typing import Any

import torch

from .checkpoint import Keys
from .pooler import map_pooler
from .radiology import count_layers


def recognize(state: dict[str, torch.Tensor]) -> bool:
    """Whether these are weights of a picture model (CLIP layout)."""
    return "visual.conv1.weight" in state


def vision_facts(state: dict[str, torch.Tensor]) -> dict:
    """What shapes and family say about the vision config."""
    patch = state["visual.conv1.weight"]
    side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "hidden_size": patch.shape[0],
        "num_hidden_layers": count_layers(state, "visual.transformer.resblocks."),
        "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_channels": patch.shape[1],
        "patch_size": [1, *patch.shape[2:]],
        "image_size": [1, side * patch.shape[2], side * patch.shape[3]],
        "position_embedding_type": "learned",
        "use_scan_name_encoder": False,
        "max_num_scans": 1,
        "use_pre_layernorm": True,
        "patch_bias": False,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def text_facts(state: dict[str, torch.Tensor]) -> dict:
    """What shapes and family say about the text config."""
    words = state["token_embedding.weight"]
    return {
        "model_type": "clip_text_model",
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": count_layers(state, "transformer.resblocks."),
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "max_position_embeddings": state["positional_embedding"].shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        # The released tower reads the text at the highest id, which is the end token of its vocabulary.
        "bos_token_id": words.shape[0] - 2,
        "eos_token_id": words.shape[0] - 1,
        "pad_token_id": 0,
    }


def projection_dim(state: dict[str, torch.Tensor]) -> int:
    """Width of the projected embeddings."""
    return next(state[name].shape[1] for name in ("image_post2.proj", "image_post.proj") if name in state)


def transpose(matrix: torch.Tensor) -> torch.Tensor:
    """The transposed matrix, contiguous."""
    return matrix.t().contiguous()


def _map_blocks(keys: Keys, source: str, target: str, fused: bool) -> dict[str, torch.Tensor | None]:
    """CLIP's residual blocks; `fused` keeps query, key and value in one matrix."""
    mapped = {}
    modules = {
        "ln_1": "layer_norm1",
        "attn.out_proj": "self_attn.out_proj",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for layer in range(count_layers(keys.left, source)):
        for kind in ("weight", "bias"):
            for module, name in modules.items():
                name = f"{target}{layer}.{name}.{kind}"
                mapped[name] = keys.take(f"{source}{layer}.{module}.{kind}", name)
            name = f"{target}{layer}.self_attn."
            stacked = keys.take(
                f"{source}{layer}.attn.in_proj_{kind}", f"{name}{'qkv' if fused else '{q,k,v}_proj'}.{kind}"
            )
            if fused:
                mapped[f"{name}qkv.{kind}"] = stacked
            elif stacked is not None:
                parts = zip("qkv", stacked.chunk(3))
                mapped.update({f"{name}{part}_proj.{kind}": tensor.clone() for part, tensor in parts})
    return mapped


def map_keys(keys: Keys) -> dict[str, torch.Tensor | None]:
    """Whole model. The class position is folded into the class token; right-multiplied projections are transposed."""
    mapped: dict[str, torch.Tensor | None] = {}

    def copy(source: str, target: str, change: Any = lambda tensor: tensor):
        tensor = keys.take(source, target)
        mapped[target] = None if tensor is None else change(tensor)

    embeddings = "vision_model.embeddings."
    copy("visual.conv1.weight", f"{embeddings}patch_embedding.weight", lambda kernel: kernel[:, :, None])
    token = keys.take("visual.class_embedding", f"{embeddings}class_embedding")
    table = keys.take("visual.positional_embedding", f"{embeddings}position_embedding")
    if token is not None and table is not None:
        side = round((len(table) - 1) ** 0.5)
        mapped[f"{embeddings}class_embedding"] = token.flatten() + table[0]
        if side * side != len(table) - 1:
            raise ValueError(
                f"visual.positional_embedding has {len(table)} rows, expected one of the class token and a square grid."
            )
        mapped[f"{embeddings}position_embedding"] = table[1:].reshape(1, side, side, -1).clone()
    for kind in ("weight", "bias"):
        copy(f"visual.ln_pre.{kind}", f"vision_model.pre_layer_norm.{kind}")
        copy(f"visual.ln_post.{kind}", f"vision_model.final_layer_norm.{kind}")
        copy(f"ln_final.{kind}", f"text_model.final_layer_norm.{kind}")
    mapped.update(_map_blocks(keys, "visual.transformer.resblocks.", "vision_model.encoder.layers.", fused=True))
    mapped.update(_map_blocks(keys, "transformer.resblocks.", "text_model.encoder.layers.", fused=False))
    copy("token_embedding.weight", "text_model.embeddings.token_embedding.weight")
    copy("positional_embedding", "text_model.embeddings.position_embedding.weight")
    if "image_post2.proj" in keys.left:
        keys.drop("image_post.proj")  # superseded in older checkpoints
        copy("image_post2.proj", "visual_projection.weight", transpose)
    else:
        copy("image_post.proj", "visual_projection.weight", transpose)
    copy("text_post.proj", "text_projection.weight", transpose)
    mapped.update(map_pooler(keys, "visual_proj.", "item_pooler."))
    copy("logit_scale", "logit_scale")
    copy("logit_bias", "logit_bias")
    return mapped
