"""Planes, sides, positions and the body of a volume on the screen, against volumes whose truth is known."""

import numpy as np
import pytest

from itemized_clip_hf.explain.views import View, find_body

SPACINGS = {"axial": (1.0, 1.2, 5.0), "coronal": (1.0, 5.0, 1.2), "sagittal": (5.0, 1.2, 1.0)}
DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def world_of(shape, affine):
    """mm of every voxel in RAS+ scanner space: (3, *shape)."""
    indices = np.stack([*np.indices(shape), np.ones(shape)])
    return np.einsum("ij,j...->i...", affine, indices)[:3]


@pytest.mark.parametrize("plane", SPACINGS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_sides_and_positions_are_those_of_the_affine(plane, order, flips):
    """However the axes are stored, the letter at an edge is the direction in which mm grow towards it."""
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(SPACINGS[plane]) * flips)[:, order]
    affine[:3, 3] = (7, -20, 31)
    shape = (9, 10, 11)
    world = world_of(shape, affine)
    view = View.of(shape, affine)
    assert view.plane == plane
    slices = [view.slices(axis) for axis in world]
    for letter, (axis, step) in zip(view.sides, ((1, -1), (2, 1), (1, 1), (2, -1))):
        number, sign = DIRECTIONS[letter]
        assert (np.sign(np.diff(slices[number], axis=axis)) == sign * step).all(), letter
    through = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    np.testing.assert_allclose(view.positions, slices[through].mean(axis=(1, 2)))
    for number, position in enumerate(view.positions):
        letter = ("RAS" if position >= 0 else "LPI")[through]
        assert view.name_slice(number) == f"{letter} {abs(position):.1f} mm"
    assert view.aspect == pytest.approx(view.pixel[0] / view.pixel[1])


def test_arrays_without_geometry_are_shown_as_they_are():
    volume = np.random.default_rng(0).random((3, 4, 5))
    view = View.of(volume.shape, None)
    np.testing.assert_array_equal(view.slices(volume), volume)
    assert (view.plane, view.sides, view.aspect, view.name_slice(2)) == ("", "", 1.0, "slice 2")


@pytest.fixture
def head():
    """A head of 160 mm in noisy air with a cavity, and a thin rest beside it: intensities, head."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:120, :120] * 2.0
    distance = np.hypot(rows - 120, columns - 120)
    truth = np.repeat((distance < 80)[None], 4, axis=0)
    tissue = truth & (distance > 30)
    values = np.where(tissue, 1.0, 0.0)
    values[:, 20:100, 112:114] = 1.5  # 4 mm thick
    return values + rng.normal(0, 0.04, values.shape), truth


@pytest.mark.parametrize("scale, offset", [(1000, -1000), (400, 0), (255, 0)])
def test_the_body_is_what_is_not_air(head, scale, offset):
    """CT and MR; what the body surrounds belongs to it, noise and a head rest do not."""
    values, truth = head
    body = find_body(values * scale + offset, (2.0, 2.0))
    overlap = (body & truth).sum() / (body | truth).sum()
    assert overlap > 0.95 and not body[:, :, 110:].any() and body[:, 60, 60].all()


def test_background_that_was_cut_out_of_normalized_intensities(head):
    values, truth = head
    cut = np.where(truth, 3 * (values - 0.5), 0).astype(np.float32)  # darker and brighter than the background
    body = find_body(cut, (2.0, 2.0))
    assert (body & truth).sum() / (body | truth).sum() > 0.97


def test_without_air_all_is_body():
    assert find_body(np.full((2, 40, 40), 7.0)).all()
    assert find_body(np.random.default_rng(0).normal(100, 5, (2, 40, 40))).mean() > 0.9
