"""2-D masked-autoencoder weights -> weights of the 3-D vision tower (method 2.6)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_itemized_clip import ItemizedCLIPVisionConfig
from .vision_itemized_clip import sincos_1d

MAE_LICENSE = "CC-BY-NC-4.0"

_LAYER_NAMES = {
    "norm1": "layer_norm1",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def inflate_patch_weight(weight: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """(C, 3, p, p) kernel of a picture -> (C, 1, pd, ph, pw) kernel of a grey volume with the same mean response."""
    depth, height, width = patch_size
    if tuple(weight.shape[2:]) != (height, width):
        weight = F.interpolate(weight.float(), size=(height, width), mode="bicubic", align_corners=False)
    weight = weight.sum(1, keepdim=True)[:, :, None]
    return weight.repeat(1, 1, depth, 1, 1) / depth


def inflate_positions(positions: torch.Tensor, grid_size: list[int]) -> torch.Tensor:
    """(1, n * n, C) picture positions, class row removed -> (D, H, W, C): resampled in the plane, sin-cos over depth."""
    depth, height, width = grid_size
    side, dim = round(positions.shape[1] ** 0.5), positions.shape[2]
    plane = positions.reshape(1, side, side, dim).permute(0, 3, 1, 2).float()
    if (side, side) != (height, width):
        plane = F.interpolate(plane, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    return sincos_1d(depth, dim)[:, None, None] + plane[0].permute(1, 2, 0)


def inflate_mae(state_dict: Mapping[str, torch.Tensor], config: ItemizedCLIPVisionConfig) -> dict[str, torch.Tensor]:
    """
    MAE encoder weights under the names of the vision tower.

    Args:
        state_dict: the published ViT layout (`cls_token`, `pos_embed`, `patch_embed.proj.*`, `blocks.*`, `norm.*`);
            decoder and mask token are ignored.
        config: vision config of the tower to fill.
    """
    positions = state_dict["pos_embed"]
    inflated = {
        "embeddings.class_embedding": (state_dict["cls_token"] + positions[:, :1]).flatten(),
        "embeddings.patch_embedding.weight": inflate_patch_weight(
            state_dict["patch_embed.proj.weight"], config.patch_shape
        ),
        "embeddings.patch_embedding.bias": state_dict["patch_embed.proj.bias"],
        "embeddings.position_embedding": inflate_positions(positions[:, 1:], config.grid_size),
    }
    for name, tensor in state_dict.items():
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            module, kind = rest.rsplit(".", 1)
            if module in _LAYER_NAMES and int(layer) < config.num_hidden_layers:
                inflated[f"encoder.layers.{layer}.{_LAYER_NAMES[module]}.{kind}"] = tensor
        elif name in ("norm.weight", "norm.bias"):
            inflated[f"final_layer_norm.{name.removeprefix('norm.')}"] = tensor
    return inflated


def read_mae(weights: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """The state dict of published MAE weights: given as such, or a `.safetensors` or `.pth` file (`weights_only=True`)."""
    if isinstance(weights, Mapping):
        content: Mapping[str, Any] = weights
    elif str(weights).endswith(".safetensors"):
        from safetensors.torch import load_file

        content = load_file(weights)
    else:
        content = torch.load(weights, map_location="cpu", weights_only=True)
    state_dict: Mapping[str, torch.Tensor] = content.get("model", content)
    return state_dict


def brain_mri_geometry() -> ItemizedCLIPVisionConfig:
    """The tower that the MAE weights were published for, without a name encoder: brain MRI, 48 x 224 x 224 voxels."""
    return ItemizedCLIPVisionConfig(
        num_channels=1,
        image_size=[48, 224, 224],
        patch_size=[8, 16, 16],
        attention_scopes=["scan", "scan", "study"] * 4,
    )


def fill_from_mae(
    vision_model: nn.Module, config: ItemizedCLIPVisionConfig, state_dict: Mapping[str, torch.Tensor]
) -> None:
    """
    Loads inflated MAE weights into a vision tower; what identifies scans stays as it is.

    Raises:
        ValueError: the tower has learned positions or several channels, or weights are missing or left over.
    """
    if config.position_embedding_type != "sincos" or config.num_channels != 1:
        raise ValueError("from_mae fills towers with position_embedding_type='sincos' and num_channels=1.")
    missing, unexpected = vision_model.load_state_dict(inflate_mae(state_dict, config), strict=False)
    missing = [name for name in missing if "scan_" not in name]
    if missing or unexpected:
        raise ValueError(f"MAE weights do not fit: missing {missing[:5]}, left over {unexpected[:5]}.")
