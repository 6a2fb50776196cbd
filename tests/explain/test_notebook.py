"""The viewer in a notebook: what its widget holds, and what is said where it is missing."""

import gzip
import sys

import numpy as np
import pytest
from oblique import make_oblique
from tiny_models import ITEMS

from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.explain.encoded import explain_result
from itemized_clip_hf.explain.notebook import view

nibabel = pytest.importorskip("nibabel")


@pytest.fixture
def result(make_model, processor):
    values = np.random.default_rng(1).normal(100, 30, (2, 10, 20, 24)).astype(np.float32)
    study = {"AX_T1": Scan(values[0], make_oblique()), "AX_T2": Scan(values[1], make_oblique((4, 2, 2)))}
    return explain_result(make_model(2), processor, study, ITEMS[:3])


def read(volume) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(volume.data))
    return np.asarray(image.dataobj), image.affine


def test_the_widget_holds_scan_and_map(result):
    pytest.importorskip("ipyniivue")
    box = view(result, 1)
    (findings, scans), viewer = box.children[0].children, box.children[1]
    findings.value, scans.value = 2, 1
    scan, overlay = viewer.volumes
    assert set(np.unique(read(scan)[0])) <= set(np.unique(result.pixels(1)))
    values, affine = read(overlay)
    assert values.max() == pytest.approx(result.findings[2].attention[1].max())
    place = affine @ [*np.unravel_index(values.argmax(), values.shape), 1]
    there = np.linalg.inv(result.scans[1].token_affine(result.grid)) @ place
    assert np.unravel_index(result.findings[2].attention[1].argmax(), result.grid) == tuple(
        there[:3].round().astype(int)
    )
    with pytest.raises(IndexError, match="no finding 3"):
        view(result, 3)


def test_pictures_show_the_report():
    pytest.importorskip("IPython")
    from itemized_clip_hf.models.load import load

    model, processor = load("tests/fixtures/d913de0/remote-sensing", device="cpu")
    picture = np.random.default_rng(0).integers(0, 255, (40, 52, 3), dtype=np.uint8)
    shown = view(explain_result(model, processor, picture, ['a "river"']))
    assert shown.data.count("<iframe") == 1 and '"river"' not in shown.data and "&lt;!doctype html&gt;" in shown.data


def test_the_extra_is_named(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(ImportError, match=r"itemized-clip-hf\[notebook\]"):
        view(result)
