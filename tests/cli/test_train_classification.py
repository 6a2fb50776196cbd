"""`itemized-clip train --task classification`, from the shell to a saved classifier."""

import json
import re

import pytest
from click.testing import CliRunner
from labeled_files import write_labeled_studies
from transformers import AutoModelForImageClassification

from itemized_clip_cli import main

pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_labeled_studies(tmp_path_factory.mktemp("labeled"), count=12)


def train(*arguments, fails: bool = False):
    done = CliRunner().invoke(main, ["train", "--task", "classification", *map(str, arguments)])
    assert (done.exit_code != 0) == fails, done.output
    return done


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
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.label_names == ["coin", "large"] and model.config.class_weights[1] == 1
    # a whole run is not trained over, and goes on where it is asked to, with the options it was begun with
    assert "holds checkpoints" in train(*common, fails=True).output
    again = train(*studies[:4], *evaluation, "-o", out, "--set", "num_train_epochs=6", "--resume", "--json")
    assert json.loads(again.stdout.strip().splitlines()[-1])["steps"] == 18
    assert json.loads((out / "results.json").read_text())["class_weights"] == "balanced"


def test_classes_and_the_class_token(model_folder, files, tmp_path):
    out = tmp_path / "out"
    train(
        *("-i", files / "studies.jsonl", "--labels", files / "classes.csv", "-m", model_folder, "-o", out),
        *("--eval-data", files / "studies.jsonl", "--eval-labels", files / "classes.csv", "--head", "class_token"),
        *("--set", "max_steps=2", "--patience", 3, "--device", "cpu"),
    )
    results = json.loads((out / "results.json").read_text())
    assert results["problem_type"] == "single_label_classification" and "zero_shot" not in results
    assert set(results["trained"]) == {"labels", "choice"} and results["labels"] == ["large", "small"]


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
    ],
)
def test_options_that_cannot_work(model_folder, files, tmp_path, arguments, message):
    (tmp_path / "prompts.yaml").write_text("x: a mass\n")
    places = {"model": str(model_folder), "prompts": str(tmp_path / "prompts.yaml")}
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
