"""Lists of reports or captions: JSONL, CSV, parquet -> id, text, other columns."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cells import is_nothing
from ..studies.labels import as_numbers, labels_of, read_columns
from ..studies.records import ID_COLUMNS, IMAGE_COLUMNS, load_parquet
from ..tables import TABLE_SUFFIXES, read_table

REPORT_COLUMNS = ("report", "text", "findings", "impression")
CAPTION_COLUMNS = ("captions", "captions_unique", "items", "caption")
# What a person wrote about one study may tell who it is about; such columns are not passed on unless asked for.
TEXT_COLUMNS = frozenset(
    {
        *REPORT_COLUMNS,
        *CAPTION_COLUMNS,
        "captions_augmented",
        "sentences",
        "indication",
        "comparison",
        "history",
        "technique",
    }
)


@dataclass(frozen=True)
class Source:
    """
    Args:
        id: of the study or picture.
        text: the report, or the list of captions.
        others: the other columns of its row that hold no text of the report.
    """

    id: str
    text: str | list[str]
    others: dict[str, Any]


class Sources(list[Source]):
    """
    Sources of a table, and what became of its columns.

    Args:
        labels: columns of labels, which every source holds under `labels`.
        kept: other columns, as they are.
        left_out: other columns of text, and of images.
        strange: column -> number of cells that are not truth values, where most are: it is kept as it is.
    """

    labels: list[str]
    kept: list[str]
    left_out: list[str]
    strange: dict[str, int]


def read_sources(
    path: str | os.PathLike,
    kind: str = "report",
    text_columns: Sequence[str] = (),
    id_column: str | None = None,
    keep_text: bool = False,
) -> Sources:
    """
    Reports or captions of a `.jsonl`, `.jsonl.gz`, `.csv` or `.parquet` file, one a row.

    Args:
        kind: "report" or "captions".
        text_columns: columns that hold the text; of reports, several are joined by an empty line in the order given. Found by
            name where none is given.
        id_column: found by name where None; rows are numbered from 0 where there is none.
        keep_text: pass on columns of text, too.

    Columns of labels become one dictionary `labels`, finding -> 1, 0 or None for unknown; other columns stay as they are.
    """
    path = Path(path)
    rows = _read_rows(path)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    known = REPORT_COLUMNS if kind == "report" else CAPTION_COLUMNS
    if not text_columns:
        text_columns = [next((name for name in known if name in columns), "")]
        if text_columns == ["findings"] and "impression" in columns:
            text_columns = ["findings", "impression"]
        if text_columns == [""]:
            raise ValueError(
                f"{path.name} has none of the columns {list(known)}; name one with --text-column: {columns}."
            )
    if id_column is None:
        id_column = next((name for name in (*ID_COLUMNS, "uid", "index") if name in columns), None)
    for name in [*text_columns, *([id_column] if id_column else [])]:
        if name not in columns:
            raise ValueError(f"{path.name} has no column {name!r}; its columns are {columns}.")
    hidden = {*text_columns, *IMAGE_COLUMNS} if keep_text else {*text_columns, *TEXT_COLUMNS, *IMAGE_COLUMNS}
    others = [column for column in columns if column not in hidden and column != id_column]
    labels, strange = read_columns(rows, others, {*ID_COLUMNS, *IMAGE_COLUMNS, *TEXT_COLUMNS})
    sources: dict[str, Source] = {}
    for number, row in enumerate(rows):
        name = str(number if id_column is None or row.get(id_column) in (None, "") else row[id_column])
        if name in sources:
            raise ValueError(f"{path.name}, row {number}: duplicate id {name!r}; name another column with --id-column.")
        place = f"{path.name}, row {number} ({name})"
        parts = [part for column in text_columns for part in _texts(row.get(column), f"{place}, {column}", kind)]
        own = {column: row[column] for column in others if column in row and column not in labels}
        if labels:
            own["labels"] = as_numbers(labels_of(row, labels, name))
        sources[name] = Source(name, parts if kind == "captions" else "\n\n".join(parts), own)
    found = Sources(sources.values())
    found.labels, found.strange = labels, strange
    found.kept = [column for column in others if column not in labels]
    found.left_out = [column for column in columns if column in hidden and column not in text_columns]
    return found


def _texts(value: Any, place: str, kind: str) -> list[str]:
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return []
    if isinstance(value, str):
        return [value] if value.strip() and not is_nothing(value) else []
    if kind == "captions" and isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value):
        return [text for text in value if text.strip()]
    expected = "a string or a list of strings" if kind == "captions" else "a string"
    hint = "; --kind captions takes lists" if kind == "report" and isinstance(value, (list, tuple)) else ""
    raise ValueError(f"{place}: expected {expected}, found {type(value).__name__}{hint}.")


def _read_rows(path: Path) -> list[dict]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if path.suffix == ".parquet":
        return list(load_parquet([path], leave_out=IMAGE_COLUMNS))
    if path.name.lower().endswith(TABLE_SUFFIXES):
        return read_table(path)
    raise ValueError(f"{path.name}: expected {', '.join(TABLE_SUFFIXES)} or .parquet.")


def write_jsonl(path: str | os.PathLike, rows: Any) -> int:
    """Writes one JSON object a line and returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
