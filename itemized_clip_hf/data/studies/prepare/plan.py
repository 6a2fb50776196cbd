"""What is prepared, the same in every process: studies joined with their reports by id."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ....domains import Domain, load_domain
from ....processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ....provenance import hash_json
from ....version import __version__
from ...cells import as_items, as_labels, holds_list, is_nothing
from ...layout import Layout
from ...open import known_codes
from ...study import Skipped
from ...tables import read_table
from ..labels import NEVER_LABELS, as_numbers, labels_of
from ..records import Records, read_records, refuse_repeats

logger = logging.get_logger(__name__)


@dataclass
class Plan:
    """
    What a run does, the same in every process.

    Args:
        domain: name of the domain.
        rows: studies in their order, each with `id`, `images` (paths), `items`, `labels` and `label` (None if it has none).
        labels: all names in the rows' `labels`.
        image_settings: changes to the domain's image preset.
        accept: codes of `checks` that are no reason to refuse a scan.
        volume_index: of 4-D files.
        shard_size: studies of one output file, and of one piece of work that a killed run does again.
        file_format: `"arrow"`, for `load_from_disk`, mapped into memory; `"parquet"`, for `load_dataset`, compressed.
        layout: what the files of a folder are where it cannot be told, see `layout.Layout`.
    """

    domain: str
    rows: list[dict]
    labels: list[str] = field(default_factory=list)
    image_settings: dict = field(default_factory=dict)
    accept: list[str] = field(default_factory=list)
    volume_index: int | None = None
    shard_size: int = 8
    file_format: str = "arrow"
    layout: str | None = None

    def __post_init__(self):
        if self.file_format not in ("arrow", "parquet"):
            raise ValueError(f"file_format is {self.file_format!r}, expected 'arrow' or 'parquet'.")
        if self.shard_size < 1:
            raise ValueError(f"shard_size is {self.shard_size}, expected at least 1.")

    @property
    def num_shards(self) -> int:
        """Number of pieces of work, each a file of the result."""
        return -(-len(self.rows) // self.shard_size)

    def image_processor(self) -> ItemizedCLIPImageProcessor:
        """Of the domain, with the plan's changes."""
        return ItemizedCLIPImageProcessor.from_domain(self.domain, **self.image_settings)

    @property
    def rule(self) -> Layout:
        """What a study is."""
        return Layout.of_domain(self.domain, self.layout)

    @property
    def pictures(self) -> bool:
        """Whether studies are pictures."""
        return load_domain(self.domain).image["scan_size"][0] == 1

    def shard(self, number: int) -> range:
        """Numbers of the studies of a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, len(self.rows)))

    def digest(self) -> str:
        """Of everything that the result depends on, files' contents aside."""
        facts = asdict(self)
        if self.layout is None:  # so that what was begun before there was a choice goes on
            del facts["layout"]
        return hash_json([__version__, facts], sort_keys=True)


def plan_studies(
    studies: str | os.PathLike,
    domain: str,
    reports: str | os.PathLike | None = None,
    id_column: str | None = None,
    items_column: str | None = None,
    **settings,
) -> tuple[Plan, list[Skipped]]:
    """
    Studies joined with their reports by id.

    Args:
        studies: as in `read_records`; or the folder that image paths of the reports start from.
        domain: name of the domain.
        reports: table with ids and either items (lists) or texts of reports, which are itemized by rules; also label columns
            (one for each finding), `labels` (name -> 0 or 1), `label` (a class) and `images`, if it has them. None: the
            studies' own list has the items. Other columns are named in a warning.
        id_column, items_column: of the reports, where their names are not the usual ones.
        settings: other fields of [`Plan`].

    Returns:
        the plan, and what it leaves out: reports without images, studies without a report or an item.

    Raises:
        ValueError: an id is there twice, a column is missing, or no study has both images and items.
    """
    known_codes(settings.get("accept", ()))
    joined = _join(studies, reports, id_column, items_column, Layout.of_domain(domain, settings.get("layout")))
    facts = load_domain(domain)
    domain = facts.name
    rows: list[dict] = []
    skipped: list[Skipped] = []
    for name, images, report, items_name in joined:
        if report is None:
            skipped.append(Skipped(name, None, "list", "there is no report of this id"))
            continue
        if images is None:
            skipped.append(Skipped(name, None, "list", "there are no images of this id"))
            continue
        try:
            items = _items_of(report.get(items_name), facts)
        except ValueError as error:
            skipped.append(Skipped(name, None, "list", f"its items: {error}"))
            continue
        if not items:
            skipped.append(Skipped(name, None, "list", "its report has no item"))
            continue
        labels = as_numbers(as_labels(report.get("labels"), name))
        rows.append({"id": name, "images": images, "items": items, "labels": labels, "label": report.get("label")})
    if not rows:
        tried = ", ".join(f"{study.study!r} ({study.reason})" for study in skipped[:3])
        raise ValueError(
            f"no study of {studies} has both images and items; e.g. {tried}. Ids are the names of the study folders, or "
            "the names of the files without suffix."
        )
    names = sorted({label for row in rows for label in row["labels"]})
    return Plan(domain, rows, names, **settings), skipped


def _join(
    studies: str | os.PathLike[str],
    reports: str | os.PathLike[str] | None,
    id_column: str | None,
    items_column: str | None,
    layout: Layout,
) -> Iterator[tuple[str, Any, dict | None, str]]:
    """(id, images or None, report or None, name of its items column) of every id on either side."""
    if reports is None:
        source = read_records(studies, items_column=items_column, id_column=id_column, layout=layout)
        if source.items_column is None:
            raise ValueError(f"{studies} has no items: pass a table of reports (columns found: {source.columns}).")
        names = [source.id_of(number) for number in range(len(source))]
        refuse_repeats(names, str(studies))
        _warn_of_columns(source, str(studies))
        for number, name in enumerate(names):
            yield name, source.paths_of(number), _with_labels(source, number), source.items_column
        return
    table = Records(read_table(reports), Path(studies), items_column, None, id_column)
    for column, what in ((table.id_column, "ids"), (table.items_column, "items or report texts")):
        if column is None:
            raise ValueError(f"{Path(reports).name}: no column of {what} among {table.columns}; name it.")
    names = [table.id_of(number) for number in range(len(table))]
    refuse_repeats(names, Path(reports).name)
    _warn_of_columns(table, Path(reports).name)
    items_name = str(table.items_column)
    if table.images_column is not None and table.images_column != table.id_column:
        for number, name in enumerate(names):
            yield name, table.paths_of(number), _with_labels(table, number), items_name
        return
    source = read_records(studies, layout=replace(layout, ids=frozenset(names)))
    found = [source.id_of(number) for number in range(len(source))]
    refuse_repeats(found, str(studies))
    places = {name: number for number, name in enumerate(found)}
    for number, name in enumerate(names):
        yield name, source.paths_of(places[name]) if name in places else None, _with_labels(table, number), items_name
    for name in sorted(set(places) - set(names)):
        yield name, source.paths_of(places[name]), None, items_name


def _with_labels(table: Records, number: int) -> dict:
    """A row whose `labels` hold its label columns, too."""
    row = table.rows[number]
    return {**row, "labels": labels_of(row, table.label_columns, table.id_of(number))}


def _warn_of_columns(table: Records, name: str) -> None:
    """What is not taken into the prepared set, and is none of what it is made of."""
    used = {table.id_column, table.images_column, table.items_column, *table.label_columns}
    used |= NEVER_LABELS - {"split", "mask", "text"}
    left = [f"{column!r}{_count_strange(table, column)}" for column in table.columns if column not in used]
    if left:
        logger.warning(f"{name}: columns that the prepared set does not hold: {', '.join(left)}")


def _count_strange(table: Records, column: str) -> str:
    count = table.nearly_labels.get(column)
    return f" (no labels: {count} of {len(table)} cells are not truth values)" if count else ""


def _items_of(value: Any, facts: Domain) -> list[str]:
    if isinstance(value, str) and not holds_list(value):
        from ...reports.itemize import itemize_report

        return [] if is_nothing(value) else itemize_report(value, facts.name).items
    return [] if value is None else as_items(value)
