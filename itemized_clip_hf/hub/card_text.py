"""Facts of a card as Markdown that shows them, and is nothing else: no HTML, no table or code block that they end."""

import re
from dataclasses import fields, replace
from typing import Any

_TAG = re.compile(r"<(?=[A-Za-z/!?])(?!https?://[^\s<>]*>)")
_PROSE = ("summary", "license_note", "training_data", "access", "population", "data_terms")
"""Texts of several lines, with links and lists, that a person writes."""


def clean_name(name: str) -> str:
    """ORG/NAME as the Hub allows it."""
    return re.sub(r"[^\w./-]+", "-", name, flags=re.ASCII)


def escape_tags(text: str) -> str:
    """The text without HTML tags that a page would take for its own."""
    return _TAG.sub("&lt;", text)


def escape_line(text: str) -> str:
    """One line, also within a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", escape_tags(" ".join(text.split())))


def escape(value: Any) -> Any:
    """Texts of facts, of rows and of lists; other values stay."""
    if isinstance(value, str):
        return escape_line(value)
    if isinstance(value, dict):
        return {escape(key): escape(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape(one) for one in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    changed: dict[str, Any] = {one.name: escape(getattr(value, one.name)) for one in fields(value)}
    changed |= {name: escape_tags(getattr(value, name)) for name in _PROSE}
    changed["name"] = clean_name(value.name)
    changed["citation"] = value.citation.replace("```", "")
    changed["domain"] = value.domain
    return replace(value, **changed)
