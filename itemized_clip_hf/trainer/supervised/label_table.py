"""Which labels a list of studies has: its own columns, or a table beside it, matched by id."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.kinds import study_name
from ...data.studies.labels import labels_of
from ...data.studies.records import Records, read_records, refuse_repeats
from ...data.tables import TABLE_SUFFIXES, read_table
from ...evaluation.protocols.labels import find_id_column
from ...evaluation.zero_shot import fold
from ...modeling.classification_itemized_clip import MULTI_LABEL, SINGLE_LABEL, UNKNOWN

CLASS_COLUMNS = ("label", "class", "diagnosis")


@dataclass(frozen=True)
class StudyLabels:
    """
    Labels of the studies of a list.

    Args:
        names: of the labels, or of the classes.
        numbers: places of the studies in the list that have a label.
        table: (S, F) of 0, 1 and NaN for unknown, or (S,) numbers of classes, of these studies.
        notes: what was left out, for people.
    """

    names: list[str]
    numbers: list[int]
    table: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def problem_type(self) -> str:
        """`"multi_label_classification"`, or `"single_label_classification"` where a study has one class."""
        return MULTI_LABEL if self.table.ndim == 2 else SINGLE_LABEL

    def counts(self) -> dict[str, int]:
        """Label -> studies that have it."""
        columns = self.table == 1 if self.table.ndim == 2 else self.table[:, None] == np.arange(len(self.names))
        return {name: int(count) for name, count in zip(self.names, columns.sum(0))}


Answers = dict[str, Any]
"""Label -> true, false or None; or the name of a class under `CLASS`."""
CLASS = "\0class"


def read_study_labels(
    records: Records,
    labels: str | os.PathLike[str] | None = None,
    names: Sequence[str] | None = None,
    id_column: str | None = None,
    like: StudyLabels | None = None,
) -> StudyLabels:
    """
    Labels of every study that has some.

    Args:
        records: the studies, images closed.
        labels: a table with a column of ids and one for each label, or one called `label`, `class` or `diagnosis` with the name
            of a class; the list's own labels if None.
        names: labels that are used, others are passed over; all if None.
        id_column: of the table, where it has an unusual name.
        like: the labels of training, which these have to have, in their order.

    Raises:
        ValueError: there are no labels, none belongs to a study, an id has two rows, the table and the list contradict each
            other, or a value is not a label.
    """
    own = {study_name(records.id_of(row)): row for row in range(len(records))}
    refuse_repeats([study_name(records.id_of(row)) for row in range(len(records))], "the list of studies")
    given, columns, notes = _answers(records, "the list of studies")
    where = "the list of studies"
    if labels is not None:
        where = Path(labels).name
        stated, (given, columns, notes) = given, _answers(_open_table(labels, id_column), where)
        _refuse_contradictions(given, stated, where)
    if not given:
        raise ValueError(
            f"{where} has no labels: expected a column of 0 and 1 for each label, or one called {', '.join(CLASS_COLUMNS)} "
            "with the name of a class (--labels FILE)."
        )
    strangers = [name for name in given if name not in own]
    if strangers:
        notes.append(f"{where}: {len(strangers)} ids belong to none of the studies, e.g. {strangers[:3]}")
    by_row = {own[name]: answers for name, answers in given.items() if name in own}
    if not by_row:
        raise ValueError(
            f"{where}: no id is that of a study: it has e.g. {list(given)[:3]}, the studies {list(own)[:3]}."
        )
    found = _as_classes(by_row, names, like) if columns == [CLASS] else _as_table(by_row, columns, names, like, where)
    without = len(records) - len(found.numbers)
    if without:
        notes.append(f"{without} of {len(records)} studies have no label and are left out")
    if not found.numbers:
        raise ValueError(f"{where}: every label of the studies is unknown.")
    return StudyLabels(found.names, found.numbers, found.table, [*notes, *found.notes])


def _open_table(labels: str | os.PathLike[str], id_column: str | None) -> Records:
    path = Path(labels)
    rows = read_table(path) if path.name.lower().endswith(TABLE_SUFFIXES) else read_records(path).rows
    columns = (
        list(rows.column_names) if hasattr(rows, "column_names") else list(dict.fromkeys(k for r in rows for k in r))
    )
    column = find_id_column(columns, id_column)
    if column is None:
        raise ValueError(f"{path.name}: no column of ids among {columns}; name it (--id-column).")
    return Records(rows, id_column=column)


def _answers(records: Records, where: str) -> tuple[dict[str, Answers], list[str], list[str]]:
    """Id -> answers, the labels, and notes; the only label of classes is `CLASS`."""
    rows = (
        [dict(records.rows[number]) for number in range(len(records))]
        if _is_light(records)
        else _without_images(records)
    )
    ids = [study_name(records.id_of(number)) for number in range(len(records))]
    refuse_repeats(ids, where)
    notes = [
        f"{where}: the column {column!r} is not taken for a label: {count} of {len(rows)} cells are not truth values"
        for column, count in records.nearly_labels.items()
    ]
    answers = {name: labels_of(row, records.label_columns, name) for name, row in zip(ids, rows)}
    columns = list(dict.fromkeys(label for own in answers.values() for label in own))
    if columns:
        return answers, columns, notes
    by_fold = {fold(column): column for column in records.columns}
    column = next((by_fold[name] for name in CLASS_COLUMNS if name in by_fold), None)
    if column is None:
        return {}, [], notes
    classes = {name: _class_of(row.get(column)) for name, row in zip(ids, rows)}
    return {name: {CLASS: value} for name, value in classes.items() if value is not None}, [CLASS], notes


def _is_light(records: Records) -> bool:
    return not hasattr(records.rows, "column_names")


def _without_images(records: Records) -> list[dict[str, Any]]:
    """Rows of a `datasets.Dataset`, whose images would be decoded."""
    column = records.images_column
    rows = records.rows.remove_columns([column]) if column in records.rows.column_names else records.rows
    return [dict(rows[number]) for number in range(len(rows))]


def _class_of(cell: Any) -> str | None:
    """The name of a class; None for an empty cell."""
    missing = cell is None or (isinstance(cell, float) and cell != cell)
    return None if missing else str(cell).strip() or None


def _refuse_contradictions(given: dict[str, Answers], stated: dict[str, Answers], where: str) -> None:
    """Raises where the list of studies says something else than the table."""
    wrong = [
        name
        for name, answers in given.items()
        for label, value in answers.items()
        if value is not None and stated.get(name, {}).get(label) not in (None, value)
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} labels of {where} contradict those of the list of studies, e.g. of {wrong[0]!r}: correct one of the "
            "two, or take the labels out of the list."
        )


def _as_table(
    by_row: dict[int, Answers], columns: list[str], names: Sequence[str] | None, like: StudyLabels | None, where: str
) -> StudyLabels:
    if like is not None and like.problem_type == SINGLE_LABEL:
        raise ValueError(
            f"{where} has labels of several columns, training has one class a study: expected the same kind."
        )
    wanted = list(like.names if like is not None else names or columns)
    by_fold = {fold(column): column for column in columns}
    missing = [name for name in wanted if fold(name) not in by_fold]
    if missing:
        raise ValueError(f"{where}: no column for the labels {missing}; columns of labels: {columns}.")
    numbers = sorted(by_row)
    table = np.array(
        [[_number(by_row[row].get(by_fold[fold(name)])) for name in wanted] for row in numbers], dtype=np.float32
    )
    known: np.ndarray = np.asarray(~np.isnan(table).all(1))
    unused = [column for column in columns if column not in {by_fold[fold(name)] for name in wanted}]
    notes = [f"{where}: the labels {unused} are not used"] if unused else []
    return StudyLabels(wanted, [row for row, keep in zip(numbers, known) if keep], table[known], notes)


def _number(answer: bool | None) -> float:
    return float("nan") if answer is None else float(answer)


def _as_classes(by_row: dict[int, Answers], names: Sequence[str] | None, like: StudyLabels | None) -> StudyLabels:
    if like is not None and like.problem_type == MULTI_LABEL:
        raise ValueError(
            "the labels are one class a study, those of training are several columns: expected the same kind."
        )
    counts = Counter(answers[CLASS] for answers in by_row.values())
    known = list(like.names if like is not None else names or sorted(counts))
    strangers = {name: count for name, count in counts.items() if name not in known}
    if strangers and names is None:
        raise ValueError(f"the classes {dict(sorted(strangers.items()))} do not occur in training: {known}.")
    numbers = [row for row in sorted(by_row) if by_row[row][CLASS] in known]
    table = np.array([known.index(by_row[row][CLASS]) for row in numbers], dtype=np.int64)
    notes = [f"studies of other classes are left out: {strangers}"] if strangers else []
    return StudyLabels(known, numbers, table, notes)


def balanced_weights(labels: StudyLabels) -> list[float]:
    """
    Class weights by which rare labels count as much as frequent ones: of a label (studies without it) / (studies with it), of
    a class (all studies) / (classes x studies of it); 1 where there is nothing to balance.
    """
    if labels.table.ndim == 2:
        with_it, without = (labels.table == 1).sum(0), (labels.table == 0).sum(0)
        return [float(n / p) if n and p else 1.0 for p, n in zip(with_it, without)]
    counts = np.bincount(labels.table[labels.table != UNKNOWN], minlength=len(labels.names))
    return [float(counts.sum() / (len(counts) * count)) if count else 1.0 for count in counts]
