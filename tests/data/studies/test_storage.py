"""Prepared volumes as they are stored, with and without compression, and how much they will take."""

import json
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from itemized_clip_cli import main
from itemized_clip_hf import ItemizedCLIPImageProcessor
from itemized_clip_hf.data.studies.prepare import Plan
from itemized_clip_hf.data.studies.prepare.estimate import SizeEstimate, bytes_of_a_scan, count_scans, estimate_size
from itemized_clip_hf.data.studies.storage import load_scans, store_scan
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.processing.scans_itemized_clip import ProcessedScan

datasets = pytest.importorskip("datasets")


def stored(dtype, shape=(6, 20, 24)):
    values = np.zeros(shape, dtype)
    values[1:5, 4:16, 5:20] = np.random.default_rng(0).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (4, 12, 15))
    scan = Scan(np.zeros(shape, np.float32), np.diag([3.0, 1, 1, 1]), "AX", modality="MR", history=["read"])
    return values, store_scan(scan, ProcessedScan("AX", torch.from_numpy(values), np.eye(4), scan), "AX")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_every_voxel_comes_back(dtype):
    values, row = stored(dtype)
    assert row["dtype"] == f"{np.dtype(dtype)}/zstd" and len(row["voxels"]) < values.nbytes
    scan = load_scans([row])["AX"]
    assert scan.array.dtype == dtype and scan.prepared and scan.history == ["read"]
    np.testing.assert_array_equal(scan.array, values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_folders_of_before_load_and_mix_with_new_ones(dtype):
    """A run that an earlier version began goes on: rows of both kinds stand in one table."""
    values, new = stored(dtype)
    old = {**new, "name": "old", "dtype": str(np.dtype(dtype)), "voxels": values.tobytes()}
    scans = load_scans([old, new])
    np.testing.assert_array_equal(scans["old"].array, scans["AX"].array)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": "float32"}, "type 'float32'"),
        ({"dtype": "uint8"}, "voxels, its shape"),
        ({"voxels": b"damaged"}, "cannot be decompressed"),
        ({"shape": [6, 20, 25]}, "AX"),
        ({"shape": [60000, 60000, 60000]}, "damaged"),
    ],
)
def test_damaged_rows_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_scans([{**stored(np.uint8)[1], **change}])


@pytest.mark.parametrize(
    "domain, volumes, voxels",
    [("brain-mri", 1, 48 * 256 * 256), ("head-ct", 3, 3 * 48 * 256 * 256), ("chest-ct", 1, 2 * 112 * 336 * 336)],
)
def test_bytes_of_a_scan(domain, volumes, voxels):
    assert bytes_of_a_scan(ItemizedCLIPImageProcessor.from_domain(domain)) == (volumes, voxels)


def test_scans_are_counted_by_their_names(tmp_path):
    for name in (
        "a/T1.nii.gz",
        "a/masks/m.nrrd",
        "a/dicom/1.dcm",
        "b/dicom/1.dcm",
        "b/dicom/2.dcm",
        "b/other/IM0001",
        "b/.hidden",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in ("t1/1.dcm", "t1/2.dcm", "t2/1.dcm"):
            archive.writestr(name, b"")
    assert count_scans(str(tmp_path / "a")) == 1  # folders beside volume files are left alone
    assert count_scans(str(tmp_path / "b")) == 2
    assert count_scans(str(tmp_path / "z.zip")) == 2
    assert count_scans({"T1": "x.nii.gz", "T2": ["y.nii.gz", "z.nii.gz"]}) == 3


def test_many_studies_are_estimated_from_some(tmp_path):
    rows = [
        {"id": str(n), "images": ["x.nii.gz"] * 4, "items": ["x"], "labels": {}, "label": None} for n in range(1000)
    ]
    found = estimate_size(Plan("brain-mri", rows), tmp_path / "not" / "yet")
    assert (found.scans, found.num_bytes) == (4000, 4000 * 48 * 256 * 256) and found.free > 0
    assert str(found).startswith("volumes: 4,000; at most about 12.6 GB before compression")
    assert "Only 1 MB are free there." in str(SizeEstimate(10, 2_000_000, 1_000_000))


def test_prepare_says_it_before_it_starts(tmp_path, write_volume, monkeypatch):
    def start(*arguments, **settings):
        raise ValueError("started")

    monkeypatch.setattr("itemized_clip_hf.data.studies.prepare.prepare", start)
    write_volume("studies/s1/AX_T1.nii.gz")
    (tmp_path / "r.jsonl").write_text(json.dumps({"id": "s1", "items": ["left frontal mass."]}))
    arguments = ["prepare", "-i", tmp_path / "studies", "--reports", tmp_path / "r.jsonl", "--domain", "brain-mri"]
    done = CliRunner().invoke(main, [*map(str, arguments), "-o", str(tmp_path / "out")])
    assert "started" in f"{done.output}{done.exception}"
    assert "studies: 1, volumes: 1; at most about 3.15 MB before compression" in done.stderr
