"""Dice and distances of masks: numpy, boxes whose distances are known, and what is left out."""

import math

import numpy as np
import pytest

pytest.importorskip("monai")

from itemized_clip_hf.data.studies.masks import UNKNOWN, StudyMasks
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.evaluation.masks import ALL, as_result, compare_masks, compare_study, summarize_masks
from itemized_clip_hf.evaluation.results import read_result
from itemized_clip_hf.explain.masks import DrawnMask, DrawnStudy

SHAPE = (6, 10, 12)


def box(corner, size, shape=SHAPE):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(low, low + width) for low, width in zip(corner, size))] = 1
    return mask


def drawn_mask(values, item="mass", scan="T1", share=1.0, affine=None):
    return DrawnMask(item, scan, values, affine, share, 0.5, 1.0, np.zeros(values.shape))


def test_dice_is_numpys():
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 2, SHAPE).astype(np.uint8) for _ in range(2))
    expected = 2 * (one & two).sum() / (one.sum() + two.sum())
    assert compare_masks(one, two)["dice"] == pytest.approx(expected, abs=1e-6)
    unknown = two.copy()
    unknown[:2] = UNKNOWN
    expected = 2 * (one & two)[2:].sum() / (one[2:].sum() + two[2:].sum())
    assert compare_masks(one, unknown)["dice"] == pytest.approx(expected, abs=1e-6)


def test_distances_are_in_mm():
    one = box((2, 4, 4), (1, 1, 1))
    for moved, spacing, expected in (((4, 4, 4), (5.0, 2.0, 2.0), 10.0), ((2, 4, 7), (5.0, 2.0, 1.5), 4.5)):
        found = compare_masks(one, box(moved, (1, 1, 1)), spacing)
        assert found["surface_distance"] == pytest.approx(expected) == found["hausdorff_95"]
    same = compare_masks(box((1, 2, 3), (3, 4, 5)), box((1, 2, 3), (3, 4, 5)), (1, 1, 1))
    assert same == {"dice": 1.0, "surface_distance": 0.0, "hausdorff_95": 0.0}
    assert math.isnan(compare_masks(one, one)["surface_distance"])


def test_what_is_empty():
    mask, empty = box((1, 2, 3), (2, 2, 2)), box((0, 0, 0), (0, 0, 0))
    absent, missed = compare_masks(mask, empty, (1, 1, 1)), compare_masks(empty, mask, (1, 1, 1))
    assert math.isnan(absent["dice"]) and math.isnan(absent["surface_distance"])
    assert missed["dice"] == 0 and math.isnan(missed["surface_distance"])


def test_the_scan_that_most_of_the_score_rests_on_is_compared():
    truth, other = box((1, 2, 3), (3, 4, 5)), box((1, 5, 3), (3, 4, 5))
    own = [drawn_mask(other, share=0.3), drawn_mask(truth, scan="T2", share=0.7)]
    drawn = DrawnStudy([own, [drawn_mask(other, item="cyst")]])
    known = StudyMasks(["mass"], [truth], ["cyst"], findings=["mass"])
    rows = compare_study("s", drawn, known, ["mass", "cyst"])
    assert [(row.scan, row.dice, row.is_present, row.finding) for row in rows[:1]] == [("T2", 1.0, True, "mass")]
    assert not rows[1].is_present and rows[1].voxels == 60 and rows[1].finding == ALL
    (row,) = compare_study("s", DrawnStudy([own]), StudyMasks(["mass"], [truth], scan="T1"), ["mass"])
    assert row.scan == "T1" and row.dice < 0.5
    affine = np.eye(4)
    placed = [
        drawn_mask(truth, share=0.9, affine=affine + np.eye(4)[:, 3:] * 0),
        drawn_mask(truth, share=0.1, affine=affine),
    ]
    far = affine.copy()
    far[0, 3] = 500
    placed[0].affine = far  # of which the mask shows nothing
    (row,) = compare_study("s", DrawnStudy([placed]), StudyMasks(["mass"], [Scan(truth, affine)]), ["mass"])
    assert row.dice == 1.0
    with pytest.raises(ValueError, match="outside of every scan"):
        compare_study("s", DrawnStudy([placed[:1]]), StudyMasks(["mass"], [Scan(truth, affine)]), ["mass"])


def test_classes():
    truth = box((1, 2, 3), (3, 4, 5)) * 2
    drawn = DrawnStudy([[drawn_mask(truth * 0, "liver")], [drawn_mask((truth > 0).astype(np.uint8), "tumor")]])
    liver, tumor = compare_study("s", drawn, StudyMasks(label_map=truth), ["liver", "tumor"])
    assert (tumor.finding, tumor.dice) == ("tumor", 1.0) and not liver.is_present


def test_figures_by_finding():
    known = StudyMasks(
        ["mass", "cyst"], [box((1, 2, 3), (2, 2, 2)), box((1, 6, 3), (2, 2, 2))], findings=["mass", "cyst"]
    )
    rows = []
    for number in range(12):
        found = box((1, 2, 3), (2, 2, 2)) if number % 3 else box((0, 0, 0), (0, 0, 0))
        rows += compare_study(
            f"s{number}", DrawnStudy([[drawn_mask(found)], [drawn_mask(found, "cyst")]]), known, ["mass", "cyst"]
        )
    figures = summarize_masks(rows, resamples=200)
    assert list(figures) == [ALL, "mass", "cyst"]
    assert figures["mass"]["dice"].value == pytest.approx(8 / 12) and figures["cyst"]["dice"].value == 0
    assert figures["mass"]["missed"].value == pytest.approx(4 / 12) and figures[ALL]["dice"].value == pytest.approx(
        4 / 12
    )
    assert figures["mass"]["dice"].low < 8 / 12 < figures["mass"]["dice"].high
    result = as_result(rows, {"s99": ValueError("damaged")}, resamples=50)
    assert result.facts == {"studies": 12, "masks": 24} and result.rest["unreadable"] == [
        {"id": "s99", "reason": "damaged"}
    ]
    again = read_result(result.to_dict())
    assert again.figures["mass"]["dice"].value == pytest.approx(8 / 12)
    with pytest.raises(ValueError, match="no study could be compared .*s1: damaged"):
        as_result([], {"s1": ValueError("damaged")})
