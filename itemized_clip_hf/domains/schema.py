"""What the image settings and the architecture of domains, recipes and cards may hold."""

from typing import TYPE_CHECKING, Any

from ..processing.settings_itemized_clip import check_settings
from ..specs import check_keys, check_section, hints_of

if TYPE_CHECKING:
    from . import Domain

_TEXT = {"context_length": int, "lowercase": bool, "tokenizer": str, "vocabulary": dict[str, str | int]}


def check_image_settings(settings: dict[str, Any], where: str) -> None:
    """Raises a ValueError for settings that the image processor does not have, or cannot work with."""
    from ..processing.image_processing_itemized_clip import ItemizedCLIPImageProcessorKwargs

    check_section(settings, hints_of(ItemizedCLIPImageProcessorKwargs), where)
    try:
        check_settings(settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_architecture(architecture: dict[str, Any], where: str) -> None:
    """Raises a ValueError for arguments that `ItemizedCLIPConfig` does not have, or that make no model."""
    from ..modeling.configuration_itemized_clip import ItemizedCLIPConfig, ItemizedCLIPVisionConfig

    check_section(architecture, _config_kinds(ItemizedCLIPConfig), where)
    vision, text = architecture.get("vision_config", {}), architecture.get("text_config", {})
    check_section(vision, _config_kinds(ItemizedCLIPVisionConfig), f"{where}: vision_config")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = text.get("model_type", "clip_text_model") if isinstance(text, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(f"{where}: text_config: model_type is {kind!r}, which the library does not know.")
    known = _config_kinds(CONFIG_MAPPING[kind])
    if len(known) > 20:
        check_keys(text, [*known, *getattr(CONFIG_MAPPING[kind], "attribute_map", {})], f"{where}: text_config")
    build_config(ItemizedCLIPConfig, architecture, where)


def build_config(kind: type, arguments: dict[str, Any], where: str) -> Any:
    """A config of the library; its own errors become a ValueError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return kind(**arguments)
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        OverflowError,
        ZeroDivisionError,
    ) as error:
        reason = str(error.__cause__ or error) if isinstance(error, StrictDataclassError) else str(error)
        raise ValueError(f"{where} makes no model: {' '.join(reason.split())[:300]}") from None


def _config_kinds(config: type) -> dict[str, Any]:
    return {
        name: kind
        for name, kind in hints_of(config).items()
        if name in getattr(config, "__dataclass_fields__", {}) or name == "model_type"
    } | {"model_type": str, "vision_config": dict, "text_config": dict}


def check_domain(domain: "Domain", where: str) -> None:
    """Raises a ValueError for what no domain can say."""
    check_image_settings(domain.image, f"{where}: image")
    check_section(domain.text, _TEXT, f"{where}: text", ("context_length", "lowercase", "tokenizer"))
    if not 2 <= domain.text["context_length"] <= 1 << 16:
        raise ValueError(f"{where}: context_length is {domain.text['context_length']}, expected 2 to {1 << 16} tokens.")
    check_architecture(domain.architecture, f"{where}: architecture")
    if domain.coverage and set(domain.coverage) != {"across", "head_to_foot"}:
        raise ValueError(f"{where}: coverage has {sorted(domain.coverage)}, expected across and head_to_foot.")
    ranges = [*domain.coverage.items(), ("lung_volume", domain.lung_volume), ("display_window", domain.display_window)]
    for name, limits in ranges:
        if limits is None:
            continue
        stated = [limit for limit in limits if limit is not None]
        if len(limits) != 2 or stated != sorted(set(stated)):
            raise ValueError(f"{where}: {name} is {limits}, expected the lower limit and the higher one.")
