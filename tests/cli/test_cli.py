"""The command line as a user types it, in processes of its own, or in copies of this one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from command import run
from forked import run_forked
from tiny_models import ITEMS

from itemized_clip_cli import main

nibabel = pytest.importorskip("nibabel")


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """Three studies of two scans, one of them with a damaged file, and a list of them with labels."""
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(3):
        place = folder / f"study{number}"
        place.mkdir()
        for name, shape in (("AX_T1", (20, 24, 10)), ("AX_T2", (26, 22, 12))):
            affine = np.diag([-2.0, 2.0, 6.0, 1.0])
            nibabel.save(
                nibabel.Nifti1Image(rng.normal(100, 30, shape).astype(np.float32), affine), place / f"{name}.nii.gz"
            )
        images = {name: f"study{number}/{name}.nii.gz" for name in ("AX_T1", "AX_T2")}
        labels = {"Glioma": number == 1, "Stroke": number != 1}
        lines.append({"id": f"study{number}", "images": images, "items": ITEMS[number : number + 2], "labels": labels})
    (folder / "study2" / "AX_DWI.nii.gz").write_bytes(b"\x1f\x8bdamaged")
    (folder / "studies.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_help_is_fast_and_lists_every_verb():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = run("--help")
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0
    for verb in ("demo", "predict", "explain", "train", "info"):
        assert verb in done.stdout
    code = (
        "import sys, itemized_clip_cli as c\n"
        "c.main(['predict', '-h'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert run("fly", check=False).returncode == 2


def test_info(model_folder):
    facts = json.loads(run("info", "--json").stdout)
    assert "brain-mri" in facts["domains"] and "flair" in facts["objectives"] and "chest-ct" in facts["recipes"]
    assert json.loads(run_forked("info", "-m", model_folder, "--json").stdout)["domain"] == "brain-mri"


def test_predict_equals_the_library(model_folder, studies, tmp_path):
    from itemized_clip_hf.evaluation.zero_shot import score_studies
    from itemized_clip_hf.models.load import load

    out = tmp_path / "scores.csv"
    done = run_forked("predict", "-m", model_folder, "-i", studies, "-p", ITEMS[0], "-p", ITEMS[1], "-o", out, "--json")
    results = json.loads(done.stdout)["results"]
    assert [row["id"] for row in results] == ["study0", "study1", "study2"]
    assert "skipped AX_DWI.nii.gz" in done.stderr
    model, processor = load(model_folder, "cpu")
    paths = [str(studies / f"study{n}") for n in range(3)]
    _, scores = score_studies(model, processor, paths, ITEMS[:2])
    got = np.array([list(row["scores"].values()) for row in results])
    np.testing.assert_allclose(got, scores, atol=1e-5)
    assert out.read_text().splitlines()[0] == f"id,path,quantity,{ITEMS[0]},{ITEMS[1]}"
    one = run_forked("predict", "-m", model_folder, "-i", studies / "study0" / "AX_T1.nii.gz", "-p", ITEMS[0])
    assert ITEMS[0] in one.stdout


def test_predict_with_labels_and_the_prompts_of_the_domain(model_folder, studies):
    done = json.loads(run_forked("predict", "-m", model_folder, "-i", studies / "studies.jsonl", "--json").stdout)
    assert set(done["results"][0]["scores"]) == {"Normal", "Stroke", "Glioma", "Meningioma", "Metastasis"}
    glioma = [row["scores"]["Glioma"] for row in done["results"]]
    assert done["metrics"]["AUC Glioma"] == np.mean([glioma[1] > glioma[0], glioma[1] > glioma[2]])


def test_one_bad_study_does_not_end_the_run(model_folder, studies, tmp_path):
    lines = (studies / "studies.jsonl").read_text().splitlines()
    bad = json.dumps({"id": "gone", "images": {"AX_T1": "gone.nii.gz"}})
    (studies / "with_bad.jsonl").write_text("\n".join([lines[0], bad, lines[1]]))
    done = run_forked(
        "predict", "-m", model_folder, "-i", studies / "with_bad.jsonl", "-p", "mass", "--json", check=False
    )
    results = json.loads(done.stdout)["results"]
    assert done.returncode == 1 and "gone" in done.stderr
    assert ["scores" in row for row in results] == [True, False, True]
    assert "there is no file" in results[1]["error"]


def test_explain_writes_maps_in_the_scans_own_space(model_folder, studies, tmp_path):
    done = run_forked(
        "explain",
        "-m",
        model_folder,
        "-i",
        studies / "study0",
        "-p",
        ITEMS[0],
        "-p",
        ITEMS[1],
        "-o",
        tmp_path,
        "--json",
    )
    entries = json.loads(done.stdout)
    assert len(entries) == 4
    assert len(list((tmp_path / "study0").glob("*.png"))) == 2
    for entry in entries:
        heat, scan = nibabel.load(entry["file"]), nibabel.load(studies / "study0" / f"{entry['scan']}.nii.gz")
        assert heat.shape == scan.shape
        np.testing.assert_allclose(heat.affine, scan.affine)
        assert heat.get_fdata().max() > 0
    for item in ITEMS[:2]:
        assert sum(entry["share"] for entry in entries if entry["item"] == item) == pytest.approx(1, abs=1e-4)


def test_train_then_resume_then_predict(studies, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        """
base: brain-mri
tokenizer: {vocab_size: 120, context_length: 16}
image: {scan_size: [8, 16, 16], in_plane_size: 16}
model:
  projection_dim: 16
  num_pooler_heads: 2
  vision_config: {hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32,
                  image_size: [8, 16, 16], patch_size: [4, 8, 8], attention_scopes: [scan, study],
                  use_scan_name_encoder: false}
  text_config: {hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
training: {max_steps: 2, max_items: 3, max_scans: 2, warmup_steps: 1, logging_steps: 1, save_strategy: steps, save_steps: 1}
global_batch_size: 2
"""
    )
    out = tmp_path / "run"
    done = run_forked(
        "train", "--recipe", recipe, "-i", studies / "studies.jsonl", "-o", out, "--device", "cpu", "--json"
    )
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["steps"] == 2 and summary["left_out"] == 0
    done = run_forked(
        "train",
        "--recipe",
        recipe,
        "-i",
        studies / "studies.jsonl",
        "-o",
        out,
        "--set",
        "max_steps=3",
        "--resume",
        "--json",
    )
    assert json.loads(done.stdout.strip().splitlines()[-1])["steps"] == 3
    scored = json.loads(run_forked("predict", "-m", out, "-i", studies / "study1", "--json").stdout)
    assert np.isfinite(list(scored["results"][0]["scores"].values())).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("predict", "-m", "nowhere/at/all", "-i", "{study}", "-p", "x"), "no model folder"),
        (("predict", "-m", "{empty}", "-i", "{study}", "-p", "x"), "no config.json"),
        (("predict", "-m", "{other}", "-i", "{study}", "-p", "x"), "type 'bert', expected 'itemized_clip'"),
        (("predict", "-m", "untrained:brain-mri", "-i", "{study}", "-p", "x"), "needs a tokenizer"),
        (("predict", "-m", "untrained:knee", "-i", "{study}", "-p", "x"), "unknown domain 'knee'"),
        (("predict", "-m", "{model}", "-i", "nowhere", "-p", "x"), "there is no file or folder nowhere"),
        (("predict", "-m", "{model}", "-i", "{empty}", "-p", "x"), "holds neither volumes"),
        (("train", "--recipe", "knee", "-i", "{study}", "-o", "{empty}"), "no recipe 'knee'"),
        (("train", "--recipe", "brain-mri", "-i", "{study}", "-o", "{empty}"), "no column of items or of images"),
    ],
)
def test_errors_say_what_to_do(model_folder, studies, tmp_path, arguments, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    places = {
        "study": studies / "study0",
        "model": model_folder,
        "empty": tmp_path / "empty",
        "other": tmp_path / "other",
    }
    done = CliRunner().invoke(main, [a.format(**places) for a in arguments])
    assert done.exit_code != 0 and message in done.stderr and isinstance(done.exception, SystemExit), done.output
