"""Cells of tables: lists and dictionaries written as text, what stands for nothing, and what a spreadsheet would run."""

import ast
import json
import re
from typing import Any

from .truth_values import read_truth_value

_NOTHING = frozenset({"", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "not given"})
_ELEMENT = re.compile(r"""\s*((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|None|nan|NaN|null|<NA>)\s*(,?)""", re.DOTALL)
_QUOTED_LIST = re.compile(r"""[\[(]\s*['"].*[\])]|[\[(]\s*[\])]""", re.DOTALL)
_BRACKETS = {"[": "]", "{": "}"}

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?%?")
_FORMULA = re.compile(r"'*([ \t]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n])")
_TEXT_FORMULA = re.compile(r'="((?:[^"]|"")*)"')
_EXCEL_CHARACTER = re.compile(r"_x(000[9AaDd])_")


def is_nothing(text: str) -> bool:
    """Whether a cell says that there is nothing, as exports write it: `nan`, `None`, `N/A`, `Not given.`."""
    return text.strip().rstrip(".").casefold() in _NOTHING


def holds_list(text: str) -> bool:
    """Whether a text is a list of quoted texts, and not a report."""
    return bool(_QUOTED_LIST.fullmatch(text.strip()))


def parse_list(text: str) -> list[str | None]:
    """
    A list that was written as text: JSON, or as Python, pandas (`['a', 'b']`) or numpy (`['a' 'b']`) print it.

    Raises:
        ValueError: it begins and ends as a list, but is none that can be read without guessing.
    """
    text = text.strip()
    try:
        loaded = json.loads(text)
        if isinstance(loaded, list) and all(one is None or isinstance(one, (str, float)) for one in loaded):
            return [one if isinstance(one, str) else None for one in loaded]
    except (json.JSONDecodeError, RecursionError):
        pass
    found: list[str | None] = []
    commas: list[bool] = []
    place, end = 1, len(text) - 1
    while match := _ELEMENT.match(text, place, end):
        found.append(_unquote(match[1], text))
        commas.append(bool(match[2]))
        place = match.end()
    # Several texts side by side are numpy's list, or one text for Python: in no list are both.
    if text[place:end].strip() or text[0] not in "[(" or len(set(commas[:-1])) > 1:
        raise _refusal(text)
    return found


def _unquote(element: str, text: str) -> str | None:
    if element[0] not in "'\"":
        return None
    try:
        return ast.literal_eval(element.replace("\r", "\\r").replace("\n", "\\n"))
    except (SyntaxError, ValueError):
        raise _refusal(text) from None


def _refusal(text: str) -> ValueError:
    return ValueError(
        f"a cell of {len(text)} characters begins and ends like a list, but is no list of quoted texts that can be read: write "
        'it as JSON, ["first item", "second item"].'
    )


def as_items(value: Any) -> list[str]:
    """
    Items as a list of stripped strings; a plain string is one item, and what has no letter or digit, or says that there is
    nothing, is none.

    Raises:
        ValueError: a text looks like a list and cannot be read as one, or an item is no text.
    """
    if isinstance(value, str):
        text = value.strip()
        value = parse_list(text) if _looks_like_list(text) else [value]
    items = [item for item in list(value) if not _is_missing(item)]
    strange = next((item for item in items if not isinstance(item, str)), None)
    if strange is not None:
        raise ValueError(f"an item is of type {type(strange).__name__}, expected a text.")
    return [item.strip() for item in items if any(map(str.isalnum, item)) and not is_nothing(item)]


def _looks_like_list(text: str) -> bool:
    if holds_list(text) or text.startswith(("array([", "Index([")):
        return True
    return len(text) > 1 and text[0] in "[{" and text[-1] == _BRACKETS[text[0]] and not _closes_early(text)


def _closes_early(text: str) -> bool:
    """`[left] mass [right]`: the last bracket is not that of the first."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == text[0]) - (character == _BRACKETS[text[0]])
        if depth == 0:
            return place < len(text) - 1
    return False


def _is_missing(item: Any) -> bool:
    return item is None or isinstance(item, float) and item != item


def as_labels(value: Any, where: str) -> dict[str, bool | None]:
    """
    Labels of a study, name -> true, false or None for unknown; a dictionary that was written as text is read.

    Raises:
        ValueError: it is not a dictionary, or a label is not a truth value.
    """
    return {
        str(name): read_truth_value(one, f"study {where}: the label {name!r}")
        for name, one in as_mapping(value, where).items()
    }


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """A dictionary, also one that was written as text, JSON or Python; nothing is an empty one."""
    if value is None or isinstance(value, str) and is_nothing(value):
        return {}
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if not isinstance(value, dict):
        raise ValueError(f"study {where}: `labels` is of type {type(value).__name__}, expected names with 0 or 1.")
    return value


def neutralize(value: Any) -> Any:
    """
    A cell for a CSV file that people open: a text that a spreadsheet would take for a formula gets an apostrophe in front, as
    one types it there. Numbers, also as text, stay. `restore` takes it away.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def restore(text: str) -> str:
    """A cell of a CSV file as it was meant: without the apostrophe of `neutralize`, `="007"` and `_x000D_` of Excel."""
    if text.startswith("'") and _FORMULA.match(text):
        return text[1:]
    if quoted := _TEXT_FORMULA.fullmatch(text):
        return quoted[1].replace('""', '"')
    if "_x000" in text:
        text = _EXCEL_CHARACTER.sub(lambda match: chr(int(match[1], 16)), text)
        text = text.replace("\r\n", "\n")
    return text
