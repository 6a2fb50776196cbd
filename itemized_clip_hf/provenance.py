"""What a result rests on, so that it can be told apart and repeated: hashes of texts, files, models, processors; versions."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from .processing.processing_itemized_clip import ItemizedCLIPProcessor

NOT_HASHED = ("_name_or_path", "transformers_version", "architectures", "auto_map", "dtype")
"""Settings of a model that say where it lies and what wrote it, not what it computes."""


def hash_text(text: str) -> str:
    """
    SHA-256 of a text in UTF-8.

    >>> hash_text("No acute findings.")[:16]
    '9c4b690d5d5d68ed'
    """
    return hashlib.sha256(text.encode()).hexdigest()


def hash_json(value: Any, sort_keys: bool = False) -> str:
    """
    SHA-256 of a value as JSON.

    >>> hash_json({"b": 1, "a": 2}, sort_keys=True) == hash_json({"a": 2, "b": 1})
    True
    """
    return hash_text(json.dumps(value, sort_keys=sort_keys))


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, read a megabyte at a time."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_model(model: PreTrainedModel, model_sha256: str, processor_sha256: str) -> dict[str, Any]:
    """Model and processor as results name them, by what `hash_model` and `hash_processor` gave."""
    config = model.config
    return {
        "model": {"name": str(config.name_or_path or ""), "domain": config.domain, "sha256": model_sha256},
        "processor": {"sha256": processor_sha256},
    }


def describe_for_others(model: PreTrainedModel, model_sha256: str, processor_sha256: str) -> dict[str, Any]:
    """`describe_model` for what is sent to others: of a folder its own name alone, since those above may name people."""
    described = describe_model(model, model_sha256, processor_sha256)
    name = described["model"]["name"]
    if Path(name).exists():
        described["model"]["name"] = Path(name).resolve().name
    return described


def hash_model(model: PreTrainedModel) -> str:
    """SHA-256 of the configuration without `NOT_HASHED`, and of names, shapes and values of all weights."""
    import torch

    digest = hashlib.sha256()
    if hasattr(model.config, "to_json_string"):
        settings = json.loads(model.config.to_json_string())
        hashed = {name: value for name, value in settings.items() if name not in NOT_HASHED}
        digest.update(json.dumps(hashed, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_processor(processor: ItemizedCLIPProcessor) -> str:
    """SHA-256 of the preprocessing's settings, the whole tokenizer, its longest text, and what is done to texts before it."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary: Any = sorted(tokenizer.get_vocab().items())
    if backend is not None:  # padding and truncation are what its last call asked for
        parts = json.loads(backend.to_str())
        vocabulary = {name: part for name, part in parts.items() if name not in ("padding", "truncation")}
    texts = [getattr(processor, "lowercase", None), getattr(tokenizer, "model_max_length", None)]
    return hash_json([processor.image_processor.to_json_string(), vocabulary, texts])


def installed_versions(
    packages: Sequence[str] = ("python", "torch", "transformers", "numpy", "scikit-learn"),
) -> dict[str, str | None]:
    """Package -> version, of this package and the given ones (`python` is the interpreter); None where one is not installed."""
    versions: dict[str, str | None] = {"itemized-clip-hf": __version__}
    for package in packages:
        try:
            versions[package] = platform.python_version() if package == "python" else version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def device_name(device: torch.device) -> str:
    """The GPU's own name, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
