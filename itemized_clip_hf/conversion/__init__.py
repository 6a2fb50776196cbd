"""Checkpoints of the reference code -> models of this package. One key map per family of checkpoints."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoConfig
from transformers.initialization import no_init_weights
from transformers.utils import logging

from ..domains import load_domain
from ..modeling.configuration_itemized_clip import ItemizedCLIPConfig
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from . import names, pictures, radiology
from .checkpoint import Keys, read_state_dict
from .pooler import convert_pooler

__all__ = ["Conversion", "convert", "convert_checkpoint", "convert_pooler", "describe_checkpoint"]

logger = logging.get_logger(__name__)

_FAMILIES = (radiology, pictures)
_SIZES = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_channels",
    "patch_size",
    "image_size",
    "vocab_size",
)


def _merge(given: dict, facts: dict, what: str) -> dict:
    """Facts of the checkpoint win; a size that was given and differs is an error."""
    for name in _SIZES:
        if name in given and name in facts and given[name] != facts[name]:
            raise ValueError(f"{what}.{name} is {given[name]} in the config, but the checkpoint's is {facts[name]}.")
    return {**given, **facts}


def _facts(family: ModuleType, state: dict[str, torch.Tensor]) -> tuple[dict, dict, int]:
    """What the shapes of a checkpoint say of both towers, and the width that they share."""
    try:
        return family.vision_facts(state), family.text_facts(state), family.projection_dim(state)
    except KeyError as error:
        raise ValueError(f"the checkpoint does not have the expected layout; missing keys: {error.args[0]}") from None
    except (IndexError, StopIteration) as error:
        raise ValueError(f"the checkpoint has tensors of another number of axes than expected: {error}") from None


def _compare_with_domain(vision: dict, text: dict, projection: int, domain: str) -> None:
    """Without a config the checkpoint's sizes have to be those of the domain; FLAIR's shorter context is no other size."""
    architecture = load_domain(domain).architecture
    found = {"vision_config": vision, "text_config": {**text}, "": {"projection_dim": projection}}
    found["text_config"].pop("max_position_embeddings")
    expected = {**architecture, "": architecture}
    differing = [
        f"{part}{'.' if part else ''}{name} is {own[name]}, that of {domain!r} is {expected[part][name]}"
        for part, own in found.items()
        for name in (*_SIZES, "projection_dim")
        if name in own and name in expected[part] and own[name] != expected[part][name]
    ]
    if differing:
        raise ValueError(
            f"the checkpoint's {'; '.join(differing)}: is the domain right? If it is, pass a config (--config)."
        )


def _build_config(
    family: ModuleType, state: dict[str, torch.Tensor], domain: str, config: ItemizedCLIPConfig | None
) -> ItemizedCLIPConfig:
    vision, text, projection = _facts(family, state)
    if config is None:
        architecture = load_domain(domain).architecture
        _compare_with_domain(vision, text, projection, domain)
        vision = {**architecture["vision_config"], **vision}
        text["num_attention_heads"] = architecture["text_config"]["num_attention_heads"]
        return ItemizedCLIPConfig(
            vision_config=vision,
            text_config=text,
            projection_dim=projection,
            num_pooler_heads=architecture["num_pooler_heads"],
            domain=domain,
        )
    vision = _merge(config.vision.to_dict(), vision, "vision_config")
    text = _merge(config.text.to_dict(), text, "text_config")
    if config.projection_dim != projection:
        raise ValueError(f"projection_dim is {config.projection_dim} in the config, the checkpoint's is {projection}.")
    text_config = AutoConfig.for_model(**text)
    return ItemizedCLIPConfig(
        vision_config=vision,
        text_config=text_config,
        projection_dim=projection,
        num_pooler_heads=config.num_pooler_heads,
        text_pooling=config.text_pooling,
        domain=domain,
    )


_ELSEWHERE = (
    ("vision_model.embeddings.patch_embedding.weight", "these are weights of this package: load their folder as it is"),
    (
        "patch_embed.proj.weight",
        "this is a 2-D ViT: `itemized-clip train --init` starts a volume model from a MAE encoder",
    ),
    ("vision_model.embeddings.class_embedding", "this is a CLIP of transformers: AutoModel loads its folder"),
)


@dataclass
class Conversion:
    """
    A converted checkpoint.

    Args:
        model: with the weights of the source.
        family: module of `conversion` that knows its layout.
        state: the source's weights, prefixes stripped.
        table: source name -> name in the model.
        dropped: source names that others replace.
        fresh: names in the model that the source does not hold (HLIP's pooler and bias).
    """

    model: ItemizedCLIPModel
    family: str
    state: dict[str, torch.Tensor]
    table: dict[str, str]
    dropped: list[str]
    fresh: list[str]


def _map_checkpoint(path_or_state_dict: str | os.PathLike | Mapping[str, Any]):
    """Family, state dict, the weights under the names of the model, and the keys."""
    state = read_state_dict(path_or_state_dict)
    family = next((family for family in _FAMILIES if family.recognize(state)), None)
    if family is None:
        if names.recognize(state):
            raise ValueError(
                "this is Prima's encoder of sequence names, a part of a model: put it into one with `itemized-clip convert "
                "--into MODEL`, or start a training from it with `itemized-clip train --init`."
            )
        hints = [hint for name, hint in _ELSEWHERE if name in state]
        raise ValueError(
            "no known checkpoint layout: expected keys such as 'visual.trunk.cls_token' (volumes) or "
            f"'visual.conv1.weight' (pictures), found {sorted(state)[:5]}{'; ' if hints else ''}{hints[0] if hints else ''}."
        )
    keys = Keys(state)
    try:
        mapped = family.map_keys(keys)
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"the checkpoint has tensors of another number of axes than expected: {error}") from None
    keys.check()
    for name in ("logit_scale", "logit_bias"):
        if name in mapped and mapped[name].numel() != 1:
            raise ValueError(f"{name} has {mapped[name].numel()} values, expected one.")
        if name in mapped:
            mapped[name] = mapped[name].reshape(1)
    return family, state, mapped, keys


def describe_checkpoint(
    path_or_state_dict: str | os.PathLike | Mapping[str, Any],
) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """
    Weights of a reference checkpoint, or of Prima's encoder of sequence names, under the names of this package's model, and
    what its shapes and family say about `vision_config` and `text_config`; raises as `convert_checkpoint` does.
    """
    state = read_state_dict(path_or_state_dict)
    if names.recognize(state) and not any(family.recognize(state) for family in _FAMILIES):
        mapped, keys = names.map_encoder(state)
        if keys.missing:
            raise ValueError(f"the encoder of sequence names lacks {', '.join(sorted(keys.missing))}.")
        weights = {name: tensor for name, tensor in mapped.items() if tensor is not None}
        return weights, {"vision_config": names.vision_facts(state)}
    family, state, mapped, _ = _map_checkpoint(state)
    return mapped, {"vision_config": family.vision_facts(state), "text_config": family.text_facts(state)}


def convert(
    path_or_state_dict: str | os.PathLike | Mapping[str, Any], domain: str, config: ItemizedCLIPConfig | None = None
) -> Conversion:
    """`convert_checkpoint` with what is known of the way; the same arguments and errors."""
    domain = load_domain(domain).name
    family, state, mapped, keys = _map_checkpoint(path_or_state_dict)
    from_file = isinstance(path_or_state_dict, (str, Path))
    complete = "item_pooler.out_proj.weight" in mapped
    with no_init_weights() if complete and from_file else nullcontext():
        model = ItemizedCLIPModel(_build_config(family, state, domain, config))
    own = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    fresh = [name for name in own if name.startswith(("item_pooler.", "logit_bias")) and name not in mapped]
    _compare_names(own, mapped, fresh, keys)
    _compare_shapes(own, mapped, keys)
    if fresh:
        model.config.scoring = "global"
        logger.warning(
            "the checkpoint has no item pooler (HLIP): studies are scored by their global embedding (scoring: global); pooler "
            "and bias hold initial values."
        )
    weights = {name: tensor.to(own[name].dtype) for name, tensor in mapped.items()}
    # Tensors of a file become the parameters; those of a caller are copied.
    model.load_state_dict(weights, strict=False, assign=from_file)
    _check_values(mapped, keys)
    return Conversion(model.eval(), family.__name__.rpartition(".")[2], state, keys.table, keys.dropped, fresh)


def _compare_names(own: dict, mapped: dict, fresh: list[str], keys: Keys) -> None:
    sources = keys.sources()
    missing = sorted(set(own) - set(mapped) - set(fresh))
    missing = [name.replace("text_model.", "text.transformer.", 1) for name in missing]
    strangers = sorted(sources.get(name, name) for name in set(mapped) - set(own))
    if missing or strangers:
        raise ValueError(
            f"the checkpoint does not fill the model: missing keys: {', '.join(missing) or 'none'}; left-over keys: "
            f"{', '.join(strangers) or 'none'}."
        )


def _compare_shapes(own: dict, mapped: dict, keys: Keys) -> None:
    sources = keys.sources()
    wrong = [
        f"{sources.get(name, name)} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)} for {name}"
        for name, tensor in mapped.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"tensors of another shape: {'; '.join(wrong)}.")


def _check_values(mapped: dict, keys: Keys) -> None:
    sources = keys.sources()
    # Extremes pass on NaN, and take no memory of their own.
    damaged = [name for name, tensor in mapped.items() if not torch.stack(torch.aminmax(tensor)).isfinite().all()]
    if damaged:
        raise ValueError(
            f"the weights are damaged: NaN or infinite values in {', '.join(sources.get(n, n) for n in damaged[:5])}."
        )


def convert_checkpoint(
    path_or_state_dict: str | os.PathLike | Mapping[str, Any], domain: str, config: ItemizedCLIPConfig | None = None
) -> ItemizedCLIPModel:
    """
    A model with the weights of a reference checkpoint: ItemizedCLIP's three layouts, HLIP's or FLAIR's.

    Args:
        path_or_state_dict: file (`.pt`, read with `weights_only=True`, or `.safetensors`), training dictionary or state dict.
        domain: `brain-mri`, `head-ct`, `chest-ct`, `remote-sensing` or `natural-images`.
        config: what shapes cannot tell (attention heads and scopes). Published checkpoints need none.

    Raises:
        ValueError: for an unknown layout, for keys that are missing or left over (named), for shapes that disagree, for values
            that are not finite.
    """
    return convert(path_or_state_dict, domain, config).model
