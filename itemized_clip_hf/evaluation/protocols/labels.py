"""The label tables of a protocol: which studies count, and what is true of each."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.cells import as_mapping
from ...data.studies.records import ID_COLUMNS, Records, read_records, refuse_repeats, study_name
from ...data.tables import TABLE_SUFFIXES, read_table
from ...data.truth_values import read_truth_value
from ...specs import read_text
from ..zero_shot import fold, match_class
from .schema import Protocol

_ID_COLUMNS = (*ID_COLUMNS, "VolumeName", "NoteAcc_DEID", "name", "StudyInstanceUID", "StudyID", "series_id")
MAX_GROUPS = 20
"""Different values of a column that studies are grouped by: more are no groups, but numbers, dates or names."""
_LABEL_COLUMNS = ("label", "class", "diagnosis")


def spell(name: str) -> str:
    """An id by its runs of letters and of digits: `CQ500-CT-0` is `CQ500CT0`, but `1_12` is not `11_2`."""
    return " ".join(re.findall(r"[a-z]+|[0-9]+", str(name).lower()))


def find_id_column(columns: Sequence[str], given: str | None = None) -> str | None:
    """The column of study ids, by its usual names where none is given; None if there is none."""
    by_fold = {fold(column): column for column in columns}
    wanted = _ID_COLUMNS if given is None else (given,)
    return next((by_fold[fold(name)] for name in wanted if fold(name) in by_fold), None)


@dataclass
class Truth:
    """
    What is true of some studies.

    Args:
        ids: of the studies.
        labels: (S, F) of 0, 1 and NaN for unknown, of a protocol with findings.
        classes: (S,) numbers of classes.
        left_out: reason -> number of studies.
        groups: column of the table -> its value for every study, as text; `unknown` where there is none.
    """

    ids: list[str]
    labels: np.ndarray | None = None
    classes: np.ndarray | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def of_rows(self, rows: Sequence[int]) -> Truth:
        """Of some of the studies, by their places."""
        places = list(rows)
        return Truth(
            [self.ids[place] for place in places],
            None if self.labels is None else self.labels[places],
            None if self.classes is None else self.classes[places],
            groups={column: [values[place] for place in places] for column, values in self.groups.items()},
        )


def read_truth(
    protocol: Protocol,
    data: str | os.PathLike,
    labels: Mapping[str, str] | str | None = None,
    id_column: str | None = None,
    by: Sequence[str] = (),
) -> dict[str, Truth]:
    """
    The answers of every table of a protocol.

    Args:
        data: folder with images and label tables, or a list (`.jsonl`, `.parquet`, a prepared folder) with `label` or `labels`.
        labels: a label table (CSV, JSONL, parquet), or table name -> file, instead of the protocol's patterns.
        id_column: of the tables, where it has an unusual name.
        by: columns of the tables whose values group the studies.

    Raises:
        FileNotFoundError, ValueError: no table or several, a missing column, a duplicate id, a value that is not a label, a
            column of `by` with more than 20 different values.
    """
    folder = Path(data)
    if labels is not None:
        files = (
            {"": Path(labels)} if isinstance(labels, (str, os.PathLike)) else {n: Path(f) for n, f in labels.items()}
        )
    elif is_list(folder):
        files = {"": folder}
    else:
        files = {name: _find_table(folder, pattern, protocol) for name, pattern in protocol.tables.items()}
    chosen = _read_lists(folder, protocol)
    return {name: _read_table(protocol, file, id_column, chosen, by) for name, file in files.items()}


def is_list(path: Path) -> bool:
    """Whether studies are listed, with labels and images, rather than lying in a folder beside a table."""
    return not path.is_dir() or (path / "dataset_info.json").exists() or bool(list(path.glob("data/*.parquet")))


def find_list(protocol: Protocol, data: str | os.PathLike) -> Path:
    """Where the images of a protocol are: the data, or its parquet table, which holds them itself (RSICD)."""
    folder, patterns = Path(data), list(protocol.tables.values())
    if not is_list(folder) and len(patterns) == 1 and patterns[0].endswith(".parquet"):
        return _find_table(folder, patterns[0], protocol)
    return folder


def _find_table(folder: Path, pattern: str, protocol: Protocol) -> Path:
    found = sorted(folder.glob(pattern)) or sorted(folder.glob(f"*/{pattern}"))
    if len(found) > 1 and all(file.suffix == ".parquet" for file in found):
        return found[0].parent / pattern  # the parts of one table
    if len(found) != 1:
        what = f"several files {[str(file.relative_to(folder)) for file in found]}" if found else "no file"
        raise FileNotFoundError(
            f"{folder} holds {what} of the form {pattern!r}, where protocol {protocol.name} expects its one label table; pass "
            "it with --labels FILE."
        )
    return found[0]


def _read_lists(folder: Path, protocol: Protocol) -> set[str] | None:
    """Ids, in lower case, of the studies that count; None: all."""
    if not folder.is_dir():
        return None
    found = {pattern: sorted(folder.glob(pattern)) for pattern in protocol.lists}
    missing = [pattern for pattern, matches in found.items() if not matches]
    if missing and len(missing) < len(found):
        raise FileNotFoundError(
            f"{folder} has lists of studies, but none of the form {missing}: protocol {protocol.name} pools all."
        )
    files = [file for matches in found.values() for file in matches]
    ids = {study_name(line.strip()).lower() for file in files for line in read_text(file).splitlines() if line.strip()}
    return ids or None


def _read_table(
    protocol: Protocol, file: Path, id_column: str | None, chosen: set[str] | None, by: Sequence[str] = ()
) -> Truth:
    if not file.exists() and "*" not in file.name:
        raise FileNotFoundError(f"there is no label table {file}.")
    plain = file.name.lower().endswith(TABLE_SUFFIXES)
    rows = read_table(file) if plain else _closed_rows(read_records(file))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    column = find_id_column(columns, id_column)
    if column is None:
        names = id_column or ", ".join(_ID_COLUMNS)
        raise ValueError(f"{file.name}: no column of ids ({names}) among {columns}; name it (--id-column).")
    ids = [study_name(str(row[column])) for row in rows]
    refuse_repeats([name.lower() for name in ids], file.name)
    excluded = {spell(name) for name in protocol.exclude}
    left_out = {
        "excluded by the protocol": [spell(name) in excluded for name in ids],
        "in none of the lists": [chosen is not None and name.lower() not in chosen for name in ids],
    }
    kept = [not any(reasons) for reasons in zip(*left_out.values())]
    if chosen is not None and (lost := sorted(chosen - {name.lower() for name in ids})):
        raise ValueError(f"{file.name}: {len(lost)} listed studies have no row, e.g. {lost[:5]}.")
    rows = [row for row, keep in zip(rows, kept) if keep]
    truth = Truth([name for name, keep in zip(ids, kept) if keep])
    truth.left_out = {reason: sum(found) for reason, found in left_out.items() if any(found)}
    if not truth.ids:
        raise ValueError(f"{file.name}: no study is left of {len(ids)}: {truth.left_out}.")
    flat = [{**row, **as_mapping(row.get("labels"), f"{name} of {file.name}")} for row, name in zip(rows, truth.ids)]
    truth.groups = {column: _read_groups(flat, column, file.name) for column in by}
    if protocol.findings is not None:
        truth.labels = _read_findings(protocol, file.name, flat, truth.ids)
    else:
        _read_classes(protocol, file.name, flat, truth)
    return truth


def _read_groups(rows: list[dict], column: str, file: str) -> list[str]:
    """The value of a column for every row; its values are never quoted in errors, since they might name people."""
    own = next((name for row in rows for name in row if fold(name) == fold(column)), None)
    if own is None:
        columns = sorted({name for row in rows for name in row})
        raise ValueError(f"{file}: no column {column!r} to group studies by; columns: {columns}.")
    cells = [row.get(own) for row in rows]
    values = [
        "unknown" if cell is None or cell != cell or not str(cell).strip() else str(cell).strip() for cell in cells
    ]
    if len(set(values)) > MAX_GROUPS:
        raise ValueError(
            f"{file}: the column {column!r} has {len(set(values))} different values, groups have at most {MAX_GROUPS}: write a "
            "column of ranges or kinds."
        )
    return values


def _closed_rows(records: Records) -> list[dict]:
    """Rows without their images."""
    rows = records.rows
    if hasattr(rows, "remove_columns"):
        rows = rows.remove_columns([records.images_column] if records.images_column else [])
    named = [{"id": records.id_of(number), **row} for number, row in enumerate(rows)]
    return [{key: value for key, value in row.items() if key != records.images_column} for row in named]


def _read_findings(protocol: Protocol, file: str, rows: list[dict], ids: list[str]) -> np.ndarray:
    by_fold = {fold(column): column for row in rows for column in row}
    table = np.full((len(rows), len(protocol.names)), np.nan)
    missing = []
    for number, name in enumerate(protocol.names):
        wanted = protocol.columns.get(name, name)
        if fold(wanted) in by_fold:
            table[:, number] = [_truth(row.get(by_fold[fold(wanted)]), file, wanted, i) for row, i in zip(rows, ids)]
            continue
        readers = [
            f"{start}{wanted.removeprefix(str(protocol.readers['prefix']))}"
            for start in protocol.readers.get("columns", ())
        ]
        if readers and all(fold(reader) in by_fold for reader in readers):
            votes = [[_truth(row.get(by_fold[fold(r)]), file, r, i) for r in readers] for row, i in zip(rows, ids)]
            table[:, number] = np.where(np.isnan(votes).any(1), np.nan, np.mean(votes, 1) > 0.5)
            continue
        missing.append(wanted)
    if missing:
        raise ValueError(f"{file}: no column for {missing}; columns: {sorted(by_fold.values())}.")
    return table


def _truth(value: Any, file: str, column: str, study: str) -> float:
    """1, 0, or NaN where it is unknown."""
    known = read_truth_value(value, f"{file}, study {study}: {column!r}")
    return float("nan") if known is None else float(known)


def _read_classes(protocol: Protocol, file: str, rows: list[dict], truth: Truth) -> None:
    by_fold = {fold(column): column for row in rows for column in row}
    names, found = protocol.names, []
    label = next((by_fold[fold(name)] for name in _LABEL_COLUMNS if fold(name) in by_fold), None)
    columns = {name: by_fold.get(fold(protocol.columns.get(name, name))) for name in names}
    if label is None and None in columns.values():
        missing = [name for name, column in columns.items() if column is None]
        columns_found = sorted(by_fold.values())
        raise ValueError(
            f"{file}: no column {_LABEL_COLUMNS}, nor one for each of {missing}; columns: {columns_found}."
        )
    ignored = {fold(name) for name in protocol.ignored_classes}
    renamed = {fold(old): new for old, new in protocol.renamed_classes.items()}
    unknown: Counter[str] = Counter()
    for row, study in zip(rows, truth.ids):
        if label is None:
            present = [
                name for name, column in columns.items() if _truth(row.get(column), file, str(column), study) == 1
            ]
            if len(present) != 1:
                raise ValueError(f"{file}, study {study}: {len(present)} classes are 1 ({present}), expected one.")
            found.append(names.index(present[0]))
            continue
        own = str(row.get(label))
        matched = None if fold(own) in ignored else match_class(renamed.get(fold(own), own), names)
        if matched is None and fold(own) not in ignored:
            unknown[own] += 1
        found.append(-1 if matched is None else names.index(matched))
    if unknown:
        raise ValueError(f"{file}: labels {dict(unknown)} are no classes of protocol {protocol.name}: {names}.")
    classes = np.array(found)
    if (classes < 0).any():
        truth.left_out[f"class without a prompt: {', '.join(protocol.ignored_classes)}"] = int((classes < 0).sum())
    kept = truth.of_rows(np.flatnonzero(classes >= 0).tolist())
    truth.ids, truth.groups, truth.classes = kept.ids, kept.groups, classes[classes >= 0]
