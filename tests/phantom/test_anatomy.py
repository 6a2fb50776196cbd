"""Where the head lies in an oblique grid, and of what it is made."""

from functools import partial

import numpy as np
import pytest

from itemized_clip_hf.phantom import COARSE_SHAPE, FINDINGS, generate_study
from itemized_clip_hf.phantom.anatomy import TISSUES, sample_anatomy, tissue_fractions
from itemized_clip_hf.phantom.findings import place_findings
from itemized_clip_hf.phantom.geometry import Difference, Ellipsoid, Grid
from itemized_clip_hf.phantom.sequences import NOISE, SEQUENCES, acquire
from itemized_clip_hf.phantom.study import MAX_TILT

TILT = (0.2, -0.06)


def make_rng(seed, *key):
    """As a study draws its parts: 0 for the head, 2 and its number for where a finding lies."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw(seed):
    """A head, its findings and its voxels."""
    anatomy = sample_anatomy(np.random.default_rng(seed))
    names = ["enlarged_ventricles", "subdural_collection", "mass", "cyst"]
    placements = place_findings(names, anatomy, lambda index: np.random.default_rng([seed, index]))
    return anatomy, placements, anatomy.in_grid(Grid.covering((10, 40, 36), tilt=TILT))


def test_voxels_lie_where_the_affine_says():
    anatomy, _, voxels = draw(0)
    grid = Grid.covering((10, 40, 36), tilt=TILT)
    assert np.allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), grid.spacing[::-1])
    assert np.allclose(grid.rotation @ grid.rotation.T, np.eye(3)) and np.linalg.det(grid.rotation) > 0
    pose = anatomy.pose
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    for k, j, i in ((0, 0, 0), (9, 3, 20), (4, 39, 35)):
        x, y, z = (grid.affine @ [i, j, k, 1])[:3] - pose.shift
        expected = np.array([cos * x + sin * y, cos * y - sin * x, z]) / pose.scale
        np.testing.assert_allclose(voxels.points[:, k, j, i], expected, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_of_a_shape_lies_outside_its_box(seed):
    anatomy, placements, voxels = draw(seed)
    shapes = [placement.shape for placement in placements] + [shape for _, shape in anatomy.inclusions]
    for shape in (*shapes, anatomy.brain, anatomy.face):
        everywhere = shape.coverage(voxels.points, voxels.voxel)
        box, inside = voxels.coverage(shape)
        assert everywhere.sum() > 0
        np.testing.assert_allclose(inside, everywhere[box], atol=1e-5)
        everywhere[box] = 0
        # The soft edge of what is thinner than a voxel runs on beyond its ends.
        thin = isinstance(shape, Difference) and shape.whole.semi_axes[0] < 3
        assert everywhere.max() < (0.3 if thin else 1e-6)


def test_shells_are_ellipsoids():
    voxels = draw(1)[2]
    shells = [Ellipsoid((0.0, 0.0, 0.0), axes) for axes in ((62.0, 78.0, 64.0), (30.0, 40.0, 50.0))]
    for shell, covered in zip(shells, voxels.shells(shells)):
        expected = shell.coverage(voxels.points, voxels.voxel)
        np.testing.assert_array_equal(covered > 0.5, expected > 0.5)
        assert np.abs(covered - expected).max() < 0.1


def test_tissues_fill_the_head():
    anatomy, _, voxels = draw(2)
    fractions = tissue_fractions(anatomy, anatomy.ventricles, voxels)
    filled = fractions.sum(axis=0)
    assert fractions.min() >= 0 and filled.max() < 1 + 1e-4
    brain = anatomy.brain.coverage(voxels.points, voxels.voxel) == 1
    assert np.allclose(filled[brain], 1, atol=1e-4)
    share = {name: fraction[brain].mean() for name, fraction in zip(TISSUES, fractions)}
    assert 0.3 < share["white"] < 0.6 and 0.2 < share["grey"] < 0.5 and 0.03 < share["csf"] < 0.25
    assert share["bone"] == share["fat"] == 0


def test_masks_lie_where_the_finding_was_placed():
    tilts = []
    for seed in range(8):
        study = generate_study(seed, COARSE_SHAPE, findings=["mass"])
        anatomy = sample_anatomy(make_rng(seed, 0))
        (placement,) = place_findings(["mass"], anatomy, partial(make_rng, seed, 2))
        low, high = placement.shape.bounds()
        middle = np.argwhere(study.masks[0]).mean(axis=0)[::-1]
        found = anatomy.pose.to_head() @ study.affine @ [*middle, 1]
        assert (found > low).all() and (found < high).all()
        assert np.linalg.norm(found - placement.shape.first.centre) < 10
        tilts.append(np.arccos(study.affine[2, 2] / study.spacing[0]))
    assert 0 < min(tilts) and 0.1 < max(tilts) < np.hypot(*MAX_TILT) + 1e-6


def test_noise_is_rician():
    air = acquire(np.zeros((len(SEQUENCES), 12, 40, 40), dtype=np.float32), np.random.default_rng(0))
    for magnitude in air:
        assert magnitude.mean() / magnitude.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)
    assert set(NOISE) == set(SEQUENCES)


def test_every_finding_stands_out_where_it_is_visible():
    """Contrast of a finding with its surroundings, in standard deviations of the voxels there."""
    for name, finding in FINDINGS.items():
        for sequence in finding.intensity:
            contrasts = []
            for seed in range(5):
                study, healthy = (generate_study(seed, COARSE_SHAPE, findings=names) for names in ([name], []))
                mask, scan = study.masks[0], study.scans[sequence]
                before = healthy.scans[sequence][mask]
                contrasts.append(abs(scan[mask].mean() - before.mean()) / before.std())
            assert np.median(contrasts) > 1.2, (name, sequence, contrasts)
