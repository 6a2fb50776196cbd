"""`itemized-clip train --task classification`, from the shell to a saved classifier."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from heads import make_classifier
from labeled_files import write_labeled_studies
from transformers import AutoModelForImageClassification, pipeline

from itemized_clip_cli import main
from itemized_clip_hf import ItemizedCLIPForImageClassification
from itemized_clip_hf.models.load import load_head
from itemized_clip_hf.trainer.supervised.few_shot import draw_shots

pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_labeled_studies(tmp_path_factory.mktemp("labeled"), count=12)


def train(*arguments, fails: bool = False):
    done = CliRunner().invoke(main, ["train", "--task", "classification", *map(str, arguments)])
    assert (done.exit_code != 0) == fails, done.output
    return done


def predict(*arguments) -> dict:
    done = CliRunner().invoke(main, ["predict", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_classifier_from_the_shell(model_folder, files, tmp_path):
    (tmp_path / "prompts.yaml").write_text("Large: [left mass, a large mass]\ncoin: a coin\n")
    studies = ("-i", files / "studies.jsonl", "--labels", files / "labels.csv", "-m", model_folder)
    evaluation = ("--eval-data", files / "studies.jsonl", "--eval-labels", files / "labels.csv")
    settings = (
        "--set",
        "num_train_epochs=5",
        "--set",
        "per_device_train_batch_size=4",
        "--set",
        "learning_rate=0.02",
        "--set",
        "disable_tqdm=true",
    )
    out = tmp_path / "out"
    common = (*studies, *evaluation, "-o", out, *settings, "--prompts", tmp_path / "prompts.yaml", "--json")
    done = train(*common, "--class-weights", "balanced", "--device", "cpu")
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["steps"] == 15 and summary["left_out"] == 0
    results = json.loads((out / "results.json").read_text())
    assert results["prompts"] == {"coin": ["a coin"], "large": ["left mass", "a large mass"]}
    assert results["training"]["studies"] == 12 and results["training"]["positive"]["large"] == 6
    found = results["trained"]["labels"]["findings"]["large"]
    assert found["auc"]["value"] == 1 and found["auc"]["low"] <= 1 and found["positive"] == 6
    assert set(results["zero_shot"]["labels"]["findings"]) == {"large", "coin"}
    assert any("optimistic" in note for note in results["notes"])
    assert any("12 of 12 studies of the evaluation are trained on" in note for note in results["notes"])
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.label_names == ["coin", "large"] and model.config.class_weights[1] == 1
    # predict gives its labels, as the model alone does
    scored = predict("-m", out, "-i", files / "studies.jsonl", "--json")
    assert [list(entry["scores"]) for entry in scored["results"]] == [["coin", "large"]] * 12
    assert [entry["scores"]["large"] > 0.5 for entry in scored["results"]] == [bool(number % 2) for number in range(12)]
    assert scored["quantity"] == "sigmoid"
    logits = predict("-m", out, "-i", files / "studies.jsonl", "--scores", "logit", "--json")["results"][3]["scores"]
    classify = pipeline("image-classification", model=str(out), device="cpu")
    own = {e["label"]: e["score"] for e in classify({"AX_T1": str(files / "s3.nii.gz")}, function_to_apply="none")}
    assert logits == pytest.approx(own, abs=1e-4)
    # a whole run is not trained over, and goes on where it is asked to, with the options it was begun with
    assert "holds checkpoints" in train(*common, fails=True).output
    again = train(*studies[:4], *evaluation, "-o", out, "--set", "num_train_epochs=6", "--resume", "--json")
    assert json.loads(again.stdout.strip().splitlines()[-1])["steps"] == 18
    assert json.loads((out / "results.json").read_text())["class_weights"] == "balanced"


def test_classes_and_the_class_token(model_folder, files, tmp_path):
    out = tmp_path / "out"
    done = train(
        *("-i", files / "studies.jsonl", "--labels", files / "classes.csv", "-m", model_folder, "-o", out, "--json"),
        *("--eval-data", files / "studies.jsonl", "--eval-labels", files / "classes.csv", "--head", "class_token"),
        *("--set", "max_steps=2", "--set", "eval_steps=1", "--patience", 3, "--device", "cpu"),
    )
    results = json.loads((out / "results.json").read_text())
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    tasks = results["trained"]["choice"]["tasks"]["classes"]
    assert summary["trained_accuracy"] == round(tasks["accuracy"]["value"], 4) and tasks["classes"] == {
        "large": 6,
        "small": 6,
    }
    assert results["problem_type"] == "single_label_classification" and "zero_shot" not in results
    assert set(results["trained"]) == {"labels", "choice", "unreadable"} and results["labels"] == ["large", "small"]


def test_a_few_shot_curve_goes_on(model_folder, files, tmp_path):
    for package in ("peft", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    studies = ("-i", files / "studies.jsonl", "--labels", files / "labels.csv")
    test = ("--eval-data", files / "studies.jsonl", "--eval-labels", files / "labels.csv")
    out = tmp_path / "curve"
    settings = ("--set", "max_steps=1", "--device", "cpu", "--json")
    begun = (*studies, *test, "-o", out, "-m", model_folder, "--label", "large", *settings)
    done = train(*begun, "--shots", 2, "--repeats", 1)
    table = json.loads(done.stdout.strip().splitlines()[-1])["table"]
    assert [(row["method"], row["shots"], row["studies"], row["repeats"]) for row in table] == [
        ("zero-shot", 0, 0, 0),
        *[(method, 2, 4, 1) for method in ("linear probe", "head", "LoRA")],
    ]
    assert table[1]["auc"] == 1  # to be seen from two studies of each kind
    names = ["few_shot.csv", "few_shot.json", "few_shot.jsonl", "few_shot.png", "run.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (out / "few_shot.csv").read_text().startswith("method,shots,studies")
    lines = (out / "few_shot.jsonl").read_text().splitlines()
    (out / "few_shot.jsonl").write_text(
        "\n".join(lines[:2]) + "\n" + lines[2][:40]
    )  # as a run that was killed leaves it
    assert "holds a curve already" in train(*begun, "--shots", 2, fails=True).stderr
    again = train(*studies, *test, "-o", out, "--resume", *settings[2:])
    assert json.loads(again.stdout.strip().splitlines()[-1])["table"] == table
    assert (out / "few_shot.jsonl").read_text().splitlines() == lines
    other = train(*studies, *test, "-o", out, "--resume", "--set", "max_steps=2", fails=True)
    assert "other settings" in other.stderr


@pytest.mark.slow  # what it says is tested one by one above
def test_every_block_of_the_page(model_folder, files, tmp_path, monkeypatch):
    for package in ("peft", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "my-model")
    shutil.copytree(files, ".", dirs_exist_ok=True)
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy("studies.jsonl", name)
    for name in ("t1.nii.gz", "t2.nii.gz"):
        shutil.copy("s1.nii.gz", name)
    Path("prompts.yaml").write_text("large: [large mass, a mass]\ncoin: a coin\n")
    page = (Path(__file__).parents[2] / "docs" / "classification.md").read_text()
    names: dict = {}
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(text, names)
            continue
        for line in text.replace("\\\n", " ").replace("max_steps=100", "max_steps=1").splitlines():
            arguments = shlex.split(line)[1:]
            short = ["--set", "num_train_epochs=2", "--device", "cpu"] if "--patience" in arguments else []
            done = CliRunner().invoke(main, [*arguments, *short])
            assert done.exit_code == 0, done.output
    assert names["attention"].shape[:2] == (1, 2) and len(names["maps"]) == 1
    assert Path("scores.csv").read_text().startswith("id,path,quantity,coin,large")


def test_shots_are_of_every_label_and_grow():
    table = np.random.default_rng(0).integers(0, 2, (60, 3)).astype(float)
    table[table.sum(1) == 3, 0] = np.nan
    before = set()
    for k in (1, 3, 9):
        rows = draw_shots(table, k, (0, 1))
        assert (np.nansum(table[rows] == 1, 0) >= k).all() and (np.nansum(table[rows] == 0, 0) >= k).all()
        assert before <= set(rows) and len(rows) <= 6 * k
        before = set(rows)
    assert not np.array_equal(draw_shots(table, 3, (0, 1)), draw_shots(table, 3, (0, 2)))
    classes = np.repeat([0, 1, 2], 10)
    assert np.bincount(classes[draw_shots(classes, 4, (0, 0))]).tolist() == [4, 4, 4]


def test_what_a_classifier_cannot_do(model_folder, files, tmp_path):
    make_classifier().save_pretrained(tmp_path)
    for arguments, message in (
        (("predict", "-p", "mass"), "leave out -p"),
        (("predict", "--scores", "similarity"), "has no similarities"),
        (
            ("explain", "-p", "mass", "-o", str(tmp_path / "maps")),
            "holds an ItemizedCLIPForImageClassification, expected an",
        ),
    ):
        verb, *rest = arguments
        done = CliRunner().invoke(main, [verb, "-m", str(tmp_path), "-i", str(files / "s0.nii.gz"), *rest])
        assert done.exit_code != 0 and message in " ".join(done.stderr.split()), done.output
    with pytest.raises(ValueError, match="expected an ItemizedCLIPForImageClassification: train one"):
        load_head(model_folder, ItemizedCLIPForImageClassification)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--recipe", "brain-mri"), "--recipe has no effect on --task classification"),
        (("--init", "{model}"), "--init has no effect on --task classification"),
        (("--head", "class_token", "--prompts", "{prompts}"), "--prompts has no effect on --head class_token"),
        (("--patience", "2"), "need studies to evaluate on"),
        (("--prompts", "{prompts}"), "no prompt for the labels .'coin', 'large'., and prompts for .'x'."),
        (("--set", "objective=clip"), "no training arguments"),
        (("--label", "small"), "no column for the labels"),
        (("--shots", "1", "4"), "needs studies to test on"),
        (("--shots", "none"), "'none' is not a number of studies"),
        (("--repeats", "2"), "no effect without --shots"),
        (("--shots", "1", "--eval-data", "{studies}", "--head", "class_token"), "methods of its own"),
        (
            ("--shots", "1", "--eval-data", "{studies}", "--set", "freeze_vision=true"),
            "decides .'freeze_vision'. by itself",
        ),
    ],
)
def test_options_that_cannot_work(model_folder, files, tmp_path, arguments, message):
    (tmp_path / "prompts.yaml").write_text("x: a mass\n")
    places = {
        "studies": str(files / "studies.jsonl"),
        "model": str(model_folder),
        "prompts": str(tmp_path / "prompts.yaml"),
    }
    studies = ("-i", files / "studies.jsonl", "--labels", files / "labels.csv", "-m", model_folder)
    done = train(*studies, "-o", tmp_path / "out", *(a.format(**places) for a in arguments), fails=True)
    assert re.search(message, " ".join(done.stderr.split())), done.stderr
    assert not (tmp_path / "out").exists()


def test_options_of_other_tasks(files, tmp_path):
    reports = ("train", "--recipe", "brain-mri", "-i", str(files / "studies.jsonl"), "-o", str(tmp_path / "out"))
    done = CliRunner().invoke(main, [*reports, "--labels", str(files / "labels.csv")])
    assert "--labels has no effect on --task reports" in done.stderr
    done = CliRunner().invoke(main, ["train", "-i", str(files / "studies.jsonl"), "-o", str(tmp_path / "out")])
    assert "Missing option '--recipe'" in done.stderr
    assert "Missing option '-m'" in train("-i", files / "studies.jsonl", "-o", tmp_path / "out", fails=True).stderr
