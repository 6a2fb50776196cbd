"""Pictures of heat maps: slices of every scan with the map on top."""

import re
from pathlib import Path

import numpy as np

from ..processing.geometry_itemized_clip import axis_spacing, reorient
from .maps import HeatMap


def pyplot():
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'itemized-clip-hf[plots]'.") from None
    return plt


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
    if affine is None:
        return volume, 1.0
    volume, transform = reorient(volume, affine, "LPS")
    spacing = np.abs(transform[:3, :3].T) @ axis_spacing(affine)
    # Rows run towards the back in axial slices and down in the others.
    through = max((2, 1, 0), key=lambda axis: round(float(spacing[axis]), 3))
    columns, rows = {2: (0, 1), 1: (0, 2), 0: (1, 2)}[through]
    slices = volume.transpose(through, rows, columns)
    if rows == 2:
        slices = slices[:, ::-1]
    return slices, float(spacing[rows] / spacing[columns])


def plot_item(
    maps: list[HeatMap], path: str | Path, masks: list[np.ndarray | None] | None = None, num_slices: int = 6
) -> None:
    """
    One picture of one item: a row per scan, its hottest slice among evenly spread ones.

    Args:
        maps: of the same item, one per scan.
        path: of the picture.
        masks: known extent of the finding in each scan, drawn as an outline.
    """
    plt = pyplot()
    top = max(float(heat.values.max()) for heat in maps) or 1.0
    pictures = maps[0].source.ndim == 2 or maps[0].values.ndim == 2
    columns = 2 if pictures else num_slices
    size = (1.7 * columns, 1.9 * len(maps) + 0.4)
    figure, axes = plt.subplots(len(maps), columns, figsize=size, squeeze=False, layout="constrained")
    for row, heat in enumerate(maps):
        mask = masks[row] if masks is not None else None
        if pictures:
            axes[row, 0].imshow(heat.source, cmap="gray" if heat.source.ndim == 2 else None)
            axes[row, 1].imshow(heat.source, cmap="gray" if heat.source.ndim == 2 else None)
            image = axes[row, 1].imshow(heat.values, cmap="inferno", alpha=0.55, vmin=0, vmax=top)
        else:
            slices, aspect = display_slices(heat.source.astype(np.float32), heat.affine)
            hot, _ = display_slices(heat.values, heat.affine)
            outline = None if mask is None else display_slices(mask.astype(np.float32), heat.affine)[0]
            low, high = np.percentile(slices, [1, 99])
            chosen = set(np.linspace(0, len(slices) - 1, num_slices).round().astype(int).tolist())
            peak = int(hot.max(axis=(1, 2)).argmax())
            if peak not in chosen and len(slices) > num_slices:
                chosen.remove(min(chosen, key=lambda index: abs(index - peak)))
                chosen.add(peak)
            for axis, index in zip(axes[row], sorted(chosen)):
                axis.imshow(slices[index], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
                alpha = np.clip(hot[index] / top, 0, 1) * 0.7
                image = axis.imshow(hot[index], cmap="inferno", alpha=alpha, vmin=0, vmax=top, aspect=aspect)
                if outline is not None and outline[index].any():
                    axis.contour(outline[index], levels=[0.5], colors="cyan", linewidths=0.8)
                axis.set_title(f"slice {index}", fontsize=6, pad=2)
        label = heat.scan_name or f"scan {row}"
        axes[row, 0].set_ylabel(f"{label}\n{heat.share:.0%}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(maps[0].item, fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.02, pad=0.02)
    bar.set_label("attention / mean", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
