"""
A cohort as a parquet file, a row a study; what made it stands in the file's schema as JSON (`CohortFacts`).

| column | what |
|---|---|
| `id` | of the study |
| `embedding` | (P,) float32, global, as the model gives it: not normalized |
| `scans`, `scans_left_out` | how many scans were embedded, and how many of the study could not be used |
| `labels` | finding -> true, false or null, where the list of studies has labels |
| `label` | class, where the list has one |
| `scores` | prompt -> text-conditioned cosine similarity, float32; global cosine of a model that is scored so |
| `item_embeddings` | prompt -> (P,) float32, what the item pooler gathers for it, not normalized |
| `tokens` | float16, flat, projected, not normalized; of shape `token_shape` (scans, D, H, W, P) |
| `scan_names` | of the scans that the tokens are of; null for one without a name |
| `token_to_voxel` | 16 numbers a scan: (4, 4), indices (d, h, w) of tokens -> of voxels of the scan as it came in |
| `scan_shapes` | of each scan as it came in, (D, H, W) voxels |

Columns that nothing was asked for are not there.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
"""Of what this version writes; larger numbers are refused."""
KEY = b"itemized_clip_cohort"
"""Of the JSON in the metadata of the schema."""


def import_parquet() -> tuple[Any, Any]:
    """
    `pyarrow` and `pyarrow.parquet`.

    Raises:
        ImportError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError("cohorts are parquet files, which need: pip install 'itemized-clip-hf[data]'.") from None
    return pyarrow, pyarrow.parquet


@dataclass(frozen=True)
class CohortFacts:
    """
    What a cohort was made by.

    Args:
        model: name (of a folder its own alone), domain and sha256, see `provenance.hash_model`.
        processor: sha256, see `provenance.hash_processor`.
        width: numbers of an embedding.
        prompts: label -> texts, whose embeddings are averaged.
        tokens: whether local tokens were kept.
        precision: of the forward passes, see `models.precision`.
        plan: hash of all that the rows depend on; a run that was stopped goes on with the same one.
        quantity: of the scores, see `evaluation.quantity`.
        normalized: whether embeddings have length 1.
        format: version of the columns.
    """

    model: dict[str, Any]
    processor: dict[str, Any]
    width: int
    prompts: dict[str, list[str]] = field(default_factory=dict)
    tokens: bool = False
    precision: str = "auto"
    plan: str = ""
    quantity: str = "similarity"
    normalized: bool = False
    format: int = FORMAT

    def metadata(self) -> dict[bytes, bytes]:
        """Of a parquet schema."""
        return {KEY: json.dumps(asdict(self)).encode()}

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "CohortFacts":
        """
        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no cohort, damaged, or of a later format.
        """
        _, parquet = import_parquet()
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no cohort {path}: `itemized-clip embed` writes one.")
        try:
            metadata = parquet.read_schema(path).metadata or {}
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None
        if KEY not in metadata:
            raise ValueError(f"{path} is no cohort: it was not written by `itemized-clip embed`.")
        stored = json.loads(metadata[KEY])
        if stored["format"] > FORMAT:
            raise ValueError(
                f"{path} has format {stored['format']}, this version reads up to {FORMAT}: update itemized-clip-hf."
            )
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})

    def require_same_model(self, other: "CohortFacts", where: str) -> None:
        """
        Raises:
            ValueError: the embeddings of two cohorts cannot be compared.
        """
        for part, name in (("model", "model"), ("processor", "preprocessing")):
            if getattr(self, part)["sha256"] != getattr(other, part)["sha256"]:
                raise ValueError(f"{where} was embedded by another {name}: embed both by the same.")


@dataclass
class StudyTokens:
    """
    Local tokens of a study.

    Args:
        values: (scans, D, H, W, P) float16, projected, not normalized.
        scan_names: of each scan.
        to_voxel: (scans, 4, 4), indices of tokens -> of voxels of the scan as it came in.
        scan_shapes: (scans, 3), of each scan as it came in.
    """

    values: np.ndarray
    scan_names: list[str | None]
    to_voxel: np.ndarray
    scan_shapes: np.ndarray

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "StudyTokens":
        """From the columns of a row, arrays or lists."""
        shape = np.asarray(row["token_shape"], int)
        values = np.asarray(row["tokens"], np.float16).reshape(shape)
        to_voxel = np.asarray(row["token_to_voxel"], float).reshape(len(values), 4, 4)
        return cls(values, list(row["scan_names"]), to_voxel, np.asarray(row["scan_shapes"], int).reshape(-1, 3))

    @property
    def flat(self) -> np.ndarray:
        """(L, P) float32, scan after scan."""
        values: np.ndarray = self.values.reshape(-1, self.values.shape[-1]).astype(np.float32)
        return values


TOKEN_COLUMNS = ("tokens", "token_shape", "scan_names", "token_to_voxel", "scan_shapes")


class Cohort:
    """
    A cohort that is read as far as it is asked for.

    Args:
        path: of the parquet file.

    Raises:
        FileNotFoundError, ValueError: see `CohortFacts.read`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.facts = CohortFacts.read(path)
        _, parquet = import_parquet()
        self._file = parquet.ParquetFile(self.path)
        counts = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        tokens = ", with tokens" if self.facts.tokens else ""
        return f"Cohort({self.path.name!r}, {len(self)} studies, {len(self.facts.prompts)} prompts{tokens})"

    def _column(self, name: str) -> Any:
        return self._file.read([name]).column(name).combine_chunks()

    @cached_property
    def ids(self) -> list[str]:
        """Of the studies, in their order."""
        found: list[str] = self._column("id").to_pylist()
        return found

    @cached_property
    def places(self) -> dict[str, int]:
        """Id -> number of the row."""
        return {name: number for number, name in enumerate(self.ids)}

    @cached_property
    def embeddings(self) -> np.ndarray:
        """(S, P) float32, not normalized."""
        values: np.ndarray = self._column("embedding").flatten().to_numpy()
        return values.reshape(len(self), -1)

    @cached_property
    def directions(self) -> np.ndarray:
        """(S, P) float32, embeddings of length 1."""
        return unit(self.embeddings)

    @cached_property
    def labels(self) -> dict[str, list[bool | None]]:
        """Finding -> label of each study; empty where the cohort has none."""
        if "labels" not in self._file.schema_arrow.names:
            return {}
        column = self._column("labels")
        return {one.name: column.field(one.name).to_pylist() for one in column.type}

    @cached_property
    def scores(self) -> np.ndarray:
        """(S, M) float32, of the prompts in their order."""
        if not self.facts.prompts:
            return np.zeros((len(self), 0), np.float32)
        column = self._column("scores")
        return np.stack([column.field(name).to_numpy() for name in self.facts.prompts], axis=1)

    @property
    def has_item_embeddings(self) -> bool:
        """Whether there are item embeddings, those of all prompts then."""
        return "item_embeddings" in self._file.schema_arrow.names

    def item_embeddings(self, label: str) -> np.ndarray:
        """
        (S, P) float32, what the item pooler gathers for a prompt.

        Raises:
            ValueError: the cohort has no such prompt, or its model has no pooler that was trained.
        """
        if not self.has_item_embeddings or label not in self.facts.prompts:
            raise ValueError(f"{self.path.name} has no item embeddings of {label!r}.")
        column = self._file.read([f"item_embeddings.{label}"]).column("item_embeddings").combine_chunks()
        values: np.ndarray = column.field(label).flatten().to_numpy()
        return values.reshape(len(self), -1)

    def require_tokens(self) -> None:
        """
        Raises:
            ValueError: no tokens were kept.
        """
        if not self.facts.tokens:
            raise ValueError(f"{self.path.name} holds no local tokens: embed it again with --tokens.")

    def tokens_of(self, places: Sequence[int] | np.ndarray) -> Iterator[tuple[int, StudyTokens]]:
        """
        Rows and their tokens, in the order of the file, a row group in memory at a time.

        Args:
            places: numbers of the rows.
        """
        self.require_tokens()
        wanted = np.unique(np.asarray(places, int))
        groups = np.searchsorted(self._starts, wanted, side="right") - 1
        for group in np.unique(groups):
            own = wanted[groups == group]
            table = self._file.read_row_group(int(group), columns=list(TOKEN_COLUMNS))
            for place in own:
                row = int(place - self._starts[group])
                cells: dict[str, Any] = {name: table.column(name)[row].as_py() for name in TOKEN_COLUMNS[1:]}
                cells["tokens"] = table.column("tokens")[row].values.to_numpy(zero_copy_only=False)
                yield int(place), StudyTokens.of_row(cells)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., P) of length 1; zeros stay zeros."""
    values = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    scaled: np.ndarray = values / np.maximum(lengths, 1e-12)
    return scaled
