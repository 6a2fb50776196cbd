"""The rows of a cohort while it is made: small files that a killed run goes on after, and one file of them all."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..data.files import remove_parts, whole_file, write_text
from .file import CohortFacts, import_parquet
from .rows import Row, finish_labels, reopen_labels, table_of

GROUP_BYTES = 16 << 20
"""Of a row group, in memory: what reading the tokens of one study takes."""


class Piece(NamedTuple):
    """A row group of a file."""

    path: Path
    group: int


class Shards:
    """
    What is known of a cohort: the rows of the output, and those of the files beside it.

    Args:
        output: the cohort's file.
        facts: of the cohort.
        overwrite: another file that stands there is replaced in the end, its rows are not used.

    Raises:
        ValueError: the output, or what an earlier run began, is of another plan.
    """

    def __init__(self, output: str | os.PathLike[str], facts: CohortFacts, overwrite: bool = False):
        self.output, self.facts = Path(output), facts
        self.folder = self.output.with_name(f"{self.output.name}.parts")
        self.reuses_output = self.output.exists() and not overwrite
        advice = "choose another output, or pass --overwrite"
        if self.reuses_output and CohortFacts.read(self.output).plan != facts.plan:
            raise ValueError(
                f"{self.output} is a cohort of another model, of other prompts, studies or settings: {advice}."
            )
        plan = self.folder / "plan.json"
        if plan.exists() and json.loads(plan.read_text(encoding="utf-8"))["plan"] != facts.plan:
            if not overwrite:
                raise ValueError(
                    f"{self.folder} is the beginning of a cohort of another model, of other prompts, studies or settings: "
                    f"{advice}."
                )
            shutil.rmtree(self.folder)
        if self.folder.exists():
            remove_parts(self.folder)
        numbers = [int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.parquet")]
        self._next = max(numbers, default=-1) + 1
        self.pieces = [piece for path in self._files() for piece in _pieces_of(path)]
        self.done = {name for piece in self.pieces for name in _load(piece, ("id",)).column("id").to_pylist()}

    def _files(self) -> list[Path]:
        return [*([self.output] if self.reuses_output else []), *sorted(self.folder.glob("part-*.parquet"))]

    def add(self, rows: Sequence[Row]) -> None:
        """Writes rows beside the output, all or none of them."""
        _, parquet = import_parquet()
        if not rows:
            return
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            write_text(self.folder / "plan.json", json.dumps({"plan": self.facts.plan}) + "\n")
        path = self.folder / f"part-{self._next:06d}.parquet"
        self._next += 1
        with whole_file(path) as temporary:
            parquet.write_table(table_of(rows, self.facts), temporary, use_dictionary=False)
        self.pieces += _pieces_of(path)
        self.done.update(row["id"] for row in rows)

    def finish(self, order: Sequence[str]) -> None:
        """
        Writes the output of all rows, unless it is whole, and removes the files beside it.

        Args:
            order: ids of the studies.
        """
        _, parquet = import_parquet()
        if any(piece.path != self.output for piece in self.pieces):
            places = {name: place for place, name in enumerate(order)}
            runs, findings, classes = self._plan(places)
            with whole_file(self.output) as temporary:
                writer = None
                for table in _gather(runs):
                    table = finish_labels(table, findings, classes).replace_schema_metadata(self.facts.metadata())
                    if writer is None:
                        writer = parquet.ParquetWriter(temporary, table.schema, use_dictionary=False)
                    writer.write_table(table, row_group_size=len(table))
                assert writer is not None
                writer.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _plan(self, places: dict[str, int]) -> tuple[list[tuple[Piece, int, int]], list[str], bool]:
        """Runs of rows (piece, first row, number of rows) in their order, all findings, and whether there are classes."""
        found: list[tuple[int, Piece, int]] = []
        findings: dict[str, None] = {}
        classes, taken = False, set[str]()
        for piece in self.pieces:
            table = reopen_labels(_load(piece, ("id", "scans_left_out", "labels", "label")))
            for row, known in enumerate(table.to_pylist()):
                if known["id"] in taken or known["id"] not in places:
                    continue
                taken.add(known["id"])
                found.append((places[known["id"]], piece, row))
                findings |= dict.fromkeys(json.loads(known["labels"] or "{}"))
                classes = classes or known["label"] is not None
        runs: list[tuple[Piece, int, int]] = []
        for _, piece, row in sorted(found):
            if runs and runs[-1][0] == piece and runs[-1][1] + runs[-1][2] == row:
                runs[-1] = (piece, runs[-1][1], runs[-1][2] + 1)
            else:
                runs.append((piece, row, 1))
        return runs, list(findings), classes


def _pieces_of(path: Path) -> list[Piece]:
    _, parquet = import_parquet()
    return [Piece(path, group) for group in range(parquet.read_metadata(path).num_row_groups)]


def _load(piece: Piece, columns: Sequence[str] | None = None) -> Any:
    _, parquet = import_parquet()
    with parquet.ParquetFile(piece.path) as file:
        names = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        return file.read_row_group(piece.group, columns=names)


def _gather(runs: Sequence[tuple[Piece, int, int]]) -> Iterator[Any]:
    """Tables of about `GROUP_BYTES`, which hold the rows of the runs in their order."""
    pa, _ = import_parquet()
    load = lru_cache(maxsize=2)(lambda piece: reopen_labels(_load(piece)))
    waiting: list[Any] = []
    size = 0
    for piece, start, count in runs:
        whole = load(piece)
        waiting.append(whole.slice(start, count))
        size += whole.nbytes * count // len(whole)
        if size >= GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
