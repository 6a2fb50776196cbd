"""A contact sheet: studies that were found on one picture, a tile each, with the heat map of the text that was looked for."""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..explain.encoded import EncodedStudy, encode_study, explain_encoded
from ..explain.figures import new_figure, save_figure
from ..explain.maps import HeatMap, paint_scan, source_array
from ..explain.plots import GAP, LINE, Row, draw_panel, heat_colors, picture_row, volume_row
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .search import Hit

COLUMNS = 5
"""Of a sheet."""
TILE = 2.0
"""Inches."""


@dataclass
class Tile:
    """
    One study on a sheet.

    Args:
        title: lines above it.
        row: what is drawn, its last panel; None where the study cannot be opened.
    """

    title: str
    row: Row | None


def tile_of(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    images: Any,
    hit: Hit,
    rank: int,
    text: str | None,
) -> Tile:
    """
    The hottest slice of the scan that the text's map rests on most; the middle of the first scan without a text.

    Args:
        images: anything the processor takes as one study.
        rank: 1 for the best.
        text: whose heat map is drawn; None draws none.

    Raises:
        OSError, ValueError: the study cannot be used.
    """
    encoded = encode_study(model, processor, images, hit.id, on_bad_scan=lambda scan, error: None)
    heat = _heat_of(model, processor, encoded, text)
    row = picture_row(heat) if heat.values.ndim == 2 else volume_row(heat, None, 1)
    name = heat.scan_name or ""
    title = "\n".join(textwrap.wrap(f"{rank}. {hit.id}", 26)[:2] + [f"{hit.score:.3f} {name}"[:28]])
    return Tile(title, row)


def _heat_of(
    model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, encoded: EncodedStudy, text: str | None
) -> HeatMap:
    if text is not None and model.config.scoring != "global":
        result = explain_encoded(model, processor, encoded, [text])
        return result.heat_maps(0)[result.findings[0].strongest_scan]
    scan = encoded.scans[0]
    heat = paint_scan("", scan, source_array(scan), np.zeros((1, 1, 1), np.float32), 1.0)
    heat.window = encoded.windows[0] if encoded.windows else None
    return heat


def missing_tile(hit: Hit, rank: int, reason: str) -> Tile:
    """A tile that says why there is no picture."""
    return Tile("\n".join(textwrap.wrap(f"{rank}. {hit.id}", 26)[:2] + [f"{hit.score:.3f}", reason[:28]]), None)


def draw_sheet(tiles: Sequence[Tile], query: str, path: str | Path | io.BytesIO, columns: int = COLUMNS) -> None:
    """
    A PNG of all tiles, best first, row by row; the colors of all heat maps end at one value.

    Args:
        query: what was looked for, above them.
        path: of the PNG, or a stream.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.cm import ScalarMappable

    columns = max(min(columns, len(tiles)), 1)
    lines = textwrap.wrap(query, int(12 * columns * TILE))[:3]
    top, label = LINE * (len(lines) + 1), 3.5 * LINE
    width, step = columns * (TILE + GAP) + GAP, TILE + label
    height = top + math.ceil(len(tiles) / columns) * step + GAP
    figure = new_figure(width, height)
    figure.text(GAP / width, 1 - 0.5 * LINE / height, "\n".join(lines), va="top", fontsize=10)
    hottest = max((float(tile.row.heat.max()) for tile in tiles if tile.row is not None), default=1.0)
    mappable = ScalarMappable(*heat_colors(hottest))
    for number, tile in enumerate(tiles):
        left = GAP + (number % columns) * (TILE + GAP)
        down = top + (number // columns) * step
        figure.text(left / width, 1 - down / height, tile.title, va="top", fontsize=7)
        if tile.row is None:
            continue
        place = (left / width, 1 - (down + step - GAP) / height, TILE / width, TILE / height)
        draw_panel(figure.add_axes(place), tile.row, tile.row.panels[-1], mappable)
    if isinstance(path, io.BytesIO):
        figure.savefig(path, format="png")
    else:
        save_figure(figure, path)
