"""Masks laid over scans: by their affines, never by guessing."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

nibabel = pytest.importorskip("nibabel")

from itemized_clip_hf import ItemizedCLIPImageProcessor
from itemized_clip_hf.data.readers.nifti import read_nifti, write_nifti
from itemized_clip_hf.data.studies.masks import (
    UNKNOWN,
    StudyMasks,
    as_binary,
    labels_of_classes,
    labels_of_items,
    on_scan,
    on_source,
    read_mask,
    read_mask_records,
)
from itemized_clip_hf.data.study import Scan

AFFINE = np.array([[0.0, 0.0, -2.0, 30.0], [0.0, 2.0, 0.0, -20.0], [5.0, 0.0, 0.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
"""Indices (d, h, w) -> mm; slices run upwards, rows to the front, columns to the left."""


@pytest.fixture
def scan():
    array = np.random.default_rng(0).normal(100, 20, (6, 12, 10)).astype(np.float32)
    return Scan(array, AFFINE, "AX_T1")


@pytest.fixture
def truth():
    mask = np.zeros((6, 12, 10), np.uint8)
    mask[2:4, 1:7, 5:9] = 1
    return mask


def process(scan, **changes):
    settings = {"scan_size": [8, 16, 16], "in_plane_size": 16, **changes}
    return ItemizedCLIPImageProcessor.from_domain("brain-mri", **settings).process_study({scan.name: scan})[0]


def test_any_order_and_direction_of_axes_gives_the_same_mask(scan, truth):
    for order in itertools.permutations(range(3)):
        for flips in itertools.product([False, True], repeat=3):
            array, transform = truth, np.eye(4)
            for axis, flipped in enumerate(flips):
                if flipped:
                    array = np.flip(array, axis)
                    transform[axis, axis], transform[axis, 3] = -1, truth.shape[axis] - 1
            permuted = np.eye(4)[:, [*order, 3]]
            mask = Scan(np.ascontiguousarray(array.transpose(order)), AFFINE @ transform @ permuted)
            np.testing.assert_array_equal(on_source(mask, scan.array.shape, AFFINE), truth)


def test_another_grid_is_sampled_at_the_nearest_voxel_and_unknown_outside(scan, truth):
    fine = truth.repeat(2, 1).repeat(2, 2)[:, 4:]  # half the size of the voxels, the first two rows missing
    affine = AFFINE @ np.array([[1, 0, 0, 0], [0, 0.5, 0, 1.75], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    laid = on_source(Scan(fine, affine), scan.array.shape, AFFINE)
    np.testing.assert_array_equal(laid[:, 2:], truth[:, 2:])
    assert (laid[:, :2] == UNKNOWN).all()


def test_labels_follow_the_voxels_of_the_processed_scan(scan, truth):
    """A scan that is bright where the mask is: after any preprocessing the labels mark what is bright."""
    shown = Scan(scan.array + np.float32(900) * truth, AFFINE, "AX_T1")
    for changes in ({}, {"orientation": "LPS"}, {"fit": "stretch"}, {"fit": "crop", "spacing": [5, 2, 2]}):
        processed = process(shown, **changes)
        labels = on_scan(Scan(truth, AFFINE), processed)
        pixels = processed.pixel_values[0].numpy()
        known = labels != UNKNOWN
        bright = pixels > (pixels[known].min() + pixels[known].max()) / 2
        agree = (bright == (labels == 1))[known].mean()
        assert agree > 0.95 and (labels == 1).any(), changes


def test_a_shift_of_the_affine_shifts_the_mask(scan, truth):
    moved = AFFINE.copy()
    moved[:3, 3] += AFFINE[:3, 2]  # by one column
    laid = on_source(Scan(truth, moved), scan.array.shape, AFFINE)
    np.testing.assert_array_equal(laid[:, :, 1:], truth[:, :, :-1])
    rounded = AFFINE + 1e-7
    np.testing.assert_array_equal(on_source(Scan(truth, rounded), scan.array.shape, AFFINE), truth)


def test_without_geometry_the_shapes_have_to_be_equal(scan, truth):
    np.testing.assert_array_equal(on_source(Scan(truth, None), truth.shape, None), truth)
    with pytest.raises(ValueError, match="cannot be laid over each other"):
        on_source(Scan(truth[1:], None), truth.shape, AFFINE)


def test_files_and_what_is_no_mask(tmp_path, truth):
    write_nifti(tmp_path / "mask.nii.gz", truth, AFFINE)
    mask = read_mask(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask.array, truth)
    np.testing.assert_allclose(mask.affine, AFFINE)
    write_nifti(tmp_path / "scan.nii.gz", truth * 0.5, AFFINE)
    with pytest.raises(ValueError, match="scan.nii.gz holds values .* it is not a mask"):
        read_mask(tmp_path / "scan.nii.gz")
    write_nifti(tmp_path / "two.nii.gz", truth + np.roll(truth, 2, 1), AFFINE)
    with pytest.raises(ValueError, match="a mask is of one finding"):
        as_binary(read_mask(tmp_path / "two.nii.gz"))
    assert as_binary(Scan(truth * 3, None)).array.max() == 1
    with pytest.raises(FileNotFoundError):
        read_mask(tmp_path / "none.nii.gz")
    with pytest.raises(ValueError, match="expected NIfTI"):
        read_mask(tmp_path / "mask.txt")


def test_masks_of_pictures(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[4:9, 10:22] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    processor = ItemizedCLIPImageProcessor.from_domain("remote-sensing", scan_size=[1, 32, 32])
    processed = processor.process_study(np.repeat(mask[..., None], 3, 2))
    labels = on_scan(read_mask(tmp_path / "mask.png"), processed[0])
    bright = processed[0].pixel_values[0] > 0
    known = torch.from_numpy(labels != UNKNOWN)
    assert labels.shape == (1, 32, 32) and (bright == torch.from_numpy(labels == 1))[known].float().mean() > 0.95
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match="one channel"):
        read_mask(tmp_path / "color.png")


def test_labels_of_items_and_classes(scan, truth):
    scans = [process(scan), process(Scan(scan.array, AFFINE, "AX_T2"))]
    known = StudyMasks(["a mass", "a cyst"], [truth, None], ["a bleed"])
    labels = labels_of_items(known, [2, 1, 0], scans)
    assert labels.shape == (2, 3, 8, 16, 16)
    assert (
        (labels[:, 0] == 0).all()
        and (labels[:, 1] == UNKNOWN).all()
        and set(np.unique(labels[:, 2])) <= {0, 1, UNKNOWN}
    )
    only = StudyMasks(["a mass"], [truth], scan="AX_T1")
    assert (labels_of_items(only, [0], scans)[1] == UNKNOWN).all()
    with pytest.raises(ValueError, match="mask_scan is 'FLAIR'"):
        labels_of_items(StudyMasks(["a mass"], [truth], scan="FLAIR"), [0], scans)
    far = AFFINE.copy()
    far[0, 3] += 1000
    with pytest.raises(ValueError, match="outside of every scan"):
        labels_of_items(StudyMasks(["a mass"], [Scan(truth, far)]), [0], scans)
    classes = StudyMasks(label_map=truth * 2)
    assert set(np.unique(labels_of_classes(classes, scans, 3))) <= {0, 2, UNKNOWN}
    with pytest.raises(ValueError, match="holds the class 2, the model has 2"):
        labels_of_classes(classes, scans, 2)


def test_records(tmp_path, scan, truth):
    (tmp_path / "m").mkdir()
    write_nifti(tmp_path / "m" / "a.nii.gz", truth, AFFINE)
    (tmp_path / "list.jsonl").write_text(
        '{"id": "s1", "images": {"T1": "t1.nii"}, "items": ["x", "y"], "masks": ["m/a.nii.gz", null], "absent": ["z"]}\n'
        '{"id": "s2", "images": {"T1": "t1.nii"}, "items": ["x"], "masks": [null, null]}\n'
        '{"id": "s3", "images": {"T1": "t1.nii"}, "items": ["x"]}\n'
    )
    records = read_mask_records(tmp_path / "list.jsonl")
    known = StudyMasks.of_record(records[0])
    assert known.masks == [str(tmp_path / "m" / "a.nii.gz"), None] and known.absent == ["z"]
    assert read_nifti(known.masks[0]).array.shape == truth.shape
    with pytest.raises(ValueError, match="2 masks and 1 items"):
        StudyMasks.of_record(records[1])
    with pytest.raises(ValueError, match="no masks"):
        StudyMasks.of_record(records[2])
    (tmp_path / "plain.jsonl").write_text('{"id": "s1", "images": {"T1": "t1.nii"}, "items": ["x"]}\n')
    with pytest.raises(ValueError, match="no column `masks`"):
        read_mask_records(tmp_path / "plain.jsonl")


def test_a_real_label_map(data_folder):
    """BraTS: the volume of each label in the model's grid is that of the file, and labels lie within the brain."""
    case = data_folder / "volumes" / "mri_brats_2013_pat0005_1"
    if not case.exists():
        pytest.skip(f"{case.name} is not there")
    settings = {"scan_size": [48, 112, 112], "in_plane_size": 112, "accept": ["not-raw"]}
    processor = ItemizedCLIPImageProcessor.from_domain("brain-mri", **settings)
    scans = processor.process_study({"FLAIR": str(case / "flair.nii.gz"), "T1c": str(case / "t1c.nii.gz")})
    labels = labels_of_classes(StudyMasks(label_map=str(case / "seg.nii.gz")), scans, 5)
    written = read_nifti(case / "seg.nii.gz")
    voxel = abs(np.linalg.det(written.affine[:3, :3]))
    for number, scan in enumerate(scans):
        own = abs(np.linalg.det(np.asarray(scan.source.affine)[:3, :3] @ scan.to_source[:3, :3]))
        whole, laid = (written.array > 0).sum() * voxel, ((labels[number] > 0) & (labels[number] < UNKNOWN)).sum() * own
        assert laid == pytest.approx(whole, rel=0.05)
        brain = scan.pixel_values[0].numpy() > float(scan.pixel_values.min()) + 0.05
        marked = (labels[number] > 0) & (labels[number] < UNKNOWN)
        assert brain[marked].mean() > 0.98 > brain.mean()
    with pytest.raises(ValueError, match="a mask is of one finding"):
        as_binary(read_mask(case / "seg.nii.gz"))
