"""Pictures of heat maps: slices of every scan with the map on top."""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import new_figure, save_figure
from .maps import HeatMap
from .views import View, find_body

if TYPE_CHECKING:
    from ..data.study import Scan

MOST_ROWS = 8
"""Scans of one picture; others are named below."""
LITTLE = 0.25
"""Part of an even share of the attention below which a scan is only named."""
LOWEST_TOP = 3.0
"""Least attention, relative to the mean, at which the colors end, so that an even map stays pale."""
OPACITY = 0.75

PANEL, PICTURE, LABEL, BAR, LINE, GAP = 2.0, 3.6, 1.35, 0.95, 0.2, 0.06
"""Inches: width of a slice and of a picture, of the names on the left, of the color bar, a line of text, between slices."""


def slug(text: str) -> str:
    """A text as a file name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")[:60] or "item"


def display_slices(volume: np.ndarray, affine: np.ndarray | None) -> tuple[np.ndarray, float]:
    """
    A volume as slices for the screen: (slices, rows, columns), patient's left on the right of an axial slice.

    Args:
        affine: of the volume; arrays without one are shown as they are, depth first.

    Returns:
        the slices across the axis with the largest spacing, and the height of a pixel over its width.
    """
    view = View.of(volume.shape, affine)
    return view.slices(volume), view.aspect


@dataclass
class Row:
    """
    One scan on the screen.

    Args:
        label: its lines of text.
        slices: (slices, rows, columns), or (1, rows, columns, 3) of a picture in color.
        heat: (slices, rows, columns), relative to the mean attention, 0 where it is not shown.
        panels: number of the slice of each panel, its name, and whether the heat is on it.
        limits: intensities that become black and white.
        width: inches of a panel.
        aspect: height of a pixel over its width.
        sides: letters at the top, right, bottom and left.
        outline: bool, as `heat`, or None.
        outside: part of the scan's attention that is on air around the body.
    """

    label: str
    slices: np.ndarray
    heat: np.ndarray
    panels: list[tuple[int, str, bool]]
    limits: tuple[float, float]
    width: float = PANEL
    aspect: float = 1.0
    sides: str = ""
    outline: np.ndarray | None = None
    outside: float = 0.0

    @property
    def height(self) -> float:
        """Inches of a panel."""
        rows, columns = self.slices.shape[1:3]
        return float(np.clip(self.width * rows * self.aspect / columns, 0.5 * self.width, 1.4 * self.width))


def choose_slices(body: np.ndarray, heat: np.ndarray, count: int) -> list[int]:
    """
    Numbers of the slices to show: those with the highest places, which are not all neighbours; evenly spaced ones through the
    body where there is no heat.

    Args:
        body: area of the body in each slice.
        heat: hottest place of each slice, at least 0.
    """
    if len(body) <= count:
        return list(range(len(body)))
    inside = np.where(body < 0.2 * body.max(), 0, body)
    apart = max(int((inside > 0).sum()) // (2 * count), 1)
    chosen: list[int] = []
    for number in np.argsort(-heat, kind="stable").tolist():
        if heat[number] > 0 and inside[number] > 0 and all(abs(number - other) >= apart for other in chosen):
            chosen.append(number)
    passed = np.cumsum(inside) / max(inside.sum(), 1e-9)
    spread = [min(int(np.searchsorted(passed, (number + 0.5) / count)), len(body) - 1) for number in range(count)]
    for number in spread:  # where less than all slices are hot, they are seen in their surroundings
        if all(abs(number - other) >= apart for other in chosen):
            chosen.append(number)
    return sorted(chosen[:count])


def plot_item(
    maps: list[HeatMap],
    path: str | Path | io.BytesIO,
    masks: Sequence[np.ndarray | None] | None = None,
    num_slices: int = 6,
    highest: float | None = None,
) -> None:
    """
    One picture of one item: a row per scan of the slices with the highest places, colored where the attention (or what else the
    maps show) is above its mean.

    Opacity follows the attention, which is shown within the body only; what falls on air is named below, as are scans that get
    little. The maps themselves stay as they are.

    Args:
        maps: of the same item, one per scan.
        path: of the PNG, or a stream.
        masks: known extent of the finding in each scan, drawn as an outline.
        num_slices: at most, of each scan.
        highest: value at which the colors end, so that pictures of several items compare; what this one needs if None.
    """
    drawn = chosen_scans([heat.share for heat in maps])
    rows = [
        picture_row(maps[index])
        if maps[index].values.ndim == 2
        else volume_row(maps[index], None if masks is None else masks[index], num_slices)
        for index in drawn
    ]
    lines = [f"similarity {maps[0].similarity:.3f}"] if maps[0].similarity is not None else []
    end = max(float(row.heat.max()) for row in rows) if highest is None else highest
    _draw(rows, maps[0].item, lines, _remarks(maps, rows, drawn), path, (end, f"{maps[0].attribution}, times its mean"))


def plot_scan(scan: "Scan", path: str | Path | io.BytesIO, num_slices: int = 6) -> None:
    """
    Slices of a scan through the body, as `plot_item` shows them, without heat.

    Raises:
        ValueError: it is not a volume (D, H, W).
    """
    volume = np.asarray(scan.array)
    if volume.ndim != 3:
        raise ValueError(f"the scan has the shape {volume.shape}, expected a volume (D, H, W).")
    view = View.of(volume.shape, scan.affine)
    slices = view.slices(volume)
    body = find_body(slices, view.pixel)
    nothing = np.zeros(slices.shape, np.float32)
    chosen = choose_slices(body.mean(axis=(1, 2)), nothing[:, 0, 0], num_slices)
    row = Row(
        "",
        slices,
        nothing,
        [(number, view.name_slice(number), False) for number in chosen],
        display_limits(slices[body]),
        aspect=view.aspect,
        sides=view.sides,
    )
    _draw([row], ", ".join(filter(None, (_readable(scan.name), view.plane))), [], [], path)


def item_png(maps: list[HeatMap]) -> bytes | None:
    """`plot_item` for a notebook; None where matplotlib is missing."""
    stream = io.BytesIO()
    try:
        plot_item(maps, stream)
    except ImportError:
        return None
    return stream.getvalue()


def scan_png(scan: "Scan") -> bytes | None:
    """`plot_scan` for a notebook; None where matplotlib is missing or it is not a volume."""
    stream = io.BytesIO()
    try:
        plot_scan(scan, stream)
    except (ImportError, ValueError):
        return None
    return stream.getvalue()


def chosen_scans(shares: list[float]) -> list[int]:
    """Numbers of the scans that are drawn: those with more than a little of the attention, `MOST_ROWS` at most."""
    order = sorted(range(len(shares)), key=lambda index: -shares[index])
    kept = [order[0], *(index for index in order[1:MOST_ROWS] if shares[index] >= LITTLE / len(shares))]
    return sorted(kept)


def volume_row(heat: HeatMap, mask: np.ndarray | None, num_slices: int) -> Row:
    """Slices of a volume where body and heat are."""
    view = View.of(heat.source.shape, heat.affine)
    slices, values = view.slices(heat.source), view.slices(heat.values)
    body = find_body(slices, view.pixel)
    shown = np.where(body, values, 0)
    chosen = choose_slices(body.mean(axis=(1, 2)), np.maximum(shown.max(axis=(1, 2)) - 1, 0), num_slices)
    total = float(values.sum())
    return Row(
        _label(heat, view.plane),
        slices,
        shown,
        [(number, view.name_slice(number), True) for number in chosen],
        heat.window or display_limits(slices[body]),
        aspect=view.aspect,
        sides=view.sides,
        outline=None if mask is None else view.slices(mask),
        outside=1 - float(shown.sum()) / total if total > 0 else 0.0,
    )


def picture_row(heat: HeatMap) -> Row:
    """A picture as it is, and with its heat."""
    picture = np.asarray(heat.source)
    largest = 1.0 if picture.dtype.kind == "b" else np.iinfo(picture.dtype).max if picture.dtype.kind in "ui" else 1.0
    if picture.dtype.kind == "f" and picture.max() > 1:
        largest = 255.0 if picture.min() >= 0 and picture.max() <= 255 else float(picture.max())
    picture = np.clip(picture / largest, min(float(picture.min()) / largest, 0.0) if picture.ndim == 2 else 0, 1)
    panels = [(0, "", False), (0, "", True)]
    return Row(
        heat.scan_name or "", picture[None], heat.values[None], panels, (float(min(picture.min(), 0)), 1.0), PICTURE
    )


def display_limits(values: np.ndarray) -> tuple[float, float]:
    """Intensities that become black and white: around the bulk of the tissue, so that bone and air do not flatten it."""
    first, low, middle, high, last = np.percentile(values[:: max(len(values) // 200_000, 1)], [1, 25, 50, 75, 99.5])
    spread = 3 * (high - low)
    black, white = max(first, middle - spread), min(last, middle + spread)
    return float(black), float(max(white, black + 1e-6))


def _readable(name: str | None) -> str:
    return (name or "scan").replace("_", " ")


def _label(heat: HeatMap, plane: str) -> str:
    name = "\n".join(textwrap.wrap(_readable(heat.scan_name), 17)[:3])
    window = "" if heat.window is None else "{:g} to {:g} HU".format(*heat.window)
    what = "\n".join(textwrap.wrap(f"{heat.share:.0%} of {heat.attribution}", 22))
    return "\n".join(filter(None, (name, what, plane, window)))


def _remarks(maps: list[HeatMap], rows: list[Row], drawn: list[int]) -> list[str]:
    """What the slices do not show."""
    remarks = []
    highest = max(float(heat.tokens.max()) for heat in maps)
    what = maps[0].attribution
    if highest == 0:
        remarks.append("No place speaks for it.")
    elif highest < 1.5:
        remarks.append(f"Nearly even {what}: no place stands out (at most {highest:.2f} times the mean).")
    outside = sum(maps[index].share * row.outside for index, row in zip(drawn, rows))
    if outside >= 0.01:
        remarks.append(f"{outside:.0%} of the {what} is on air around the body, where it is not drawn.")
    others = [heat for index, heat in enumerate(maps) if index not in drawn]
    if others:
        listed = ", ".join(f"{_readable(heat.scan_name)} {heat.share:.0%}" for heat in others[:12])
        remarks.append(f"Not drawn, for their little share: {listed}{', ...' if len(others) > 12 else ''}.")
    return remarks


def _draw(
    rows: list[Row],
    name: str,
    facts: list[str],
    remarks: list[str],
    path: str | Path | io.BytesIO,
    scale: tuple[float, str] | None = None,
) -> None:
    """`scale`: where the colors end, and what they show."""
    from matplotlib.cm import ScalarMappable

    label = LABEL if any(row.label for row in rows) else GAP
    width = label + max(len(row.panels) * (row.width + GAP) for row in rows) + (BAR if scale else GAP)
    characters = int(12 * width)
    title = [*textwrap.wrap(name, int(0.8 * characters))[:4], *facts]
    lines = [line for remark in remarks for line in textwrap.wrap(remark, characters)]
    top, bottom = LINE * (len(title) + 1), LINE * (len(lines) + 0.5)
    height = top + bottom + sum(row.height + LINE for row in rows)
    figure = new_figure(width, height)
    figure.text(GAP / width, 1 - 0.5 * LINE / height, "\n".join(title), va="top", fontsize=10)
    figure.text(GAP / width, 0.3 * LINE / height, "\n".join(lines), va="bottom", fontsize=8)
    mappable = ScalarMappable(*heat_colors(scale[0] if scale else 1))
    down = top
    for row in rows:
        down += row.height + LINE
        middle = 1 - (down - row.height / 2) / height
        figure.text(GAP / width, middle, row.label, va="center", fontsize=8)
        for column, panel in enumerate(row.panels):
            left = label + column * (row.width + GAP)
            axis = figure.add_axes((left / width, 1 - down / height, row.width / width, row.height / height))
            draw_panel(axis, row, panel, mappable)
    if scale:
        body = height - top - bottom - LINE
        place = ((width - BAR + 0.12) / width, 1 - (top + LINE + 0.5 * body + 0.5 * min(body, 3)) / height)
        bar = figure.add_axes((*place, 0.15 / width, min(body, 3) / height), facecolor="0.35")
        _draw_bar(figure, bar, mappable, scale[1])
    if isinstance(path, io.BytesIO):
        figure.savefig(path, format="png")
    else:
        save_figure(figure, path)


def draw_panel(axis: Any, row: Row, panel: tuple[int, str, bool], mappable: Any) -> None:
    """
    Draws one panel of a row.

    Args:
        axis: of matplotlib, which the panel fills.
        panel: of `Row.panels`.
        mappable: of `heat_colors`.
    """
    from matplotlib.patheffects import withStroke

    number, name, hot = panel
    axis.set_axis_off()
    gray = None if row.slices.ndim == 4 else "gray"
    axis.imshow(row.slices[number], cmap=gray, vmin=row.limits[0], vmax=row.limits[1], aspect=row.aspect)
    if hot:
        axis.imshow(
            row.heat[number], cmap=mappable.cmap, norm=mappable.norm, aspect=row.aspect, interpolation="nearest"
        )
    if row.outline is not None and row.outline[number].any():
        axis.contour(row.outline[number], levels=[0.5], colors="cyan", linewidths=0.9)
    axis.text(0.5, 1.01, name, transform=axis.transAxes, fontsize=7, ha="center", va="bottom")
    border = [withStroke(linewidth=1.5, foreground="black")]
    for letter, (x, y) in zip(row.sides, ((0.5, 0.96), (0.97, 0.5), (0.5, 0.04), (0.03, 0.5))):
        axis.text(
            x,
            y,
            letter,
            transform=axis.transAxes,
            color="white",
            fontsize=6,
            ha="center",
            va="center",
            path_effects=border,
        )


def heat_colors(highest: float) -> tuple[Any, Any]:
    """Norm from the mean attention up, and colors that become opaque with it."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    table = colormaps["inferno"](np.linspace(0.4, 1, 256))
    table[:, 3] = OPACITY * np.linspace(0, 1, 256) ** 1.5  # around the mean the scan stays gray
    colors = ListedColormap(table, name="heat").with_extremes(under=(0, 0, 0, 0), bad=(0, 0, 0, 0))
    return LogNorm(1, max(highest, LOWEST_TOP)), colors


def _draw_bar(figure: Any, axis: Any, mappable: Any, label: str) -> None:
    from matplotlib.ticker import NullLocator

    bar = figure.colorbar(mappable, cax=axis)
    steps = [factor * 10**power for power in range(6) for factor in (1, 2, 5)]
    bar.set_ticks([step for step in steps if step <= mappable.norm.vmax])
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=7)
