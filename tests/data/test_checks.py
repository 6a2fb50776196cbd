"""What `inspect` says of good and bad scans, on generated and real volumes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from forked import run_forked
from PIL import Image

from itemized_clip_cli import main
from itemized_clip_hf.data.checks import check_scan, check_study, hu_problem
from itemized_clip_hf.data.readers.read import read_file
from itemized_clip_hf.data.study import Scan, Skipped, Study
from itemized_clip_hf.domains import load_domain

HEAD = np.array([[3.0, 0, 0, -75], [0, 4, 0, -100], [0, 0, -4, 100], [0, 0, 0, 1]])


def make_head(seed: int = 0, shape=(50, 50, 50)) -> np.ndarray:
    """HU of a ball of brain in a shell of bone in air, depth first."""
    rng = np.random.default_rng(seed)
    radius = np.linalg.norm(np.stack(np.indices(shape), -1) - np.array(shape) / 2 + 0.5, axis=-1) / (min(shape) / 2)
    world = np.where(radius < 0.75, 35.0, np.where(radius < 0.85, 900.0, -1000.0))
    return (world + rng.normal(0, 12, shape)).round().astype(np.int16)


def codes(report) -> dict[str, str]:
    return {problem.code: problem.level for problem in report.problems}


def make_scan(array=None, affine=HEAD, **facts) -> Scan:
    return Scan(make_head() if array is None else array, affine, "scan", **facts)


def test_a_good_scan_is_ok():
    report = check_scan(make_scan(modality="CT"), "head-ct")
    assert report.verdict == "ok" and not report.problems
    assert report.facts["spacing_mm"] == [3, 4, 4] and report.facts["extent_mm"] == [150, 200, 200]
    assert (
        check_scan(make_scan((make_head() + 1000).clip(0).astype(np.int16), modality="MR"), "brain-mri").verdict == "ok"
    )


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (lambda hu: hu + 1024, "missing-rescale"),
        (lambda hu: hu - 1024, "double-rescale"),
        (lambda hu: -hu, "inverted"),
        (lambda hu: (hu.clip(-1000, 1000) + 1000) / 2000, "not-hu"),
        (lambda hu: (hu.clip(0, 80) / 80 * 255).round(), "not-hu"),
        (lambda hu: hu * 0.1, "not-hu"),
    ],
)
def test_units_of_ct(wrong, code):
    array = wrong(make_head().astype(np.float32))
    assert hu_problem(array.ravel())[0] == code
    report = check_scan(make_scan(array), "head-ct")
    assert report.verdict == "refuse" and codes(report)[code] == "refuse"
    assert check_scan(make_scan(array), "head-ct", accept=[code]).verdict == "warn"


def test_padding_outside_the_circle_is_no_second_rescale():
    hu = make_head().astype(np.float32)
    for padding in (-2000, -3024):
        assert hu_problem(np.where(hu < -950, padding, hu).ravel()) is None or (hu < -950).mean() > 0.6


@pytest.mark.parametrize(
    ("scan", "domain", "code", "verdict"),
    [
        (make_scan(np.full((20, 20, 20), 3.0)), None, "constant", "refuse"),
        (make_scan(np.where(make_head() > 0, np.nan, 1.0)), None, "not-finite", "refuse"),
        (make_scan((np.indices((30, 30, 30)).sum(0) % 4).astype(np.uint8)), None, "mask", "refuse"),
        (make_scan(), "brain-mri", "modality", "refuse"),
        (make_scan(modality="MR"), "head-ct", "modality", "refuse"),
        (make_scan(make_head() / 500.0), "brain-mri", "not-raw", "refuse"),
        (make_scan(np.where(make_head() > 0, 500 + make_head(), 0)), "brain-mri", "skull-stripped", "warn"),
        (make_scan(affine=None), "head-ct", "no-geometry", "warn"),
        (make_scan(affine=np.diag([0.003, 0.004, 0.004, 1])), "head-ct", "spacing", "refuse"),
        (make_scan(affine=np.diag([12.0, 4, 4, 1])), None, "spacing", "warn"),
        (make_scan(affine=HEAD + np.outer([0, 2, 0, 0], [1, 0, 0, 0])), None, "sheared", "refuse"),
        (make_scan(affine=np.diag([1.0, 1, 1, 1])), "head-ct", "coverage", "warn"),
        (make_scan(make_head(shape=(5, 50, 50))), None, "few-slices", "warn"),
        (make_scan(notes={"orientation-unknown": "codes are 0"}), None, "orientation-unknown", "refuse"),
        (make_scan(notes={"uneven": "1 to 5 mm"}), None, "uneven", "warn"),
        (make_scan(private_fields=("PatientName",)), None, "private-fields", "ok"),
    ],
)  # fmt: skip
def test_problems(scan, domain, code, verdict):
    report = check_scan(scan, domain)
    assert code in codes(report), report
    assert report.verdict == verdict
    assert all(problem.found and problem.advice for problem in report.problems)


def test_repeats_and_missing_series():
    array = (make_head() + 1000).clip(0).astype(np.int16)
    study = Study(
        {name: Scan(array, HEAD, name) for name in ("AX_T1", "AX_T1_2")},
        skipped=[Skipped("s", "x.nii", "read", "broken")],
    )
    report = check_study(study, "brain-mri")[-1]
    assert report.scan is None and codes(report) == {
        "repeated-scan": "warn",
        "missing-series": "note",
        "left-out": "warn",
    }


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        ("it is a localizer", "ok"),
        ("its modality is SR, expected one of CT, MR (2 times)", "ok"),
        ("it is a Siemens mosaic (many slices in one picture); convert the series to NIfTI with dcm2niix", "warn"),
        ("it cannot be read: it is damaged (ValueError)", "warn"),
    ],
)
def test_what_is_left_out_and_missed_is_a_warning(reason, verdict):
    study = Study({"AX_T1": make_scan()}, skipped=[Skipped("s", "DWI", "read", reason)])
    assert check_study(study)[-1].verdict == verdict


def test_one_mask_over_a_study_is_one_verdict():
    """A mask shows in the contrast of some series only."""
    rng = np.random.default_rng(0)
    shape = (50, 50, 50)
    inside = np.linalg.norm(np.stack(np.indices(shape), -1) - 24.5, axis=-1) < 18
    bright, dark = rng.uniform(400, 900, shape), rng.gamma(0.3, 200, shape) + 0.1
    other = np.roll(inside, 6, axis=0)
    study = Study(
        {
            "AX_T1": make_scan(np.where(inside, bright, 0)),
            "AX_FLAIR": make_scan(np.where(inside, dark, 0)),
            "AX_T2": make_scan(np.where(other, dark, 0)),
        }
    )
    verdicts = ["skull-stripped" in codes(report) for report in check_study(study, "brain-mri")[:3]]
    assert verdicts == [True, True, False]
    assert ["skull-stripped" in codes(check_scan(scan, "brain-mri")) for scan in study.scans.values()][:2] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("case", "domain", "expected"),
    [
        ("ct_chest_qin/ct_hu.nii.gz", "chest-ct", "ok"),
        ("ct_head_ge/ct_hu.nii.gz", "head-ct", "ok"),
        ("ct_head_ge/dicom.zip", "head-ct", "warn uneven"),
        ("ct_head_template_scct/scct.nii.gz", "head-ct", "refuse not-hu"),
        ("mri_brats_2013_pat0005_1/flair.nii.gz", "brain-mri", "refuse not-raw"),
        ("mri_brats_2013_pat0005_1/t1c.nii.gz", "brain-mri", "refuse not-raw"),
        *((f"mri_tcga_fg_6692/{name}.nii.gz", "brain-mri", "ok") for name in ("t1", "t1c", "t2", "flair")),
        *((f"mri_decubitus_hfs/{name}.nii.gz", "brain-mri", "ok") for name in ("t1_sag", "dwi_b0", "dwi_trace_b1000")),
        ("mri_decubitus_hfs/dicom.zip", "brain-mri", "ok"),
    ],
)
def test_real_volumes(case, domain, expected, data_folder):
    read = read_file(data_folder / "volumes" / case)
    (scan,) = read.scans.values() if isinstance(read, Study) else [read]
    report = check_scan(scan, domain)
    words = [p.code for p in report.problems if p.level != "note"]
    assert " ".join([report.verdict, *words]) == expected
    wrong = {"chest-ct": "brain-mri", "head-ct": "brain-mri", "brain-mri": "head-ct"}[domain]
    assert check_scan(scan, wrong).verdict == "refuse" or "template" in case or "brats" in case


def test_a_mask_is_no_scan(data_folder):
    with pytest.raises(ValueError, match="seg.nii.gz is a mask, not a scan: it holds 5 different values"):
        read_file(data_folder / "volumes" / "mri_brats_2013_pat0005_1" / "seg.nii.gz")


def inspect(*arguments):
    return run_forked("inspect", *arguments, check=False)


def test_command(write_volume, tmp_path):
    good = (make_head().T + 1000).clip(0).astype(np.int16)
    path = write_volume("study/AX_T1.nii.gz", good, affine=np.diag([4.0, 4, 3, 1]))
    done = inspect(path, "--domain", "brain-mri")
    assert done.returncode == 0 and "ok" in done.stdout and "50 x 50 x 50" in done.stdout, done.stderr
    write_volume("study/AX_T2.nii.gz", good / 300 - 2, affine=np.diag([4.0, 4, 3, 1]))
    (tmp_path / "study" / "AX_FLAIR.nii.gz").write_text("broken")
    done = inspect(tmp_path / "study", "--domain", "brain-mri", "--json", "-v")
    results = {result["scan"]: result for result in json.loads(done.stdout)}
    assert done.returncode == 2
    assert results["AX_T2"]["problems"][0]["code"] == "not-raw" and results["AX_T1"]["verdict"] == "ok"
    assert any("AX_FLAIR.nii.gz" in problem["found"] for problem in results[None]["problems"])
    done = inspect(tmp_path / "study", "--domain", "brain-mri", "--accept", "not-raw")
    assert done.returncode == 1 and "AX_T2: warn [not-raw]" in done.stderr
    assert inspect(tmp_path / "study" / "AX_FLAIR.nii.gz").returncode == 2


def test_pictures_are_inspected_by_their_processor(tmp_path):
    Image.new("RGB", (40, 30), (200, 10, 20)).save(tmp_path / "field.png")
    (tmp_path / "river.jpg").write_bytes(b"\xff\xd8damaged")
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(tmp_path / "wide.tif")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path), "--domain", "remote-sensing", "--json"])
    results = {result["study"]: result for result in json.loads(done.stdout)}
    assert done.exit_code == 2
    assert {name: result["verdict"] for name, result in results.items()} == {
        "field": "ok", "river": "refuse", "wide": "refuse",
    }  # fmt: skip
    assert results["field"]["shape"] == [30, 40] and "more than 8 bits" in results["wide"]["error"]


def test_an_unknown_domain_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'remote-sensing'"):
        load_domain("remotesensing")
