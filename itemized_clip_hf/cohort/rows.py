"""Encoded studies -> rows of a cohort, and rows -> tables."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data.truth_values import read_truth_value
from ..evaluation.encode import EncodedStudies, encode_prompts, texts_by_label
from ..explain.maps import source_array
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.geometry_itemized_clip import scaling
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..processing.scans_itemized_clip import ProcessedScan
from .file import CohortFacts, import_parquet

Row = dict[str, Any]
"""Of one study, arrays under the names of columns; labels as JSON, since their names are known at the end only."""


class RowMaker:
    """
    Makes rows of encoded studies.

    Args:
        model, processor: that encode.
        prompts: label -> texts, whose embeddings are averaged; no scores if empty.
        tokens: keep local tokens.
    """

    def __init__(
        self,
        model: ItemizedCLIPModel,
        processor: ItemizedCLIPProcessor,
        prompts: Mapping[str, Sequence[str]],
        tokens: bool = False,
    ):
        self.model, self.tokens = model, tokens
        self.prompts = texts_by_label(prompts)
        self.prompt_embeds = encode_prompts(model, processor, self.prompts)[1] if self.prompts else None

    @torch.no_grad()
    def __call__(self, studies: EncodedStudies) -> list[Row]:
        """Rows of a batch, without ids and labels."""
        embeds = studies.image_embeds.float().cpu().numpy()
        rows: list[Row] = [
            {"embedding": own, "scans": len(scans), "scans_left_out": 0} for own, scans in zip(embeds, studies.scans)
        ]
        if self.prompt_embeds is not None:
            scores, pooled = self._score(self.prompt_embeds, studies)
            for number, row in enumerate(rows):
                row["scores"] = dict(zip(self.prompts, scores[number]))
                if pooled is not None:
                    row["item_embeddings"] = dict(zip(self.prompts, pooled[number]))
        if self.tokens:
            for number, row in enumerate(rows):
                row.update(self._keep_tokens(studies.tokens[number], studies.scans[number]))
        return rows

    def _score(self, prompt_embeds: torch.Tensor, studies: EncodedStudies) -> tuple[np.ndarray, np.ndarray | None]:
        """Similarities (B, M) as `zero_shot.score_encoded` gives them, and what the pooler gathered (B, M, P)."""
        if self.model.config.scoring == "global":
            return self.model.score_global(prompt_embeds, studies.image_embeds).float().cpu().numpy(), None
        queries = F.normalize(prompt_embeds, dim=-1).expand(len(studies.tokens), -1, -1)
        pooled = self.model.item_pooler(queries, F.normalize(studies.tokens, dim=-1), studies.keep_mask).float()
        similarities = F.cosine_similarity(pooled, queries.float(), dim=-1, eps=1e-6)
        return similarities.cpu().numpy(), pooled.cpu().numpy()

    def _keep_tokens(self, tokens: torch.Tensor, scans: list[ProcessedScan]) -> Row:
        size = tuple(scans[0].pixel_values.shape[1:])
        grid = [voxels // patch for voxels, patch in zip(size, self.model.config.vision.patch_shape)]
        count = len(scans) * int(np.prod(grid))  # tokens of padded scans stand behind them
        shape = [len(scans), *grid, tokens.shape[-1]]
        kept = tokens[:count].to(torch.float16).cpu().numpy()
        return {
            "tokens": kept.ravel(),
            "token_shape": shape,
            "scan_names": [scan.name for scan in scans],
            "token_to_voxel": [_to_voxel(scan, size, grid) for scan in scans],
            "scan_shapes": [_shape_of(scan) for scan in scans],
        }


def _to_voxel(scan: ProcessedScan, size: Sequence[int], grid: Sequence[int]) -> np.ndarray:
    assert scan.to_source is not None  # only training draws have none
    matrix: np.ndarray = scan.to_source @ scaling(size, grid)
    return matrix.ravel()


def _shape_of(scan: ProcessedScan) -> list[int]:
    shape = source_array(scan).shape
    return [1, *shape[:2]] if scan.pixel_values.shape[1] == 1 else list(shape[:3])


def check_row(row: Row) -> None:
    """
    Raises:
        ValueError: a number of the row is not finite.
    """
    numbers = [row["embedding"], *row.get("scores", {}).values(), row.get("tokens", ())]
    if not all(np.isfinite(np.asarray(values, np.float32)).all() for values in numbers):
        raise ValueError(
            "the model gave numbers that are not finite, or too large for float16: its weights are damaged, or the images are."
        )


def labels_of(record: Mapping[str, Any]) -> Row:
    """Labels and class of a record, as rows hold them."""
    stated = record.get("labels") or {}
    found = {
        str(name): read_truth_value(value, f"study {record['id']}: the label {name!r}")
        for name, value in stated.items()
    }
    label = record.get("label")
    return {"labels": json.dumps(found) if found else None, "label": None if label is None else str(label)}


def table_of(rows: Sequence[Row], facts: CohortFacts) -> Any:
    """Rows as a table of the columns of `file`, but for labels, which are JSON, see `finish_labels`."""
    pa, _ = import_parquet()
    vector = pa.list_(pa.float32(), facts.width)

    def vectors(values: Sequence[np.ndarray]) -> Any:
        flat = np.ascontiguousarray(values, dtype=np.float32).ravel()
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=vector)

    columns: dict[str, Any] = {
        "id": pa.array([row["id"] for row in rows], pa.string()),
        "embedding": vectors([row["embedding"] for row in rows]),
        "scans": pa.array([row["scans"] for row in rows], pa.int32()),
        "scans_left_out": pa.array([row["scans_left_out"] for row in rows], pa.int32()),
        "labels": pa.array([row["labels"] for row in rows], pa.string()),
        "label": pa.array([row["label"] for row in rows], pa.string()),
    }
    names = list(facts.prompts)
    if names:
        scores = [pa.array(np.array([row["scores"][name] for row in rows], np.float32)) for name in names]
        columns["scores"] = pa.StructArray.from_arrays(scores, names)
    if names and "item_embeddings" in rows[0]:
        pooled = [vectors([row["item_embeddings"][name] for row in rows]) for name in names]
        columns["item_embeddings"] = pa.StructArray.from_arrays(pooled, names)
    if facts.tokens:
        columns |= _token_columns(rows)
    return pa.table(columns).replace_schema_metadata(facts.metadata())


def _token_columns(rows: Sequence[Row]) -> dict[str, Any]:
    pa, _ = import_parquet()
    offsets = np.concatenate([[0], np.cumsum([len(row["tokens"]) for row in rows])]).astype(np.int32)
    values = pa.array(np.concatenate([row["tokens"] for row in rows]))
    return {
        "tokens": pa.ListArray.from_arrays(pa.array(offsets), values),
        "token_shape": pa.array([list(map(int, row["token_shape"])) for row in rows], pa.list_(pa.int32(), 5)),
        "scan_names": pa.array([row["scan_names"] for row in rows], pa.list_(pa.string())),
        "token_to_voxel": pa.array([row["token_to_voxel"] for row in rows], pa.list_(pa.list_(pa.float64(), 16))),
        "scan_shapes": pa.array([row["scan_shapes"] for row in rows], pa.list_(pa.list_(pa.int32(), 3))),
    }


def finish_labels(table: Any, findings: Sequence[str], classes: bool) -> Any:
    """
    A table as whole cohorts have it.

    Args:
        findings: of the column `labels`, finding -> label, which is left out if there are none.
        classes: whether there is a column `label`.
    """
    pa, _ = import_parquet()
    place = table.schema.get_field_index("labels")
    stated = [json.loads(text) if text else {} for text in table.column("labels").to_pylist()]
    table = table if classes else table.drop_columns(["label"])
    if not findings:
        return table.remove_column(place)
    columns = [pa.array([own.get(name) for own in stated], pa.bool_()) for name in findings]
    return table.set_column(place, "labels", pa.StructArray.from_arrays(columns, list(findings)))


def reopen_labels(table: Any) -> Any:
    """A table of a whole cohort as `finish_labels` takes it."""
    pa, _ = import_parquet()
    place = table.schema.get_field_index("scans_left_out") + 1
    for column in ("label", "labels"):
        own = table.column(column).to_pylist() if column in table.column_names else [None] * len(table)
        own = [json.dumps(cell) if isinstance(cell, dict) else cell for cell in own]
        table = table.drop_columns([column]) if column in table.column_names else table
        table = table.add_column(place, column, pa.array(own, pa.string()))
    return table
