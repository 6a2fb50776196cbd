"""The demo, and the README in the folder that it ran in."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command import run

from itemized_clip_cli import main

nibabel = pytest.importorskip("nibabel")

README = Path(__file__).parents[2] / "README.md"


def check_demo(folder: Path, done) -> dict:
    results = json.loads((folder / "results.json").read_text())
    assert len(results["findings"]) == 6 and "seed" in results
    assert f"mean AUC {results['mean_auc']:.3f}" in done.stdout and "times chance" in done.stdout
    assert len(list((folder / "heat-maps").glob("*/*.png"))) >= 6
    for path in (folder / "heat-maps").glob("*/*.nii.gz"):
        scan = folder / "studies" / path.parent.name / f"{path.name.split('__')[1]}"
        heat, scan = nibabel.load(path), nibabel.load(scan)
        assert heat.shape == scan.shape and np.allclose(heat.affine, scan.affine)
    return results


def test_demo_in_small_and_the_readme_after_it(tmp_path, monkeypatch):
    """All Python of the README, and the shell lines that name the demo, as printed, in the folder that the demo ran in."""
    monkeypatch.chdir(tmp_path)
    done = run("demo", "--steps", 2, "--studies", 40, "--test-studies", 16)
    check_demo(Path("demo-output"), done)
    names: dict = {}
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), names)
    assert names["scores"].shape == (1, 2) and len(names["found"][0]) == 2
    lines = [line for kind, text in blocks if kind == "bash" for line in text.splitlines() if "demo-output" in line]
    assert [line.split()[1] for line in lines] == ["inspect", "predict", "explain", "app"]
    monkeypatch.setattr("itemized_clip_hf.app.serve.serve", lambda *_: None)  # it would wait for visitors
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert list(Path("maps").rglob("*.png")) and Path("report.html").exists()
    arguments = ["predict", "-m", "demo-output/model", "-i", "demo-output/studies", "-p", "x", "--json"]
    scored = CliRunner().invoke(main, arguments)
    assert len(json.loads(scored.stdout)["results"]) == 3


@pytest.mark.slow
def test_demo_as_promised(tmp_path):
    done = run("demo", "-o", tmp_path / "out")
    results = check_demo(tmp_path / "out", done)
    assert results["mean_auc"] >= 0.92
    assert results["pointing"] >= 4 * results["chance"]
