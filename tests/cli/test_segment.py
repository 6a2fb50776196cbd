"""`itemized-clip segment` and `train --task segmentation` on generated studies."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("monai")

from itemized_clip_cli import main
from itemized_clip_hf.modeling.segmentation_itemized_clip import ItemizedCLIPForSemanticSegmentation
from itemized_clip_hf.models.load import load
from itemized_clip_hf.phantom import PhantomDataset, write_dataset


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_dataset(PhantomDataset("test", 3, shape=(8, 16, 16)), tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("segmenter")
    base, processor = load(model_folder, "cpu")
    ItemizedCLIPForSemanticSegmentation.from_model(base, {"channels": 4}).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_masks_lie_on_the_scans(studies, segmenter, tmp_path):
    arguments = ["segment", "-m", segmenter, "-i", studies, "-p", "a mass", "-p", "a cyst", "-o", tmp_path, "--json"]
    done = run(*arguments, "--device", "cpu")
    assert done.exit_code == 0, done.output
    entries = json.loads(done.stdout)["masks"]
    assert len(entries) == 3 * 2 * 4 and {entry["item"] for entry in entries} == {"a mass", "a cyst"}
    scan = nibabel.load(studies.parent / entries[0]["id"] / "T1.nii.gz")
    own = next(entry for entry in entries if entry["scan"] == "T1")
    mask = nibabel.load(own["file"])
    assert mask.shape == scan.shape and mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    assert np.asarray(mask.dataobj).sum() == own["voxels"]
    before = own["file"], torch.tensor(0)
    again = run(*arguments, "--device", "cpu")
    assert json.loads(again.stdout)["masks"] == entries and before[0] == own["file"]


def test_masks_are_compared_and_bad_studies_listed(studies, segmenter, tmp_path):
    lines = [json.loads(line) for line in studies.read_text().splitlines()]
    for record in lines:
        record["images"] = {name: str(studies.parent / path) for name, path in record["images"].items()}
        record["masks"] = [mask and str(studies.parent / mask) for mask in record["masks"]]
    drawn = next(record for record in lines if any(record["masks"]))
    broken = {**drawn, "id": "broken", "masks": [str(tmp_path / "none.nii.gz")] * len(drawn["items"])}
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(record) for record in [*lines, broken]))
    done = run(
        "segment", "-m", segmenter, "-i", tmp_path / "list.jsonl", "-o", tmp_path / "out", "--masks", "--device", "cpu"
    )
    assert done.exit_code == 1 and "1 of 4 studies could not be drawn" in done.output
    assert "dice (%)" in done.output and "broken" in (tmp_path / "out" / "quarantine.csv").read_text()
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["studies"] == 3 and figures["unreadable"][0]["id"] == "broken"
    assert {"dice", "marked_if_absent"} <= set(figures["figures"]["all findings"])


def test_what_is_refused(studies, segmenter, model_folder, tmp_path):
    for arguments, told in (
        (["-m", model_folder, "-p", "a mass"], "expected an ItemizedCLIPForSemanticSegmentation"),
        (["-m", segmenter, "-p", "a mass", "--masks"], "leave out -p"),
        (["-m", segmenter, "--threshold", "2"], "expected a probability"),
        (["-m", segmenter, "--keep-largest", "0"], "expected 1 or more components"),
    ):
        done = run("segment", "-i", studies, "-o", tmp_path / "out", "--device", "cpu", *arguments)
        assert done.exit_code != 0 and told in done.output, done.output


@pytest.mark.slow
def test_train_and_segment(studies, model_folder, tmp_path):
    options = [
        "--task",
        "segmentation",
        "-m",
        model_folder,
        "-i",
        studies,
        "--eval-data",
        studies,
        "-o",
        tmp_path / "run",
    ]
    options += ["--channels", "4", "--max-items", "2", "--device", "cpu", "--json"]
    done = run("train", *options, "--set", "max_steps=2", "--set", "disable_tqdm=true")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["steps"] == 2 and summary["left_out"] == 0 and "dice" in summary
    done = run("segment", "-m", tmp_path / "run", "-i", studies, "-o", tmp_path / "masks", "--device", "cpu")
    assert done.exit_code == 0, done.output
    wrong = run("train", *options, "--recipe", "phantom")
    assert wrong.exit_code == 2 and "--recipe has no effect on --task segmentation" in wrong.output
