"""Studies and items -> everything that the model takes."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import logging

from .image_processing_itemized_clip import ItemizedCLIPImageProcessor
from .settings_itemized_clip import PREPROCESSING_FIELDS

logger = logging.get_logger(__name__)

PLACEHOLDER = "placeholder"


class ItemizedCLIPProcessorKwargs(ProcessingKwargs, total=False):
    """Arguments of a call, by part: those of the image processor and of the tokenizer."""


if not hasattr(ItemizedCLIPProcessorKwargs, "_defaults") and hasattr(ProcessingKwargs, "_defaults"):
    ItemizedCLIPProcessorKwargs._defaults = {}  # type: ignore[attr-defined]  # older versions of the library look for it


def list_vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Entries in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _as_saved(value: Any) -> Any:
    """The same however it was given: 1 or 1.0, list or tuple."""
    if isinstance(value, Mapping):
        return {name: _as_saved(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_saved(entry) for entry in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def hash_settings(settings: Mapping[str, Any]) -> str:
    """Of settings as they are saved: the same for the same preprocessing."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def hash_image_settings(image_processor: ItemizedCLIPImageProcessor) -> str:
    """Of the settings that decide which numbers the model gets of a scan; the `image` of `preprocessing`."""
    return hash_settings({name: _as_saved(getattr(image_processor, name, None)) for name in PREPROCESSING_FIELDS})


def warn_of_differences(made_for: Mapping[str, Any] | None, processor: Mapping[str, str], model: str) -> None:
    """
    Warns where the preprocessing that a model was made with is not that of a processor; both from `preprocessing`, of the
    processor the parts that are used.
    """
    parts = {"image": "image settings", "text": "vocabulary or case"}
    for part, what in parts.items():
        if made_for and part in processor and made_for.get(part) != processor[part]:
            logger.warning(
                f"{what} of this processor ({processor[part]}) are not those that {model} was made with ({made_for[part]}): "
                "its scores are not to be relied on. Load the processor that was saved with the model."
            )


class ItemizedCLIPProcessor(ProcessorMixin):
    """
    Image processor and tokenizer of one domain.

    Args:
        image_processor ([`ItemizedCLIPImageProcessor`]).
        tokenizer: any tokenizer of the library; must be that of the model's text tower.
        lowercase (`bool`): lower-case items first (chest CT and 2-D domains).
    """

    valid_processor_kwargs = ItemizedCLIPProcessorKwargs
    text_kwargs = {"padding": True, "truncation": True}
    presets: ClassVar[Mapping[str, dict[str, Any]]] = {}

    def __init__(
        self,
        image_processor: ItemizedCLIPImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        lowercase: bool = False,
        **kwargs: Any,
    ) -> None:
        self.lowercase = lowercase
        super().__init__(image_processor, tokenizer, **kwargs)  # type: ignore[no-untyped-call]  # the library's

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As the library's; warns where the model of the same folder was made for other preprocessing."""
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        where = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        try:
            own = {name: kwargs[name] for name in where if name in kwargs}
            config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **own)
        except OSError:  # a processor by itself
            return processor
        warn_of_differences(config.get("preprocessing"), processor.preprocessing(), str(pretrained_model_name_or_path))
        return processor

    def preprocessing(self) -> dict[str, str]:
        """
        Hashes of what decides which numbers the model gets: of a scan (`image`), of a text (`text`: vocabulary, case). A
        model's config keeps those that it was trained with under the same name.
        """
        text = {"lowercase": self.lowercase, "vocabulary": list_vocabulary(self.tokenizer)}
        return {"image": hash_image_settings(self.image_processor), "text": hash_settings(text)}

    def check_model(self, config: PreTrainedConfig) -> None:
        """Warns where a model's config says that it was made for other preprocessing than this."""
        warn_of_differences(
            getattr(config, "preprocessing", None), self.preprocessing(), config.name_or_path or "the model"
        )

    @classmethod
    def from_domain(
        cls, domain: str, tokenizer: PreTrainedTokenizerBase, **image_settings: Any
    ) -> "ItemizedCLIPProcessor":
        """
        Processor with the preset of a domain.

        Args:
            domain: `brain-mri`, `head-ct`, `chest-ct`, `remote-sensing`, `natural-images`, or the YAML file of one.
            tokenizer: of the text tower; a copy is kept, with a `model_max_length` of at most the domain's context.
            image_settings: changes to the image preset, e.g. `scan_size=[8, 32, 32]`.
        """
        if domain not in cls.presets:
            known = sorted(cls.presets) or "none: presets come with the installed package itemized-clip-hf"
            raise ValueError(f"unknown domain {domain!r}; known: {known}.")
        preset = cls.presets[domain]
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_max_length = min(tokenizer.model_max_length, preset["context_length"])
        image_processor = ItemizedCLIPImageProcessor.from_domain(domain, **image_settings)
        return cls(image_processor, tokenizer, lowercase=preset["lowercase"])

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        names = ["pixel_values", "scan_mask"]
        if self.image_processor is not None and self.image_processor.use_scan_names:
            names.append("scan_name_ids")
        return [*names, "input_ids", "attention_mask", "item_mask"]

    def __call__(
        self, images: Any = None, text: Any = None, **kwargs: Unpack[ItemizedCLIPProcessorKwargs]
    ) -> BatchEncoding:
        """
        Args:
            images: a scan (array or tensor (D, H, W), picture, path, scan object), a study (list, or dict of sequence name ->
                scan), or a list of studies.
            text: the items of each study (list of lists), or a flat list of prompts shared by all; a string is one prompt.

        Returns:
            `pixel_values` (B, N, C, D, H, W), `scan_mask` (B, N), `scan_name_ids` (B, N, 110) where used, `input_ids` and
            `attention_mask` (B, K, T) with `item_mask` (B, K), or (M, T) with `item_mask` (M,) for a flat list.
        """
        if images is None and text is None:
            raise ValueError("pass `images`, `text` or both.")
        merged = self._merge_kwargs(
            ItemizedCLIPProcessorKwargs,  # type: ignore[arg-type]
            tokenizer_init_kwargs=getattr(self.tokenizer, "init_kwargs", {}),
            **kwargs,
        )
        image_kwargs, text_kwargs = dict(merged["images_kwargs"]), dict(merged["text_kwargs"])
        return_tensors = image_kwargs.pop("return_tensors", None) or text_kwargs.get("return_tensors")
        text_kwargs.pop("return_tensors", None)
        data = {}
        if images is not None:
            data.update(self.image_processor(images, **image_kwargs))
        if text is not None:
            data.update(self.encode_text(text, **text_kwargs))
        return BatchEncoding(data, tensor_type=return_tensors)

    def encode_text(self, text: Any, num_slots: int | None = None, **kwargs: Any) -> dict[str, np.ndarray]:
        """
        Token ids, attention mask and item mask of prompts or of lists of items, as in a call.

        Args:
            text: as in a call.
            num_slots: item slots of every study, as in training, where items that are too long are reported once only; as
                many as the longest list if None.
        """
        text = [text] if isinstance(text, str) else list(text)
        nested = any(not isinstance(entry, str) for entry in text)
        if not text:
            raise ValueError("`text` is an empty list: pass at least one item or prompt.")
        if not nested:
            return self._tokenize(text, np.ones(len(text), dtype=bool), kwargs)
        lists = [[entry] if isinstance(entry, str) else list(entry) for entry in text]
        empty = [i for i, items in enumerate(lists) if not items]
        if empty:
            raise ValueError(
                f"studies {empty[:10]} have no item; every study needs at least one (a normal study has an item that says so)."
            )
        slots = max(len(items) for items in lists)
        if num_slots is not None:
            if slots > num_slots:
                raise ValueError(f"a study has {slots} items, more than the {num_slots} slots.")
            slots = num_slots
        item_mask = np.array([[k < len(items) for k in range(slots)] for items in lists])
        flat = [item for items in lists for item in items + [PLACEHOLDER] * (slots - len(items))]
        data = self._tokenize(flat, item_mask, kwargs, quiet=num_slots is not None)
        return {
            name: x if x.ndim == 2 and name == "item_mask" else x.reshape(len(lists), slots, -1)
            for name, x in data.items()
        }

    def _tokenize(
        self, items: list[str], item_mask: np.ndarray, kwargs: dict[str, Any], quiet: bool = False
    ) -> dict[str, np.ndarray]:
        non_strings = [item for item in items if not isinstance(item, str)]
        if non_strings:
            raise ValueError(f"items must be strings, found {type(non_strings[0]).__name__}.")
        blank = sum(not item.strip() for item in items)
        if blank:
            raise ValueError(f"{blank} of {len(items)} items are blank.")
        items = [" ".join(item.split()) for item in items]
        if self.lowercase:
            items = [item.lower() for item in items]
        limit = kwargs.get("max_length") or self.tokenizer.model_max_length
        kwargs.setdefault("padding", True)
        kwargs.setdefault("truncation", True)
        encoded = self.tokenizer(items, return_attention_mask=True, **kwargs)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        full = [i for i, row in enumerate(mask) if sum(row) >= limit] if kwargs["truncation"] else []
        if full and quiet:
            logger.warning_once(f"items longer than the context of {limit} tokens are cut")
        elif full:
            uncut = self.tokenizer([items[i] for i in full], truncation=False, padding=False)["input_ids"]
            lengths = [len(row) for row in uncut]
            longer = sum(length > limit for length in lengths)
            if longer:
                logger.warning(
                    f"{longer} of {len(items)} items were cut to the context of {limit} tokens (the longest has "
                    f"{max(lengths)})."
                )
        return {"input_ids": np.asarray(ids), "attention_mask": np.asarray(mask), "item_mask": item_mask}
