"""Results as plain text and as JSON."""

from collections.abc import Mapping
from typing import Any


def format_table(header: list[str], rows: list[list]) -> str:
    """Plain columns, numbers with four digits."""
    text = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in text) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in text
    )


def null_for_nan(value: Any) -> Any:
    """
    The same for JSON, which has no NaN: None.

    >>> null_for_nan({"auc": float("nan"), "levels": (1, 5)})
    {'auc': None, 'levels': [1, 5]}
    """
    if isinstance(value, Mapping):
        return {str(key): null_for_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [null_for_nan(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value
