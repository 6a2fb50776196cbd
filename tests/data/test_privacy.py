"""From DICOM to scores, maps and datasets: nothing that is printed or written names the patient."""

import json

import pytest
from forked import run_forked

pytest.importorskip("pydicom")
pytest.importorskip("datasets")
from dicom_files import SECRETS, make_grid, make_series, save, zip_folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A folder, a zip and a study of which nothing can be used, with a patient in headers, descriptions and file names."""
    folder = tmp_path_factory.mktemp("dicom") / "studies"
    names = {"AX": "axial", "SAG": "sagittal"}
    for number, study in enumerate(("s1", "s2")):
        for name, orientation in names.items():
            grid = make_grid(orientation, slices=10, size=(40, 44), spacing=(4.0, 4.0), distance=8.0)
            visit = f"1.2.826.0.1.3680043.8.498.{number + 1}"
            made = make_series(grid, "MR", SeriesDescription=f"{name} T1 Mustermann 20190823", StudyInstanceUID=visit)
            save(made, folder / study / name, name="Mustermann_Erika_{:04d}.dcm", start=100 * number)
    zip_folder(folder / "s2", folder / "s2.zip", prefix="Mustermann^Erika/")
    for file in (folder / "s2").rglob("*.dcm"):
        file.unlink()
    for place in (*(folder / "s2").iterdir(), folder / "s2"):
        place.rmdir()
    visit = "1.2.826.0.1.3680043.8.498.3"
    lost = make_series(
        make_grid(slices=4), "MR", SeriesDescription="localizer Erika Mustermann", StudyInstanceUID=visit
    )
    save(lost, folder / "s3", name="QX7731Z_{:04d}")
    return folder


def run(*arguments):
    return run_forked(*arguments, check=False)


@pytest.mark.parametrize("verb", ["inspect", "predict", "explain", "prepare"])
def test_no_patient_in_what_is_said_or_written(verb, studies, model_folder, tmp_path):
    output = tmp_path / "out"
    reports = tmp_path / "r.jsonl"
    reports.write_text("".join(json.dumps({"id": name, "items": ["a mass"]}) + "\n" for name in ("s1", "s2", "s3")))
    arguments = {
        "inspect": [studies, "--domain", "brain-mri", "-v", "--json"],
        "predict": ["-m", model_folder, "-i", studies, "-p", "a mass", "-o", tmp_path / "scores.csv"],
        "explain": ["-m", model_folder, "-i", studies, "-p", "a mass", "-o", output],
        "prepare": ["-i", studies, "--reports", reports, "-o", output, "--domain", "brain-mri"],
    }[verb]
    done = run(verb, *arguments)
    assert "Traceback" not in done.stderr and ("localizer" in done.stdout + done.stderr or output.exists()), done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert verb == "inspect" or len(written) > 1
    said = {"printed": (done.stdout + done.stderr).encode()}
    said |= {str(path.relative_to(tmp_path)): str(path).encode() + path.read_bytes() for path in written}
    for where, text in said.items():
        for secret in SECRETS:
            assert secret.encode() not in text.lower(), f"{secret} in {where}"
    if verb == "prepare":
        from itemized_clip_hf.data.studies.records import read_records

        records = list(read_records(output))
        assert [record["id"] for record in records] == ["s1", "s2"]
        assert [sorted(record["images"]) for record in records] == [["AX T1", "SAG T1"]] * 2
