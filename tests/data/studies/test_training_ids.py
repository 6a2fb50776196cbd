"""An evaluation says where the model was trained on its studies; no id is written down."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_models import ITEMS, TRAINING

from itemized_clip_hf.data.studies.training_ids import FILE, TrainingIds, ids_of, remember, warn_of_training


def test_hashes_tell_ids_again_and_hold_none(tmp_path):
    remember(tmp_path, ["Doe^Jane", "7.nii.gz", "row-3"])
    text = (tmp_path / FILE).read_text()
    assert "Doe" not in text and len(json.loads(text)["ids"]) == 2
    known = TrainingIds.read(tmp_path)
    assert known.count(["doe^jane", "7", "row-3", "other"]) == 2
    assert "2 of 4 studies" in warn_of_training(tmp_path, ["Doe^Jane", "7", "row-3", "other"])
    assert warn_of_training(tmp_path, ["other"]) is None and warn_of_training(None, ["7"]) is None
    (tmp_path / "next").mkdir()
    remember(tmp_path / "next", ["8"], start=tmp_path)  # fine-tuned
    assert TrainingIds.read(tmp_path / "next").count(["7", "8"]) == 2 and known.count(["8"]) == 0
    (tmp_path / "other").mkdir()
    remember(tmp_path / "other", ["7"])
    assert not set(json.loads((tmp_path / "other" / FILE).read_text())["ids"]) & known.hashes  # another salt
    (tmp_path / FILE).write_text("{}")
    assert TrainingIds.read(tmp_path) is None
    (tmp_path / "empty").mkdir()
    remember(tmp_path / "empty", [])
    assert not (tmp_path / "empty" / FILE).exists()


def test_it_stays_here():
    import fnmatch

    from itemized_clip_hf.hub.push import PUBLISHED

    assert not any(fnmatch.fnmatch(FILE, pattern) for pattern in PUBLISHED)


def test_from_training_to_evaluation(make_model, tokenizer, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    from itemized_clip_cli import main
    from itemized_clip_hf import ItemizedCLIPProcessor, ItemizedCLIPTrainer, ItemizedCLIPTrainingArguments
    from itemized_clip_hf.data.studies.records import read_records

    rows = []
    for number in range(6):
        path = tmp_path / f"s{number}" / "AX_T1.nii.gz"
        path.parent.mkdir()
        voxels = np.random.default_rng(number).normal(100, 30, (20, 24, 10)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-2.0, 2, 6, 1])), path)
        rows.append({"id": f"s{number}", "images": f"s{number}", "items": ITEMS[:2], "mass": number % 2})
    lists = {"seen": rows[:4], "mixed": rows[2:], "unseen": rows[4:], "nameless": [{**r, "id": None} for r in rows]}
    for name, own in lists.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    model, out = make_model(), tmp_path / "run"
    model.config.domain = "brain-mri"
    records = read_records(tmp_path / "seen.jsonl")
    assert ids_of(records) == ["s0", "s1", "s2", "s3"] and ids_of([{"images": None}]) == []
    settings = {**TRAINING, "save_strategy": "steps", "save_steps": 1}
    args = ItemizedCLIPTrainingArguments(str(out), max_steps=1, per_device_train_batch_size=2, **settings)
    trainer = ItemizedCLIPTrainer(model, args, train_dataset=records, processing_class=processor)
    trainer.train()
    trainer.save_model()
    assert TrainingIds.read(out).count(["s0", "s1", "s2", "s3", "s4"]) == 4

    def run(*arguments):
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output[-3000:]
        return json.loads(done.stdout[done.stdout.index("{") :])

    words = "2 of 4 studies have ids of studies that this model was trained on"
    found = run("predict", "-m", out, "-i", tmp_path / "mixed.jsonl", "-p", "mass", "--json")
    assert found["metrics"] and words in found["notes"][0]
    assert "notes" not in run("predict", "-m", out, "-i", tmp_path / "unseen.jsonl", "-p", "mass", "--json")
    (tmp_path / "own.yaml").write_text("title: own\ndomain: brain-mri\nfindings: {mass: mass}\n")
    arguments = [
        "evaluate",
        "--no-plots",
        "--resamples",
        0,
        "-o",
        tmp_path / "o.json",
        "--json",
        "-m",
        out / "checkpoint-1",
    ]
    for protocol in ("items", tmp_path / "own.yaml"):
        found = run(*arguments, "--protocol", protocol, "-i", tmp_path / "mixed.jsonl")
        assert sum(words in note for note in found["notes"]) == 1 and found["quantity"] == "similarity"
    found = run(*arguments[:-2], "-m", out, "--protocol", "items", "-i", tmp_path / "unseen.jsonl")
    assert "notes" not in found
