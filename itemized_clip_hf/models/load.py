"""A model and its processor, ready to use, from a folder or a name."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..bars import without_library_bars
from ..domains import DOMAIN_FILE, load_domain, restore_domain, shipped_domains
from ..modeling.configuration_itemized_clip import ItemizedCLIPConfig
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..specs import read_json
from .adapters import attach_adapters, find_base, merge_adapters
from .check_folder import check_finite, check_model_folder, check_processor_folder, check_shapes, explain
from .names import UNTRAINED, is_adapter_folder, require_model, say_origin, split_revision
from .tokenizer import load_tokenizer

__all__ = [
    "UNTRAINED",
    "architecture_of",
    "build_untrained",
    "load",
    "load_head",
    "load_model",
    "load_processor",
    "pick_device",
    "say_origin",
    "split_revision",
]


M = TypeVar("M", bound=PreTrainedModel)


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one. ValueError where torch finds no GPU to give."""
    if name != "auto":
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"the device {name} was asked for, but torch finds no GPU.")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def build_untrained(
    domain: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> tuple[ItemizedCLIPModel, ItemizedCLIPProcessor]:
    """Full-size model of a domain with random weights: its scores mean nothing, its shapes and costs do."""
    facts = load_domain(domain)
    processor = ItemizedCLIPProcessor.from_domain(domain, tokenizer=tokenizer)
    torch.manual_seed(seed)
    config = ItemizedCLIPConfig(domain=facts.name, **facts.architecture)
    if len(tokenizer) > config.text.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} entries, the text tower of {domain} {config.text.vocab_size}: "
            f"the domain uses {facts.text['tokenizer']}."
        )
    config.preprocessing = processor.preprocessing()
    return ItemizedCLIPModel(config), processor


def load_model(
    name: str,
    dtype: torch.dtype | str | None = "auto",
    base: str | os.PathLike | None = None,
    keep_adapters: bool = False,
    revision: str | None = None,
    head: type[PreTrainedModel] | None = None,
) -> Any:
    """The model alone, on the CPU; arguments as of `load` and `load_head`."""
    name, revision = split_revision(name, revision)
    require_model(name, revision)
    if is_adapter_folder(name):
        loaded = load_model(str(base) if base is not None else find_base(name), dtype)
        attach_adapters(loaded, name)
        return loaded if keep_adapters else merge_adapters(loaded)
    if Path(name).is_dir():
        check_model_folder(Path(name))
    config = explain(name, "config.json", AutoConfig.from_pretrained, name, revision=revision or "main")
    if config.model_type != ItemizedCLIPConfig.model_type:
        raise ValueError(
            f"{name} holds a model of type {config.model_type!r}, expected {ItemizedCLIPConfig.model_type!r}: this is not an "
            "ItemizedCLIP checkpoint."
        )
    require_architecture(name, config, head)
    if config.domain and config.domain not in shipped_domains():
        _restore_domain(name, revision)
    if Path(name).is_dir():
        check_shapes(Path(name), lambda: (head or ItemizedCLIPModel)(config))
    with without_library_bars():
        make = (head or AutoModel).from_pretrained
        model = explain(name, "weights", make, name, dtype=dtype, revision=revision or "main")
    check_finite(model, name)
    return model


def architecture_of(name: str | os.PathLike, revision: str | None = None) -> str:
    """
    Name of the class that a model was saved as; `ItemizedCLIPModel` where its config does not say, or cannot be read.

    Args:
        name, revision: as of `load`.
    """
    name, revision = split_revision(str(name), revision)
    stated: Any = None
    if Path(name).is_dir():
        with suppress(OSError, ValueError):  # told when the model is loaded
            stated = read_json(Path(name) / "config.json", dict).get("architectures")
    elif not name.startswith(UNTRAINED):
        config = explain(name, "config.json", AutoConfig.from_pretrained, name, revision=revision or "main")
        stated = config.architectures
    return str(stated[0]) if isinstance(stated, list) and stated else ItemizedCLIPModel.__name__


def require_architecture(name: str, config: Any, head: type[PreTrainedModel] | None) -> None:
    """
    Looks at what a model was saved as. The folder of a segmentation model holds the whole model that it was made from.

    Raises:
        ValueError: it has another head than is asked for, or none; or it is a classifier, whose text tower is missing.
    """
    stated = str((getattr(config, "architectures", None) or [ItemizedCLIPModel.__name__])[0])
    expected = (head or ItemizedCLIPModel).__name__
    if stated == expected or (head is None and stated != "ItemizedCLIPForImageClassification"):
        return
    cure = "pass the model that it was trained from" if head is None else "train one with `itemized-clip train --task`"
    raise ValueError(f"{name} holds an {stated}, expected an {expected}: {cure}.")


def load_head(
    model: str | os.PathLike,
    head: type[M],
    device: str = "auto",
    dtype: torch.dtype | str | None = "auto",
    revision: str | None = None,
) -> tuple[M, ItemizedCLIPProcessor]:
    """
    A trained head with its towers, and its processor.

    Args:
        model: folder or Hub name.
        head: its class, e.g. [`ItemizedCLIPForImageClassification`].
        device, dtype, revision: as of `load`.

    Raises:
        ValueError: the folder holds another head or none, or a file of it is damaged.
    """
    name, revision = split_revision(str(model), revision)
    loaded = load_model(name, dtype, revision=revision, head=head)
    processor = load_processor(name, revision)
    processor.check_model(loaded.config)
    return loaded.eval().to(pick_device(device)), processor


def _restore_domain(name: str, revision: str | None) -> None:
    """Makes a domain known that is not the package's and stands in the folder or repository of its model."""
    if Path(name).is_dir():
        restore_domain(name)
        return
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = cached_file(name, DOMAIN_FILE, revision=revision or "main", **optional)
    if path is not None:
        restore_domain(Path(path).parent)


def load_processor(name: str, revision: str | None = None) -> ItemizedCLIPProcessor:
    """The processor of a folder or name."""
    if Path(name).is_dir():
        check_processor_folder(Path(name))
    settings = {"revision": revision or "main"}
    processor = explain(name, "processor or tokenizer", AutoProcessor.from_pretrained, name, **settings)
    if not isinstance(processor, ItemizedCLIPProcessor):
        raise ValueError(f"{name}: its processor is a {type(processor).__name__}, expected an ItemizedCLIPProcessor.")
    return processor


def load(
    model: str | os.PathLike,
    device: str = "auto",
    tokenizer: str | os.PathLike | None = None,
    dtype: torch.dtype | str | None = "auto",
    base: str | os.PathLike | None = None,
    keep_adapters: bool = False,
    revision: str | None = None,
) -> tuple[ItemizedCLIPModel, ItemizedCLIPProcessor]:
    """
    Args:
        model: folder, Hub name (`org/name`, or `org/name@revision`), folder of adapters, or `untrained:DOMAIN` (needs a
            tokenizer).
        device: as torch names it, or `auto`.
        tokenizer: takes the place of the one in the folder.
        base: the model that adapters belong to, where it is no longer in the place that they name.
        keep_adapters: keep adapters apart instead of merging them with the weights.
        revision: branch, tag or commit of a model of the Hub.

    Raises:
        ValueError: the folder holds a model of another architecture, is to have a revision, or a file of it is damaged (file,
            field, expected).
    """
    name, revision = split_revision(str(model), revision)
    if name.startswith(UNTRAINED):
        domain = name.removeprefix(UNTRAINED)
        context = load_domain(domain).text["context_length"]
        if tokenizer is None:
            raise ValueError(
                f"an untrained model needs a tokenizer: pass --tokenizer ({load_domain(domain).text['tokenizer']})."
            )
        loaded, processor = build_untrained(domain, load_tokenizer(tokenizer, context))
        return loaded.eval().to(pick_device(device)), processor
    loaded = load_model(name, dtype, base, keep_adapters, revision)
    processor = load_processor(name, revision)
    if tokenizer is not None:
        processor.tokenizer = load_tokenizer(tokenizer, processor.tokenizer.model_max_length)
    if tokenizer is not None or is_adapter_folder(name):
        processor.check_model(loaded.config)
    largest, known = max(processor.tokenizer.get_vocab().values(), default=-1), loaded.config.text.vocab_size
    if largest >= known:
        raise ValueError(
            f"{name}: its tokenizer has the id {largest}, its text tower {known} entries: they do not belong together."
        )
    return loaded.eval().to(pick_device(device)), processor
