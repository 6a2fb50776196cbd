"""`explain --dicom`, and studies of a DICOMweb server as inputs of every verb."""

import json

import pytest
from click.testing import CliRunner
from dicom_files import SECRETS, STUDY_UID, make_grid, make_series, make_uid, save
from dicom_results import draw_quickly
from orthanc import orthanc
from tiny_models import ITEMS

from itemized_clip_cli import main

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("nibabel")
pytest.importorskip("highdicom")
pytest.importorskip("matplotlib")


def call(*words, code=0):
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == code, done.output
    assert not [secret for secret in SECRETS if secret in done.output.lower()]
    return done


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    draw_quickly(monkeypatch)


@pytest.fixture
def study(tmp_path):
    files = make_series(make_grid(slices=6, size=(20, 24), distance=6.0), "MR", FrameOfReferenceUID=make_uid())
    return save(files, tmp_path / "studies" / "one")


def test_a_study_of_a_server_is_scored_and_the_results_stored_beside_it(model_folder, study, tmp_path):
    """Fetched by its address, sent back; report and maps refer to images that the server has, in its study."""
    web = pytest.importorskip("dicomweb_client.api")
    from itemized_clip_hf.data.dicomweb import fetch_study, send

    with orthanc(tmp_path / "server") as url:
        assert send(url, sorted(study.iterdir())) == 6
        address = f"{url}/studies/{STUDY_UID}"
        asked = ["-i", address, "-m", model_folder, "-p", ITEMS[0], "-p", ITEMS[1]]
        explain = ["explain", *asked, "-o", tmp_path / "maps", "--dicom", tmp_path / "out", "--dicomweb", url]
        call(*explain)
        client = web.DICOMwebClient(url)
        found = client.search_for_series(STUDY_UID)
        kinds = sorted(one["00080060"]["Value"][0] for one in found)
        assert kinds == ["MR", "OT", "OT", "SR"]  # images, pictures, maps, report
        stored = {one.SOPInstanceUID: one for one in client.iter_study(STUDY_UID, (("application/dicom", "*"),))}
        written = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (tmp_path / "out" / STUDY_UID).iterdir())}
        sources = {pydicom.dcmread(path).SOPInstanceUID for path in study.iterdir()}
        assert stored.keys() == written.keys() | sources and len(written) == 5
        (report,) = [one for one in stored.values() if one.Modality == "SR"]
        (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
        assert evidence.StudyInstanceUID == STUDY_UID
        (series,) = evidence.ReferencedSeriesSequence
        assert {one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence} == sources
        images = [item.ReferencedSOPSequence[0] for item in every_item(report) if item.get("ValueType") == "IMAGE"]
        assert images and {image.ReferencedSOPInstanceUID for image in images} <= sources
        assert [item.TextValue for item in every_item(report) if named(item, "112039")] == ITEMS[:2]
        maps = [one for one in stored.values() if "FloatPixelData" in one]
        assert len(maps) == 2 and {one.StudyInstanceUID for one in stored.values()} == {STUDY_UID}
        call(*explain)  # passes over what is there, and sends nothing twice
        assert len(client.search_for_series(STUDY_UID)) == 4
        assert len(list(fetch_study(url, STUDY_UID, tmp_path / "again").iterdir())) == 6
        here, there = (
            json.loads(call("predict", "-i", place, *asked[2:], "--json").stdout)["results"][0]
            for place in (study, address)
        )
        assert there["scores"] == here["scores"] and there["id"] == STUDY_UID
        inspected = json.loads(call("inspect", address, "--domain", "brain-mri", "--json", code=1).stdout)
        assert [one["scan"] for one in inspected if one["scan"]] == ["AX T1"]
        missing = call("predict", "-i", f"{url}/studies/1.2.3", *asked[2:], code=1)
        assert "has no such study" in missing.output


def every_item(dataset):
    for item in dataset.get("ContentSequence", []):
        yield item
        yield from every_item(item)


def named(item, code: str) -> bool:
    return bool(item.get("ConceptNameCodeSequence")) and item.ConceptNameCodeSequence[0].CodeValue == code


def test_objects_of_several_studies(model_folder, study, write_volume, tmp_path):
    """One that is not DICOM is an error of its own; anonymous folders are called by number, not by what may be a name."""
    write_volume("studies/two/AX_T1.nii.gz")
    asked = ["explain", "-i", study.parent, "-m", model_folder, "-p", ITEMS[0], "-o", tmp_path / "maps"]
    done = call(*asked, "--dicom", tmp_path / "out", "--threshold", "1.05", "--anonymous", code=1)
    assert "two: DICOM objects can only be made of studies that were read from DICOM files" in done.output
    (folder,) = (tmp_path / "out").iterdir()
    found = [pydicom.dcmread(path) for path in folder.iterdir()]
    assert folder.name == "study-0001" and sorted(one.Modality for one in found) == ["OT", "SEG", "SR"]
    assert all(one.PatientIdentityRemoved == "YES" and one.StudyInstanceUID != STUDY_UID for one in found)
    (folder / "report.dcm").unlink()
    call(*asked, "--dicom", tmp_path / "out", "--threshold", "1.05", "--anonymous", code=1)
    assert (folder / "report.dcm").exists()  # made anew, since it was not whole


@pytest.mark.parametrize(
    "words, message",
    [
        (["--threshold", "2"], "belong to --dicom OUT or --dicomweb URL"),
        (["--anonymous"], "belong to --dicom OUT or --dicomweb URL"),
        (["--dicom", "out", "--threshold", "0"], "the threshold is 0.0, expected a number above 0"),
        (["--dicomweb", "pacs:8042"], "pacs:8042 is not the address of a DICOMweb server"),
    ],
)
def test_options_that_cannot_work(words, message, tmp_path, study):
    """Said before the model is looked for."""
    done = CliRunner().invoke(main, ["explain", "-i", str(study), "-m", "untrained:brain-mri", *words])
    assert done.exit_code in (1, 2) and message in done.output


def test_an_input_that_is_no_study_of_a_server_is_said_at_once():
    done = CliRunner().invoke(main, ["inspect", "-i", "https://example.org/scan.nii.gz"])
    assert done.exit_code == 1 and "does not name a study of a DICOMweb server" in done.output
