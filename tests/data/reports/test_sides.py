"""Left and right of a text exchanged: known pairs, what cannot be told, and a property."""

import pytest

from itemized_clip_hf.data.reports.sides import swap_sides, swap_sides_of_all
from itemized_clip_hf.phantom import PhantomDataset

PAIRS = [
    ("Left frontal glioma.", "Right frontal glioma."),
    ("LEFT-SIDED subdural; midline shift to the right", "RIGHT-SIDED subdural; midline shift to the left"),
    ("Rt. hip and lt knee", "Lt. hip and rt knee"),
    ("left-to-right shift, leftward deviation", "right-to-left shift, rightward deviation"),
    ("nodule in the LUL, infarct of the rMCA", "nodule in the RUL, infarct of the lMCA"),
    ("left lateral ventricle", "right lateral ventricle"),
    ("SAG_T1_left2", "SAG_T1_right2"),
    (
        "bilateral effusions, L4/5 stenosis, a direct bright clef",
        "bilateral effusions, L4/5 stenosis, a direct bright clef",
    ),
]
UNTOLD = [
    *("consolidation of the RML", "the left ventricle is dilated", "dextrocardia", "1.5 L of fluid", "R>L", "AX_R"),
    *(
        "nothing left to drain",
        "right after the contrast",
        "links temporaler Tumor",
        "左肺结节",
        "lésion gauche",
        "RCA stent",
    ),
]


@pytest.mark.parametrize(("text", "expected"), PAIRS)
def test_pairs(text, expected):
    assert swap_sides(text) == expected
    assert swap_sides(expected) == text


@pytest.mark.parametrize("text", UNTOLD)
def test_what_cannot_be_told_is_left_alone(text):
    assert swap_sides(text) is None
    assert swap_sides_of_all(["left mass", text, None]) is None


def test_twice_is_the_text_itself():
    items = [item for study in PhantomDataset("test", 40, shape=(4, 16, 16)) for item in study.items]
    assert sum("left" in item or "right" in item for item in items) > 10
    swapped = swap_sides_of_all(items)
    assert swapped != items and swap_sides_of_all(swapped) == items
