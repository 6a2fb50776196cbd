"""DICOM series of a known world: voxels, geometry, what is left out, and that no patient's data gets out."""

import logging
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from dicom_files import (
    LPS,
    ORIENTATIONS,
    SECRETS,
    make_enhanced,
    make_grid,
    make_series,
    mr_world,
    save,
    set_fields,
    set_pixels,
    truth,
    world,
    write,
    zip_folder,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from itemized_clip_hf import ItemizedCLIPImageProcessor
from itemized_clip_hf.data.open import REFUSALS
from itemized_clip_hf.data.readers.dicom import read_dicom
from itemized_clip_hf.data.readers.read import read_file
from itemized_clip_hf.data.study import Scan


def read_one(path) -> Scan:
    study = read_dicom(path)
    assert len(study.scans) == 1, study
    return next(iter(study.scans.values()))


def assert_true(scan: Scan, function=world, tolerance=0.51):
    np.testing.assert_allclose(scan.array, truth(scan, function), atol=tolerance, rtol=0)


def assert_true_inside(scan: Scan, share=0.4):
    """Interpolated voxels lie within 3 HU of the world, in the half slice beyond the ends within 16; air is outside."""
    inside = scan.array != -1024
    assert inside.mean() > share
    errors = np.abs(scan.array - truth(scan))[inside]
    assert np.percentile(errors, 90) < 3 and errors.max() < 16


def pixels(scan: Scan, **settings) -> dict[str, torch.Tensor]:
    domain = "brain-mri" if scan.modality == "MR" else "head-ct"
    settings = {"scan_size": [8, 24, 24], "in_plane_size": 28, **settings}
    processor = ItemizedCLIPImageProcessor.from_domain(domain, accept=REFUSALS, **settings)
    return {one.name: one.pixel_values for one in processor.process_study(scan)}


# Voxels and geometry.


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_voxels_lie_where_the_header_says(tmp_path, orientation, modality):
    grid = make_grid(orientation)
    scan = read_one(save(make_series(grid, modality), tmp_path / "s"))
    assert scan.modality == modality and scan.array.shape == (12, 20, 24) and scan.array.dtype == np.int16
    assert_true(scan, world if modality == "CT" else mr_world)
    np.testing.assert_allclose(scan.spacing, [4.0, 1.5, 1.25], atol=1e-6)
    first = grid.positions @ np.cross(grid.orientation[:3], grid.orientation[3:])
    np.testing.assert_allclose(scan.affine[:3, 3], LPS @ grid.positions[first.argmin()], atol=1e-6)
    assert np.linalg.det(scan.affine[:3, :3]) != 0 and scan.notes == {}


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_nifti_of_the_same_world_gives_the_same_pixels(tmp_path, orientation, modality):
    grid = make_grid(orientation)
    series = save(make_series(grid, modality), tmp_path / "s")
    function = world if modality == "CT" else mr_world
    array = np.stack([np.rint(function(grid.points(n))) for n in range(12)])  # (slice, row, column)
    affine = np.eye(4)  # of (column, row, slice) -> RAS, from the grid alone
    affine[:3, 0] = LPS @ grid.orientation[:3] * grid.spacing[1]
    affine[:3, 1] = LPS @ grid.orientation[3:] * grid.spacing[0]
    affine[:3, 2] = LPS @ (grid.positions[1] - grid.positions[0])
    affine[:3, 3] = LPS @ grid.positions[0]
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0).astype(np.int16), affine), tmp_path / "s.nii.gz")
    dicom, nifti = read_one(series), read_file(tmp_path / "s.nii.gz")
    nifti.name, nifti.modality = dicom.name, modality
    got, expected = pixels(dicom), pixels(nifti)
    assert got.keys() == expected.keys() and len(got) == (3 if modality == "CT" else 1)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "grid",
    [
        dict(tilt=17),
        dict(tilt=-22, orientation="feet-first"),
        dict(heights=[0, 2, 4, 6, 9, 13, 17, 21, 25]),
        dict(heights=[0, 2.5, 5, 7.5, 12, 17, 22], tilt=12),
        dict(heights=np.delete(np.arange(16) * 3.0, [5, 9, 10])),
        dict(heights=[0, 2, 4, 7, 11, 15], orientation="coronal"),
    ],
    ids=["tilt", "tilt feet first", "uneven", "both", "missing slices", "uneven coronal"],
)
def test_tilt_and_uneven_distances_are_resampled(tmp_path, grid):
    tilted, uneven = "tilt" in grid, "heights" in grid
    scan = read_one(save(make_series(make_grid(**{"size": (60, 56), **grid})), tmp_path / "s"))
    assert ("tilted" in scan.notes, "uneven" in scan.notes) == (tilted, uneven)
    assert "resampled to an even upright grid" in scan.history[-1]
    directions = scan.affine[:3, :3] / scan.spacing
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    assert_true_inside(scan, 0.4 if tilted else 0.85)
    ideal = Scan(np.where(scan.array == -1024, -1024, truth(scan)), scan.affine, scan.name, modality="CT")
    expected = pixels(ideal)
    for name, got in pixels(scan).items():
        assert (got - expected[name]).abs().mean() < 0.02 / 0.226, name  # 2 % of a window


def test_a_slice_beside_the_others_is_put_in_its_place(tmp_path):
    """Even along the normal, but not in one line: stacking would bend the volume."""
    grid = make_grid(size=(60, 56))
    grid.positions[4:8] += [6.0, 0, 0]
    scan = read_one(save(make_series(grid), tmp_path / "s"))
    assert "shifted" in scan.notes
    assert_true_inside(scan, 0.6)
    grid.positions[6] += [90.0, 0, 0]
    with pytest.raises(ValueError, match="do not lie behind each other"):
        read_dicom(save(make_series(grid), tmp_path / "far"))


def test_too_wide_gaps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="too many slices are missing"):
        read_dicom(save(make_series(make_grid(heights=[0, 3, 6, 9, 30, 33])), tmp_path / "s"))


@pytest.mark.parametrize("seed", range(4))
def test_random_orientations(tmp_path, seed):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    scan = read_one(save(make_series(make_grid(tuple(rotation[:2].ravel()))), tmp_path / "s"))
    assert_true(scan)


# Intensities: the modality LUT once.


@pytest.mark.parametrize(
    "slope, intercept, signed",
    [(1, -1024, False), (0.5, -1024, False), (1, 0, True), (2, -1000.5, False), (-1, 500, False)],
)
def test_hu_once(tmp_path, slope, intercept, signed):
    scan = read_one(save(make_series(make_grid(), slope=slope, intercept=intercept, signed=signed), tmp_path / "s"))
    assert_true(scan, tolerance=abs(slope) * 0.51)
    assert ("rescale" in " ".join(scan.history)) == ((slope, intercept) != (1, 0))


def test_rescale_of_each_slice(tmp_path):
    grid, made = make_grid(), []
    for number, one in enumerate(make_series(grid)):
        slope = 0.1 + 0.05 * number
        one.RescaleSlope = f"{slope:.2f}"
        set_pixels(one, np.rint((world(grid.points(number)) + 1024) / slope).astype(np.uint16))
        made.append(one)
    scan = read_one(save(made, tmp_path / "s"))
    assert_true(scan, tolerance=0.35)
    assert any("each slice by its own" in step for step in scan.history)


@pytest.mark.parametrize("lost", ["RescaleSlope", "RescaleIntercept"])
def test_slope_and_intercept_belong_together(tmp_path, lost):
    """Half of the pair is damage: 1024 HU hang on it."""
    with pytest.raises(ValueError, match="without the other one"):
        read_dicom(save(make_series(make_grid(), slope=0.5, **{lost: None}), tmp_path / "s"))


def test_orientation_that_is_rounded(tmp_path):
    grid = make_grid("oblique")
    made = make_series(grid)
    for one in made:
        one.ImageOrientationPatient = [f"{float(value) * 1.004:.4f}" for value in one.ImageOrientationPatient]
    assert_true(read_one(save(made, tmp_path / "s")))


def test_rescale_in_some_slices_only_is_refused(tmp_path):
    made = make_series(make_grid())
    set_fields(made[3], {"RescaleSlope": None, "RescaleIntercept": None})
    with pytest.raises(ValueError, match="1 of its 12 slices have no rescale"):
        read_dicom(save(made, tmp_path / "s"))


def test_ct_without_rescale_says_so(tmp_path):
    made = make_series(make_grid(), slope=1, intercept=0, signed=True, RescaleSlope=None, RescaleIntercept=None)
    scan = read_one(save(made, tmp_path / "s"))
    assert "no-rescale" in scan.notes
    assert_true(scan)


def test_modality_lut_sequence(tmp_path):
    """A table in place of slope and intercept: entry n holds HU n / 2 - 1024."""
    made = make_series(make_grid(), slope=0.5, RescaleSlope=None, RescaleIntercept=None)
    for one in made:
        lut = Dataset()
        lut.LUTDescriptor, lut.ModalityLUTType = [4096, 0, 16], "HU"
        lut.LUTData = (np.arange(4096) // 2).astype(np.uint16).tobytes()
        lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "OW"
        one.ModalityLUTSequence = Sequence([lut])
    scan = read_one(save(made, tmp_path / "s"))
    assert_true(Scan(scan.array.astype(float) - 1024, scan.affine), tolerance=1.01)


@pytest.mark.parametrize("signed, stored, vr", [(False, 63536, "US"), (True, -2000, "SS"), (True, 63536, "US")])
def test_padding_is_air(tmp_path, signed, stored, vr):
    made = make_series(make_grid(), intercept=0 if signed else -1024, signed=signed)
    for one in made:
        plane = np.frombuffer(one.PixelData, np.int16 if signed else np.uint16).reshape(20, 24).copy()
        plane[:3] = stored - 65536 if signed and stored > 32767 else stored
        set_pixels(one, plane)
        one.add_new("PixelPaddingValue", vr, stored)
    scan = read_one(save(made, tmp_path / "s"))
    assert (scan.array[:, :3] == -1024).all()
    np.testing.assert_allclose(scan.array[:, 3:], truth(scan)[:, 3:], atol=0.51)


def test_monochrome1(tmp_path):
    """How values are shown is no part of HU; MR intensities would be seen inverted."""
    assert_true(read_one(save(make_series(make_grid(), PhotometricInterpretation="MONOCHROME1"), tmp_path / "ct")))
    with pytest.raises(ValueError, match="MONOCHROME1"):
        read_dicom(save(make_series(make_grid(), "MR", PhotometricInterpretation="MONOCHROME1"), tmp_path / "mr"))


# Encodings.


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless],
    ids=lambda syntax: syntax.name,
)
def test_transfer_syntaxes(tmp_path, syntax):
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg", reason="JPEG 2000 needs itemized-clip-hf[dicom-compressed]")
    assert_true(read_one(save(make_series(make_grid(size=(40, 48))), tmp_path / "s", syntax)))


def test_missing_decoder_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("itemized_clip_hf.data.readers.dicom.pixels._can_decode", lambda syntax: False)
    with pytest.raises(ValueError, match=r"pip install 'itemized-clip-hf\[dicom-compressed\]'"):
        read_dicom(save(make_series(make_grid()), tmp_path / "s", RLELossless))


def test_deflated_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="deflated"):
        read_dicom(save(make_series(make_grid()), tmp_path / "s", DeflatedExplicitVRLittleEndian))


@pytest.mark.parametrize("prefix", ["", "DICOM/S1/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_zip(tmp_path, compression, prefix):
    folder = save(make_series(make_grid()), tmp_path / "s")
    scan = read_one(zip_folder(folder, tmp_path / "s.zip", prefix, compression))
    np.testing.assert_array_equal(scan.array, read_one(folder).array)
    assert_true(scan)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("shared", [("orientation", "measures", "rescale"), (), ("measures",)])
def test_enhanced(tmp_path, modality, shared):
    order = np.random.default_rng(0).permutation(12)
    write(make_enhanced(make_grid("sagittal"), modality, shared, order), tmp_path / "one.dcm")
    assert_true(read_one(tmp_path / "one.dcm"), world if modality == "CT" else mr_world, 0.26)


def test_enhanced_with_a_long_header_in_a_zip(tmp_path):
    """500 frames describe themselves on 200 KB, all of it before the pixels."""
    one = make_enhanced(make_grid(slices=500, size=(8, 10), distance=0.5), shared=())
    save([one], tmp_path / "s")
    assert_true(read_one(zip_folder(tmp_path / "s", tmp_path / "s.zip")), tolerance=0.26)


def test_enhanced_tilted(tmp_path):
    write(make_enhanced(make_grid(tilt=15, size=(60, 56))), tmp_path / "one.dcm")
    scan = read_one(tmp_path / "one.dcm")
    assert "tilted" in scan.notes
    assert_true_inside(scan)


# What is split, and what is left out.


def repeated(grid, count, tag, values, modality="MR", distinct=True, **fields):
    """Volumes of one series in one place; the n-th is brighter by 100 * n."""
    series = generate_uid()
    made = []
    for number in range(count):
        more = {tag: values[number]} if tag else {}
        made += make_series(
            grid,
            modality,
            function=lambda p, n=number: mr_world(p) + 100 * n * distinct,
            SeriesInstanceUID=series,
            **more,
            **fields,
        )
    return made


@pytest.mark.parametrize(
    "tag, values, names",
    [
        ("EchoTime", ["12", "98.5"], ["AX T1_TE12", "AX T1_TE98.5"]),
        ("TemporalPositionIdentifier", [1, 2, 3], ["AX T1_t1", "AX T1_t2", "AX T1_t3"]),
        ("AcquisitionNumber", [7, 12], ["AX T1_acq7", "AX T1_acq12"]),
        ("DiffusionBValue", [0.0, 1000.0], ["AX T1_b0", "AX T1_b1000"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], ["AX T1_M", "AX T1_P"]),
        ("DiffusionGradientOrientation", [[1.0, 0, 0], [0, 1.0, 0]], ["AX T1_dir1", "AX T1_dir2"]),
    ],
)
def test_repeats_are_split_and_named(tmp_path, tag, values, names):
    study = read_dicom(save(repeated(make_grid(), len(values), tag, values), tmp_path / "s"))
    assert sorted(study.scans) == sorted(names) and not study.skipped
    by_brightness = sorted(study.scans.values(), key=lambda scan: scan.array.mean())
    for number, scan in enumerate(by_brightness):
        assert_true(scan, lambda p, n=number: mr_world(p) + 100 * n)
    if tag != "DiffusionGradientOrientation":  # directions have no order of their own
        assert [scan.name for scan in by_brightness] == names


def test_time_points_that_follow_the_patients_motion(tmp_path):
    """Two volumes 0.3 mm apart are two volumes, not one of alternating distances."""
    first, second = make_grid(), make_grid()
    second.positions = second.positions + [0, 0, 0.3]
    made = repeated(first, 1, "TemporalPositionIdentifier", [1])
    for one in repeated(second, 1, "TemporalPositionIdentifier", [2]):
        one.SeriesInstanceUID = made[0].SeriesInstanceUID
        made.append(one)
    study = read_dicom(save(made, tmp_path / "s"))
    assert sorted(study.scans) == ["AX T1_t1", "AX T1_t2"]
    for scan in study.scans.values():
        assert_true(scan, mr_world)


def test_positions_that_differ_by_rounding(tmp_path):
    made = repeated(make_grid(), 2, "EchoTime", ["12", "98"])
    for one in made[12:]:
        one.ImagePositionPatient = [f"{float(value) + 0.003:.4f}" for value in one.ImagePositionPatient]
    assert sorted(read_dicom(save(made, tmp_path / "s")).scans) == ["AX T1_TE12", "AX T1_TE98"]


def test_interleaved_acquisitions_stay_one_volume(tmp_path):
    made = make_series(make_grid())
    for number, one in enumerate(made):
        one.AcquisitionNumber = 1 + number % 2
    assert_true(read_one(save(made, tmp_path / "s")))


def test_long_series_keep_their_first_volume(tmp_path):
    made = repeated(make_grid(slices=4), 6, "TemporalPositionIdentifier", range(1, 7))
    study = read_dicom(save(made, tmp_path / "s"))
    assert [*study.scans] == ["AX T1_t1"] and "it holds 6 volumes" in study.skipped[0].reason


def test_repeats_that_nothing_tells_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match="several slices lie in one place"):
        read_dicom(save(repeated(make_grid(), 2, None, []), tmp_path / "s"))


def test_duplicates_are_dropped_with_a_reason(tmp_path):
    made = make_series(make_grid())
    save(made, tmp_path / "s")
    save(made[2:5], tmp_path / "s", start=50)
    study = read_dicom(tmp_path / "s")
    assert list(map(str, study.skipped)) == ["AX HEAD: another file holds the same image (3 times)"]
    assert_true(next(iter(study.scans.values())))
    sent_again = pydicom.dcmread(next((tmp_path / "s").glob("0050.dcm")))
    sent_again.SOPInstanceUID = sent_again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    sent_again.save_as(tmp_path / "s" / "again.dcm")
    study = read_dicom(tmp_path / "s")
    assert "AX HEAD: another slice of the series holds the same image" in map(str, study.skipped)
    assert_true(next(iter(study.scans.values())))


def test_series_are_not_mixed(tmp_path):
    save(make_series(make_grid()), tmp_path / "s")
    save(make_series(make_grid("coronal"), "MR"), tmp_path / "s", start=100)
    save(make_series(make_grid("sagittal"), "MR"), tmp_path / "s", start=200)
    study = read_dicom(tmp_path / "s")
    assert sorted(study.scans) == ["AX HEAD", "AX T1", "AX T1-2"]
    for scan in study.scans.values():
        assert_true(scan, world if scan.modality == "CT" else mr_world)


def test_sizes_and_orientations_within_one_series(tmp_path):
    made = make_series(make_grid(size=(20, 24)))
    for grid in (make_grid(size=(26, 22)), make_grid("coronal")):
        made += make_series(grid, SeriesInstanceUID=made[0].SeriesInstanceUID)
    study = read_dicom(save(made, tmp_path / "s"))
    assert sorted(study.scans) == ["AX HEAD", "AX HEAD-2", "AX HEAD-3"]
    assert {scan.array.shape for scan in study.scans.values()} == {(12, 20, 24), (12, 26, 22)}
    for scan in study.scans.values():
        assert_true(scan)
        assert f"{scan.array.shape[1]} x {scan.array.shape[2]} pixels" in scan.history[0]


DROPPED = {
    "localizer": (dict(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    "scout": (dict(SeriesDescription="Scout 3 plane"), "localizer"),
    "surview": (dict(SeriesDescription="Surview"), "localizer"),
    "secondary capture": (dict(SOPClassUID=SecondaryCaptureImageStorage), "secondary capture"),
    "screen save": (dict(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), "secondary capture"),
    "projection": (dict(ImageType=["DERIVED", "PRIMARY", "MIP"]), "projection"),
    "mosaic": (dict(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), "Siemens mosaic"),
    "burned in": (dict(BurnedInAnnotation="YES"), "burned into the picture"),
    "other modality": (dict(Modality="PT"), "its modality is PT"),
    "unknown modality": (dict(Modality="MUSTERMANN"), "its modality is unknown"),
    "no series": (dict(SeriesInstanceUID=None), "names no series"),
    "no position": (dict(ImagePositionPatient=None), "no position"),
    "no orientation": (dict(ImageOrientationPatient=None), "no orientation"),
    "no spacing": (dict(PixelSpacing=None), "no pixel spacing"),
    "zero spacing": (dict(PixelSpacing=["0", "1"]), "not positive"),
    "bent orientation": (dict(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"]), "right angle"),
    "frames without positions": (dict(NumberOfFrames=4), "several frames without"),
    "zero slope": (dict(RescaleSlope="0"), "scaled by 0"),
    "palette": (dict(PhotometricInterpretation="PALETTE COLOR"), "color"),
    "no pixels": (dict(PixelData=None), "no pixels"),
}


@pytest.mark.parametrize("kind", DROPPED)
def test_what_is_left_out_is_left_out_with_its_reason(tmp_path, kind):
    fields, reason = DROPPED[kind]
    save(make_series(make_grid(slices=4), SeriesNumber=9, **fields), tmp_path / "s", start=500)
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_dicom(tmp_path / "s")
    save(make_series(make_grid()), tmp_path / "s")
    study = read_dicom(tmp_path / "s")
    assert_true(next(iter(study.scans.values())))
    assert len(study.scans) == 1 and any(reason in lost.reason and "(4 times)" in lost.reason for lost in study.skipped)


def test_color_pictures(tmp_path):
    made = make_series(make_grid(slices=4))
    for one in made:
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 8, 8, 7
        one.PixelData = bytes(3 * 20 * 24)
    with pytest.raises(ValueError, match="color picture"):
        read_dicom(save(made, tmp_path / "s"))


def test_siemens_mosaic_by_its_private_field(tmp_path):
    made = make_series(make_grid(slices=4), "MR")
    for one in made:
        block = one.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", 25)
    with pytest.raises(ValueError, match="mosaic"):
        read_dicom(save(made, tmp_path / "s"))


def test_other_files_are_named_by_kind_only(tmp_path):
    save(make_series(make_grid()), tmp_path / "s")
    (tmp_path / "s" / "Mustermann.txt").write_text("Erika Mustermann")
    (tmp_path / "s" / "scan.Mustermann").write_text("Erika Mustermann")
    (tmp_path / "s" / "DICOMDIR").write_bytes(b"x")
    assert [(skipped.scan, skipped.reason) for skipped in read_dicom(tmp_path / "s").skipped] == [
        ("*.txt", "it is not a DICOM file"),
        ("file", "it is not a DICOM file"),
    ]


# Privacy.

PLANTED = {
    "header only": {},
    "name in description": dict(SeriesDescription="T1 AX Mustermann Erika"),
    "name joined": dict(SeriesDescription="T1_ErikaMustermann_AX"),
    "name inside a word": dict(SeriesDescription="T1 xMUSTERMANNx"),
    "id in description": dict(SeriesDescription="QX7731Z_T1"),
    "place in description": dict(SeriesDescription="Klinikum Hinterwald T1"),
    "dates in description": dict(SeriesDescription="23.08.2019 T1 1952-04-17 b 2019_08_23 c 23Aug2019"),
    "protocol": dict(SeriesDescription="", ProtocolName="T1 Erika 19520417"),
    "sequence": dict(SeriesDescription=None, SequenceName="erika"),
    "dropped series": dict(SeriesDescription="Mustermann scout 20190823"),
    "dropped modality": dict(Modality="PT", SeriesDescription="Mustermann"),
    "image type": dict(ImageType=["ORIGINAL", "PRIMARY", "MUSTERMANN", "ERIKA"]),
    "stack": dict(StackID="Mustermann"),
    "no position": dict(ImagePositionPatient=None, SeriesDescription="Erika Mustermann"),
}
# Fields overwritten in the file itself, which no writer would let pass.
BROKEN = {
    "slope": (b"0.1234567890", b"Mustermann  "),
    "intercept": (b"-1024.123456", b"Mustermann  "),
    "position": (b"-13.0000000000\\", b"Mustermann-Ott\\"),
    "frames": (b"ORIGINAL\\", b"MUSTERMA\\"),
    "character set": (b"ISO_IR 100", b"MUSTERMANN"),
    "syntax": (b"1.2.840.10008.1.2.1\0", b"Erika Mustermann 1.0"),
    "pixels": (b"OW\0\0", b"ERIK"),
    "series number": (b"IS\x02\x003 ", b"IS\x02\x00er"),
}


def everything_said(study=None, error=None) -> str:
    said = [str(error)] if error is not None else []
    if study is not None:
        said += [str(study.skipped), *map(str, study.scans)]
        for scan in study.scans.values():
            said += [str((scan.name, scan.modality, scan.history, scan.notes, scan.private_fields))]
        said.append(str(study))
    chain = error
    while chain is not None and chain.__cause__ is not None:
        chain = chain.__cause__
        said.append(str(chain))
    return "\n".join(said)


def read_and_listen(path, caplog, capfd, recwarn) -> str:
    """All that reading a path says anywhere."""
    study = error = None
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        try:
            study = read_dicom(path)
        except ValueError as refused:
            error = refused
    heard = [everything_said(study, error), caplog.text, *capfd.readouterr(), *(str(w.message) for w in recwarn)]
    return "\n".join(heard).lower()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a good series"])
@pytest.mark.parametrize("kind", PLANTED)
def test_no_planted_value_gets_out(tmp_path, kind, beside, caplog, capfd, recwarn):
    made = repeated(make_grid(slices=4), 2, "EchoTime", ["12", "98"], **PLANTED[kind])
    folder = save(made, tmp_path / "s", name="Erika_Mustermann_{:04d}.19520417")
    if beside:
        save(make_series(make_grid()), folder, start=900)
    heard = read_and_listen(zip_folder(folder, tmp_path / "s.zip", "Mustermann^Erika/"), caplog, capfd, recwarn)
    assert [secret for secret in SECRETS if secret in heard] == [], heard
    assert heard.strip()


@pytest.mark.parametrize("validation", [pydicom.config.WARN, pydicom.config.RAISE, pydicom.config.IGNORE])
@pytest.mark.parametrize("kind", BROKEN)
def test_values_that_pydicom_complains_about_stay_inside(
    tmp_path, kind, validation, caplog, capfd, recwarn, monkeypatch
):
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", validation)
    old, new = BROKEN[kind]
    assert len(old) == len(new)
    fields = dict(
        RescaleSlope="0.1234567890", RescaleIntercept="-1024.123456", SpecificCharacterSet="ISO_IR 100",
        SeriesDescription="T1 Mustermann",
    )  # fmt: skip
    folder = save(make_series(make_grid(slices=5), slope=0.123456789, **fields), tmp_path / "s")
    changed = 0
    for file in folder.iterdir():
        data = file.read_bytes()
        changed += old in data
        file.write_bytes(data.replace(old, new))
    assert changed == 5
    heard = read_and_listen(folder, caplog, capfd, recwarn)
    assert [secret for secret in SECRETS if secret in heard] == [], heard
    assert pydicom.config.settings.reading_validation_mode == validation


@pytest.mark.parametrize(
    "name, description",
    [
        ("Li^Wu", "T1 li AX WU"),
        ("Müller^Jürgen", "T1 Mueller AX juergen"),
        ("Müller^Jürgen", "T1 Muller AX Jurgen"),
        ("Müller^Jürgen", "T1 MÜLLER AX JÜRGEN"),
        ("Yamada^Tarou=山田^太郎", "T1 山田 AX Tarou"),
    ],
)
def test_names_in_other_spellings(tmp_path, name, description):
    fields = dict(PatientName=name, SeriesDescription=description, SpecificCharacterSet="ISO_IR 192")
    scan = read_one(save(make_series(make_grid(slices=4), "MR", **fields), tmp_path / "s"))
    assert scan.name == "T1 AX"


def test_useful_descriptions_stay(tmp_path):
    for number, text in enumerate(["AX T2 FLAIR FS", "T1_mprage_sag_p2_iso 1.0", "CT 5.0 H31s", "ep2d_diff_b0_b1000"]):
        folder = save(make_series(make_grid(slices=4), "MR", SeriesDescription=text), tmp_path / str(number))
        assert read_one(folder).name == text


# Real series.


def sample(scan: Scan, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trilinear values of a scan at RAS points (N, 3), and which of them lie inside."""
    inverse = np.linalg.inv(scan.affine)
    indices = points @ inverse[:3, :3].T + inverse[:3, 3]
    size = np.array(scan.array.shape)
    inside = ((indices >= 0) & (indices <= size - 1)).all(-1)
    grid = torch.from_numpy(indices[:, ::-1] / (size[::-1] - 1) * 2 - 1).float()[None, None, None]
    volume = torch.from_numpy(scan.array.astype(np.float32))[None, None]
    return torch.nn.functional.grid_sample(volume, grid, align_corners=True)[0, 0, 0, 0].numpy(), inside


def test_real_tilted_ct_against_its_nifti(data_folder):
    folder = data_folder / "volumes" / "ct_head_ge"
    expected, scan = read_file(folder / "ct_hu.nii.gz"), read_one(folder / "dicom.zip")
    assert scan.modality == "CT" and {"tilted", "uneven"} <= scan.notes.keys()
    indices = np.argwhere(expected.array > -200)[::7]
    got, inside = sample(scan, indices @ expected.affine[:3, :3].T + expected.affine[:3, 3])
    assert inside.mean() > 0.98
    truth_hu = expected.array[tuple(indices.T)][inside]
    windows = ItemizedCLIPImageProcessor.from_domain("head-ct").windows
    assert len(windows) == 3
    for name, (low, high) in windows.items():
        shown = [(np.clip(values, low, high) - low) / (high - low) for values in (got[inside], truth_hu)]
        assert np.abs(shown[0] - shown[1]).mean() < 0.03, name


def test_real_mr_against_its_nifti(data_folder):
    folder = data_folder / "volumes" / "mri_decubitus_hfs"
    study = read_dicom(folder / "dicom.zip")
    (scan,) = study.scans.values()
    assert any("mosaic" in skipped.reason for skipped in study.skipped)
    expected = read_file(folder / "t1_sag.nii.gz")
    indices = np.argwhere(np.ones(expected.array.shape, bool))[::11]
    got, inside = sample(scan, indices @ expected.affine[:3, :3].T + expected.affine[:3, 3])
    difference = np.abs(got - expected.array[tuple(indices.T)])[inside]
    assert inside.mean() > 0.9 and np.percentile(difference, 99) < 0.01 * expected.array.max()
    expected.name, expected.modality = scan.name, "MR"
    (a,), (b,) = pixels(scan).values(), pixels(expected).values()
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_threads_that_read_at_the_same_time_put_the_settings_back():
    from itemized_clip_hf.data.readers.dicom.study import quiet

    def settings():
        return (
            pydicom.config.settings.reading_validation_mode,
            logging.getLogger("pydicom").disabled,
            warnings.filters[:],
        )

    before = settings()
    first, second = quiet(), quiet()
    first.__enter__()
    inside = settings()
    second.__enter__()
    first.__exit__(None, None, None)  # the other one still reads
    assert settings() == inside != before
    second.__exit__(None, None, None)
    assert settings() == before
