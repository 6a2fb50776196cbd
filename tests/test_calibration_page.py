"""Every block of docs/calibration.md, as it stands."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from calibrated_cohort import write_cohort
from click.testing import CliRunner

pytest.importorskip("sklearn")
pytest.importorskip("nibabel")

from itemized_clip_cli import main

PAGE = Path(__file__).parents[1] / "docs" / "calibration.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_block(tmp_path, monkeypatch, model_folder, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ITEMIZED_CLIP_TRACEBACK", "1")
    write_cohort(tmp_path, model_folder, 64, damaged=None)
    table = Path("data/labels.csv").read_text().splitlines()
    header = table[0].replace("rare", "bleed")
    rows = [f"{line},{'ab'[number // 2 % 2]}" for number, line in enumerate(table[1:])]
    Path("data/labels.csv").write_text("\n".join([f"{header},scanner", *rows]))
    Path("model").rename("my-model")
    Path("data").rename("validation")
    Path("test").symlink_to("validation")
    kinds = []
    for kind, text in BLOCK.findall(PAGE.read_text()):
        kinds.append(kind)
        if kind == "yaml":
            Path("own.yaml").write_text(text)
            Path("prompts.json").write_text(json.dumps({"mass": "left frontal mass"}))
        elif kind == "python":
            exec(compile(text, PAGE.name, "exec"), {})
        else:
            for line in text.splitlines():
                done = CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)
                assert done.exit_code == 0, done.output[-2000:]
    assert kinds == ["yaml", "bash", "python"]
    results = json.loads(Path("results.json").read_text())
    assert set(results["tables"][""]["by"]) == {"sex", "scanner"}
    assert "calibration_error" in results["tables"][""]["findings"]["mass"]
    card = Path("my-model/README.md").read_text()
    assert "calibrated on 64 studies of Own findings" in card and "largest gap of auc" in card
    assert "True" in capsys.readouterr().out


def test_tables_are_the_measured_ones(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(PAGE.parents[1] / "benchmarks")])
    benchmark = pytest.importorskip("calibration")
    document = json.loads(benchmark.RESULTS.read_text())
    shown = PAGE.read_text().split(benchmark.MARK + "\n")[1].split("\n<!-- end of table -->")[0].split("\n")
    assert shown == benchmark.table_rows(document)
    for name in ("two groups", "two groups, no gap"):
        assert 0.93 <= document["gaps"][name]["gap of the chosen pair"] <= 0.97
    assert 0.93 <= min(document["probabilities"][0]["covered"]) <= max(document["probabilities"][0]["covered"]) <= 0.97
    model = document["model"]["mean"]
    assert model["after"]["high"] < model["before"]["low"]
