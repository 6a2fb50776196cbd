"""What `explain` leaves for a viewer: maps, and the scans that they lie on."""

import gzip
import json

import numpy as np
import pytest
from click.testing import CliRunner
from dicom_files import SECRETS, make_grid, make_series, mr_world, save
from tiny_models import ITEMS

from itemized_clip_cli import main

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("matplotlib")


def explain(model_folder, study, output):
    done = CliRunner().invoke(
        main, ["explain", "-m", str(model_folder), "-i", str(study), "-p", ITEMS[0], "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    (told,) = output.rglob("maps.json")
    return told.parent, json.loads(told.read_text())["maps"], done.output


def test_scans_of_dicom_files_are_written_beside_their_maps(model_folder, tmp_path):
    """Upright, in their own affine, with their values; geometry is all that is taken of a header."""
    grid = make_grid("oblique", slices=14, size=(40, 44), distance=6.0)
    save(make_series(grid, "MR"), tmp_path / "study" / "series")
    place, (entry,), shown = explain(model_folder, tmp_path / "study", tmp_path / "out")
    scan, heat = nibabel.load(place / entry["base"]), nibabel.load(place / entry["file"])
    assert scan.shape == heat.shape and scan.get_data_dtype() == np.int16
    np.testing.assert_allclose(scan.affine, heat.affine)
    indices = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), -1)
    expected = mr_world(indices @ scan.affine[:3, :3].T + scan.affine[:3, 3])
    assert np.abs(scan.get_fdata() - expected).max() < 1
    for path in place.iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert not [secret for secret in SECRETS if secret.encode() in content.lower()], path.name
    assert isinstance(entry["similarity"], float) and f"{entry['similarity']:.4f}" in shown
    assert explain(model_folder, tmp_path / "study", tmp_path / "out")[1] == [entry]
    (place / entry["base"]).unlink()
    assert (explain(model_folder, tmp_path / "study", tmp_path / "out")[0] / entry["base"]).exists()


def test_nifti_files_are_not_written_again(model_folder, tmp_path):
    values = np.random.default_rng(0).normal(100, 30, (20, 24, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-2.0, 2.0, 6.0, 1.0])), tmp_path / "AX_T1.nii.gz")
    place, (entry,), _ = explain(model_folder, tmp_path / "AX_T1.nii.gz", tmp_path / "out")
    assert "base" not in entry and len(list(place.glob("*.nii.gz"))) == 1


@pytest.mark.parametrize("scores", ["logit", "probability", "sigmoid"])
def test_the_score_is_the_one_that_predict_gives(model_folder, tmp_path, scores):
    values = np.random.default_rng(0).normal(100, 30, (20, 24, 10)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-2.0, 2.0, 6.0, 1.0])), tmp_path / "AX_T1.nii.gz")
    asked = ["-m", model_folder, "-i", tmp_path / "AX_T1.nii.gz", "-p", ITEMS[0], "--scores", scores, "--json"]
    predicted = CliRunner().invoke(main, list(map(str, ["predict", *asked])))
    expected = json.loads(predicted.stdout)["results"][0]["scores"][ITEMS[0]]
    shown = CliRunner().invoke(main, list(map(str, ["explain", *asked, "-o", tmp_path / "out"])))
    (entry,) = json.loads(shown.stdout)
    assert entry["score"] == pytest.approx(expected, rel=1e-4) and entry["quantity"] == scores.replace(
        "probability", "sigmoid"
    )
    similarity = CliRunner().invoke(main, list(map(str, ["explain", *asked[:-3], "--json", "-o", tmp_path / "out"])))
    (known,) = json.loads(similarity.stdout)
    assert known["similarity"] == entry["similarity"] and "score" not in known  # made anew, not the folder of the other


def test_what_was_left_out_of_a_study_is_in_its_result(model_folder, tmp_path):
    save(make_series(make_grid("axial", slices=14, size=(40, 44), distance=6.0), "MR"), tmp_path / "study" / "series")
    (tmp_path / "study" / "series" / "damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"nothing of use")
    lone = make_series(make_grid("axial", slices=1, size=(40, 44), distance=6.0), "MR")
    save(lone, tmp_path / "study" / "lone")
    place, _, shown = explain(model_folder, tmp_path / "study", tmp_path / "out")
    notes = json.loads((place / "result.json").read_text())["notes"]
    told = [line for line in shown.splitlines() if "skipped" in line]
    assert told and len(notes) == len(told) and all("was left out: " in note for note in notes)
