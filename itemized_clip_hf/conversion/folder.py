"""A checkpoint of the reference code -> a folder that the Auto classes load anywhere, with a report of the way."""

import json
import os
import tempfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..bars import without_library_bars
from ..data.files import refuse_to_replace
from ..domains import DOMAIN_FILE, Domain, load_domain
from ..modeling.configuration_itemized_clip import ItemizedCLIPConfig
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.tokenizer import load_tokenizer
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..provenance import hash_file, installed_versions
from . import Conversion, convert
from .parity import compare
from .vocabulary import check_vocabulary, required_file

REPORT, DOMAIN = "conversion_report.json", DOMAIN_FILE
MAPPING_VERSION = 1
"""Changes whenever a key of a source comes to mean something else in the model."""


def convert_folder(
    checkpoint: str | os.PathLike,
    domain: str,
    output: str | os.PathLike,
    tokenizer: str | os.PathLike | PreTrainedTokenizerBase | None = None,
    config: ItemizedCLIPConfig | None = None,
    accept: Collection[str] = (),
    overwrite: bool = False,
) -> dict:
    """
    Writes weights (safetensors), configs, code, tokenizer, facts of the domain and the conversion report.

    Args:
        checkpoint: file of the authors' training code, read as `read_checkpoint` does.
        domain: whose preprocessing, prompts and architecture belong to it.
        tokenizer: as `load_tokenizer` takes it, or the tokenizer itself; only its vocabulary file is not in the checkpoint.
        config: what shapes cannot tell, for other than the published sizes.
        accept: `other-vocabulary`, see `check_vocabulary`.
        overwrite: replace what `output` holds.

    Returns:
        The report.

    Raises:
        ValueError: as `convert_checkpoint`, for a tokenizer that does not belong to it, for a model that does not give the
            source's numbers. Nothing is written then.
    """
    checkpoint, output = Path(checkpoint), Path(output).resolve()
    facts = load_domain(domain)
    domain = facts.name
    if tokenizer is None:
        raise ValueError(
            f"a checkpoint holds no vocabulary: pass --tokenizer with {required_file(domain)} ({facts.text['tokenizer']})."
        )
    refuse_to_replace(output, overwrite)
    conversion = convert(checkpoint, domain, config)
    model = conversion.model
    text = model.config.text
    context = min(facts.text["context_length"], text.max_position_embeddings)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = load_tokenizer(tokenizer, context)
    vocabulary = check_vocabulary(tokenizer, domain, text.vocab_size, accept)
    processor = _make_processor(model, facts, tokenizer)
    processor.tokenizer.model_max_length = context
    model.config.preprocessing = processor.preprocessing()
    parity = compare(conversion)
    if not parity["clean"]:
        raise ValueError(
            f"the converted model does not give the numbers of the source: {parity}. This is an error of the converter: please "
            "report it, with the list of the checkpoint's keys and shapes."
        )
    report = _describe_conversion(checkpoint, domain, conversion, parity, vocabulary)
    write_folder(output, model, processor, {REPORT: report, DOMAIN: asdict(facts)})
    return report


def _make_processor(
    model: ItemizedCLIPModel, facts: Domain, tokenizer: PreTrainedTokenizerBase
) -> ItemizedCLIPProcessor:
    """The domain's processor, for scans of the size that the model takes."""
    scan_size = list(model.config.vision.image_shape)
    settings: dict[str, Any] = {} if scan_size == list(facts.image["scan_size"]) else {"scan_size": scan_size}
    if "in_plane_size" in facts.image:
        settings["in_plane_size"] = max(facts.image["in_plane_size"], *scan_size[1:])
    return ItemizedCLIPProcessor.from_domain(facts.name, tokenizer=tokenizer, **settings)


def _describe_conversion(
    checkpoint: Path, domain: str, conversion: Conversion, parity: dict[str, Any], vocabulary: dict[str, Any]
) -> dict[str, Any]:
    """The conversion report."""
    config = conversion.model.config
    return {
        "source": {"file": checkpoint.name, "bytes": checkpoint.stat().st_size, "sha256": hash_file(checkpoint)},
        "family": conversion.family,
        "domain": domain,
        "mapping_version": MAPPING_VERSION,
        "parity": parity,
        "taken_from_domain_or_config": {  # no shape tells them: both sides of the comparison use them
            "num_attention_heads": config.vision.num_attention_heads,
            "attention_scopes": list(config.vision.layer_scopes),
            "text_num_attention_heads": config.text.num_attention_heads,
            "num_pooler_heads": config.num_pooler_heads,
        },
        "tensors": len(conversion.state),
        "values": sum(tensor.numel() for tensor in conversion.state.values()),
        "keys": conversion.table,
        "replaced": conversion.dropped,
        "initial_values": conversion.fresh,
        "vocabulary": vocabulary,
        "preprocessing": config.preprocessing,
        "scoring": config.scoring,
        "versions": installed_versions(("torch", "transformers")),
    }


def write_folder(
    output: Path, model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, documents: dict[str, dict]
) -> None:
    """All of a model folder or nothing: it is put together beside its place; what was there goes when it is complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as place:
        folder = Path(place) / "folder"
        with without_library_bars():
            model.save_pretrained(folder)
        processor.save_pretrained(folder)
        for name, content in documents.items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n")
        output.mkdir(exist_ok=True)
        (Path(place) / "before").mkdir()
        for entry in list(output.iterdir()):
            entry.rename(Path(place) / "before" / entry.name)
        for entry in list(folder.iterdir()):
            entry.rename(output / entry.name)


def put_names(
    checkpoint: str | os.PathLike, model_folder: str | os.PathLike, output: str | os.PathLike, overwrite: bool = False
) -> dict:
    """
    A model with the encoder of sequence names from a Prima checkpoint instead of its own, which ItemizedCLIP was started from.

    Args:
        model_folder: a model that has such an encoder.

    Returns:
        Report: the names that were taken, and how many others the checkpoint holds.
    """
    from ..models.load import load
    from . import names
    from .checkpoint import read_state_dict

    output = Path(output).resolve()
    refuse_to_replace(output, overwrite)
    state = read_state_dict(checkpoint)
    if not names.recognize(state):
        raise ValueError(
            f"{Path(checkpoint).name} holds no encoder of sequence names; its keys start with {sorted(state)[:3]}."
        )
    mapped, keys = names.map_encoder(state)
    if keys.missing:
        raise ValueError(f"the encoder of sequence names lacks {', '.join(sorted(keys.missing))}.")
    model, processor = load(model_folder, "cpu")
    own = model.state_dict()
    if not model.config.vision.use_scan_name_encoder:
        raise ValueError(f"{model_folder} has no encoder of sequence names (use_scan_name_encoder is off).")
    weights = {name: tensor for name, tensor in mapped.items() if tensor is not None}
    wrong = [name for name, tensor in weights.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise ValueError(f"tensors of another shape than the model's: {', '.join(wrong)}.")
    model.load_state_dict(weights, strict=False)
    source = Path(checkpoint)
    report = {
        "source": {"file": source.name, "bytes": source.stat().st_size, "sha256": hash_file(source)},
        "family": "names",
        "mapping_version": MAPPING_VERSION,
        "keys": keys.table,
        "not_used": len(keys.left),
    }
    base = Path(model_folder)
    kept = {name: json.loads((base / name).read_text()) for name in (REPORT, DOMAIN) if (base / name).exists()}
    write_folder(output, model, processor, {**kept, "names_report.json": report})
    return report
