"""Every block of docs/segmentation.md, as it stands."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

for package in ("monai", "nibabel", "scipy"):
    pytest.importorskip(package)

from itemized_clip_cli import main
from itemized_clip_hf.phantom import PhantomDataset
from itemized_clip_hf.phantom.experiment import write_drawn_studies

PAGE = Path(__file__).parents[1] / "docs" / "segmentation.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_block(tmp_path, monkeypatch, model_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ITEMIZED_CLIP_TRACEBACK", "1")
    folder = tmp_path / "demo-output"
    write_drawn_studies([*PhantomDataset("test", 2, shape=(8, 16, 16))], folder)
    (folder / "model").symlink_to(model_folder)
    kinds = []
    for kind, text in BLOCK.findall(PAGE.read_text()):
        kinds.append(kind)
        if kind == "json":
            assert set(json.loads(text)) == {"id", "images", "items", "masks", "absent"}
        elif kind == "python":
            names: dict = {}
            exec(compile(text, PAGE.name, "exec"), names)
            assert names["mask"].values.shape == (8, 16, 16) and names["mask"].volume_ml >= 0
        elif not text.startswith("pip"):
            words = shlex.split(text)
            done = CliRunner().invoke(main, words[1:], catch_exceptions=False)
            assert words[0] == "itemized-clip" and done.exit_code == 0, done.output
    assert kinds == ["bash", "json", "bash", "bash", "python", "bash"]
    listed = json.loads(next(Path("masks").rglob("masks.json")).read_text())
    assert {"voxels", "volume_ml", "score", "share", "field"} <= set(listed["masks"][0])
    assert json.loads(Path("compared/figures.json").read_text())["studies"] == 2
