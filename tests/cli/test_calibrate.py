"""`calibrate`, and what the other verbs and the pipelines make of it."""

import csv
import json
import shutil

import numpy as np
import pytest
from calibrated_cohort import PROMPTS, write_cohort
from click.testing import CliRunner
from tiny_models import ITEMS

pytest.importorskip("sklearn")
nibabel = pytest.importorskip("nibabel")

COUNT = 32


def run(*arguments, status=0):
    from itemized_clip_cli import main

    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == status, done.output[-3000:]
    return done


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("calibrated")
    write_cohort(folder, model_folder, COUNT)
    return folder


def predict(folder, *more, status=0):
    asked = ("-m", folder / "model", "-i", folder / "data", "--prompts", folder / "prompts.json", "--json")
    return json.loads(run("predict", *asked, *more, status=status).stdout)


def calibrate(folder, *more, status=0):
    asked = ("-m", folder / "model", "--protocol", folder / "own.yaml", "-i", folder / "data", "--resamples", 50)
    return run("calibrate", *asked, *more, status=status)


@pytest.fixture(scope="module")
def calibrated(cohort):
    found = json.loads(calibrate(cohort, "--json").stdout)
    return cohort, found


def test_the_file_and_what_is_said_of_it(calibrated):
    from itemized_clip_hf.evaluation.calibration import Calibration

    folder, found = calibrated
    assert [entry["id"] for entry in found["unreadable"]] == ["case007"] and found["unreadable"][0]["reason"]
    assert found["studies"] == COUNT - 1 and found["findings"]["mass"]["method"] == "platt"
    assert found["findings"]["rare"]["method"] is None and "3 positives" in found["findings"]["rare"]["reason"]
    text = (folder / "model" / "calibration.json").read_text()
    assert "case0" not in text and not list((folder / "model").glob("*.scores.jsonl"))
    calibration = Calibration.read(folder / "model" / "calibration.json")
    assert list(calibration.findings["mass"].points) == [
        "youden",
        "roc-closest",
        "sensitivity=0.9",
        "specificity=0.9",
        "cost=1",
    ]
    assert calibration.distance.studies == COUNT - 1
    assert "pass --overwrite" in calibrate(folder, status=1).output
    assert "no operating point 'best'" in calibrate(folder, "--overwrite", "--point", "best", status=1).output


def test_predict_and_pipeline_say_probabilities(calibrated, tmp_path):
    from transformers import pipeline

    from itemized_clip_hf.evaluation.calibration import Calibration

    folder, _ = calibrated
    known = Calibration.read(folder / "model" / "calibration.json")
    found = predict(folder, status=1)
    assert found["calibration"]["protocol"] == "own" and found["uncalibrated"] == ["rare"]
    rows = [row for row in found["results"] if "scores" in row]
    mass = known.findings["mass"]
    for row in rows:
        (label,) = row["probabilities"]
        own, score = row["probabilities"][label], row["scores"]["mass"]
        assert own["probability"] == pytest.approx(
            1 / (1 + np.exp(-mass.scaling.slope * score - mass.scaling.intercept))
        )
        assert own["low"] < own["probability"] < own["high"] and own["operating_point"] == "youden"
        assert own["positive"] == (score > mass.points["youden"].threshold.value)
        assert 0 <= row["distance_percentile"] <= 100
    strict = predict(folder, "--point", "specificity=0.9", status=1)["results"]
    positives = [sum(r["probabilities"]["mass"]["positive"] for r in part if "scores" in r) for part in (strict, rows)]
    assert positives[0] <= positives[1]
    # only one of two labels is calibrated: what is asked for as a probability is called what it is
    assert predict(folder, "--scores", "probability", status=1)["quantity"] == "sigmoid"
    classify = pipeline("zero-shot-study-classification", model=str(folder / "model"))
    study = {"T1": str(folder / "data" / "case001" / "T1.nii.gz")}
    entries = {entry["label"]: entry for entry in classify(study, candidate_labels=PROMPTS)}
    (first,) = [row for row in rows if row["id"] == "case001"]
    wanted = {**first["probabilities"]["mass"], "distance_percentile": first["distance_percentile"]}
    got = {name: entries["mass"][name] for name in wanted}
    assert got.pop("distance_percentile") == pytest.approx(wanted.pop("distance_percentile"), abs=0.02)
    assert got.pop("operating_point") == wanted.pop("operating_point") and got == pytest.approx(wanted, rel=1e-3)
    assert entries["rare"]["calibrated"] is False and "probability" not in entries["rare"]
    (alone,) = classify(study, candidate_labels={"any": [ITEMS[0]]}, scores="probability")
    assert alone["quantity"] == "probability" and alone["score"] == pytest.approx(got["probability"], rel=1e-3)
    (plain,) = classify(study, candidate_labels={"any": [ITEMS[0]]}, scores="probability", calibration=False)
    assert plain["quantity"] == "sigmoid" and plain["calibrated"] is False
    (other,) = classify(study, candidate_labels=[f"{ITEMS[0]} indeed"])
    assert other["calibrated"] is False


def test_the_table_has_its_columns(calibrated, tmp_path):
    folder, _ = calibrated
    out = tmp_path / "scores.csv"
    run("predict", "-m", folder / "model", "-i", folder / "data", "-p", ITEMS[0], "-o", out, status=1)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [f"{ITEMS[0]} {part}" for part in ("probability", "low", "high", "positive")]
    assert list(rows[0]) == ["id", "path", "quantity", ITEMS[0], *parts, "distance percentile"]
    assert rows[7]["id"] == "case007" and not any(rows[7][part] for part in parts)
    assert {row[parts[3]] for row in rows} == {"yes", "no", ""}
    shown = run("predict", "-m", folder / "model", "-i", folder / "data" / "case001", "-p", ITEMS[0]).output
    assert "yes or no at the operating point youden: calibrated on 31 studies" in shown


def test_other_weights_are_refused_in_words(calibrated, tmp_path):
    import torch
    from transformers import pipeline

    from itemized_clip_hf import ItemizedCLIPModel

    folder, _ = calibrated
    other = tmp_path / "other"
    shutil.copytree(folder / "model", other)
    model = ItemizedCLIPModel.from_pretrained(other)
    with torch.no_grad():
        model.logit_bias.add_(0.1)
    model.save_pretrained(other)
    asked = ("predict", "-m", other, "-i", folder / "data" / "case001", "-p", ITEMS[0])
    assert "was made with other weights" in run(*asked, status=1).output
    assert "Uncalibrated" in run(*asked, "--calibration", "none").output
    assert "there is no calibration at" in run(*asked, "--calibration", tmp_path / "no.json", status=1).output
    classify = pipeline("zero-shot-study-classification", model=str(folder / "model"))
    study = {"T1": str(folder / "data" / "case001" / "T1.nii.gz")}
    assert classify(study, candidate_labels=[ITEMS[0]])[0]["calibrated"]
    with torch.no_grad():
        classify.model.logit_bias.add_(0.1)  # in memory, after it was looked at
    with pytest.raises(ValueError, match="other weights"):
        classify(study, candidate_labels=[ITEMS[0]])
    damaged = json.loads((folder / "model" / "calibration.json").read_text())
    for change, told in (({"format": 9}, "the format 9"), ({"findings": {"mass": {}}}, "is damaged")):
        (tmp_path / "calibration.json").write_text(json.dumps({**damaged, **change}))
        refused = run("predict", "-m", folder / "model", *asked[3:], "--calibration", tmp_path, status=1)
        assert told in refused.output
    shutil.copy(folder / "model" / "calibration.json", tmp_path)
    assert (
        "calibration.safetensors beside it is missing"
        in run("predict", "-m", folder / "model", *asked[3:], "--calibration", tmp_path, status=1).output
    )


def test_a_stopped_run_goes_on(calibrated, tmp_path, monkeypatch):
    from itemized_clip_hf.cli import _studies

    folder, _ = calibrated
    opened, once = [], _studies.Opener.__call__

    def stop(self, record):
        opened.append(record["id"])
        if len(opened) == 16:
            raise KeyboardInterrupt
        return once(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(_studies.Opener, "__call__", stop)
        assert "calibration.scores.jsonl" in calibrate(folder, "-o", tmp_path, "--batch-size", 4, status=130).output
    assert not (tmp_path / "calibration.json").exists()
    left = []
    monkeypatch.setattr(
        _studies.Opener, "__call__", lambda self, record: (left.append(record["id"]), once(self, record))[1]
    )
    shown = calibrate(folder, "-o", tmp_path, "--batch-size", 4).output
    assert "not calibrated: rare: 3 positives and 28 negatives" in shown and "operating point youden" in shown
    kept = json.loads((tmp_path / "calibration.json").read_text())
    calm = json.loads((folder / "model" / "calibration.json").read_text())
    # the damaged study is tried again, the others of whole batches are not
    assert len(left) < COUNT - 10 and kept["findings"] == calm["findings"]
    assert kept["data"] == calm["data"]
