"""
Masks of studies: where a finding lies, as files, brought to the scans as the model sees them.

A record has `masks`, one entry for each of its `items`: the path of a mask, or null where nobody drew one. `absent` lists texts
of findings that the study is known not to have: their masks are empty. Or it has `label_map`, one file of class numbers, 0
being the background. `mask_scan` names the scan that they were drawn in, where they hold for no other; `findings` may name what
each item is about, by which figures are grouped.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...explain.maps import paint_tokens, source_array
from ...modeling.segmentation_itemized_clip import IGNORE as UNKNOWN
from ...processing.pictures_itemized_clip import PICTURE_SUFFIXES
from ...processing.scans_itemized_clip import ProcessedScan
from ..readers import reader_of
from ..study import Scan
from .records import Records, read_records

SAME_PLACE = 1e-2
"""Voxels by which a mask may lie away from a scan of its shape and still be in its grid: rounding of headers."""


@dataclass
class StudyMasks:
    """
    What is known of a study's findings.

    Args:
        items: texts.
        masks: of each, a path, a scan object or an array in the grid of the study's scans; None where nobody drew one.
        absent: texts of findings that it does not have.
        label_map: one volume of class numbers, in place of items and masks.
        scan: name of the scan that they were drawn in, where they hold for no other.
        findings: what each item is about, for figures by finding; empty where nobody says.
    """

    items: list[str] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    label_map: Any = None
    scan: str | None = None
    findings: list[str] = field(default_factory=list)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "StudyMasks":
        """
        From a record, its paths as they are.

        Raises:
            ValueError: there are not as many masks as items, or neither masks nor a label map.
        """
        items, masks, absent = list(record.get("items") or ()), record.get("masks"), record.get("absent")
        if record.get("label_map") is not None:
            return cls(label_map=record["label_map"], scan=record.get("mask_scan"))
        if masks is None and not absent:
            raise ValueError(
                "the study has no masks: expected `masks`, one path or null for each item, or `label_map`."
            )
        masks = [None] * len(items) if masks is None else masks
        if not isinstance(masks, (list, tuple)) or len(masks) != len(items):
            found = f"{len(masks)} masks" if isinstance(masks, (list, tuple)) else "masks that are not a list"
            raise ValueError(f"the study has {found} and {len(items)} items, expected one mask or null for each item.")
        if absent is not None and not (isinstance(absent, (list, tuple)) and all(isinstance(a, str) for a in absent)):
            raise ValueError("`absent` is not a list of texts.")
        findings = record.get("findings") or []
        if findings and (not isinstance(findings, (list, tuple)) or len(findings) != len(items)):
            raise ValueError(f"`findings` is not a list of {len(items)} names, one for each item.")
        return cls(items, list(masks), list(absent or ()), None, record.get("mask_scan"), [str(f) for f in findings])


class MaskRecords(Records):
    """A list of studies whose records also hold what `StudyMasks` is made of; paths start at the folder of the list."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        row = dict(self.rows[index])
        for name in ("masks", "absent", "label_map", "mask_scan", "findings"):
            if row.get(name) is not None:
                record[name] = row[name]
        if isinstance(record.get("masks"), list):
            record["masks"] = [self._mask(one) for one in record["masks"]]
        if record.get("label_map") is not None:
            record["label_map"] = self._mask(record["label_map"])
        return record

    def _mask(self, cell: Any) -> Any:
        return self._open(cell) if isinstance(cell, str) and cell else (None if cell == "" else cell)


def read_mask_records(source: str | os.PathLike[str], **columns: Any) -> MaskRecords:
    """
    As `read_records`, of a list whose studies have masks.

    Raises:
        ValueError: no study of it has any.
    """
    return with_masks(read_records(source, **columns), str(source))


def with_masks(records: Records, where: str) -> MaskRecords:
    """
    The same list, whose records hold masks, too.

    Raises:
        ValueError: no study of it has any.
    """
    if not {"masks", "label_map"} & set(records.columns):
        raise ValueError(
            f"{where} has no column `masks` (one path or null for each item) and none `label_map`; columns: {records.columns}."
        )
    return MaskRecords(records.rows, records.folder, records.items_column, records.images_column, records.id_column)


def read_mask(source: Any) -> Scan:
    """
    A mask or label map with its geometry.

    Args:
        source: path of a NIfTI file, another volume or a picture, a scan object, or an array.

    Raises:
        OSError, ValueError: it cannot be read, or its voxels are not whole numbers from 0 to 254.
    """
    if isinstance(source, (str, os.PathLike)):
        opened: Any = _read_file(Path(source))
        where = Path(source).name
    else:
        opened, where = source if hasattr(source, "array") else Scan(np.asarray(source), None), "the mask"
    if not hasattr(opened, "array"):
        raise ValueError(f"{where} holds several scans, expected one mask.")
    array = np.asarray(opened.array)
    whole = array.dtype.kind in "bui" or array.dtype.kind == "f" and bool((array == np.rint(array)).all())
    if not whole or array.size and (array.min() < 0 or array.max() >= UNKNOWN):
        raise ValueError(
            f"{where} holds values of type {array.dtype} from {array.min():g} to {array.max():g}, expected whole numbers from "
            f"0 to {UNKNOWN - 1}: it is not a mask."
        )
    return Scan(array.astype(np.uint8), opened.affine, name=where)


def _read_file(path: Path) -> Any:
    """By the readers of scans, without their checks, which refuse masks."""
    if path.name.lower().endswith(PICTURE_SUFFIXES):
        return _read_picture(path)
    reader = reader_of(path)
    if reader is None:
        raise ValueError(f"{path.name} is not a file that a mask can be read from, expected NIfTI, e.g. mask.nii.gz.")
    return reader.read(path)


def _read_picture(path: Any) -> Scan:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode not in ("1", "L", "P"):
            raise ValueError(
                f"{Path(path).name} is a picture of mode {picture.mode}, expected one channel of whole numbers."
            )
        array = np.asarray(picture)
    # 255 is what programs write for "inside"
    return Scan(np.where(array == UNKNOWN, 1, array) if set(np.unique(array)) <= {0, UNKNOWN} else array, None)


def as_binary(mask: Scan) -> Scan:
    """
    0 and 1 of a mask of one finding.

    Raises:
        ValueError: it holds several findings.
    """
    values = np.unique(mask.array)
    inside = values[values > 0]
    if len(inside) > 1:
        raise ValueError(
            f"{mask.name} holds the values {values[:6].tolist()}, expected 0 and one other: a mask is of one finding. Write "
            "one file for each, or train with classes (`label_map`)."
        )
    return Scan((mask.array > 0).astype(np.uint8), mask.affine, name=mask.name)


def on_scan(mask: Scan, scan: ProcessedScan) -> np.ndarray:
    """
    A mask in the grid of a scan as the model sees it: uint8 (D, H, W), `UNKNOWN` outside of the mask's field.

    Args:
        mask: with values below `UNKNOWN`.
        scan: of `process_study`, with its source.

    Raises:
        ValueError: as `on_source`, or the scan does not say where its voxels come from.
    """
    if scan.to_source is None:
        raise ValueError(
            "a processed scan does not know its source: pass scans with their geometry instead of pixel_values."
        )
    shape = tuple(scan.pixel_values.shape[1:])
    source = source_array(scan).shape
    affine = getattr(scan.source, "affine", None)
    return _lay_over(mask, (1, *source[:2]) if shape[0] == 1 else source, affine, scan.to_source, shape)


def on_source(mask: Scan, shape: Sequence[int], affine: Any) -> np.ndarray:
    """
    A mask in the grid of a scan as it came in, by nearest neighbors through the affines; `UNKNOWN` outside of its field.

    Args:
        mask: with values below `UNKNOWN`.
        shape: of the scan, (D, H, W), or (H, W) of a picture.
        affine: (4, 4), indices of the scan -> mm, or None.

    Raises:
        ValueError: one of the two has no geometry and their shapes differ.
    """
    grid = (1, *shape) if len(shape) == 2 else tuple(shape)
    return _lay_over(mask, grid, affine, np.eye(4), grid).reshape(tuple(shape))


def _lay_over(
    mask: Scan, source: Sequence[int], affine: Any, to_source: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """The mask in a grid of `shape` whose indices `to_source` maps to those of the scan, which is of shape `source`."""
    array = np.asarray(mask.array)
    array = array[None] if array.ndim == 2 else array
    if mask.affine is None or affine is None:
        if array.shape != tuple(source):
            raise ValueError(
                f"the mask is {array.shape}, the scan {tuple(source)} voxels, and without geometry (an affine of both) they "
                "cannot be laid over each other."
            )
        to_mask = np.eye(4)
    else:
        to_mask = np.linalg.inv(np.asarray(mask.affine, float)) @ np.asarray(affine, float)
        if array.shape == tuple(source) and np.abs(to_mask - np.eye(4)).max() * max(array.shape) < SAME_PLACE:
            to_mask = np.eye(4)  # rounding of the headers shifts nothing
    painted = paint_tokens(array.astype(np.uint8) + np.uint8(1), to_mask @ to_source, shape)
    return painted - np.uint8(1)  # 0, where there is no mask, becomes UNKNOWN


def labels_of_items(known: StudyMasks, chosen: Sequence[int], scans: Sequence[ProcessedScan]) -> np.ndarray:
    """
    Labels (N, K, D, H, W) of items: 0, 1, or `UNKNOWN`.

    Args:
        chosen: their places in `known.items`, followed by those of `known.absent`.
        scans: of the study.

    Raises:
        OSError, ValueError: a mask cannot be read, lies in no scan, or holds several findings.
    """
    labels = np.full((len(scans), len(chosen), *scans[0].pixel_values.shape[1:]), UNKNOWN, np.uint8)
    used = _scans_of(known, scans)
    for column, place in enumerate(chosen):
        if place >= len(known.items):
            labels[used, column] = 0
        elif known.masks[place] is not None:
            _fill(labels[:, column], as_binary(read_mask(known.masks[place])), scans, used)
    return labels


def labels_of_classes(known: StudyMasks, scans: Sequence[ProcessedScan], num_labels: int) -> np.ndarray:
    """
    Class numbers (N, D, H, W), or `UNKNOWN`.

    Raises:
        OSError, ValueError: the map cannot be read, lies in no scan, or holds a class that the model does not have.
    """
    labels = np.full((len(scans), *scans[0].pixel_values.shape[1:]), UNKNOWN, np.uint8)
    mask = read_mask(known.label_map)
    if mask.array.max(initial=0) >= num_labels:
        raise ValueError(f"{mask.name} holds the class {mask.array.max()}, the model has {num_labels}, counted from 0.")
    _fill(labels, mask, scans, _scans_of(known, scans))
    return labels


def _fill(labels: np.ndarray, mask: Scan, scans: Sequence[ProcessedScan], used: Sequence[int]) -> None:
    for number in used:
        labels[number] = on_scan(mask, scans[number])
    if (labels == UNKNOWN).all():
        raise ValueError(
            f"{mask.name} lies outside of every scan of the study: it is of another study, or in another space."
        )


def _scans_of(known: StudyMasks, scans: Sequence[ProcessedScan]) -> list[int]:
    """Numbers of the scans that the masks hold for."""
    if known.scan is None:
        return list(range(len(scans)))
    named = [n for n, scan in enumerate(scans) if known.scan in (scan.name, getattr(scan.source, "name", None))]
    if not named:
        raise ValueError(f"mask_scan is {known.scan!r}, the scans are {[scan.name for scan in scans]}.")
    return named
