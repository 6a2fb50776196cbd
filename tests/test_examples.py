"""`examples/`: short files whose options are those that they tell of; the slow tests run every one on generated studies."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
MINUTES = 2


def read_example(path: Path):
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short_and_tells_of_its_own_options(path, monkeypatch, capsys):
    for package in ("nibabel", "sklearn", "matplotlib", *(["monai"] if "monai." in path.read_text() else [])):
        pytest.importorskip(package)
    assert len(path.read_text().splitlines()) < 150
    module = read_example(path)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert f"    python examples/{path.name} --phantom" in module.__doc__
    assert re.search(rf"accelerate launch (--multi_gpu )?--num_processes \d examples/{path.name} ", module.__doc__)
    own = re.sub(r"`itemized-clip [^`]*`", "", module.__doc__)
    told = set(re.findall(r"--\w+", own)) - {"--num_processes", "--multi_gpu"}
    assert told <= known, told - known
    listed = (ROOT / "examples" / "README.md").read_text()
    (row,) = [line for line in listed.splitlines() if f"]({path.name})" in line]
    assert set(re.findall(r"--\w+", row)) <= known
    monkeypatch.setattr(sys, "argv", [path.name, "--output_dir", "nowhere"])
    with pytest.raises(ValueError, match="or --phantom for "):  # nothing is generated without being asked for
        module.main()


@pytest.mark.parametrize("name", ["01", "04"])
def test_own_studies_need_a_recipe(name, monkeypatch):
    """None of the small one of the generated studies by default."""
    pytest.importorskip("sklearn")
    module = read_example(next(path for path in EXAMPLES if path.stem.startswith(name)))
    line = "--train_file train.jsonl --test_file test.jsonl --output_dir nowhere".split()
    monkeypatch.setattr(sys, "argv", ["example", *line])
    with pytest.raises(ValueError, match="pass --recipe"):
        module.main()


def run_example(name: str, *options, launcher=()) -> str:
    """What an example prints."""
    (path,) = [path for path in EXAMPLES if path.stem.startswith(name)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(path), "--phantom", *map(str, options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * MINUTES)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check_reports(folder: Path, printed: str) -> None:
    """The saved model gives the figures that were printed."""
    from itemized_clip_hf.evaluation.evaluate import evaluate_protocol
    from itemized_clip_hf.evaluation.protocols import Protocol
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.specs import read_prompts

    assert len(re.findall(r"^\d+ reports, \d+ items; 0 reports have none", printed, re.MULTILINE)) == 1
    saved = json.loads((folder / "zero_shot.json").read_text())
    model, processor = load(folder, "cpu")
    protocol = Protocol("again", findings=read_prompts(folder / "phantom" / "prompts.yaml"))
    again = evaluate_protocol(model, processor, protocol, folder / "phantom/test/studies.jsonl", resamples=0).results
    assert again["headline"]["value"] == pytest.approx(saved["headline"]["value"], abs=1e-6)
    assert f"mean auc (%): {100 * saved['headline']['value']:.1f} (" in printed
    assert saved["tables"][""]["studies"] == 20


SMALL = ("--phantom_studies", 80)


@pytest.mark.slow
def test_train_on_reports(tmp_path):
    printed = run_example("01", *SMALL, "--output_dir", tmp_path, "--max_steps", 4, "--learning_rate", 1e-4)
    check_reports(tmp_path, printed)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 4 and state["train_batch_size"] == 32  # the recipe's, where no option says otherwise


@pytest.mark.slow
def test_train_on_reports_with_two_processes(tmp_path):
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0".split()
    printed = run_example("01", *SMALL, "--output_dir", tmp_path, "--max_steps", 4, launcher=launcher)
    check_reports(tmp_path, printed)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["train_batch_size"] == 16


@pytest.mark.slow
def test_finetune_classifier(tmp_path):
    """The first column is zero-shot by the base model, the second is that of the saved classifier."""
    import numpy as np
    from sklearn.metrics import roc_auc_score
    from transformers import pipeline

    from itemized_clip_hf.data.records import read_records
    from itemized_clip_hf.evaluation.zero_shot import score_studies
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS

    options = ("--phantom_studies", 24, "--phantom_steps", 2, "--max_steps", 2, "--per_device_train_batch_size", 4)
    printed = run_example("02", *options, "--output_dir", tmp_path)
    rows = {line.split()[0]: re.findall(r"([\d.]+) \(", line) for line in printed.splitlines() if " (" in line}
    studies = list(read_records(tmp_path / "phantom/test/studies.jsonl"))
    images = [study["images"] for study in studies]
    base, processor = load(tmp_path / "phantom/model", "cpu")
    names, before = score_studies(base, processor, images, ZERO_SHOT_PROMPTS, normalize_pool_inputs=False)
    found = pipeline("image-classification", model=str(tmp_path), device="cpu")(images)
    after = np.array([[{e["label"]: e["score"] for e in one}[name] for name in names] for one in found])
    for column, name in enumerate(names):
        truth = [study["labels"][name] for study in studies]
        if len(set(truth)) == 2:
            aucs = [100 * roc_auc_score(truth, scores[:, column]) for scores in (before, after)]
            assert [float(figure) for figure in rows[name]] == pytest.approx(aucs, abs=0.051)


@pytest.mark.slow
def test_segment_with_text(tmp_path):
    """The figures are those of the saved model; the example's labels are those of the package's own reading of masks."""
    pytest.importorskip("monai")
    import torch

    from itemized_clip_hf.data.studies.masks import StudyMasks, labels_of_items, read_mask_records
    from itemized_clip_hf.evaluation.masks import evaluate_masks
    from itemized_clip_hf.models.segmenter import load_segmenter
    from itemized_clip_hf.monai_transforms import ItemizedCLIPProcessd

    options = ("--phantom_studies", 16, "--phantom_steps", 2, "--num_epochs", 1)
    printed = run_example("03", *options, "--output_dir", tmp_path)
    assert re.search(r"^epoch 1: loss \d", printed, re.MULTILINE) and "surface_distance" in printed
    model, processor = load_segmenter(tmp_path, "cpu")
    figures = evaluate_masks(model, processor, read_mask_records(tmp_path / "phantom/test/studies.jsonl"), resamples=0)
    dice = figures.figures["all findings"]["dice"].value
    (shown,) = re.findall(r"all findings, dice +([\d.]+)", printed)
    assert float(shown) == pytest.approx(100 * dice, abs=0.051)

    module = read_example(next(path for path in EXAMPLES if path.stem.startswith("03")))
    transform = module.Compose([ItemizedCLIPProcessd("images", processor, "texts", max_scans=5), module.ItemMasks(4)])
    compared = 0
    for record in list(read_mask_records(tmp_path / "phantom/train/studies.jsonl"))[:6]:
        labels = transform(module.as_example(record, 4))["labels"]
        assert labels.shape == (5, 4, 8, 32, 32) and (labels[4] == module.UNKNOWN).all()
        known = StudyMasks.of_record(record)
        drawn = [place for place, mask in enumerate(known.masks) if mask is not None][:3]
        chosen = [*drawn, *range(len(known.items), len(known.items) + len(known.absent))][:4]
        expected = labels_of_items(known, chosen, processor.image_processor.process_study(record["images"]))
        assert torch.equal(labels[:4, : len(chosen)], torch.from_numpy(expected))
        compared += len(drawn)
    assert compared > 3


@pytest.mark.slow
def test_compare_objectives(tmp_path):
    options = ("--output_dir", tmp_path, "--max_steps", 2, "--objectives", "itemized_clip", "clip", "--seeds", 0, 1)
    rows = [line.split() for line in run_example("04", *SMALL, *options).splitlines()]
    runs = [("itemized_clip", "0"), ("itemized_clip", "1"), ("clip", "0"), ("clip", "1")]
    assert [tuple(row[:2]) for row in rows[-4:]] == runs
    for row, scored in zip(rows[-4:], ["items", "items", "global", "global"]):
        saved = json.loads((tmp_path / f"{row[0]}-{row[1]}" / "zero_shot.json").read_text())
        assert row[2] == f"{100 * saved['headline']['value']:.1f}" and row[-2] == scored
    assert json.loads((tmp_path / "clip-1" / "config.json").read_text())["scoring"] == "global"


@pytest.mark.slow
def test_evaluate_protocol(tmp_path):
    options = ("--output_dir", tmp_path, "--phantom_studies", 20, "--phantom_steps", 2, "--resamples", 50)
    printed = run_example("05", *options)
    results = json.loads((tmp_path / "results.json").read_text())
    assert f"{100 * results['headline']['value']:.1f} (" in printed and "chosen on a validation split" in printed
    assert results["model_index"] and len(list((tmp_path / "plots").glob("*.png"))) == 8
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) >= 20


@pytest.mark.slow
def test_zero_shot_demo(tmp_path):
    from transformers import pipeline

    printed = run_example(
        "06", "--output_dir", tmp_path, "--phantom_steps", 2, "--labels", "mass", "bleed", "--top_k", 1
    )
    lines = [line.split() for line in printed.splitlines() if line[0] in "+-"]
    classify = pipeline("zero-shot-study-classification", model=str(tmp_path / "phantom/model"), device="cpu")
    study = {name: tmp_path / "phantom/study" / f"{name}.nii.gz" for name in ("T1", "T2", "FLAIR", "SWI")}
    found = classify(study, candidate_labels=["mass", "bleed"])
    assert [(line[1], float(line[0])) for line in lines] == [
        (entry["label"], pytest.approx(entry["score"], abs=6e-5)) for entry in found
    ]
    assert len(list(tmp_path.glob("*.png"))) == 1 and (tmp_path / "report.html").stat().st_size > 10000
