"""Tables as people and programs write them (JSONL, JSON, CSV) -> rows, every cell of CSV a text."""

import codecs
import csv
import gzip
import io
import json
import os
import re
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cells import neutralize, restore
from .readers import tensor

TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".tsv", ".json")
_SEPARATORS = (",", ";", "\t", "|")
_LIMIT = threading.Lock()


def read_table(path: str | os.PathLike) -> list[dict]:
    """
    Rows of a `.jsonl`, `.jsonl.gz`, `.csv`, `.tsv` or `.json` file (a list of objects, or id -> object, as the reference
    writes).

    Raises:
        ValueError: what is wrong, with the file and the row.
    """
    path = Path(path)
    text, name = _read_text(path), path.name.lower()
    if name.endswith((".csv", ".tsv")):
        rows: list = _read_csv(text, path.name, name.endswith(".tsv"))
    elif name.endswith(".json"):
        rows = _read_json(text, path)
    else:
        rows = list(_read_lines(text, path.name))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}, line {number}: expected an object, found {type(row).__name__}.")
    if not rows:
        raise ValueError(f"{path.name} is empty.")
    return rows


def write_csv(path: str | os.PathLike, rows: Iterable[Iterable[Any]]) -> None:
    """Rows for people: UTF-8, what a spreadsheet would run as a formula is marked as text (see `cells.neutralize`)."""
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        csv.writer(file).writerows([neutralize(cell) for cell in row] for row in rows)


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path.name} is no text in UTF-8 ({type(error).__name__}): save it as UTF-8, e.g. 'CSV UTF-8' in Excel."
        ) from None


def _read_lines(text: str, name: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parse_json(line, f"{name}, line {number}")


def _read_json(text: str, path: Path) -> list:
    loaded = _parse_json(text, path.name)
    if not isinstance(loaded, (list, dict)):
        raise ValueError(f"{path.name}: expected a list of objects, or id -> object, found {type(loaded).__name__}.")
    if isinstance(loaded, dict):
        return [
            {"id": name, "images": _images_of(path.parent, name), **(row if isinstance(row, dict) else {"report": row})}
            for name, row in loaded.items()
        ]
    return loaded


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON ({error}).") from None
    except (RecursionError, ValueError):
        raise ValueError(f"{where}: JSON that is nested too deep, or holds a number of too many digits.") from None


def _images_of(folder: Path, name: str) -> str:
    """Where the reference keeps the images of a study: a folder of its name beside the JSON file, or a tensor."""
    for suffix in ("", *tensor.SUFFIXES):
        if (folder / f"{name}{suffix}").exists():
            return f"{name}{suffix}"
    return name


def _read_csv(text: str, name: str, tabs: bool) -> list[dict[str, str]]:
    stated = re.match(r"sep=(.)\r?\n", text)  # Excel's own first line
    separators = [stated[1]] if stated else ["\t"] if tabs else _candidates(text, name)
    text = text[stated.end() :] if stated else text
    tables = {separator: _split(text, name, separator) for separator in separators}
    whole = {separator: table for separator, table in tables.items() if all(len(r) == len(table[0]) for r in table)}
    if len(separators) > 1 and len(whole) != 1:
        raise ValueError(
            f"{name}: any of {' '.join(map(repr, separators))} in the first row may part its columns: use commas."
        )
    table = next(iter((whole or tables).values()))
    if not table:
        raise ValueError(f"{name} is empty.")
    header = _check_header([cell.strip() for cell in table[0]], table[1:], name)
    for number, row in enumerate(table[1:], 2):
        if len(row) != len(table[0]):
            raise ValueError(
                f"{name}, row {number}: it has {len(row)} fields, more or fewer fields than the header ({len(table[0])})."
            )
    return [{column: restore(row[place]) for place, column in header.items()} for row in table[1:]]


def _candidates(text: str, name: str) -> list[str]:
    """What may part the columns: what parts the first row."""
    start = text.lstrip("\r\n")
    found = [s for s in _SEPARATORS if s in start and len(_first_row(start, s)) > 1]
    return found or [","]


def _first_row(text: str, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    except csv.Error:
        return []


def _split(text: str, name: str, separator: str) -> list[list[str]]:
    """Cells, without rows that hold nothing."""
    with _fields_of(len(text)):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            return [row for row in reader if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise ValueError(f"{name}, line {reader.line_num}: no CSV ({error}).") from None


@contextmanager
def _fields_of(size: int) -> Iterator[None]:
    """Lets fields be as long as the text; Python's limit holds for the whole process and is put back."""
    if size <= csv.field_size_limit():
        yield
        return
    with _LIMIT:
        limit = csv.field_size_limit(size)
        try:
            yield
        finally:
            csv.field_size_limit(limit)


def _check_header(header: list[str], rows: list[list[str]], name: str) -> dict[int, str]:
    """Place -> column, without the nameless columns in which nothing stands."""
    places = {
        place: restore(column)
        for place, column in enumerate(header)
        if column or any(row[place].strip() for row in rows if place < len(row))
    }
    repeats = sorted(column for column, count in Counter(places.values()).items() if count > 1)
    if repeats:
        raise ValueError(f"{name}: duplicate columns {repeats} in the first row; give every column a name of its own.")
    return places
