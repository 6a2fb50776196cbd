"""Label columns from a table of reports to the prepared set and the metrics; what is no label is named."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import ITEMS

from itemized_clip_hf.data.studies.labels import read_columns
from itemized_clip_hf.data.studies.prepare import plan_studies, prepare
from itemized_clip_hf.data.studies.records import read_records

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("datasets")

HEADER = ["id", "report", "mass", "bleed", "old", "nearly", "age", "empty"]
ROWS = [
    ["s0", "There is a left frontal mass.", "1", "no", "0.0", "1", "63", ""],
    ["s1", "Small bleed in the right parietal lobe.", "0", "yes", "", "0", "7", ""],
    ["s2", "Enlarged ventricles.", "-1", "", "1.0", "maybe", "1", ""],
]
LABELS = [
    {"mass": 1, "bleed": 0, "old": 0},
    {"mass": 0, "bleed": 1, "old": None},
    {"mass": None, "bleed": None, "old": 1},
]


def run(*arguments, status=0):
    from itemized_clip_cli import main

    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == status, done.output[-3000:]
    return done


@pytest.fixture
def reports(tmp_path):
    with (tmp_path / "reports.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *ROWS])
    for number in range(3):
        path = tmp_path / "studies" / f"s{number}" / "AX_T1.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = np.random.default_rng(number).normal(100, 30, (40, 48, 24)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-5.0, 5, 6, 1])), path)
    return tmp_path / "reports.csv"


def test_from_reports_to_metrics(reports, model_folder, tmp_path, messages):
    items = tmp_path / "items.jsonl"
    told = run("itemize", "-i", reports, "-o", items, "--domain", "brain-mri").stderr
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    assert [row["labels"] for row in rows] == LABELS
    assert not {"mass", "bleed", "old"} & set(rows[0]) and rows[0]["age"] == "63" and rows[2]["nearly"] == "maybe"
    assert "labels: mass, bleed, old" in told and "kept as they are: nearly, age, empty" in told
    assert "nearly is not taken for labels: 1 of 3 cells are not truth values" in told and "maybe" not in told

    for number, source in enumerate((items, reports)):  # by hand, or in one go
        out = tmp_path / f"set{number}"
        plan, skipped = plan_studies(tmp_path / "studies", "brain-mri", source)
        prepare(plan, out, skipped, num_workers=1, progress=False, context="fork")
        for column in ("'nearly' (no labels: 1 of 3 cells are not truth values)", "'age'", "'empty'"):
            assert any(column in message for message in messages)
        messages.clear()
        prepared = read_records(out)
        stored = [{key: value for key, value in record["labels"].items()} for record in prepared]
        assert [{key: None if v is None else int(v) for key, v in row.items()} for row in stored] == LABELS
        assert all(v is None or isinstance(v, bool) for row in stored for v in row.values())
    prompts = ["-p", "mass", "-p", "bleed", "-p", "nearly"]
    done = run("predict", "-m", model_folder, "-i", tmp_path / "set0", *prompts, "--json")
    found = json.loads(done.stdout)
    scores = {row["id"]: row["scores"]["mass"] for row in found["results"]}
    assert found["metrics"]["AUC mass"] == float(scores["s0"] > scores["s1"])


def test_columns_of_a_list_are_labels(reports, model_folder, tmp_path):
    rows = [dict(zip(HEADER, row)) | {"images": f"studies/{row[0]}", "items": ITEMS[:1]} for row in ROWS]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = read_records(tmp_path / "list.jsonl")
    assert sorted(records.label_columns) == ["bleed", "mass", "old"] and records.nearly_labels == {"nearly": 1}
    assert [record["labels"] for record in records] == LABELS  # True is 1
    done = run("predict", "-m", model_folder, "-i", tmp_path / "list.jsonl", "-p", "mass", "-p", "nearly", "--json")
    assert set(json.loads(done.stdout)["metrics"]) == {"AUC mass", "AUC mean"}
    assert "the column 'nearly' holds no labels: 1 of 3 are not truth values" in done.stderr


def test_which_columns_hold_labels():
    rows = [{"a": True, "b": 1.0, "c": None, "d": [1], "label": 1, "e": "2", "f": 0} for _ in range(3)]
    rows[1] |= {"b": float("nan"), "a": "NO"}
    del rows[2]["a"]
    assert read_columns(rows, "a b c d label e f".split(), {"f"}) == (["a", "b"], {})
    many = [{"x": "1"} for _ in range(30)] + [{"x": "9"}]
    assert read_columns(many, ["x"]) == ([], {"x": 1})


def test_a_dictionary_of_labels_goes_first(tmp_path):
    row = {"id": "1", "mass": 1, "labels": {"mass": 0, "cyst": 1}}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    assert read_records(tmp_path / "list.jsonl")[0]["labels"] == {"mass": False, "cyst": True}
