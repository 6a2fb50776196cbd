"""Pictures of heat maps: what is colored, what is chosen and what is said."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.explain import plots
from itemized_clip_hf.explain.maps import HeatMap
from itemized_clip_hf.explain.plots import choose_slices, chosen_scans, picture_row, plot_item, volume_row

AFFINE = np.eye(4)
AFFINE[:3, :3] = np.diag([3.0, 3.0, 6.0])[:, ::-1]
SHAPE = (10, 40, 40)


def heat_map(values, share=1.0, name="FLAIR", source=None):
    if source is None:
        source = np.random.default_rng(0).normal(0, 3, SHAPE)
        source[2:8, 8:32, 8:32] += 300
    return HeatMap("left frontal mass", name, values, AFFINE, source, share, values[::5, ::10, ::10], np.eye(4), 0.357)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws maps; all texts of the figure and its pixels."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))

    def draw(maps, **settings):
        plot_item(maps, tmp_path / "x.png", **settings)
        figure = figures[-1]
        figure.canvas.draw()
        texts = [text.get_text() for text in figure.texts]
        texts += [text.get_text() for axis in figure.axes for text in axis.texts]
        return "\n".join([*texts, figure.axes[-1].get_ylabel()]), np.asarray(figure.canvas.buffer_rgba())

    return draw


def colored(pixels):
    """Share of pixels that are not gray."""
    return float((np.ptp(pixels[..., :3].astype(int), axis=-1) > 25).mean())


def test_opacity_follows_the_attention(drawn):
    """Even attention leaves the scan as it is; the more there is in a place, the more color."""
    even, hot = np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    hot[4:6, 15:25, 15:25] = 2
    without, colors = (drawn([heat_map(values)])[1][:, :-150] for values in (even, hot))
    assert colored(without) == 0 < colored(colors)
    norm, table = plots.heat_colors(20)
    opacity = table(norm([0.2, 1, 1.2, 2, 5, 20]))[:, 3]
    assert opacity[:2].max() == 0 and (np.diff(opacity[1:]) > 0).all() and opacity[-1] == pytest.approx(plots.OPACITY)
    norm, table = plots.heat_colors(1.1)  # nearly even over the whole study
    assert table(norm([1.1]))[0, 3] < 0.1


def test_heat_on_air_is_not_drawn_but_told(drawn):
    outside = np.full(SHAPE, 0.5, np.float32)
    outside[4:6, :6, :6] = 50
    heat = heat_map(outside)
    before = heat.values.copy()
    row = volume_row(heat, None, 6)
    assert row.heat.max() <= 1 and row.outside > 0.3
    text, pixels = drawn([heat])
    assert "of the attention is on air around the body" in text and colored(pixels[:, :-150]) == 0
    np.testing.assert_array_equal(heat.values, before)


def test_what_a_picture_says(drawn):
    values = np.ones(SHAPE, np.float32)
    values[5, 20, 20] = 9
    maps = [heat_map(values, 0.74, "FLAIR"), heat_map(values, 0.24, "T1"), heat_map(values, 0.02, "SWI")]
    text, _ = drawn(maps)
    for part in (
        "left frontal mass",
        "similarity 0.357",
        "FLAIR\n74% of attention\naxial",
        "Not drawn, for their little share: SWI 2%.",
        "S 30.0 mm",
        "attention, times its mean",
    ):
        assert part in text, text
    assert {"A", "P", "R", "L"} <= set(text.splitlines()) and "SWI\n" not in text
    assert "Nearly even attention" in drawn([heat_map(np.ones(SHAPE, np.float32))])[0]


def test_slices_where_body_and_heat_are():
    body = np.array([0, 0, 0, 0.1, 0.5, 0.6, 0.7, 0.7, 0.6, 0.5, 0.5, 0.1, 0, 0])
    heat = np.zeros(14)
    heat[9] = 5
    chosen = choose_slices(body, heat, 4)
    assert 9 in chosen and len(chosen) <= 4 and min(chosen) >= 4 and max(chosen) <= 10
    spread = choose_slices(body, np.zeros(14), 4)
    assert len(spread) == 4 and min(spread) >= 4 and max(spread) <= 10
    assert choose_slices(np.ones(3), np.zeros(3), 6) == [0, 1, 2]
    assert choose_slices(np.zeros(9), np.zeros(9), 3)


def test_the_hottest_slices_are_shown():
    body, heat = np.ones(60), np.zeros(60)
    body[:5] = 0
    heat[[3, 20, 21, 22, 40, 58]] = 9, 5, 6, 5, 3, 1  # the first on air
    assert {21, 40, 58} <= set(choose_slices(body, heat, 4)) and len(choose_slices(body, heat, 4)) == 4
    assert choose_slices(body, heat, 2) == [21, 40]  # not two neighbours of one place
    rest = choose_slices(body, heat, 6)
    assert len(rest) == 6 and 3 not in rest and max(np.diff(rest)) < 30


def test_one_scale_for_the_pictures_of_a_study(monkeypatch, tmp_path):
    scales = []
    monkeypatch.setattr(plots, "heat_colors", lambda top, made=plots.heat_colors: scales.append(top) or made(top))
    values = np.ones(SHAPE, np.float32)
    values[5, 20, 20] = 9
    plot_item([heat_map(values)], tmp_path / "own.png")
    plot_item([heat_map(values)], tmp_path / "shared.png", highest=40)
    assert scales == [9, 40]


def test_maps_say_what_they_show(drawn):
    heat = heat_map(np.zeros(SHAPE, np.float32), name="ct_hu_BoneWindow")
    heat.attribution, heat.window = "contribution", (-800, 2000)
    text, _ = drawn([heat])
    for part in (
        "No place speaks for it.",
        "ct hu BoneWindow\n100% of contribution\naxial\n-800 to 2000 HU",
        "contribution, times",
    ):
        assert part in text, text
    assert volume_row(heat, None, 3).limits == (-800, 2000)


def test_notebooks_get_pictures(monkeypatch):
    heat = heat_map(np.ones(SHAPE, np.float32))
    scan = Scan(heat.source, AFFINE, "FLAIR")
    for thing in (heat, scan, Scan(heat.source, None)):
        width, height = Image.open(io.BytesIO(thing._repr_png_())).size
        assert width > 1000 and height > 200
    assert Scan(np.zeros((2, 3, 4, 5)), None)._repr_png_() is None

    def missing(*size):
        raise ImportError("pictures need matplotlib")

    monkeypatch.setattr(plots, "new_figure", missing)
    assert heat._repr_png_() is None and scan._repr_png_() is None


def test_windows_of_pictures():
    """Of the scan's own window, of the domain, or none; an 8-bit array shows one already."""
    from itemized_clip_hf.explain.maps import display_window
    from itemized_clip_hf.processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
    from itemized_clip_hf.processing.scans_itemized_clip import ProcessedScan

    def shown(domain, name=None, dtype=np.int16):
        scan = ProcessedScan(name, torch.zeros(1, 2, 4, 4), np.eye(4), Scan(np.zeros((2, 4, 4), dtype), AFFINE))
        return display_window(ItemizedCLIPImageProcessor.from_domain(domain), scan)

    assert shown("chest-ct") == (-1150, 350) and shown("chest-ct", dtype=np.uint8) is None
    assert shown("head-ct", "AX_BoneWindow") == (-800, 2000) and shown("head-ct", "BrainWindow") == (0, 80)
    assert shown("brain-mri", "T1") is None


def test_scans_that_get_little_are_not_drawn():
    assert chosen_scans([0.0, 0.97, 0.03]) == [1]
    assert chosen_scans([0.5, 0.3, 0.2]) == [0, 1, 2]
    assert chosen_scans([1 / 20] * 20) == list(range(plots.MOST_ROWS))
    assert chosen_scans([0.0, 0.0]) == [0]


@pytest.mark.parametrize("kind", ["uint8", "uint16", "unit", "gray"])
def test_pictures_keep_their_contrast(kind, tmp_path):
    rng = np.random.default_rng(0)
    unit = rng.random((30, 40) if kind == "gray" else (30, 40, 3))
    largest = {"uint8": 255, "uint16": 65535, "unit": 1, "gray": 255}[kind]
    dtype = {"unit": float, "gray": "uint8"}.get(kind, kind)
    source = unit if kind == "unit" else (unit * largest).round().astype(dtype)
    values = np.ones((30, 40), np.float32)
    heat = HeatMap("a pond", None, values, None, source, 1.0, values[None, ::10, ::10], np.eye(4))
    row = picture_row(heat)
    shown = (row.slices[0] - row.limits[0]) / (row.limits[1] - row.limits[0])
    np.testing.assert_allclose(shown, unit, atol=0.003)
    plot_item([heat], tmp_path / "picture.png")
    width, height = Image.open(tmp_path / "picture.png").size
    assert width > 1000 and height > 400


def test_the_backend_of_matplotlib_stays():
    code = (
        "import sys, matplotlib; matplotlib.use('svg')\n"
        "from itemized_clip_hf.explain.figures import new_figure, save_figure\n"
        "save_figure(new_figure(1, 1), sys.argv[1])\n"
        "assert matplotlib.get_backend() == 'svg' and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, "/dev/null"], check=True)
    package = Path(plots.__file__).parents[1]
    assert not [
        path for path in package.rglob("*.py") if re.search(r"(import|matplotlib\.)\s*pyplot", path.read_text())
    ]
