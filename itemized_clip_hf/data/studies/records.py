"""Lists of studies: JSONL, CSV, JSON, parquet, saved datasets and folders -> records with `id`, `images`, `items`, `labels`."""

import io
import os
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...processing.pictures_itemized_clip import open_picture
from ..cells import as_items
from ..dicomweb import is_study_url, split_study_url
from ..kinds import study_name
from ..layout import Layout, list_studies
from ..study import Scan
from ..tables import TABLE_SUFFIXES, read_table
from ..truth_values import read_truth_value
from .labels import labels_of, read_columns
from .storage import load_scans

ITEM_COLUMNS = ("items", "captions_unique", "captions", "sentences", "report")
IMAGE_COLUMNS = ("images", "image", "scans", "nifti", "file_name", "file", "path")
ID_COLUMNS = ("id", "study_id", "filename", "file_name", "study", "imgid", "uid")


class Records:
    """
    Map-style list of studies; images are opened when a record is read.

    Args:
        rows: a list of dictionaries or a `datasets.Dataset`.
        folder: relative image paths start here.
        items_column, images_column, id_column: names in the rows; found by name where None.

    Labels of a record are those of its dictionary `labels` and of the columns whose cells are all truth values.
    """

    def __init__(
        self,
        rows: Any,
        folder: Path | None = None,
        items_column: str | None = None,
        images_column: str | None = None,
        id_column: str | None = None,
    ):
        self.rows = rows
        self.folder = folder
        columns = (
            list(rows.column_names) if hasattr(rows, "column_names") else sorted({key for row in rows for key in row})
        )
        self.columns = columns
        self.items_column = self._find("items", items_column, ITEM_COLUMNS)
        self.images_column = self._find("images", images_column, IMAGE_COLUMNS)
        self.id_column = self._find("id", id_column, ID_COLUMNS)

    def _find(self, what: str, given: str | None, known: tuple[str, ...]) -> str | None:
        if given is not None:
            if given not in self.columns:
                raise ValueError(f"there is no column {given!r} for {what}; columns: {self.columns}.")
            return given
        exact = next((name for name in known if name in self.columns), None)
        if exact is not None:
            return exact
        folded = {str(column).casefold(): column for column in self.columns}  # `ID`, `Report`
        return next((folded[name] for name in known if name in folded), None)

    @property
    def label_columns(self) -> list[str]:
        """Columns of labels, one for each finding; see `labels.read_columns`."""
        return self._label_facts[0]

    @property
    def nearly_labels(self) -> dict[str, int]:
        """Column -> number of its cells that are not truth values, where most are: it is not taken for labels."""
        return self._label_facts[1]

    @cached_property
    def _label_facts(self) -> tuple[list[str], dict[str, int]]:
        used = [str(column) for column in (self.id_column, self.images_column, self.items_column)]
        return read_columns(self.rows, self.columns, {*used, *ID_COLUMNS, *IMAGE_COLUMNS, *ITEM_COLUMNS})

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            row = dict(self.rows[index])
        except UnicodeDecodeError:
            raise ValueError(f"row {index + 1} of the list holds text that is not UTF-8: it is damaged.") from None
        record: dict[str, Any] = {"id": self._name(row.get(self.id_column), index) if self.id_column else str(index)}
        if self.images_column is not None and row.get(self.images_column) is not None:
            record["images"] = self._open(row[self.images_column])
        if self.items_column is not None and row.get(self.items_column) is not None:
            record["items"] = as_items(row[self.items_column])
        if self.label_columns or row.get("labels") is not None:
            record["labels"] = labels_of(row, self.label_columns, record["id"])
        if row.get("label") is not None:
            record["label"] = row["label"]
        stated = read_truth_value(row.get("is_normal"), f"study {record['id']}: `is_normal`")
        if stated is not None:
            record["is_normal"] = stated
        return record

    @staticmethod
    def _name(cell: Any, index: int) -> str:
        """The id as it stands there; a row where none stands is called by its number."""
        missing = cell is None or isinstance(cell, float) and cell != cell or isinstance(cell, str) and not cell.strip()
        return f"row-{index + 1}" if missing else str(cell)

    def id_of(self, index: int) -> str:
        """Id of a record, its image left closed."""
        if self.id_column is None:
            return str(index)
        column = self.rows[self.id_column] if hasattr(self.rows, "column_names") else None
        return self._name(column[index] if column is not None else self.rows[index].get(self.id_column), index)

    def paths_of(self, index: int) -> Any:
        """Image paths of a record, still closed: a path, a list, or name -> path; None if it has none."""
        cell = self.rows[index].get(self.images_column) if self.images_column else None
        paths = None if cell is None or isinstance(cell, bytes) else self._open(cell)
        leaves = paths.values() if isinstance(paths, dict) else paths if isinstance(paths, list) else [paths]
        if cell is not None and not all(isinstance(leaf, str) for leaf in leaves):
            raise ValueError(
                f"study {self.id_of(index)}: its images are no files but part of the list; it can be used as it is."
            )
        return paths

    def items(self) -> Iterator[list[str]]:
        """Items of every record, images left closed."""
        if self.items_column is None:
            raise ValueError(f"none of the columns {self.columns} holds items; name one.")
        column = (
            self.rows[self.items_column]
            if hasattr(self.rows, "column_names")
            else (r.get(self.items_column) for r in self.rows)
        )
        return (as_items(value) for value in column)

    def _open(self, images: Any):
        if isinstance(images, list) and images and isinstance(images[0], dict) and "voxels" in images[0]:
            return load_scans(images)
        if isinstance(images, dict) and not {"bytes", "path"} & set(images):
            return {name: self._open(image) for name, image in images.items() if image is not None}
        if isinstance(images, dict):  # the `datasets` image feature, undecoded
            if (images.get("path") or "").lower().endswith((".nii", ".nii.gz")):
                return self._open_nifti(images)
            images = images["bytes"] if images.get("bytes") is not None else images["path"]
        if isinstance(images, (list, tuple)):
            return [self._open(image) for image in images]
        if isinstance(images, bytes):
            return open_picture(io.BytesIO(images))
        if is_study_url(images):
            return images
        if isinstance(images, (str, os.PathLike)):
            path = Path(images)
            return str(path if path.is_absolute() or self.folder is None else self.folder / path)
        if hasattr(images, "dataobj") and hasattr(images, "affine"):  # the `datasets` NIfTI feature, decoded
            from ..readers.nifti import scan_of_image

            return scan_of_image(images)
        return images

    def _open_nifti(self, cell: dict) -> str | Scan:
        """The `datasets` NIfTI feature, undecoded."""
        from ..readers.nifti import read_nifti

        if cell.get("bytes") is None:
            return self._open(cell["path"])
        return read_nifti(cell["path"], data=cell["bytes"])


def read_records(
    source: str | os.PathLike,
    items_column: str | None = None,
    images_column: str | None = None,
    id_column: str | None = None,
    layout: Layout | None = None,
) -> Records:
    """
    Args:
        source: a `.jsonl`, `.csv`, `.tsv` or `.parquet` file or a glob of them; a `train.json` of the reference (study ->
            fields, items under `report`) with a folder of images per study beside it; a saved or prepared `datasets` folder; a
            folder of studies (each a folder or zip), of pictures, or of one folder of pictures per class; one study's folder;
            one image file; the address of a study on a DICOMweb server, `http(s)://HOST/.../studies/UID`, whose id is its UID.
        layout: what a study is in a folder, see `layout.Layout`; of studies with several scans if None.
    """
    if is_study_url(source):
        return Records([{"id": split_study_url(str(source))[1], "images": source}])
    path = Path(source)
    columns = {"items_column": items_column, "images_column": images_column, "id_column": id_column}
    if not path.exists() and any(character in str(source) for character in "*?["):
        files = sorted(path.parent.glob(path.name))
        if not files:
            raise FileNotFoundError(f"no file matches {source}.")
        if all(file.suffix == ".parquet" for file in files):
            return Records(load_parquet(files), path.parent, **columns)
        return Records([row for file in files for row in read_table(file)], path.parent, **columns)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    if path.name.lower().endswith(TABLE_SUFFIXES):
        return Records(read_table(path), path.parent, **columns)
    if path.suffix == ".parquet":
        return Records(load_parquet([path]), path.parent, **columns)
    if path.is_file():
        return Records([{"id": study_name(path), "images": str(path)}])
    if (path / "dataset_info.json").exists() and (path / "state.json").exists():
        return Records(_datasets().load_from_disk(str(path)), path, **columns)
    shards = sorted(path.glob("data/*.parquet"))
    if shards:
        _datasets()  # prepared volumes do not fit into memory
        return Records(load_parquet(shards), path, **columns)
    tables = [path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).exists()]
    return Records(read_table(tables[0]) if tables else list_studies(path, layout), path, **columns)


def refuse_repeats(names: list[str], where: str) -> None:
    """Raises where there are duplicate ids."""
    repeats = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeats:
        raise ValueError(f"{where}: {len(repeats)} duplicate ids, e.g. {repeats[:5]}; every study needs its own.")


def _datasets():
    try:
        import datasets
    except ImportError:
        raise ImportError("parquet files and saved datasets need: pip install 'itemized-clip-hf[data]'.") from None
    return datasets


def load_parquet(files: list[Path], leave_out: Collection[str] = ()) -> Any:
    """Rows of parquet files without some columns; where the package `datasets` is missing, pyarrow reads them into memory."""
    if find_spec("datasets") is None and find_spec("pyarrow") is not None:
        import pyarrow.parquet as pq

        rows: list[dict] = []
        for file in files:
            columns = [name for name in pq.read_schema(file).names if name not in leave_out]
            table = pq.read_table(file, columns=columns)
            _refuse_damaged_texts(table, file)
            rows += table.to_pylist()
        return rows
    datasets = _datasets()
    try:
        table = datasets.Dataset.from_parquet([str(file) for file in files], keep_in_memory=False)
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError, TypeError, KeyError) as error:
        reason = str(error.__cause__ or error).splitlines()[:1]
        raise ValueError(f"{files[0].name} cannot be read as parquet: {(reason or ['damaged'])[0][:200]}") from None
    table = table.remove_columns([name for name in table.column_names if name in leave_out])
    _refuse_damaged_texts(table.data, files[0])
    return table


def _refuse_damaged_texts(table: Any, file: Path) -> None:
    """Raises where texts are not UTF-8: parquet does not check them, and they would fail when they are read, hours later."""
    for name in table.column_names:
        column = table.column(name)
        if "binary" in str(column.type):  # voxels and pictures, which are large
            continue
        try:
            column.validate(full=True)
        except ValueError as error:
            raise ValueError(f"{file.name}, column {name!r}: damaged ({str(error).splitlines()[0][:120]}).") from None
