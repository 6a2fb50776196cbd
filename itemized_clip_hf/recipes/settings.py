"""Changes to a recipe from the command line: `--set model.hidden_size=64`, `--set max_steps=100`."""

import ast
import functools
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..processing.settings_itemized_clip import RENAMED_SETTINGS, rename_settings
from ..specs import check_keys, merge
from . import Recipe, without_foreign_weights

CONFIGS = "itemized_clip_hf.modeling.configuration_itemized_clip"
OWN_KEYS = ("global_batch_size", "cache_pictures")
TEXT_CONFIGS = {
    "bert": ("transformers.models.bert.configuration_bert", "BertConfig"),
    "clip_text_model": ("transformers.models.clip.configuration_clip", "CLIPTextConfig"),
}


def apply_settings(recipe: Recipe, settings: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """
    A recipe with changes, and the training arguments among them.

    Args:
        settings: dotted names -> values. `model.NAME` is an argument of the model's config, or else of its vision tower's
            (`model.hidden_size` is `model.vision_config.hidden_size`); `text.NAME` of the text tower's; `image.NAME` of the
            image processor; `tokenizer.NAME` of the tokenizer that is learned; `global_batch_size` and `cache_pictures` are
            the recipe's own. All others, with or without `training.`, are training arguments.

    Raises:
        ValueError: a name is not known; the nearest known one is named. Values are checked with the recipe.
    """
    changes: dict[str, Any] = {}
    for name, value in sorted(settings.items(), key=lambda entry: entry[0] != "text.model_type"):
        path = _place(name, merge_changes(recipe, changes))
        changes = merge(changes, functools.reduce(lambda inner, key: {key: inner}, reversed(path), value))
    training = changes.pop("training", {})
    kept = without_foreign_weights(recipe.training, training)
    merged = {key: merge(kept.get(key) or {}, value) for key, value in training.items() if _is_dotted(key, settings)}
    return merge_changes(recipe, changes), {**training, **merged}


def shapes(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Settings of the model, its preprocessing and its tokenizer, which a model that exists has settled, and their places."""
    places = {name: _place(name, recipe) for name in settings}
    return {name: place for name, place in places.items() if place[0] in ("model", "image", "tokenizer")}


def refuse_shapes(recipe: Recipe, settings: Mapping[str, Any]) -> None:
    """Raises a ValueError where settings are those of a new model, which a model to start from has already."""
    shaping = sorted(shapes(recipe, settings))
    if shaping:
        raise ValueError(
            f"--set {shaping[0]} shapes a new model, but --model names one that has its own: leave out one."
        )


def require_shapes(recipe: Recipe, settings: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises a ValueError where a run to go on with was begun with another model or preprocessing."""
    files = {"model": ("config.json",), "image": ("processor_config.json", "image_processor")}
    for name, (section, *keys) in shapes(recipe, settings).items():
        if section not in files:
            continue
        file, *inside = files[section]
        path = checkpoint / file
        found: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        for key in (*inside, *keys):
            found = rename_settings(found).get(key) if isinstance(found, dict) else None
        if found is not None and found != settings[name]:
            raise ValueError(
                f"--set {name}={settings[name]}: {checkpoint} was begun with {found}; go on with that, or choose another "
                "output."
            )


def merge_changes(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A recipe with changes laid out as its sections; training arguments are left aside."""
    parts = {key: value for key, value in changes.items() if key != "training"}
    return replace(recipe, **{key: _merged(getattr(recipe, key), value) for key, value in parts.items()})


def _merged(before: Any, value: Any) -> Any:
    return merge(before or {}, value) if isinstance(value, dict) else value


def _is_dotted(key: str, settings: Mapping[str, Any]) -> bool:
    return any(name.removeprefix("training.").startswith(f"{key}.") for name in settings)


def _place(name: str, recipe: Recipe) -> list[str]:
    """Where a setting stands in a recipe."""
    section, dot, rest = name.partition(".")
    keys = rest.split(".")
    if not dot and section in OWN_KEYS:
        return [section]
    if dot and section == "model":
        return _place_of_model(name, keys, recipe)
    if dot and section == "text":
        _check(keys[0], text_names(recipe), name, "text.")
        return ["model", "text_config", *keys]
    if dot and section == "image":
        keys = [RENAMED_SETTINGS.get(keys[0], keys[0]), *keys[1:]]
        _check(keys[0], image_names(), name, "image.")
        return ["image", *keys]
    if dot and section == "tokenizer":
        _check(keys[0], {"vocab_size", "context_length"}, name, "tokenizer.")
        return ["tokenizer", *keys]
    keys = keys if dot and section == "training" else name.split(".")
    names = training_names()
    known = None if names is None else {*names, *OWN_KEYS, "model.", "text.", "image.", "tokenizer."}
    _check(keys[0], known, name, "training.")
    return ["training", *keys]


def _place_of_model(name: str, keys: list[str], recipe: Recipe) -> list[str]:
    own, vision = model_names(), vision_names()
    if own is None or vision is None or keys[0] in own:
        if len(keys) > 1 and keys[0] == "vision_config":
            _check(keys[1], vision, name, "model.vision_config.")
        if len(keys) > 1 and keys[0] == "text_config":
            _check(keys[1], text_names(recipe), name, "model.text_config.")
        return ["model", *keys]
    _check(keys[0], own | vision, name, "model.")
    return ["model", "vision_config", *keys]


def _check(key: str, known: set[str] | None, name: str, prefix: str) -> None:
    if known is not None:
        check_keys([key], known, f"--set {name}", f"behind {prefix} stand")


def training_names() -> set[str] | None:
    """Training arguments."""
    return _names_of(
        ("transformers.training_args", "TrainingArguments"),
        ("itemized_clip_hf.trainer.training_args", "ItemizedCLIPTrainingArguments"),
    )


def model_names() -> set[str] | None:
    """Arguments of `ItemizedCLIPConfig`."""
    return _names_of((CONFIGS, "ItemizedCLIPConfig"), ("transformers.configuration_utils", "PreTrainedConfig"))


def vision_names() -> set[str] | None:
    """Arguments of `ItemizedCLIPVisionConfig`."""
    return _names_of((CONFIGS, "ItemizedCLIPVisionConfig"))


def text_names(recipe: Recipe) -> set[str] | None:
    """None for a text tower of a kind that is not listed here."""
    source = TEXT_CONFIGS.get(recipe.architecture()["text_config"].get("model_type", "clip_text_model"))
    names = None if source is None else _names_of(source)
    return names if names is None else names | {"model_type"}


def image_names() -> set[str] | None:
    """Settings of the image processor."""
    return _names_of(
        ("itemized_clip_hf.processing.image_processing_itemized_clip", "ItemizedCLIPImageProcessorKwargs"),
        ("transformers.processing_utils", "ImagesKwargs"),
    )


def _names_of(*classes: tuple[str, str]) -> set[str] | None:
    names: set[str] = set()
    for module, kind in classes:
        of_class = names_in_source(module, kind)
        if of_class is None:
            return None
        names |= of_class
    return names


@functools.cache
def names_in_source(module: str, kind: str) -> frozenset[str] | None:
    """
    Fields of a dataclass or typed dictionary as its source declares them: importing the module takes ten seconds.

    Returns:
        None where the source cannot be found, or has no such class: whoever needs to know asks the class itself.
    """
    package, *parts = module.split(".")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, *parts).with_suffix(".py")
        if path.is_file():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            body = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind), [])
            declared = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
            fields = [node for node in declared if "ClassVar" not in ast.unparse(node.annotation)]
            return frozenset(ast.unparse(node.target) for node in fields) or None
    return None
