"""Results as DICOM objects: in the place of their source, valid, of the right patient, and of nobody where asked."""

import json
import sys

import numpy as np
import pytest
from dicom_files import PATIENT, SECRETS, make_enhanced, make_grid, make_series, make_uid, save, zip_folder
from dicom_results import assert_lies_on, draw_quickly, errors_of, explain
from tiny_models import DATA, ITEMS

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
nibabel = pytest.importorskip("nibabel")
pytest.importorskip("matplotlib")

from itemized_clip_hf.data.readers.dicom import read_dicom
from itemized_clip_hf.explain.dicom import write_dicom
from itemized_clip_hf.explain.maps import write_map

SPACE = make_uid()
SMALL = {"slices": 8, "size": (20, 24)}
SERIES = {
    "axial": {},
    "sagittal": {"orientation": "sagittal"},
    "feet first": {"orientation": "feet-first"},
    "oblique": {"orientation": "oblique"},
    "tilted gantry": {"tilt": 18.0, "distance": 5.0},
    "slightly sheared": {"tilt": 0.3},
    "uneven": {"heights": [0, 4, 8, 12, 17, 21, 25, 30, 34, 39, 43, 47]},
}


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Drawing takes longer than all the rest; one test looks at the pictures."""
    if not request.node.name.startswith("test_pictures"):
        draw_quickly(monkeypatch)


def series(grid, **fields):
    return make_series(grid, "MR", FrameOfReferenceUID=SPACE, **fields)


@pytest.fixture
def study(tmp_path):
    return save(series(make_grid("oblique", **SMALL)), tmp_path / "study")


def nifti_of(heat, folder):
    write_map(folder / "map.nii.gz", heat)
    return nibabel.load(folder / "map.nii.gz")


def of_class(paths, name):
    found = [pydicom.dcmread(path) for path in paths]
    return [one for one in found if one.SOPClassUID.keyword == name]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("sagittal", "feet first") else name for name in SERIES],
)
def test_maps_lie_where_the_nifti_maps_lie(name, tmp_path):
    """By orientation, position and spacing of each frame; the tilted and the uneven stack come in the grid of the reader."""
    files = series(make_grid(**{**SMALL, **SERIES[name]}))
    source = zip_folder(save(files, tmp_path / "study"), tmp_path / "study.zip")
    result = explain(source)
    paths = write_dicom(tmp_path / "out", result)
    (written,) = of_class(paths, "ParametricMapStorage")
    (heat,) = result.heat_maps(0)
    assert ("tilted" in result.scans[0].source.notes) is (name == "tilted gantry")
    values = np.frombuffer(written.FloatPixelData, "<f4").reshape(heat.values.shape)
    assert values.max() > 1  # of the mean: not an empty map
    assert_lies_on(written, values, nifti_of(heat, tmp_path))
    assert written.FrameOfReferenceUID == SPACE and written.StudyInstanceUID == files[0].StudyInstanceUID
    referred = {one.ReferencedSOPInstanceUID for one in written.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {one.SOPInstanceUID for one in files}
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == files[0].SeriesInstanceUID
    assert not errors_of(paths)


def test_segments_are_where_the_attention_reaches_the_threshold(study, tmp_path):
    result = explain(study, ITEMS[:2])
    paths = write_dicom(tmp_path / "out", result, threshold=1.05)
    written = of_class(paths, "SegmentationStorage")
    assert len(written) == 2 and not of_class(paths, "ParametricMapStorage")
    for number, one in enumerate(written):
        (heat,) = result.heat_maps(number)
        expected = heat.values >= 1.05
        assert 0 < expected.mean() < 1
        read = highdicom.seg.segread(
            next(path for path in paths if pydicom.dcmread(path).SOPInstanceUID == one.SOPInstanceUID)
        )
        frames = read.get_pixels_by_source_instance(
            [image.SOPInstanceUID for image in sorted_images(study, one)], combine_segments=True
        )
        assert (frames > 0).sum() == expected.sum()
        assert one.SegmentSequence[0].SegmentLabel == ITEMS[number]
    assert not errors_of(paths)


def sorted_images(study, segmentation):
    """Images that the frames of a segmentation say they were made of."""
    named = {
        image.ReferencedSOPInstanceUID
        for frame in segmentation.PerFrameFunctionalGroupsSequence
        for image in frame.DerivationImageSequence[0].SourceImageSequence
    }
    return [one for one in map(pydicom.dcmread, study.iterdir()) if one.SOPInstanceUID in named]


def test_a_threshold_that_nothing_reaches_gives_an_empty_segment(study, tmp_path):
    paths = write_dicom(tmp_path / "out", explain(study), threshold=1e6)
    (written,) = of_class(paths, "SegmentationStorage")
    assert not any(written.PixelData) and not errors_of(paths)


def test_the_report_holds_findings_scores_and_places(study, tmp_path):
    result = explain(study, {"mass": [ITEMS[0]], "Blutung \\ größer": [ITEMS[1], ITEMS[2]]})
    paths = write_dicom(tmp_path / "out", result)
    report = highdicom.sr.srread(paths[0])
    assert paths[0].name == "report.dcm" and report.SOPClassUID.keyword == "Comprehensive3DSRStorage"
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["mass", "Blutung \\ größer"]
    for number, group in enumerate(groups):
        score, share = group.get_measurements()
        assert score.value == pytest.approx(result.findings[number].score, abs=1e-9)
        assert score.name.value == "SIMILARITY" and score.unit.value == "1" and share.value == pytest.approx(1)
        (point,) = [item for item in score[0].ContentSequence if item.ValueType == "SCOORD3D"]
        assert point.GraphicType == "POINT" and point.ReferencedFrameOfReferenceUID == SPACE
        np.testing.assert_allclose(np.array(point.GraphicData) * [-1, -1, 1], result.peak(number, 0), atol=1e-3)
        (image,) = [item for item in score[0].ContentSequence if item.ValueType == "IMAGE"]
        nearest = image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert distance_to(study, nearest, np.array(point.GraphicData)) == pytest.approx(0, abs=0.01)
    text = report.to_json()
    assert result.about["model"]["sha256"] in text and "not calibrated and not for diagnosis" in text
    assert report.VerificationFlag == "UNVERIFIED" and report.PreliminaryFlag == "PRELIMINARY"
    evidence = {uid for _, _, uid, _ in report.get_evidence()}
    assert evidence == {pydicom.dcmread(path).SOPInstanceUID for path in study.iterdir()}


def test_a_finding_that_nothing_speaks_for_has_no_place(study, tmp_path):
    result = explain(study)
    result.findings[0].attention[:], result.findings[0].shares[:] = 0, 0
    paths = write_dicom(tmp_path / "out", result)
    (group,) = highdicom.sr.srread(paths[0]).content.get_image_measurement_groups()
    score, share = group.get_measurements()
    assert score.value == pytest.approx(result.findings[0].score) and share.value == 0
    assert not list(score[0].get("ContentSequence", [])) and not errors_of(paths)


def distance_to(study, uid, point) -> float:
    """mm from the plane of an image."""
    (image,) = [one for one in map(pydicom.dcmread, study.iterdir()) if one.SOPInstanceUID == uid]
    cosines = np.array(image.ImageOrientationPatient, float)
    return float((point - np.array(image.ImagePositionPatient, float)) @ np.cross(cosines[:3], cosines[3:]))


def test_pictures_are_those_of_explain(study, tmp_path):
    from PIL import Image

    from itemized_clip_hf.explain.plots import plot_item

    result = explain(study)
    (picture,) = of_class(write_dicom(tmp_path / "out", result), "SecondaryCaptureImageStorage")
    plot_item(result.heat_maps(0), tmp_path / "picture.png")
    expected = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert np.array_equal(picture.pixel_array, expected) and picture.ImageComments == ITEMS[0]


def test_several_scans_keep_their_own_space(tmp_path):
    first = save(series(make_grid(**SMALL), SeriesDescription="AX T1"), tmp_path / "study" / "a")
    other = make_uid()
    grid = make_grid("sagittal", **SMALL)
    save(make_series(grid, "MR", FrameOfReferenceUID=other, SeriesDescription="SAG T2"), tmp_path / "study" / "b")
    result = explain(first.parent)
    paths = write_dicom(tmp_path / "out", result)
    maps = of_class(paths, "ParametricMapStorage")
    assert [one.FrameOfReferenceUID for one in maps] == [SPACE, other]
    assert len({one.SeriesInstanceUID for one in maps}) == 2 and not errors_of(paths)
    (group,) = highdicom.sr.srread(paths[0]).content.get_image_measurement_groups()
    score, *shares = group.get_measurements()
    assert [share.value for share in shares] == pytest.approx(list(result.findings[0].shares))
    spaces = [
        next(item for item in share[0].ContentSequence if item.ValueType == "SCOORD3D").ReferencedFrameOfReferenceUID
        for share in shares
    ]
    assert spaces == [SPACE, other]


def test_enhanced_images_are_referred_to_by_frame(tmp_path):
    one = make_enhanced(make_grid(**SMALL), "MR", FrameOfReferenceUID=SPACE, order=list(range(8))[::-1])
    save([one], tmp_path / "study")
    result = explain(tmp_path / "study")
    paths = write_dicom(tmp_path / "out", result)
    (written,) = of_class(paths, "ParametricMapStorage")
    (heat,) = result.heat_maps(0)
    values = np.frombuffer(written.FloatPixelData, "<f4").reshape(heat.values.shape)
    assert_lies_on(written, values, nifti_of(heat, tmp_path))
    report = highdicom.sr.srread(paths[0])
    (group,) = report.content.get_image_measurement_groups()
    items = group.get_measurements()[0][0].ContentSequence
    (point,), (image,) = ([item for item in items if item.ValueType == kind] for kind in ("SCOORD3D", "IMAGE"))
    frame = one.PerFrameFunctionalGroupsSequence[int(image.ReferencedSOPSequence[0].ReferencedFrameNumber) - 1]
    height = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
    assert height == pytest.approx(point.GraphicData[2], abs=0.01) and not errors_of(paths)


@pytest.mark.parametrize(
    "charset, name",
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "Ŵójcik^Łucja"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_the_patient_is_the_one_of_the_source(charset, name, tmp_path, capfd, caplog):
    """Whatever characters the source has its name in; nothing of it is said anywhere else."""
    caplog.set_level(0)
    fields = {"SpecificCharacterSet": charset, "PatientName": name, "PatientSex": "F", "StudyTime": "101112"}
    save(series(make_grid(**SMALL), **fields), tmp_path / "study")
    result = explain(tmp_path / "study")
    for path in write_dicom(tmp_path / "out", result):
        written = pydicom.dcmread(path)
        assert str(written.PatientName) == name and written.PatientSex == "F" and written.StudyTime == "101112"
        for field in ("PatientID", "PatientBirthDate", "AccessionNumber", "StudyDate", "StudyID"):
            assert written[field].value == PATIENT[field]
        for field in ("InstitutionName", "StationName", "OperatorsName"):
            assert field not in written
    shown = capfd.readouterr()
    said = " ".join([shown.out, shown.err, caplog.text, json.dumps(result.to_dict()), result.to_csv(), repr(result)])
    said += repr(result.scans[0].source)
    uids = [result.scans[0].source.instances[0][0]]
    assert not [secret for secret in (*SECRETS, *uids, name) if secret.lower() in said.lower()]


def test_anonymous_objects_say_nothing_of_their_source(study, tmp_path):
    """Neither who nor which study: all UIDs are fresh, and the same for what is the same."""
    sources = [pydicom.dcmread(path) for path in study.iterdir()]
    names = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    uids = {str(one[name].value) for one in sources for name in names}
    paths = write_dicom(tmp_path / "out", explain(study), anonymous=True)
    for path in paths:
        content = path.read_bytes().lower()
        assert not [secret for secret in (*SECRETS, *uids) if secret.lower().encode() in content], path.name
    written = [pydicom.dcmread(path) for path in paths]
    assert len({one.StudyInstanceUID for one in written}) == 1
    assert all(one.PatientIdentityRemoved == "YES" and not one.PatientID and not one.PatientName for one in written)
    assert len({uid for _, _, uid, _ in highdicom.sr.srread(paths[0]).get_evidence()}) == len(sources)
    assert not errors_of(paths)


def test_results_beside_their_source_are_not_read_as_scans(study, tmp_path):
    """Heat maps would be scored as if they were images of the patient."""
    before = read_dicom(study)
    write_dicom(study / "maps", explain(study))
    write_dicom(study / "segments", explain(study), threshold=1.0)
    after = read_dicom(study)
    assert list(after.scans) == list(before.scans) == ["AX T1"]
    assert any("parametric map" in skipped.reason for skipped in after.skipped)


def test_other_files_are_refused(write_volume, tmp_path):
    result = explain(write_volume("AX_T1.nii.gz"))
    with pytest.raises(ValueError, match="read from DICOM files: not so AX_T1.*written as NIfTI"):
        write_dicom(tmp_path / "out", result)
    assert not (tmp_path / "out").exists()


def test_files_that_are_gone_are_said_so(study, tmp_path):
    result = explain(study)
    next(study.iterdir()).unlink()
    with pytest.raises(ValueError, match="1 of the 8 DICOM images that the scan AX T1 was read from are not there"):
        write_dicom(tmp_path / "out", result)


def test_a_result_without_its_model_is_refused(study, tmp_path):
    result = explain(study)
    result.about.clear()
    with pytest.raises(ValueError, match="does not say which model"):
        write_dicom(tmp_path / "out", result)
    with pytest.raises(ValueError, match="threshold is -1"):
        write_dicom(tmp_path / "out", result, threshold=-1)


def test_the_extra_is_named(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r"pip install 'itemized-clip-hf\[dicom-out\]'"):
        write_dicom(tmp_path / "out", explain(study))


@pytest.mark.parametrize(
    "name, domain, threshold",
    [
        ("mri_decubitus_hfs", "brain-mri", None),
        ("ct_head_ge", "head-ct", None),
        pytest.param("mri_decubitus_hfs", "brain-mri", 1.1, marks=pytest.mark.slow),
        pytest.param("ct_head_ge", "head-ct", 1.1, marks=pytest.mark.slow),
    ],
)
def test_real_studies(name, domain, threshold, tmp_path):
    """One of them of a tilted gantry, with uneven slices."""
    source = DATA / "volumes" / name / "dicom.zip"
    if not source.exists():
        pytest.skip(f"real data is not at {DATA}; set ITEMIZED_CLIP_DATA")
    windows = {"windows": {"": [-125, 225]}} if domain == "head-ct" else {}
    result = explain(source, domain=domain, **windows)
    paths = write_dicom(tmp_path / "out", result, threshold)
    assert not errors_of(paths)
    (heat,) = result.heat_maps(0)
    nifti = nifti_of(heat, tmp_path)
    if threshold is None:
        (path,) = [path for path in paths if "__" in path.name]
        written = highdicom.imread(path)
        values = np.frombuffer(written.FloatPixelData, "<f4").reshape(heat.values.shape)
        assert_lies_on(written, values, nifti)
    else:
        (segments,) = of_class(paths, "SegmentationStorage")
        frames = segments.pixel_array
        assert frames.sum() == (heat.values >= threshold).sum() > 0
    assert highdicom.sr.srread(paths[0]).content.get_image_measurement_groups()


def test_images_without_a_frame_of_reference_get_a_fresh_one(tmp_path):
    save(make_series(make_grid(**SMALL), "MR", FrameOfReferenceUID=None), tmp_path / "study")
    paths = write_dicom(tmp_path / "out", explain(tmp_path / "study"))
    (written,) = of_class(paths, "ParametricMapStorage")
    assert written.FrameOfReferenceUID in pydicom.dcmread(paths[0]).to_json() and not errors_of(paths)


def test_echoes_in_one_series_refer_to_their_own_images(tmp_path):
    """Two scans of one series lie in one place: each is referred to by its own images."""
    grid = make_grid(**SMALL)
    uid = make_uid()
    for echo in ("10", "80"):
        files = series(grid, SeriesInstanceUID=uid, EchoTime=echo)
        save(files, tmp_path / "study" / echo)
    result = explain(tmp_path / "study")
    maps = of_class(write_dicom(tmp_path / "out", result), "ParametricMapStorage")
    assert len(maps) == 2
    for scan, written in zip(result.scans, maps):
        echo = scan.name.rsplit("TE", 1)[1]
        expected = {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "study" / echo).iterdir()}
        assert {one.ReferencedSOPInstanceUID for one in written.SourceImageSequence} == expected
