"""What `predict` writes: the quantity it names, where each study lies, and the same with any number of threads."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_models import ITEMS

nibabel = pytest.importorskip("nibabel")
CHOICES = ("similarity", "logit", "probability", "sigmoid")


def run(*arguments, status=0):
    from itemized_clip_cli import main

    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == status, done.output[-3000:]
    return done


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    for name in ("one/T1", "two/T1", "two/T2", "three/T1"):
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(rng.normal(100, 30, (20, 24, 10)).astype(np.float32), np.diag([-2.0, 2, 6, 1]))
        nibabel.save(image, path)
    (folder / "three" / "T1.nii.gz").write_bytes(b"\x1f\x8bdamaged")
    return folder


def predict(model_folder, studies, *more, status=1):
    return run("predict", "-m", model_folder, "-i", studies, "-p", ITEMS[0], "-p", ITEMS[1], *more, status=status)


def test_every_output_names_its_quantity(model_folder, studies, tmp_path):
    from itemized_clip_hf.evaluation.quantity import MEANINGS
    from itemized_clip_hf.models.load import load

    assert tuple(MEANINGS) == CHOICES
    model, processor = load(model_folder, "cpu")
    inputs = processor(images=[{"T1": str(studies / "one" / "T1.nii.gz")}], text=ITEMS[:2], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image[0]
    wanted = {"logit": logits, "sigmoid": logits.sigmoid()}
    for asked in CHOICES:
        quantity = "sigmoid" if asked == "probability" else asked  # the model is not calibrated
        out = tmp_path / f"{asked}.csv"
        found = json.loads(predict(model_folder, studies, "--scores", asked, "--json", "-o", out).stdout)
        assert found["quantity"] == quantity and found["calibration"] is None and found["precision"] == "float32"
        rows = {row["id"]: row for row in found["results"]}
        assert "scores" not in rows["three"] and rows["three"]["path"].endswith("/three")
        if quantity in wanted:
            assert list(rows["one"]["scores"].values()) == pytest.approx(wanted[quantity].tolist(), abs=2e-5)
        table = np.genfromtxt(out, delimiter=",", names=True, dtype=None, encoding="utf-8")
        assert table.dtype.names[:3] == ("id", "path", "quantity") and set(table["quantity"]) == {quantity}
        assert (table["path"] == [f"{studies.name}/{name}" for name in table["id"]]).all()
        name = out.read_text().splitlines()[0].split(",")[3]
        assert name == ITEMS[0]
        shown = predict(model_folder, studies, "--scores", asked).stdout
        assert "Uncalibrated: no score is a probability." in shown
        assert f"\n{quantity}: {MEANINGS[quantity]}" in shown
    default = json.loads(predict(model_folder, studies, "--json").stdout)
    assert default["quantity"] == "similarity"
    assert "'cosine' is not one of 'similarity', 'logit', 'probability'" in (
        predict(model_folder, studies, "--scores", "cosine", status=2).output
    )


def test_averaged_prompts_are_said_to_be(model_folder, studies, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps({"mass": ITEMS[:2], "bleed": ITEMS[1]}))
    arguments = ["predict", "-m", model_folder, "-i", studies / "one", "--prompts", tmp_path / "prompts.json"]
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["prompts_averaged"] == {"mass": 2} and found["averaged"] == "embeddings"
    assert "the embeddings of a label's prompts are averaged" in run(*arguments).stdout


def test_kept_scores_are_similarities_whatever_is_written(model_folder, studies, tmp_path, monkeypatch):
    """Logit and probability go on with each other's files; similarities, which are pooled otherwise, do not."""
    from itemized_clip_hf.cli import _scores

    def stop(*arguments):
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(_scores.Scoring, "write", stop)
        predict(model_folder, studies, "--scores", "logit", "-o", tmp_path / "o.csv")
    lines = (tmp_path / "o.csv.scores.jsonl").read_text().splitlines()
    kept = {row["id"]: row["scores"] for row in map(json.loads, lines[1:]) if "scores" in row}
    assert set(kept) == {"one", "two"} and all(abs(score) <= 1 for row in kept.values() for score in row)
    assert json.loads(lines[0])["pool_inputs"] == "not normalized"
    refused = predict(model_folder, studies, "-o", tmp_path / "o.csv")
    assert "holds scores of another model" in refused.output and not (tmp_path / "o.csv").exists()
    calm = predict(model_folder, studies, "--scores", "probability", "-o", tmp_path / "calm.csv")
    with monkeypatch.context() as patch:
        patch.setattr(_scores.Opener, "__call__", stop)  # nothing that is kept is opened again
        predict(model_folder, studies, "--scores", "probability", "-o", tmp_path / "o.csv")
    assert (tmp_path / "o.csv").read_text() == (tmp_path / "calm.csv").read_text() and calm.exit_code == 1


def test_threads_and_precision(model_folder, studies, tmp_path):
    alone = json.loads(predict(model_folder, studies, "--json").stdout)
    threads = predict(model_folder, studies, "--workers", 3, "--batch-size", 1, "--json")
    assert json.loads(threads.stdout)["results"][0]["id"] == alone["results"][0]["id"]
    for one, other in zip(json.loads(threads.stdout)["results"], alone["results"], strict=True):
        assert one["id"] == other["id"] and one.get("error") == other.get("error")
        assert one.get("scores", {}) == pytest.approx(other.get("scores", {}), abs=1e-6)
    half = json.loads(predict(model_folder, studies, "--precision", "bf16", "--json").stdout)
    assert half["precision"] == "bf16 (weights float32)"
    for one, other in zip(half["results"], alone["results"]):
        assert one.get("scores", {}) == pytest.approx(other.get("scores", {}), abs=0.02)
    assert [row.get("scores") for row in half["results"]] != [row.get("scores") for row in alone["results"]]
    shown = run("predict", "-h").stdout
    assert all(word in shown for word in ("--precision", "--workers", "goes on there", "uncalibrated"))


def test_where_studies_lie(studies, tmp_path):
    from itemized_clip_hf.cli._studies import Inputs

    for place in ("Doe_Jane/za", "Doe_Jane/zb"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "dicom.zip").write_bytes(b"PK\5\6" + bytes(18))
    files = [str(tmp_path / "Doe_Jane" / name / "dicom.zip") for name in ("za", "zb")]
    both = Inputs(tuple(files))
    assert (both.ids, both.paths) == (["za/dicom", "zb/dicom"], ["za/dicom.zip", "zb/dicom.zip"])
    assert Inputs((files[0],)).paths == ["dicom.zip"]  # nothing of the folders above it
    rows = [
        {"id": "a", "images": {"T1": "x/T1.nii.gz", "T2": "x/T2.nii.gz"}},
        {"id": "b", "images": files[0]},
        {"id": "c"},
    ]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Inputs((str(tmp_path / "lists" / "list.jsonl"),)).paths == ["x", "dicom.zip", "list.jsonl"]


def test_a_label_that_is_called_like_a_column(model_folder, studies, tmp_path):
    done = run("predict", "-m", model_folder, "-i", studies, "-p", "quantity", "-o", tmp_path / "o.csv", status=1)
    assert "o.csv has columns id, path, quantity: call the label 'quantity' otherwise" in done.output


@pytest.mark.parametrize("workers", [0, 2])
def test_explain_and_inspect_tell_studies_apart(model_folder, studies, tmp_path, workers):
    first, second = tmp_path / "za", tmp_path / "zb"
    for place in (first, second):
        place.mkdir()
        (place / "scan.nii.gz").write_bytes((studies / "one" / "T1.nii.gz").read_bytes())
    inputs = ["-i", first / "scan.nii.gz", "-i", second / "scan.nii.gz"]
    arguments = ["explain", "-m", model_folder, *inputs, "-p", ITEMS[0], "-o", tmp_path / "maps", "--workers", workers]
    entries = json.loads(run(*arguments, "--json").stdout)
    assert [(row["id"], row["path"]) for row in entries] == [
        ("za/scan", "za/scan.nii.gz"),
        ("zb/scan", "zb/scan.nii.gz"),
    ]
    assert len({row["file"] for row in entries}) == 2
    again = run(*arguments)  # from what is there
    header = again.stdout.splitlines()[0].split()
    assert header == ["study", "item", "similarity", "scan", "share"] and "zb/scan" in again.stdout
    scores = json.loads(run("predict", "-m", model_folder, *inputs, "-p", ITEMS[0], "--json").stdout)["results"]
    assert [row["similarity"] for row in entries] == pytest.approx(
        [row["scores"][ITEMS[0]] for row in scores], abs=1e-5
    )
    found = json.loads(run("inspect", *inputs, "--json").stdout)
    assert [(row["study"], row["path"]) for row in found] == [(row["id"], row["path"]) for row in entries]
