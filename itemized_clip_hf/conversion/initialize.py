"""Weights to start from: authors' checkpoints, model folders and 2-D MAE encoders, as far as they fit the model at hand."""

from pathlib import Path

import torch
from transformers.utils import logging

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel, ItemizedCLIPVisionModel
from ..modeling.vision_itemized_clip import resample_grid
from ..models.load import load_model
from ..models.names import is_adapter_folder
from . import describe_checkpoint
from .checkpoint import read_checkpoint

logger = logging.get_logger(__name__)

_BEHAVIOUR = (
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "position_embedding_type",
    "qkv_bias",
    "text_pooling",
)
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_TOWERS = ("vision_model.encoder.", "text_model.encoder.", "vision_model.embeddings.scan_name_encoder.layers.")


def initialize(model: ItemizedCLIPModel, source: str | Path, accept_license: bool = False) -> list[str]:
    """
    Loads into the model, in place, what fits of a source, and logs what does not.

    Args:
        source: folder of a model or of adapters, Hub name, checkpoint of the reference code (ItemizedCLIP, HLIP, FLAIR),
            Prima's with its encoder of sequence names, or a 2-D MAE encoder, which fills the vision tower.
        accept_license: of the published MAE weights, see `ItemizedCLIPVisionModel.from_mae`.

    Returns:
        Names of parameters and tables that keep their initial values; `module.*` where a module keeps all of them.
    """
    weights, facts = read_weights(source, model, accept_license)
    for part in ("vision_config", "text_config"):
        config = getattr(model.config, part)
        for name in _BEHAVIOUR:
            found, wanted = facts.get(part, {}).get(name), getattr(config, name, None)
            if None not in (found, wanted) and found != wanted:
                logger.warning(f"{source} was trained with {part}.{name} = {found}, the model has {wanted}.")
    target = model.state_dict()
    fitting, differing = {}, {}
    for name in weights.keys() & target.keys():
        tensor = fit(name, weights[name], target[name])
        if tensor is None:
            differing[name] = f"{name} {tuple(weights[name].shape)} instead of {tuple(target[name].shape)}"
        else:
            fitting[name] = tensor
    if not any(name.startswith(_TOWERS) for name in fitting):
        reasons = "; ".join(sorted(differing.values())[:3]) or "it has other names"
        raise ValueError(f"nothing in {source} fits the layers of the model: {reasons}.")
    damaged = sorted(name for name, tensor in fitting.items() if not torch.isfinite(tensor).all())
    if damaged:
        raise ValueError(
            f"{source}: {len(damaged)} of its weights hold values that are not finite, e.g. {damaged[:3]}."
        )
    model.load_state_dict(fitting, strict=False)
    fresh = summarize([name for name in target if name not in fitting], list(target))
    logger.warning(f"{source}: {len(fitting)} of {len(target)} tensors loaded")
    for what, names in (
        ("keep their initial values", fresh),
        ("have another shape there", sorted(differing.values())),
        ("are not in this model", summarize(sorted(weights.keys() - target.keys()), list(weights))),
    ):
        if names:
            logger.warning(f"{what}: {', '.join(names)}")
    return fresh


def read_weights(source: str | Path, model: ItemizedCLIPModel, accept_license: bool) -> tuple[dict, dict]:
    """Weights under the names of the model, and what is known of the configurations they were trained with."""
    path = Path(source)
    on_hub = not path.exists() and str(source).count("/") == 1 and path.suffix not in _SUFFIXES
    if path.is_dir() or on_hub:
        if path.is_dir() and not is_adapter_folder(path) and not (path / "config.json").exists():
            raise FileNotFoundError(f"{path} holds neither a model (config.json) nor adapters (adapter_config.json).")
        loaded = load_model(str(source), torch.float32)
        config = loaded.config
        return loaded.state_dict(), {
            "vision_config": config.vision.to_dict(),
            "text_config": config.text.to_dict(),
        }
    content = read_checkpoint(path)
    mae = content.get("model", content)
    if isinstance(mae, dict) and {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= mae.keys():
        if not accept_license:
            raise ValueError(
                f"{path} is a MAE encoder: the published ones are licensed CC-BY-NC-4.0, not for commercial use, and models "
                "trained from them inherit that. Pass --accept-license (accept_license=True) to use it on these terms."
            )
        tower = ItemizedCLIPVisionModel.from_mae(content, model.config.vision, accept_license=True)
        copied = {name for name in tower.state_dict() if "scan_" not in name}
        return {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items() if name in copied}, {}
    return describe_checkpoint(content)


def fit(name: str, tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
    """The tensor in the target's shape: position tables are resampled (images) or cut and completed (texts)."""
    if tensor.shape == target.shape:
        return tensor
    if name == "vision_model.embeddings.position_embedding" and tensor.shape[-1] == target.shape[-1]:
        return resample_grid(tensor, list(target.shape[:3]))
    if name.startswith("text_model.") and "position_embedding" in name and tensor.shape[-1] == target.shape[-1]:
        rows = min(len(tensor), len(target))
        return torch.cat([tensor[:rows].to(target), target[rows:]])
    return None


def summarize(names: list[str], of: list[str]) -> list[str]:
    """`module.*` for a module all of whose names are among them."""
    outside = set(of) - set(names)
    short: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        prefixes = [".".join(parts[:depth]) + "." for depth in range(1, len(parts))]
        whole = next((p for p in prefixes if not any(other.startswith(p) for other in outside)), None)
        short[name if whole is None else f"{whole}*"] = None
    return list(short)
