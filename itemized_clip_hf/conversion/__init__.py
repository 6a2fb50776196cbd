"""Checkpoints of the reference code -> models of this package. One key map per family of checkpoints."""

import torch
from transformers import AutoConfig
from transformers.utils import logging

from ..domains import load_domain
from ..modeling.configuration_itemized_clip import ItemizedCLIPConfig
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from . import pictures, radiology
from .checkpoint import Keys, read_state_dict
from .pooler import convert_pooler

__all__ = ["convert_checkpoint", "convert_pooler", "describe_checkpoint"]

logger = logging.get_logger(__name__)

_FAMILIES = (radiology, pictures)
_HEAD_DIM = 64


def _merge(given: dict, facts: dict, what: str) -> dict:
    """Facts of the checkpoint win; a size that was given and differs is an error."""
    sizes = (
        "hidden_size",
        "num_hidden_layers",
        "intermediate_size",
        "num_channels",
        "patch_size",
        "image_size",
        "vocab_size",
    )
    for name in sizes:
        if name in given and name in facts and given[name] != facts[name]:
            raise ValueError(f"{what}.{name} is {given[name]} in the config, but the checkpoint's is {facts[name]}.")
    return {**given, **facts}


def _build_config(family, state: dict[str, torch.Tensor], domain: str, config) -> ItemizedCLIPConfig:
    vision, text = family.vision_facts(state), family.text_facts(state)
    if config is None:
        architecture = load_domain(domain).architecture
        vision["num_attention_heads"] = vision["hidden_size"] // _HEAD_DIM
        text["num_attention_heads"] = text["hidden_size"] // _HEAD_DIM
        layers = vision["num_hidden_layers"]
        scopes = architecture["vision_config"]["attention_scopes"]
        if len(scopes) != layers:
            raise ValueError(
                f"the checkpoint has {layers} vision layers, models of {domain!r} have {len(scopes)}: pass a config that says "
                "the attention scope of each."
            )
        vision["attention_scopes"] = scopes
        vision["drop_path_rate"] = architecture["vision_config"].get("drop_path_rate", 0.0)
        expected = architecture["vision_config"]
        for name in ("image_size", "patch_size"):
            if list(expected[name]) != list(vision[name]):
                raise ValueError(
                    f"the checkpoint's {name} is {vision[name]}, that of {domain!r} is {list(expected[name])}: is the domain "
                    "right? If it is, pass a config."
                )
        return ItemizedCLIPConfig(
            vision_config=vision, text_config=text, projection_dim=family.projection_dim(state), domain=domain
        )
    vision = _merge(config.vision_config.to_dict(), vision, "vision_config")
    text = _merge(config.text_config.to_dict(), text, "text_config")
    if config.projection_dim != family.projection_dim(state):
        raise ValueError(
            f"projection_dim is {config.projection_dim} in the config, the checkpoint's is {family.projection_dim(state)}."
        )
    text_config = AutoConfig.for_model(**text)
    return ItemizedCLIPConfig(
        vision_config=vision,
        text_config=text_config,
        projection_dim=config.projection_dim,
        num_pooler_heads=config.num_pooler_heads,
        text_pooling=config.text_pooling,
        domain=domain,
    )


def _map_checkpoint(path_or_state_dict):
    """Family, state dict, and the weights under the names of the model."""
    state = read_state_dict(path_or_state_dict)
    family = next((family for family in _FAMILIES if family.recognise(state)), None)
    if family is None:
        raise ValueError(
            "no known checkpoint layout: expected keys such as 'visual.trunk.cls_token' (volumes) or "
            f"'visual.conv1.weight' (pictures), found {sorted(state)[:5]}."
        )
    keys = Keys(state)
    mapped = family.map_keys(keys)
    keys.check()
    for name in ("logit_scale", "logit_bias"):
        if name in mapped:
            mapped[name] = mapped[name].reshape(1)
    return family, state, mapped


def describe_checkpoint(path_or_state_dict) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """
    Weights of a reference checkpoint under the names of this package's model, and what its shapes and family say about
    `vision_config` and `text_config`; raises as `convert_checkpoint` does.
    """
    family, state, mapped = _map_checkpoint(path_or_state_dict)
    return mapped, {"vision_config": family.vision_facts(state), "text_config": family.text_facts(state)}


def convert_checkpoint(path_or_state_dict, domain: str, config: ItemizedCLIPConfig | None = None) -> ItemizedCLIPModel:
    """
    A model with the weights of a reference checkpoint: ItemizedCLIP's three layouts, HLIP's or FLAIR's.

    Args:
        path_or_state_dict: file (`.pt`, read with `weights_only=True`, or `.safetensors`), training dictionary or state dict.
        domain: `brain-mri`, `head-ct`, `chest-ct`, `remote-sensing` or `natural-images`.
        config: what shapes cannot tell (attention heads and scopes). Published checkpoints need none.

    Raises:
        ValueError: for an unknown layout, for keys that are missing or left over (named), for shapes that disagree.
    """
    load_domain(domain)
    family, state, mapped = _map_checkpoint(path_or_state_dict)
    model = ItemizedCLIPModel(_build_config(family, state, domain, config))
    missing, unexpected = model.load_state_dict(mapped, strict=False)
    fresh = [name for name in missing if name.startswith(("item_pooler.", "logit_bias")) and name not in mapped]
    if fresh:
        logger.warning("the checkpoint has no item pooler (HLIP): the pooler and the bias hold initial values.")
    missing = sorted(set(missing) - set(fresh))
    if missing or unexpected:
        raise ValueError(f"the checkpoint does not fill the model: missing {missing}, left over {unexpected}.")
    return model.eval()
