"""Retrieval, items and segmentation as one command each."""

import json

import numpy as np
import pytest
from forked import run_forked
from tiny_models import ITEMS

pytest.importorskip("sklearn")
nibabel = pytest.importorskip("nibabel")

from itemized_clip_hf.evaluation.tasks.items import evaluate_items
from itemized_clip_hf.evaluation.tasks.run import format_task, run_task
from itemized_clip_hf.evaluation.tasks.segmentation import compare_with_mask, mask_on_scan, segment
from itemized_clip_hf.models.load import load


@pytest.fixture
def ready(model_folder):
    return load(model_folder, "cpu")


@pytest.fixture
def listed(tmp_path):
    """Four studies of two series with items and masks; the fourth cannot be read."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(4):
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        for name in ("AX_T1", "AX_FLAIR"):
            array = np.abs(generator.normal(100, 30, (16, 16, 8))).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 6, 1])), folder / f"{name}.nii.gz")
        mask = np.zeros((32, 32, 16), np.uint8)  # of half the spacing
        mask[4 + number : 20, 6:22, 3:9] = 1
        affine = np.diag([1.0, 1, 3, 1])
        affine[:3, 3] = (-0.5, -0.5, -1.5)
        nibabel.save(nibabel.Nifti1Image(mask, affine), folder / "mask.nii.gz")
        images = {name: f"s{number}/{name}.nii.gz" for name in ("AX_T1", "AX_FLAIR")}
        rows.append(
            {"id": f"s{number}", "images": images, "mask": f"s{number}/mask.nii.gz", "items": ITEMS[: 1 + number % 3]}
        )
    for name in ("AX_T1", "AX_FLAIR"):
        (tmp_path / "s3" / f"{name}.nii.gz").write_bytes(b"broken")
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "list.jsonl"


def test_items(ready, listed):
    results = run_task("items", *ready, listed, resamples=20)
    rows = [{"images": str(listed.parent / f"s{number}"), "items": ITEMS[: 1 + number % 3]} for number in range(3)]
    for row in rows:
        row["images"] = {name: f"{row['images']}/{name}.nii.gz" for name in ("AX_T1", "AX_FLAIR")}
    expected = evaluate_items(*ready, rows).summary(resamples=0)
    assert {name: figure["value"] for name, figure in results["figures"].items()} == pytest.approx(
        {name: estimate.value for name, estimate in expected.items()}, nan_ok=True
    )
    assert results["studies"] == 3 and [entry["id"] for entry in results["unreadable"]] == ["s3"]
    assert set(results["series"]["all"]) == {"AX_T1", "AX_FLAIR"} and len(results["model"]["sha256"]) == 64
    assert "MLL" in format_task(results)


def test_segmentation_goes_on(ready, listed, tmp_path):
    from itemized_clip_hf.data.readers.nifti import read_nifti

    settings = {"prompt": "bleed", "series": "flair", "num_tokens": 2, "resamples": 20}
    results = run_task("segmentation", *ready, listed, scores_file=tmp_path / "kept.jsonl", **settings)
    assert results["studies"] == 3 and [entry["id"] for entry in results["unreadable"]] == ["s3"]
    study = {name: str(tmp_path / "s1" / f"{name}.nii.gz") for name in ("AX_T1", "AX_FLAIR")}
    found = segment(*ready, study, "bleed", "flair", 2)
    mask = mask_on_scan(read_nifti(tmp_path / "s1" / "mask.nii.gz"), found.heat)
    # The mask of half the spacing, one voxel of four by two by two: those whose centres lie next to the scan's.
    assert mask.shape == (8, 16, 16) and mask.sum() == pytest.approx(15 * 16 * 6 / 8, rel=0.25)
    assert results["per_study"]["s1"] == pytest.approx(compare_with_mask(found, mask))
    lines = (tmp_path / "kept.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "kept.jsonl").write_text("".join(lines[:2]))
    again = run_task("segmentation", *ready, listed, scores_file=tmp_path / "kept.jsonl", **settings)
    assert again["figures"] == results["figures"]


def test_wrong_settings_are_named(ready, listed):
    with pytest.raises(ValueError, match=r"has no settings \['tokens'\]"):
        run_task("segmentation", *ready, listed, tokens=3)
    with pytest.raises(ValueError, match="has no column `mask`"):
        rows = [json.loads(line) for line in listed.read_text().splitlines()]
        other = listed.with_name("other.jsonl")
        other.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "mask"}) for row in rows))
        run_task("segmentation", *ready, other)


def test_the_command(model_folder, listed, tmp_path):
    command = ["evaluate", "-m", model_folder, "-i", listed]
    done = run_forked(*command, "--protocol", "items", "-o", tmp_path / "out.json", "--resamples", "20")
    assert "mAMS" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["studies"] == 3
    retrieval = ["--protocol", "retrieval", "-o", tmp_path / "r.json", "--set", "mode=quick"]
    done = run_forked(*command, *retrieval, check=False)
    assert done.returncode == 1 and "expected one of" in done.stderr and "Traceback" not in done.stderr


def test_settings_that_are_known_before_the_tasks_are_imported():
    """They are read from the source; a task is one file."""
    import inspect
    from importlib import import_module

    from itemized_clip_hf.evaluation.tasks import available_tasks, task_settings

    assert available_tasks() == ["items", "retrieval", "segmentation"]
    for name in available_tasks():
        run = import_module(f"itemized_clip_hf.evaluation.tasks.{name}").run
        parameters = inspect.signature(run).parameters.values()
        assert task_settings(name) == tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
