"""What a table means by yes, no and unknown."""

import math
import re
from typing import Any

_YES = frozenset({"true", "t", "yes", "y"})
_NO = frozenset({"false", "f", "no", "n"})
_UNKNOWN = frozenset({"", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "unknown", "uncertain"})
_NUMBER = re.compile(r"[+-]?\d+([.,]0*)?")
_MEANINGS: dict[float, bool | None] = {0: False, 1: True, -1: None}


def read_truth_value(value: Any, where: str) -> bool | None:
    """
    True, False, or None for unknown: nothing, null, NaN, and -1, which label sets write for uncertain.

    Args:
        value: a truth value, a number, or a text as spreadsheets and data frames write it (`False`, `0.0`, `no`).
        where: file, study and column, for the error.

    Raises:
        ValueError: it is none of these.
    """
    if value is None:
        return None
    text = str(value).strip().casefold()
    if text in _UNKNOWN:
        return None
    if text in _YES or text in _NO:
        return text in _YES
    number = float(text.split(",")[0]) if _NUMBER.fullmatch(text) else math.nan
    if number in _MEANINGS:
        return _MEANINGS[number]
    raise ValueError(f"{where} is {value!r}, expected 0 or 1, true or false, or nothing (or -1) for unknown.")
