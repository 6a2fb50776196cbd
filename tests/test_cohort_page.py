"""Every block of docs/cohort.md, as it stands, and its tables."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

for package in ("datasets", "matplotlib", "nibabel", "pandas", "pyarrow"):
    pytest.importorskip(package)

from itemized_clip_cli import main
from itemized_clip_hf.phantom import PhantomDataset
from itemized_clip_hf.phantom.experiment import write_drawn_studies

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cohort.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END_MARK = "<!-- end of table -->"
sys.path.append(str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_every_block(tmp_path, monkeypatch, model_folder, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ITEMIZED_CLIP_TRACEBACK", "1")
    folder = tmp_path / "demo-output"
    write_drawn_studies([*PhantomDataset("test", 4, shape=(8, 32, 32))], folder)
    (folder / "model").symlink_to(model_folder)
    names: dict = {}
    for kind, text in BLOCK.findall(PAGE.read_text()):
        if kind == "python":
            exec(compile(text, PAGE.name, "exec"), names)
            continue
        for line in text.splitlines():
            words = shlex.split(line)
            if words[0] == "pip":
                continue
            if "test.parquet" in words:
                shutil.copy("cohort.parquet", "test.parquet")
            done = CliRunner().invoke(main, words[1:], catch_exceptions=False)
            assert words[0] == "itemized-clip" and done.exit_code == 0, done.output
    assert Path("found.png").stat().st_size > 10_000
    assert list(names["frame"]["id"]) == list(names["dataset"]["id"]) == names["cohort"].ids and names["found"].hits
    described = re.findall(r"^\| (`.+?`) \|", PAGE.read_text(), re.MULTILINE)
    columns = {column for cell in described for column in re.findall(r"`(\w+)`", cell)}
    assert set(names["frame"]) <= columns


def test_tables():
    """Those of the results, which are what is asked of them."""
    search = pytest.importorskip("search")
    document = json.loads(search.RESULTS.read_text())
    page = PAGE.read_text()
    for name, rows in (("index", search.index_rows(document)), ("texts", search.text_rows(document))):
        table = page.split(search.MARK.format(name) + "\n")[1].split("\n" + END_MARK)[0]
        assert table.split("\n") == rows
    for row in document["faiss"]["rows"]:
        assert row["studies"] == 100_000 and (row["clusters"] == 0 or row["recall_at_10"] >= 0.95)
    for own in document["texts"].values():
        assert own["search_text_agrees"]
