"""Figures that leave the user's matplotlib as it is: no pyplot, no change of backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """
    An empty `matplotlib.figure.Figure` of that size in inches, drawn without a screen.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'itemized-clip-hf[plots]'.") from None
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG."""
    figure.savefig(path, dpi=DPI, format="png")
    return Path(path)
