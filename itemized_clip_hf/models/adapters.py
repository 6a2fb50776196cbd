"""
Low-rank adapters (LoRA, Hu et al. 2021) on the towers, through `peft`.

A folder of adapters has peft's layout, `adapter_config.json` and `adapter_model.safetensors`. Besides the adapters it holds all
parameters outside the towers and whatever else was trained: with the base model it is the whole of the trained one.
"""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..modeling.configuration_itemized_clip import SCORINGS
from ..specs import conform, describe, read_json
from .check_folder import explain, tensor_shapes
from .names import ADAPTER_CONFIG

WEIGHTS_FILE = "adapter_model.safetensors"
PRESETS = {"vision": ("vision_model",), "text": ("text_model",), "both": ("vision_model", "text_model")}
TRAINABLE = ("item_pooler", "visual_projection", "text_projection", "logit_scale", "logit_bias")

_ADAPTER_KINDS = {
    "r": int,
    "lora_alpha": float,
    "lora_dropout": float,
    "target_modules": str | list[str] | None,
    "base_model_name_or_path": str | None,
    "inference_mode": bool,
    "megatron_config": type(None),
    "fan_in_fan_out": bool,
    "modules_to_save": list[str] | None,
    "rank_pattern": dict[str, int] | None,
    "alpha_pattern": dict[str, float] | None,
}
_NAME = "default"
_PREFIX = "base_model.model."
_TOWERS = ("vision_model.", "text_model.")


@dataclass
class LoraSettings:
    """
    Args:
        preset: `"vision"`, `"text"` or `"both"`: adapters on the attention and MLP projections of these towers.
        rank, alpha, dropout: of the adapters, which add alpha / rank * B A to a projection.
        targets: names (ends of them, or one regular expression) of the linear layers that get adapters instead of the preset's.
        trainable: regular expressions; parameters whose name starts with one are trained whole. All others are frozen.
    """

    preset: str = "both"
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: str | list[str] | None = None
    trainable: list[str] = field(default_factory=lambda: list(TRAINABLE))

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"the LoRA preset is {self.preset!r}, expected one of {sorted(PRESETS)}.")

    @classmethod
    def read(cls, argument: "dict | str | LoraSettings") -> "LoraSettings":
        """From a preset's name or a dictionary of the arguments."""
        if isinstance(argument, cls):
            return argument
        settings: dict[str, Any] = {"preset": argument} if isinstance(argument, str) else dict(cast(dict, argument))
        unknown = sorted(set(settings) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"LoRA takes no {unknown}; it takes {list(cls.__dataclass_fields__)}.")
        return cls(**settings)


def require_peft() -> ModuleType:
    """`peft`; ImportError with the cure where it is not installed."""
    try:
        import peft
    except ImportError:
        raise ImportError("LoRA needs peft: pip install 'itemized-clip-hf[lora]'.") from None
    return peft


def find_targets(model: nn.Module, towers: tuple[str, ...]) -> str:
    """A regular expression for the linear layers of the towers, apart from those of their embeddings."""
    patterns: dict[str, None] = {}
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Linear)
            and name.startswith(tuple(f"{t}." for t in towers))
            and "embeddings" not in name
        ):
            patterns[re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name))] = None
    return "|".join(patterns)


def has_adapters(model: Any) -> bool:
    """Whether adapters of this package were injected into the model."""
    return _NAME in getattr(model, "peft_config", {})


def add_lora(model: Any, settings: "LoraSettings | dict | str") -> None:
    """Puts adapters, which change nothing yet, on the model in place, and freezes what is not to be trained."""
    peft, settings = require_peft(), LoraSettings.read(settings)
    if has_adapters(model):
        raise ValueError("the model has adapters already: merge them (merge_adapters), or train it without `lora`.")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets or find_targets(model, PRESETS[settings.preset]),
        base_model_name_or_path=getattr(getattr(model, "config", None), "name_or_path", None) or None,
    )
    peft.inject_adapter_in_model(config, model, _NAME)
    for expression in settings.trainable:
        matching = [p for name, p in model.named_parameters() if re.match(expression, name)]
        if not matching:
            raise ValueError(
                f"no parameter has a name that starts with {expression!r}, which LoRA was to train as well."
            )
        for parameter in matching:
            parameter.requires_grad = True


def adapter_state_dict(model: Any, state_dict: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """All that differs from the base model, under peft's names."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = {}
    for name, tensor in (model.state_dict() if state_dict is None else state_dict).items():
        if ".lora_" in name or name in trained or not name.startswith(_TOWERS):
            kept[_PREFIX + name.replace(f".{_NAME}.", ".")] = tensor.detach().contiguous()
    return kept


def save_adapters(model: Any, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Writes the adapters and all that was trained beside them, with the name of the base model."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = copy.copy(model.peft_config[_NAME])
    config.inference_mode = True
    base = model.config.name_or_path or None
    config.base_model_name_or_path = str(Path(base).resolve()) if base and Path(base).is_dir() else base
    config.save_pretrained(str(folder))
    metadata = {"format": "pt", "scoring": model.config.scoring}
    save_file(adapter_state_dict(model, state_dict), Path(folder) / WEIGHTS_FILE, metadata=metadata)


def load_adapter_weights(model: Any, folder: str | Path) -> None:
    """
    Weights of a folder, and how its model is scored, into a model that has adapters; parameters of an objective are passed over
    where it has none.
    """
    state = model.state_dict()
    present = {_PREFIX + name.replace(f".{_NAME}.", "."): name for name in state}
    if not (Path(folder) / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS_FILE} in {folder}.")
    tensor_shapes(Path(folder) / WEIGHTS_FILE)
    weights = load_file(Path(folder) / WEIGHTS_FILE)
    with safe_open(Path(folder) / WEIGHTS_FILE, "pt") as file:
        scoring = (file.metadata() or {}).get("scoring", model.config.scoring)
    if scoring not in SCORINGS:
        raise ValueError(f"{folder}: {WEIGHTS_FILE} says scoring {scoring[:40]!r}, expected one of {list(SCORINGS)}.")
    damaged = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if damaged:
        raise ValueError(
            f"{folder}: {len(damaged)} of its weights hold values that are not finite, e.g. {damaged[:3]}."
        )
    model.config.scoring = scoring
    strangers = [k for k in weights if k not in present and not k.startswith(f"{_PREFIX}objective_module.")]
    missing = [name for name in present if ".lora_" in name and name not in weights]
    wrong = [k for k in weights if k in present and weights[k].shape != state[present[k]].shape]
    if strangers or missing or wrong:
        raise ValueError(
            f"the adapters in {folder} do not fit this model: left over {strangers[:5]}, missing {missing[:5]}, of another "
            f"shape {wrong[:5]}."
        )
    model.load_state_dict({present[name]: tensor for name, tensor in weights.items() if name in present}, strict=False)


def read_adapter_config(folder: str | Path) -> Any:
    """
    Peft's configuration of a folder of adapters.

    Raises:
        ValueError: it is damaged, of another kind than LoRA, or has settings that no adapters can have.
    """
    path = Path(folder) / ADAPTER_CONFIG
    content = read_json(path, dict)
    if content.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {describe(content.get('peft_type'))}, expected 'LORA'.")
    for name, kind in _ADAPTER_KINDS.items():
        if name in content:
            conform(content[name], kind, f"{path}: {name}")
    if not 1 <= content.get("r", 8) <= 4096 or not 0 <= content.get("lora_dropout", 0) < 1:
        raise ValueError(
            f"{path}: r is {content.get('r')} and lora_dropout {content.get('lora_dropout')}, expected 1 to 4096 and a share."
        )
    return explain(str(folder), ADAPTER_CONFIG, require_peft().PeftConfig.from_pretrained, str(folder))


def attach_adapters(model: Any, folder: str | Path) -> None:
    """Adapters of a folder, and what else was trained with them, on its base model, in place."""
    peft = require_peft()
    config = read_adapter_config(folder)
    explain(str(folder), ADAPTER_CONFIG, peft.inject_adapter_in_model, config, model, _NAME)
    load_adapter_weights(model, folder)


def merge_adapters(model: Any) -> Any:
    """The model with the adapters added to its weights, in place: an ordinary one that `save_pretrained` writes as such."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)
    model.config.name_or_path = ""  # no longer the weights of that folder
    return model


def find_base(folder: str | Path) -> str:
    """The base model of adapters: where it was when they were saved, or `base` beside them or above."""
    folder = Path(folder)
    recorded = read_adapter_config(folder).base_model_name_or_path
    nearby = [folder / "base", folder.parent / "base"]
    if recorded is not None and not Path(recorded).is_absolute():
        nearby = [*nearby, folder / recorded]
    for path in ([] if recorded is None else [Path(recorded)]) + nearby:
        if (path / "config.json").exists():
            return str(path)
    if recorded is None or Path(recorded).is_absolute():
        raise FileNotFoundError(
            f"the base model of the adapters in {folder} is not at {recorded}: pass it as `base`, or put it into {nearby[0]}."
        )
    return recorded
