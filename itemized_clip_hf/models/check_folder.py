"""Model folders looked at before the libraries read them: what is damaged is named, with file, field and what was expected."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..specs import MAX_BYTES, conform, describe, read_json

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
MOST_WEIGHT = 1e10
"""Weights beyond it are damaged: one flipped bit makes them, and scores that are no numbers."""
LEAST_TOKENS = 3
_TOKENIZER_BYTES = 256 << 20
_JSON_FILES = {
    "processor_config.json": MAX_BYTES,
    "preprocessor_config.json": MAX_BYTES,
    "tokenizer_config.json": _TOKENIZER_BYTES,
    "special_tokens_map.json": _TOKENIZER_BYTES,
    "added_tokens.json": _TOKENIZER_BYTES,
    "vocab.json": _TOKENIZER_BYTES,
    "tokenizer.json": _TOKENIZER_BYTES,
}


def check_model_folder(folder: Path) -> None:
    """
    Config, index and weights of a folder.

    Raises:
        ValueError: one is damaged, or says what no model can be made of.
    """
    content = read_json(folder / "config.json", dict)
    for part in ("vision_config", "text_config"):
        if not isinstance(content.get(part, {}), dict):
            raise ValueError(
                f"{folder / 'config.json'}: {part} is {describe(content[part])}, expected names with values."
            )
    for file in weight_files(folder):
        tensor_shapes(file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a folder's weights are in; none where it has weights of another kind."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.exists():
        return []
    places = read_json(index, dict, 64 << 20).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: weight_map is {describe(places)}, expected the name of a file for every tensor.")
    conform(places, dict[str, str], f"{index}: weight_map")
    files = sorted(set(places.values()))
    for name in files:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{index}: there is no file {name!r:.80} in the folder, where weight_map places tensors.")
    return [folder / name for name in files]


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a safetensors file holds."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{file} cannot be read: it is truncated, damaged or no safetensors file ({_reason(error)})."
        ) from None


def check_shapes(folder: Path, build: Callable[[], torch.nn.Module]) -> None:
    """
    Compares the weights of a folder with those of its model, before memory is taken for either.

    Args:
        build: makes the model of the folder's config.
    """
    found = {name: shape for file in weight_files(folder) for name, shape in tensor_shapes(file).items()}
    if not found:
        return
    with torch.device("meta"):
        model = build()
    parameters = dict(model.named_parameters())
    wrong = [name for name, p in parameters.items() if name in found and found[name] != tuple(p.shape)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder}: {len(wrong)} tensors have another shape than config.json says, e.g. {name} {list(found[name])} "
            f"instead of {list(parameters[name].shape)}."
        )
    missing = [name for name in parameters if name not in found]
    if missing and not any(re.search(r"\.(lora_|quant)", name) for name in found):
        raise ValueError(f"{folder}: {len(missing)} of {len(parameters)} weights are missing, e.g. {missing[:3]}.")


def check_processor_folder(folder: Path) -> None:
    """JSON files of processor and tokenizer: objects in UTF-8, none nested without end, ids that a vocabulary can have."""
    for name, most in _JSON_FILES.items():
        if (folder / name).exists():
            content = read_json(folder / name, dict, most)
            if name == "tokenizer.json":
                model = content.get("model")
                vocabulary = model.get("vocab") if isinstance(model, dict) else None
                if isinstance(vocabulary, dict):
                    _check_ids(vocabulary, f"{folder / name}: model.vocab")
            elif name == "tokenizer_config.json":
                longest = content.get("model_max_length", LEAST_TOKENS)
                conform(longest, int, f"{folder / name}: model_max_length", huge=True)
                if longest < LEAST_TOKENS:
                    raise ValueError(
                        f"{folder / name}: model_max_length is {longest}, expected at least {LEAST_TOKENS}."
                    )
            elif name in ("vocab.json", "added_tokens.json"):
                _check_ids(content, str(folder / name))


def _check_ids(vocabulary: dict[str, Any], where: str) -> None:
    for token, number in vocabulary.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 26:
            raise ValueError(f"{where}: the id of {token[:40]!r} is {describe(number)}, expected a small whole number.")


def check_finite(module: torch.nn.Module, where: str) -> None:
    """Raises where a weight is no finite number."""
    damaged = [
        name
        for name, value in module.named_parameters()
        if not value.is_meta and not value.detach().abs().max() < MOST_WEIGHT
    ]
    if damaged:
        raise ValueError(
            f"{where}: {len(damaged)} weights hold values that are not finite or beyond {MOST_WEIGHT:g}, e.g. {damaged[:3]}."
        )


def explain(where: str, what: str, call: Callable, *arguments, **settings) -> Any:
    """
    Result of a library's function; whatever it raises over a damaged file becomes a ValueError of one line.

    What is missing or cannot be reached (OSError), and what is not installed, is said by the library itself.
    """
    try:
        return call(*arguments, **settings)
    except (OSError, ImportError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # tokenizers' panics are no Exceptions
        raise ValueError(f"{where}: its {what} cannot be read ({_reason(error)}).") from None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error.__cause__ or error).split())
    return (text[:200] or "damaged").rstrip(".")
