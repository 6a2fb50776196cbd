"""Lists of studies: JSONL, parquet and folders -> records with `id`, `images`, `items`, `labels`."""

import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..processing.image_processing_itemized_clip import PICTURE_SUFFIXES
from .study import is_nifti, strip_suffix

ITEM_COLUMNS = ("items", "captions_unique", "captions", "sentences", "report")
IMAGE_COLUMNS = ("images", "image", "scans", "file", "path")
ID_COLUMNS = ("id", "filename", "study", "imgid")


class Records:
    """
    Map-style list of studies; images are opened when a record is read.

    Args:
        rows: a list of dictionaries or a `datasets.Dataset`.
        folder: relative image paths start here.
        items_column, images_column, id_column: names in the rows; found by name where None.
    """

    def __init__(self, rows, folder: Path | None = None, items_column=None, images_column=None, id_column=None):
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
        return next((name for name in known if name in self.columns), None)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = dict(self.rows[index])
        record: dict[str, Any] = {"id": str(row.get(self.id_column, index)) if self.id_column else str(index)}
        if self.images_column is not None and row.get(self.images_column) is not None:
            record["images"] = self._open(row[self.images_column])
        if self.items_column is not None and row.get(self.items_column) is not None:
            record["items"] = as_items(row[self.items_column])
        for name in ("labels", "label", "is_normal"):
            if row.get(name) is not None:
                record[name] = row[name]
        return record

    def id_of(self, index: int) -> str:
        """Id of a record, its image left closed."""
        if self.id_column is None:
            return str(index)
        column = self.rows[self.id_column] if hasattr(self.rows, "column_names") else None
        return str(column[index] if column is not None else self.rows[index].get(self.id_column, index))

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

    def _open(self, images):
        if isinstance(images, dict) and not {"bytes", "path"} & set(images):
            return {name: self._open(image) for name, image in images.items() if image is not None}
        if isinstance(images, dict):  # the `datasets` image feature, undecoded
            images = images["bytes"] if images.get("bytes") is not None else images["path"]
        if isinstance(images, (list, tuple)):
            return [self._open(image) for image in images]
        if isinstance(images, bytes):
            from PIL import Image

            return Image.open(io.BytesIO(images))
        if isinstance(images, (str, os.PathLike)):
            path = Path(images)
            return str(path if path.is_absolute() or self.folder is None else self.folder / path)
        return images


def as_items(value) -> list[str]:
    """Items as a list of stripped strings; a plain string is one item, and what has no letter or digit is none."""
    items = [value] if isinstance(value, str) else list(value)
    return [item.strip() for item in items if isinstance(item, str) and any(map(str.isalnum, item))]


def read_records(
    source: str | os.PathLike,
    items_column: str | None = None,
    images_column: str | None = None,
    id_column: str | None = None,
) -> Records:
    """
    Args:
        source: a `.jsonl`, `.jsonl.gz` or `.parquet` file or a glob of them, a saved `datasets` folder, a folder of
            studies (each a folder of NIfTI files), one study's folder, or one image file.
    """
    path = Path(source)
    columns = {"items_column": items_column, "images_column": images_column, "id_column": id_column}
    if not path.exists() and any(character in str(source) for character in "*?["):
        files = sorted(path.parent.glob(path.name))
        if not files:
            raise FileNotFoundError(f"no file matches {source}.")
        if all(file.suffix == ".parquet" for file in files):
            return Records(_load_parquet(files), path.parent, **columns)
        rows = [row for file in files for row in _read_jsonl(file)]
        return Records(rows, path.parent, **columns)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return Records(_read_jsonl(path), path.parent, **columns)
    if path.suffix == ".parquet":
        return Records(_load_parquet([path]), path.parent, **columns)
    if path.is_dir():
        if (path / "dataset_info.json").exists():
            return Records(_datasets().load_from_disk(str(path)), path, **columns)
        if _has_scans(path):
            return Records([{"id": path.name, "images": str(path)}])
        studies = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and _has_scans(folder)]
        pictures = [file for file in sorted(path.iterdir()) if file.name.lower().endswith(PICTURE_SUFFIXES)]
        if not studies and not pictures:
            raise ValueError(f"the folder {path} holds neither NIfTI files, nor folders of them, nor pictures.")
        return Records([{"id": strip_suffix(entry), "images": str(entry)} for entry in studies or pictures])
    return Records([{"id": strip_suffix(path), "images": str(path)}])


def _has_scans(folder: Path) -> bool:
    return any(is_nifti(path) for path in folder.iterdir())


def _read_jsonl(path: Path) -> list[dict]:
    rows = []
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for number, line in enumerate(content.decode("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}, line {number}: no JSON ({error}).") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}, line {number}: expected an object, found {type(row).__name__}.")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path.name} is empty.")
    return rows


def _datasets():
    try:
        import datasets
    except ImportError:
        raise ImportError("parquet files and saved datasets need: pip install 'itemized-clip-hf[data]'.") from None
    return datasets


def _load_parquet(files: list[Path]):
    return _datasets().Dataset.from_parquet([str(file) for file in files], keep_in_memory=False)
