"""MONAI's transforms in training: drawn from the visit's seed, per scan or study, and sides that move with their texts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from itemized_clip_hf import ItemizedCLIPTrainingArguments
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.phantom import PhantomDataset
from itemized_clip_hf.phantom.experiment import as_scans
from itemized_clip_hf.processing.geometry_itemized_clip import axis_codes
from itemized_clip_hf.processing.scans_itemized_clip import ProcessedScan
from itemized_clip_hf.trainer.augmentation import Augmentation, AugmentationError, AugmentationSettings
from itemized_clip_hf.trainer.collator import ItemizedCLIPCollator

pytest.importorskip("monai")

NOISE = {"RandGaussianNoised": {"prob": 1.0, "std": 0.1}}
AFFINE = {"RandAffined": {"prob": 1.0, "rotate_range": [0.2, 0, 0], "padding_mode": "zeros"}}
MIRROR = {"transforms": [{"RandFlipd": {"prob": 1.0, "spatial_axis": "left-right"}}], "swap_sides": True}


def scan_of(values=None, source=None, name="AX_T1", affine=None):
    values = torch.rand(1, 6, 8, 10, generator=torch.Generator().manual_seed(0)) if values is None else values
    if affine is not None:
        source = Scan(values[0].numpy(), affine, name)
    return ProcessedScan(name, values, np.eye(4), source)


def collator(processor, augmentation, **settings):
    return ItemizedCLIPCollator(
        processor, max_items=4, augmentation=None if augmentation is None else Augmentation(augmentation), **settings
    )


@pytest.fixture(scope="module")
def study():
    """With a finding on a side."""
    studies = PhantomDataset("train", 60, shape=(8, 16, 16))
    return next(s for s in studies if any("left" in item.split() for item in s.items) and len(s.items) > 1)


def test_same_seed_same_scans_and_nothing_else_drawn(processor, study):
    example = {"id": study.id, "images": as_scans(study), "items": study.items, "seed": 7}
    plain = collator(processor, None, max_scans=2).prepare(example)
    noisy, again = (collator(processor, {"transforms": [NOISE]}, max_scans=2).prepare(example) for _ in range(2))
    other = collator(processor, {"transforms": [NOISE]}, max_scans=2).prepare({**example, "seed": 8})
    assert [scan.name for scan in noisy.scans] == [scan.name for scan in plain.scans] and noisy.items == plain.items
    for one, two, bare in zip(noisy.scans, again.scans, plain.scans):
        torch.testing.assert_close(one.pixel_values, two.pixel_values, rtol=0, atol=0)
        assert 0.01 < (one.pixel_values - bare.pixel_values).abs().mean() < 1
    assert not torch.equal(noisy.scans[0].pixel_values, other.scans[0].pixel_values)
    evaluated = collator(processor, {"transforms": [NOISE]}).prepare({**example, "seed": None})
    torch.testing.assert_close(
        evaluated.scans[0].pixel_values,
        collator(processor, None).prepare({**example, "seed": None}).scans[0].pixel_values,
    )


def test_before_the_normalization(processor, study):
    """A transform that keeps its volume gives the pixels of training without any; values stay in the scan's range."""
    example = {"id": "a", "images": as_scans(study), "items": study.items, "seed": 1}
    kept = collator(processor, {"transforms": [{"RandScaleIntensityd": {"prob": 1.0, "factors": [0, 0]}}]}).prepare(
        example
    )
    for one, two in zip(kept.scans, collator(processor, None).prepare(example).scans):
        torch.testing.assert_close(one.pixel_values, two.pixel_values)
    bright = Augmentation({"transforms": [{"RandShiftIntensityd": {"prob": 1.0, "offsets": [2, 2]}}]})
    changed = bright.apply([scan_of()], ["a"], 0).scans[0].pixel_values
    assert changed.max() == scan_of().pixel_values.max() == changed.min()


def test_a_draw_per_scan_or_per_study():
    first, second = object(), object()
    scans = [scan_of(source=first, name="bone"), scan_of(source=first, name="brain"), scan_of(source=second)]
    bone, brain, other = (s.pixel_values for s in Augmentation({"transforms": [AFFINE]}).apply(scans, ["a"], 3).scans)
    assert torch.equal(bone, brain) and not torch.equal(bone, other)
    shared = Augmentation({"transforms": [AFFINE], "draw": "study"}).apply(scans, ["a"], 3).scans
    assert torch.equal(shared[0].pixel_values, shared[2].pixel_values)
    assert not torch.equal(shared[0].pixel_values, scans[0].pixel_values)


def test_masks_move_with_their_scans():
    block = torch.zeros(1, 12, 24, 24)
    block[:, 4:8, 5:12, 6:14] = 1
    turn = {"RandAffined": {"prob": 1.0, "rotate_range": [[0.4, 0.5], 0, 0], "padding_mode": "zeros"}}
    changed = Augmentation({"transforms": [turn]}).apply([scan_of(block)], ["a"], 5, masks=[block.bool()])
    moved, mask = changed.scans[0].pixel_values > 0.5, changed.masks[0]
    assert mask.dtype == torch.bool and not torch.equal(mask, block.bool())
    assert (moved & mask).sum() / (moved | mask).sum() > 0.8


@pytest.mark.parametrize("codes", ["SAL", "IPR", "LAS", "ASR", "PLS"])
def test_left_words_and_the_mask_end_on_the_other_side_together(codes):
    """Whatever axis runs between left and right in the scan."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    affine = np.eye(4)
    affine[:3, :3] = np.array([directions[code] for code in codes]).T * 2.0
    affine[:3, 3] = -affine[:3, :3] @ ((np.array([6, 8, 10]) - 1) / 2)
    assert axis_codes(affine) == codes
    indices = np.argwhere(np.ones((6, 8, 10)))
    places = indices @ affine[:3, :3].T + affine[:3, 3]
    on_the_left = torch.from_numpy((places[:, 0] < -1).reshape(1, 6, 8, 10))
    done = Augmentation(MIRROR).apply(
        [scan_of(affine=affine, name="T1_LEFT")], ["cyst in the left frontal lobe"], 0, masks=[on_the_left]
    )
    assert done.is_mirrored and done.texts == ["cyst in the right frontal lobe"] and done.scans[0].name == "T1_RIGHT"
    found = places[done.masks[0].numpy().ravel()]
    assert len(found) and (found[:, 0] > 1).all()
    axis = 1 + next(i for i, code in enumerate(codes) if code in "LR")
    assert torch.equal(done.scans[0].pixel_values, scan_of().pixel_values.flip(axis))


def test_a_study_of_the_phantom_is_mirrored_with_its_report(processor, study):
    """The lesion that the words place: brightness of left and right halves change places as the words do."""
    example = {"id": study.id, "images": as_scans(study), "items": study.items, "seed": 4}
    plain, mirrored = (collator(processor, setting).prepare(example) for setting in (None, MIRROR))
    for one, two in zip(plain.scans, mirrored.scans):  # RPI: x runs towards the right
        torch.testing.assert_close(two.pixel_values, one.pixel_values.flip(3))
    assert mirrored.items != plain.items
    for one, two in zip(plain.items, mirrored.items):
        first, second = one.split(), two.split()
        assert ("left" in first) == ("right" in second) and ("right" in first) == ("left" in second)


def test_a_text_that_does_not_tell_keeps_its_study():
    done = Augmentation(MIRROR).apply([scan_of()], ["left mass", "dilated left ventricle"], 0, "RPI")
    assert not done.is_mirrored and done.texts[0] == "left mass"
    assert torch.equal(done.scans[0].pixel_values, scan_of().pixel_values)


def test_half_of_the_visits():
    settings = replace(
        AugmentationSettings.read(MIRROR), transforms=[{"RandFlipd": {"prob": 0.5, "spatial_axis": "left-right"}}]
    )
    augmentation = Augmentation(settings)
    count = sum(augmentation.apply([scan_of()], ["left"], seed, "RPI").is_mirrored for seed in range(200))
    assert 75 < count < 125


def test_arrays_without_an_orientation_are_not_guessed():
    with pytest.raises(AugmentationError, match="which side is left"):
        Augmentation(MIRROR).apply([scan_of()], ["left"], 0, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transforms": MIRROR["transforms"]}, "swap_sides: true"),
        ({"transforms": [{"RandFlipd": {"spatial_axis": 2}}], "swap_sides": True}, "left-right"),
        ({"transforms": [NOISE], "swap_sides": True}, "no RandFlipd"),
        ({"transforms": [{"RandAxisFlipd": {}}]}, "mirrors a volume or turns it"),
        ({"transforms": [{"RandRotate90d": {"spatial_axes": [1, 2]}}]}, "mirrors a volume or turns it"),
        ({"transforms": [{"RandAffined": {"rotate_range": [3.2, 0, 0]}}]}, "mirrors a volume or turns it"),
        ({"transforms": [{"RandAffined": {"scale_range": [0, 0, [-2.5, -2]]}}]}, "mirrors a volume or turns it"),
        ({"transforms": [{"RandGaussianNoise": {}}]}, "Did you mean|did you mean|RandGaussianNoised"),
        ({"transforms": [{"RandLambdad": {"func": "x"}}]}, "not one of MONAI's"),
        ({"transforms": [{"RandSpatialCropd": {"roi_size": 4}}]}, "not one of MONAI's"),
        ({"transforms": [{"RandAffined": {"rotate": 1}}]}, "rotate_range"),
        ({"transforms": [{"RandGaussianNoised": {"std": "much"}}]}, "RandGaussianNoised"),
        ({"transforms": [{"RandGaussianNoised": {"keys": ["x"]}}]}, "takes no"),
        ({"transforms": []}, "expected a list"),
        ({"transforms": [NOISE], "draws": "scan"}, "draws"),
        ({"transforms": [NOISE], "draw": "slice"}, "'scan' or 'study'"),
        ("RandGaussianNoised", "expected transforms"),
    ],
)
def test_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(settings)


def test_arguments_are_looked_at_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="swap_sides"):
        ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), augmentation={"transforms": MIRROR["transforms"]})


def test_pixels_that_are_normalized_already_end_the_run(processor):
    example = {"pixel_values": torch.rand(1, 1, 8, 16, 16), "items": ["a"], "seed": 1}
    with pytest.raises(AugmentationError, match="pass the scans as `images`"):
        collator(processor, {"transforms": [NOISE]}).prepare(example)
