"""Volumes of a series, patients and studies are told apart by whatever differs, and never mixed."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from dicom_files import (
    make_grid,
    make_series,
    make_uid,
    mr_world,
    save,
    set_fields,
    set_pixels,
    truth,
    write,
    zip_folder,
)
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from itemized_clip_hf.data.checks import check_scan, hu_problem
from itemized_clip_hf.data.readers.dicom import read_dicom
from itemized_clip_hf.data.readers.read import read_file, read_study
from itemized_clip_hf.data.study import Scan


def make_two(first: dict, second: dict, modality="MR", shift=0.0, slices=12, size=(20, 24)) -> list:
    """Two volumes under one SeriesInstanceUID, the second 100 brighter and `shift` mm higher."""
    series, made = make_uid(), []
    for number, fields in enumerate((first, second)):
        grid = make_grid(slices=slices, size=size)
        grid.positions = grid.positions + [0, 0, number * shift]
        function = lambda points, n=number: mr_world(points) + 100 * n  # noqa: E731
        made += make_series(grid, modality, function=function, SeriesInstanceUID=series, **fields)
    return made


def assert_two(study, tolerance=0.51):
    """Each scan shows one of the two worlds, and nothing of the other."""
    assert len(study.scans) == 2, (list(study.scans), study.skipped)
    scans = sorted(study.scans.values(), key=lambda scan: (scan.array - truth(scan, mr_world)).mean())
    for number, scan in enumerate(scans):
        expected = truth(scan, lambda points, n=number: mr_world(points) + 100 * n)
        np.testing.assert_allclose(scan.array, expected, atol=tolerance, rtol=0)
    return [scan.name for scan in scans]


@pytest.mark.parametrize("shift", [0.0, 2.0, 48.0], ids=["one place", "interleaved", "one above the other"])
@pytest.mark.parametrize(
    ("field", "values", "modality"),
    [
        ("EchoTime", ("10", "90"), "MR"),
        ("InversionTime", ("400", "2500"), "MR"),
        ("FlipAngle", ("5", "20"), "MR"),
        ("RepetitionTime", ("500", "4000"), "MR"),
        ("TemporalPositionIdentifier", (1, 2), "MR"),
        ("DiffusionBValue", (0.0, 1000.0), "MR"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "MR"),
        ("ContrastBolusAgent", (None, "GADO"), "MR"),
        ("SeriesNumber", (3, 4), "MR"),
        ("SeriesDescription", ("AX T1", "AX T2"), "MR"),
        ("FrameOfReferenceUID", ("1.2.3", "1.2.4"), "MR"),
        ("ConvolutionKernel", ("STANDARD", "BONE"), "CT"),
    ],
)
def test_what_differs_is_another_volume(tmp_path, field, values, modality, shift):
    made = make_two({field: values[0]}, {field: values[1]}, modality, shift)
    assert_two(read_dicom(save(made, tmp_path / "s")))


def test_each_scan_has_the_name_of_its_own_description(tmp_path):
    made = make_two(dict(EchoTime="10"), dict(EchoTime="90", SeriesDescription="AX FLAIR"))
    assert assert_two(read_dicom(save(made, tmp_path / "a"))) == ["AX T1", "AX FLAIR"]
    made = make_two(dict(EchoTime="10", SeriesNumber=3), dict(EchoTime="90", SeriesNumber=4))
    assert assert_two(read_dicom(save(made, tmp_path / "b"))) == ["AX T1_TE10", "AX T1_TE90"]


@pytest.mark.parametrize("encoding", [None, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize(
    ("group", "creator", "element", "vr", "values"),
    [
        (0x0043, "GEMS_PARM_01", 0x39, "IS", ([0, 8, 0, 0], [1000, 8, 0, 0])),
        (0x0043, "GEMS_PARM_01", 0x39, "IS", ([0, 8, 0, 0], [1000001000, 8, 0, 0])),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", (0.0, 1000.0)),
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", (0, 1000)),
    ],
    ids=["GE", "GE with an offset", "Philips", "Siemens"],
)
def test_private_b_values(tmp_path, group, creator, element, vr, values, encoding):
    made = make_two({}, {})
    for number, one in enumerate(made):
        one.private_block(group, creator, create=True).add_new(element, vr, values[number // 12])
    names = assert_two(read_dicom(save(made, tmp_path / "s", encoding)))
    assert names == ["AX T1_b0", "AX T1_b1000"]


def test_echo_times_that_jitter_are_one(tmp_path):
    made = make_series(make_grid(), "MR")
    for number, one in enumerate(made):
        one.EchoTime = f"{9.096 + 0.004 * (number % 3):.3f}"
    (scan,) = read_dicom(save(made, tmp_path / "s")).scans.values()
    np.testing.assert_allclose(scan.array, truth(scan, mr_world), atol=0.51)


@pytest.mark.parametrize("field", ["AcquisitionNumber", "TriggerTime", "SeriesDescription", "EchoTime"])
def test_what_every_slice_has_of_its_own_splits_nothing(tmp_path, field):
    made = make_series(make_grid(), "MR")
    for number, one in enumerate(made):
        setattr(one, field, str(10 * number + 1))
    (scan,) = read_dicom(save(made, tmp_path / "s")).scans.values()
    np.testing.assert_allclose(scan.array, truth(scan, mr_world), atol=0.51)


def test_parts_of_a_ct_stay_one_volume(tmp_path):
    """Below, slices are added up: the real head CT is such a one."""
    made = make_series(make_grid())
    for number, one in enumerate(made):
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", *(["ADD"] if number < 6 else [])]
        one.AcquisitionNumber = 1 + number // 6
    (scan,) = read_dicom(save(made, tmp_path / "s")).scans.values()
    np.testing.assert_allclose(scan.array, truth(scan), atol=0.51)


def test_one_slice_of_another_echo_is_left_out(tmp_path):
    made = make_series(make_grid(), "MR", EchoTime="10") + make_series(make_grid(slices=1), "MR", EchoTime="90")
    made[-1].SeriesInstanceUID = made[0].SeriesInstanceUID
    study = read_dicom(save(made, tmp_path / "s"))
    (scan,) = study.scans.values()
    np.testing.assert_allclose(scan.array, truth(scan, mr_world), atol=0.51)
    assert any("only 1 slice" in skipped.reason for skipped in study.skipped)


@pytest.mark.parametrize("same", [True, False])
def test_a_double_slice_does_not_lose_its_series(tmp_path, same):
    made = make_series(make_grid())
    again = make_series(make_grid(), function=None if same else (lambda points: 0 * points[..., 0]))[4]
    set_fields(again, dict(SeriesInstanceUID=made[0].SeriesInstanceUID, InstanceNumber=13))
    study = read_dicom(save([*made, again], tmp_path / "s"))
    (scan,) = study.scans.values()
    np.testing.assert_allclose(scan.array, truth(scan), atol=0.51)
    (skipped,) = study.skipped
    assert ("holds the same image" if same else "nothing tells them apart; the first is used") in skipped.reason


VISITS = {
    "patient's id": (dict(PatientID="OTHER1"), "2 patients"),
    "name": (dict(PatientName="Anders^Otto"), "2 patients"),
    "date of birth": (dict(PatientBirthDate="19700101"), "2 patients"),
    "study": (dict(StudyInstanceUID="1.2.3.4"), "2 studies"),
    "date": (dict(StudyDate="20200101"), "2 studies"),
}


@pytest.mark.parametrize("shared", [True, False], ids=["one series", "series of their own"])
@pytest.mark.parametrize("kind", VISITS)
def test_patients_and_studies_are_never_mixed(tmp_path, kind, shared):
    fields, expected = VISITS[kind]
    made = make_two({}, fields, "CT", 48.0)
    if not shared:
        for one in made[12:]:
            one.SeriesInstanceUID = "1.2.3.5"
    folder = save(made, tmp_path / "s")
    for path in (folder, zip_folder(folder, tmp_path / "s.zip")):
        with pytest.raises(ValueError, match=f"holds {expected}") as refused:
            read_dicom(path)
        assert not any(str(value) in str(refused.value) for value in fields.values())


def test_copies_of_numbers_do_not_hide_a_patient(tmp_path):
    made = make_series(make_grid()) + make_series(make_grid(), PatientID="OTHER1")
    for one in made[12:]:
        one.SOPInstanceUID = made[one.InstanceNumber - 1].SOPInstanceUID
    with pytest.raises(ValueError, match="2 patients"):
        read_dicom(save(made, tmp_path / "s"))


def test_spellings_and_missing_fields_are_one_patient(tmp_path):
    made = make_series(make_grid())
    made[3].PatientName, made[4].PatientName, made[5].PatientID = "MUSTERMANN^ERIKA^", None, None
    made[6].StudyDate = None
    assert len(read_dicom(save(made, tmp_path / "s")).scans) == 1


def test_a_folder_or_list_of_zips_of_two_patients(tmp_path):
    for number in range(2):
        folder = save(make_series(make_grid(), PatientID=f"OTHER{number}"), tmp_path / f"s{number}")
        (tmp_path / "zips").mkdir(exist_ok=True)
        zip_folder(folder, tmp_path / "zips" / f"{number}.zip")
    with pytest.raises(ValueError, match="several patients"):
        read_file(tmp_path / "zips")
    with pytest.raises(ValueError, match="several patients"):
        read_study([str(file) for file in (tmp_path / "zips").iterdir()], "row")


# Readable files are read.


@pytest.mark.parametrize("extra", [2, 4, 7, 30])
def test_bytes_behind_the_pixels(tmp_path, extra):
    made = make_series(make_grid())
    for one in made:
        one.PixelData = one.PixelData + b"\1" * extra
    (scan,) = read_dicom(save(made, tmp_path / "s")).scans.values()
    np.testing.assert_allclose(scan.array, truth(scan), atol=0.51)
    assert any("after the pixels of 12 slices" in step for step in scan.history)


def test_a_row_too_many_is_no_padding(tmp_path):
    made = make_series(make_grid())
    for one in made:
        one.PixelData = one.PixelData + b"\0" * 48
    with pytest.raises(ValueError, match="more pixels than its header says"):
        read_dicom(save(made, tmp_path / "s"))


@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("implicit", [True, False])
def test_data_sets_without_preamble(tmp_path, implicit, suffix):
    (tmp_path / "s").mkdir()
    for number, one in enumerate(make_series(make_grid())):
        bare = Dataset(one)
        path = tmp_path / "s" / f"{number}{suffix}"
        bare.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    (scan,) = read_file(tmp_path / "s").scans.values()
    np.testing.assert_allclose(scan.array, truth(scan), atol=0.51)


def test_file_meta_without_preamble(tmp_path):
    (tmp_path / "s").mkdir()
    for number, one in enumerate(make_series(make_grid())):
        path = write(one, tmp_path / "s" / f"{number}.dcm")
        path.write_bytes(path.read_bytes()[132:])
    (scan,) = read_dicom(tmp_path / "s").scans.values()
    np.testing.assert_allclose(scan.array, truth(scan), atol=0.51)


@pytest.mark.parametrize(
    "description", ["Skeletal Survey", "BONE SURVEY CT", "WB low dose myeloma survey", "Survey whole body"]
)
def test_a_survey_of_the_body_is_no_localizer(tmp_path, description):
    assert len(read_dicom(save(make_series(make_grid(), SeriesDescription=description), tmp_path / "s")).scans) == 1
    made = make_series(make_grid(), SeriesDescription=description, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(ValueError, match="localizer"):
        read_dicom(save(made, tmp_path / "l"))


# Bits beyond those stored.


@pytest.mark.parametrize("stored", [12, 13, 15])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [None, RLELossless, "JPEG2000Lossless"])
def test_bits_above_those_stored_are_masked(tmp_path, syntax, signed, stored):
    if syntax == "JPEG2000Lossless":
        pytest.importorskip("openjpeg", reason="JPEG 2000 needs itemized-clip-hf[dicom-compressed]")
        syntax = pydicom.uid.JPEG2000Lossless
    grid = make_grid(size=(40, 48))
    made = make_series(grid, intercept=0 if signed else -1024, signed=signed)
    for one in made:
        values = np.frombuffer(one.PixelData, np.uint16).reshape(40, 48) & ((1 << stored) - 1)
        values = values | ((np.arange(48) % 2).astype(np.uint16) << stored)  # an overlay of stripes
        set_pixels(one, values.view(np.int16) if signed else values)
        if syntax is None or syntax == RLELossless:
            one.BitsStored, one.HighBit = stored, stored - 1
    folder = save(made, tmp_path / "s", syntax)
    if syntax is not None and syntax != RLELossless:
        for file in folder.iterdir():  # coded with all 16 bits, as old writers did
            one = pydicom.dcmread(file)
            one.BitsStored, one.HighBit = stored, stored - 1
            one.save_as(file)
    (scan,) = read_dicom(folder).scans.values()
    np.testing.assert_allclose(scan.array, truth(scan), atol=0.51)


# What a CT without its intercept is told.


@pytest.mark.parametrize("air", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("bone", [0.0, 0.02, 0.1])
def test_a_ct_without_its_intercept_is_not_told_to_negate(air, bone):
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, 32768, p=[air, 1 - air - bone, bone])
    hu = np.choose(kinds, [-1000, 40, 900]) + rng.normal(0, 12, 32768)
    code, _, advice = hu_problem(hu + 1024)
    assert code == "missing-rescale" and "intercept" in advice
    scan = Scan((hu + 1024).reshape(32, 32, 32).round(), np.diag([4.0, 4, 4, 1]), "a", notes={"no-rescale": "none"})
    assert "missing-rescale" in {problem.code for problem in check_scan(scan, "head-ct").problems}


@pytest.mark.parametrize("kind", ["PatientID", "StudyInstanceUID"])
def test_a_study_in_python_is_one_visit_too(tmp_path, kind):
    """Sequence name -> DICOM file, each of another patient or study, through the processor."""
    from itemized_clip_hf import ItemizedCLIPImageProcessor
    from itemized_clip_hf.data.open import REFUSALS

    zips = []
    for number in (1, 2):
        folder = save(
            make_series(make_grid(), "MR", function=mr_world, **{kind: f"1.{number}"}), tmp_path / str(number)
        )
        zips.append(str(zip_folder(folder, tmp_path / f"{number}.zip")))
    processor = ItemizedCLIPImageProcessor.from_domain(
        "brain-mri", scan_size=[8, 16, 16], in_plane_size=16, accept=REFUSALS
    )
    assert processor({"T1": zips[0], "T2": zips[0]})["scan_mask"].sum() == 2
    with pytest.raises(ValueError, match="the images are of several"):
        processor({"T1": zips[0], "T2": zips[1]})


@pytest.mark.parametrize(("signed", "padding"), [(False, 63536), (False, 0xF000), (True, -2000)])
def test_padding_in_bits_beyond_the_stored_ones_is_air(tmp_path, signed, padding):
    """12 bits stored, the margin filled with a word of 16: dcm2niix masks it to tissue of +1,072 HU."""
    made = make_series(make_grid(), signed=signed, intercept=0.0 if signed else -1024.0)
    for one in made:
        words = np.frombuffer(one.PixelData, "<i2" if signed else "<u2").reshape(one.Rows, one.Columns).copy()
        words[:3] = padding
        set_fields(one, {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": padding})
        one.PixelData = words.tobytes()
    (scan,) = read_dicom(save(made, tmp_path / "s")).scans.values()
    margin = scan.array[:, :3] if scan.array.shape[1] == made[0].Rows else scan.array[..., :3]
    assert (margin <= -1000).all() and (scan.array[:, 3:] > -1000).all()
