"""The report as a person opens it: from disk, in a real browser, without network."""

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from browser import open_browser
from click.testing import CliRunner
from oblique import make_oblique
from tiny_models import ITEMS

from itemized_clip_cli import main
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.explain.encoded import explain_result
from itemized_clip_hf.explain.report import report_html, write_report

nibabel = pytest.importorskip("nibabel")
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"> {{SCRIPT}} <b>"


def read_content(page: str) -> dict:
    found = re.search(r'<script id="content" type="application/json">(.*?)</script>', page, re.S)
    return json.loads(found.group(1))


def volumes():
    generator = np.random.default_rng(1)
    ramp = np.linspace(50, 200, 10)[:, None, None]
    return {
        "AX_T1": Scan((ramp + generator.normal(0, 9, (10, 20, 24))).astype(np.float32), make_oblique()),
        f"AX_T2 {HOSTILE}": Scan(
            generator.normal(100, 30, (14, 26, 18)).astype(np.float32), make_oblique((4.0, 1.5, 1.5), (0.0, 3.0, 5.0))
        ),
    }


@pytest.fixture
def result(make_model, processor):
    findings = {ITEMS[0]: ITEMS[0], HOSTILE: [ITEMS[1], ITEMS[2]], ITEMS[2]: ITEMS[2]}
    about = {"model": {"name": HOSTILE, "sha256": "0" * 64, "domain": "brain-mri"}}
    return explain_result(make_model(2), processor, volumes(), findings, f"study {HOSTILE}", about=about)


def test_scans_and_maps_are_packed_where_they_lie(result):
    """Voxels of a packed scan are those that the model saw, at the same place in mm; maps are float32 tokens."""
    content = read_content(report_html(result))
    for number, scan in enumerate(content["scans"]):
        packed = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(scan["volume"])))
        assert nibabel.aff2axcodes(packed.affine) == ("L", "P", "S")
        pixels, affine = result.pixels(number), result.affine(number)
        index = np.array([3, 7, 5])
        there = np.linalg.inv(packed.affine) @ affine @ [*index, 1]
        assert np.asarray(packed.dataobj)[tuple(there[:3].round().astype(int))] == pixels[tuple(index)]
        for k, finding in enumerate(content["findings"]):
            tokens = np.frombuffer(base64.b64decode(finding["scans"][number]["tokens"]), "<f4").reshape(content["grid"])
            np.testing.assert_array_equal(tokens, result.findings[k].attention[number])
            mm_to_token = np.array(scan["mm_to_token"])
            strongest = np.unravel_index(tokens.argmax(), tokens.shape)
            size, grid = np.array(result.scans[number].pixel_values.shape[1:]), np.array(content["grid"])
            center = affine @ [*((np.array(strongest) + 0.5) * size / grid - 0.5), 1]
            np.testing.assert_allclose(mm_to_token @ center, strongest, atol=1e-6)


def test_nothing_in_a_name_ends_the_script(result):
    page = report_html(result)
    assert page.count("<img") == 0 and read_content(page)["title"] == f"study {HOSTILE}"


def test_a_large_study_is_packed_smaller(result, monkeypatch):
    monkeypatch.setattr("itemized_clip_hf.explain.report.MAX_BYTES", 1000)
    scan = read_content(report_html(result))["scans"][0]
    shape = result.pixels(0).shape
    assert sorted(scan["size"]) == sorted([shape[0], shape[1] // 4, shape[2] // 4])


def test_in_a_browser(result, tmp_path):
    """No request to anything but the file; the crosshair is at the map's maximum; other findings look otherwise."""
    path = write_report(tmp_path / "a report.html", result)
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-printable]", timeout=120_000)
        assert page.get_attribute("html", "data-ready") == "yes"
        assert page.title() == f"Findings: study {HOSTILE}"
        order = [int(row.get_attribute("data-finding")) for row in page.query_selector_all("#findings tr")]
        scores = [result.findings[k].score for k in order]
        assert scores == sorted(scores, reverse=True)
        pictures = []
        for place, k in enumerate(order):
            if place:
                page.keyboard.press("ArrowDown")
            scan = page.evaluate("report.state.scan")
            page.wait_for_function(f"document.documentElement.dataset.shown === '{k}:{scan}'")
            page.wait_for_timeout(150)
            heat = result.heat_maps(k)[scan]
            maximum = heat.affine @ [*np.unravel_index(heat.values.argmax(), heat.values.shape), 1]
            np.testing.assert_allclose(page.evaluate("report.panels[0].mm()"), maximum[:3], atol=1)
            pictures.append(page.locator("#stage canvas").first.screenshot())
        assert len(set(pictures)) == len(pictures)
        drawn = np.unique(np.array(_pixels(pictures[0])).reshape(-1, 3), axis=0)
        assert len(drawn) > 50  # not blank
        page.keyboard.press("h")
        page.wait_for_timeout(150)
        assert page.locator("#stage canvas").first.screenshot() != pictures[-1]
        page.select_option("#beside", "1")
        page.wait_for_function("report.panels.length === 2 && report.panels[1].scan === 1")
        assert page.locator("#print figure").count() == 2 * len(order)
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == [] and len(requests) >= 1
        assert errors == []


def _pixels(content: bytes):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB")


def test_the_command_writes_one_file_or_one_per_study(model_folder, write_volume, tmp_path):
    first, second = write_volume("a/AX_T1.nii.gz"), write_volume("b/AX_T1.nii.gz", seed=1)
    asked = ["explain", "-m", str(model_folder), "-p", ITEMS[0], "-o", str(tmp_path / "out")]
    one = CliRunner().invoke(main, [*asked, "-i", str(first), "--html", str(tmp_path / "r.html")])
    assert one.exit_code == 0, one.output
    content = read_content((tmp_path / "r.html").read_text())
    assert [finding["label"] for finding in content["findings"]] == [ITEMS[0]] and len(content["model"]["sha256"]) == 64
    both = CliRunner().invoke(main, [*asked, "-i", str(first), "-i", str(second), "--html", str(tmp_path / "r.html")])
    assert both.exit_code == 1 and "name a folder" in both.output
    both = CliRunner().invoke(main, [*asked, "-i", str(first), "-i", str(second), "--html", str(tmp_path / "reports")])
    assert both.exit_code == 0 and len(list((tmp_path / "reports").glob("*.html"))) == 2


def test_a_report_of_other_findings_is_not_taken_for_it(model_folder, write_volume, tmp_path):
    path, report = write_volume("AX_T1.nii.gz"), tmp_path / "r.html"

    def explain(prompt: str, folder: str) -> str:
        asked = [
            "-m",
            str(model_folder),
            "-i",
            str(path),
            "-p",
            prompt,
            "-o",
            str(tmp_path / folder),
            "--html",
            str(report),
        ]
        assert CliRunner().invoke(main, ["explain", *asked]).exit_code == 0
        return read_content(report.read_text())["findings"][0]["label"]

    assert [explain(ITEMS[0], "a"), explain(ITEMS[1], "b"), explain(ITEMS[0], "a")] == [ITEMS[0], ITEMS[1], ITEMS[0]]


def test_the_viewer_has_its_license():
    folder = Path("itemized_clip_hf/explain/viewer")
    assert "BSD 2-Clause" in (folder / "niivue-LICENSE.txt").read_text()


@pytest.fixture
def model_of_full_size_scans(tokenizer):
    """Brain MRI as it is preprocessed for the published models; the towers are small."""
    import torch

    from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPModel, ItemizedCLIPProcessor
    from itemized_clip_hf.domains import load_domain

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vision = {**load_domain("brain-mri").architecture["vision_config"], **sizes, "attention_scopes": ["scan", "study"]}
    names = {"scan_name_hidden_size": 16, "scan_name_num_heads": 2, "scan_name_intermediate_size": 16}
    text = {"model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 24}
    config = ItemizedCLIPConfig(
        domain="brain-mri",
        projection_dim=32,
        num_pooler_heads=2,
        vision_config={**vision, **names, "scan_name_num_layers": 1},
        text_config=text,
    )
    torch.manual_seed(0)
    model = ItemizedCLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer)


@pytest.mark.slow
def test_a_real_study_in_a_browser(model_of_full_size_scans, data_folder, tmp_path):
    """Oblique series of different fields of view; a study of ten of them is below 15 MB."""
    result = explain_result(*model_of_full_size_scans, str(data_folder / "volumes" / "mri_tcga_fg_6692"), ITEMS[:3])
    path = write_report(tmp_path / "report.html", result)
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(180_000)
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        page.select_option("#view", "axial")  # the rendering is slow without a GPU
        for k in range(3):
            page.click(f'tr[data-finding="{k}"]')
            for scan in range(len(result.scans)):
                page.select_option("#scan", str(scan))
                page.wait_for_function(f"document.documentElement.dataset.shown === '{k}:{scan}'")
                page.click("#maximum")
                heat = result.heat_maps(k)[scan]
                maximum = heat.affine @ [*np.unravel_index(heat.values.argmax(), heat.values.shape), 1]
                np.testing.assert_allclose(page.evaluate("report.panels[0].mm()"), maximum[:3], atol=1)
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    result.scans.extend((result.scans * 2)[:6])
    for finding in result.findings:
        for name in ("shares", "attention"):
            values = getattr(finding, name)
            object.__setattr__(finding, name, np.concatenate([values, values, values])[:10])
    assert write_report(tmp_path / "ten.html", result).stat().st_size < 15e6
