"""Label columns of a list, one column a finding: found by their cells, which are all truth values."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..cells import as_mapping
from ..truth_values import read_truth_value

NEVER_LABELS = frozenset(
    {"labels", "label", "is_normal", "items", "items_from", "spans", "removed", "text", "mask", "split"}
)


def read_columns(rows: Any, columns: Iterable[str], others: Collection[str] = ()) -> tuple[list[str], dict[str, int]]:
    """
    Which columns hold labels: every cell is a truth value or unknown (see `read_truth_value`), and at least one is known.

    Args:
        rows: dictionaries, or a `datasets.Dataset`.
        columns: of the rows.
        others: that hold something else.

    Returns:
        the label columns, and column -> number of cells that are not truth values, of those where they are the fewer.
    """
    found, nearly = [], {}
    for column in columns:
        if column in others or str(column).casefold() in NEVER_LABELS or not _is_plain(rows, column):
            continue
        cells = rows[column] if hasattr(rows, "column_names") else (row.get(column) for row in rows)
        known, strange = 0, 0
        for cell in cells:
            try:
                known += read_truth_value(cell, str(column)) is not None
            except ValueError:
                strange += 1
                if strange > known + 20:
                    break
        if known and not strange:
            found.append(column)
        elif strange < known:
            nearly[column] = strange
    return found, nearly


def _is_plain(rows: Any, column: str) -> bool:
    """Whether a column of a `datasets.Dataset` holds numbers or texts, and nothing that has to be decoded."""
    features = getattr(rows, "features", None)
    return features is None or getattr(features[column], "_type", None) == "Value"


def labels_of(row: Mapping[str, Any], columns: Iterable[str], where: str) -> dict[str, bool | None]:
    """
    Labels of a study, finding -> true, false or None for unknown: those of its label columns, and of its dictionary `labels`.

    Raises:
        ValueError: `labels` is no dictionary, or a label is no truth value.
    """
    given = {**{column: row.get(column) for column in columns}, **as_mapping(row.get("labels"), where)}
    return {str(name): read_truth_value(value, f"study {where}: the label {name!r}") for name, value in given.items()}


def as_numbers(labels: Mapping[str, bool | None]) -> dict[str, int | None]:
    """Labels as files hold them: 1, 0, or None for unknown."""
    return {name: None if value is None else int(value) for name, value in labels.items()}
