"""Orientation, resampling and the way back to the scanner."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from tiny_models import DATA

from itemized_clip_hf import ItemizedCLIPImageProcessor
from itemized_clip_hf.data.open import REFUSALS
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.explain.maps import token_map_to_source
from itemized_clip_hf.processing.geometry_itemized_clip import axis_codes, axis_spacing, reorient

AFFINE = np.array([[-0.9, 0.1, 0.0, 90.0], [0.1, 0.9, 0.2, -120.0], [0.0, -0.15, 5.0, -60.0], [0, 0, 0, 1]])


def smooth_volume(shape, seed=0) -> np.ndarray:
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 5, 6, 4)))
    size = tuple(shape)
    return (
        torch.nn.functional.interpolate(noise, size=size, mode="trilinear")[0, 0].numpy().astype(np.float32) * 100 + 500
    )


def stored_otherwise(array, affine, order, flips):
    """The same world with permuted and flipped axes."""
    transform = np.zeros((4, 4))
    transform[3, 3] = 1
    for new, old in enumerate(order):
        transform[old, new] = -1 if flips[new] else 1
        transform[old, 3] = array.shape[old] - 1 if flips[new] else 0
    moved = np.flip(array.transpose(order), [axis for axis in range(3) if flips[axis]])
    return np.ascontiguousarray(moved), affine @ transform


@pytest.mark.parametrize("domain", ["brain-mri", "head-ct", "chest-ct"])
def test_48_ways_to_store_a_volume(domain):
    settings = {"scan_size": [8, 24, 24]} if domain == "chest-ct" else {"scan_size": [8, 24, 24], "in_plane_size": 28}
    processor = ItemizedCLIPImageProcessor.from_domain(domain, accept=REFUSALS, **settings)
    array = smooth_volume((30, 26, 9))
    expected = processor.process_study(Scan(array, AFFINE, "AX_T1"))
    for order, flips in product(permutations(range(3)), product([False, True], repeat=3)):
        moved, affine = stored_otherwise(array, AFFINE, order, flips)
        got = processor.process_study(Scan(moved, affine, "AX_T1"))
        assert [scan.name for scan in got] == [scan.name for scan in expected]
        for a, b in zip(got, expected):
            torch.testing.assert_close(a.pixel_values, b.pixel_values, atol=1e-5, rtol=0)
            world = affine @ a.to_source
            np.testing.assert_allclose(world, AFFINE @ b.to_source, atol=1e-4)


def test_axis_codes_and_spacing():
    assert axis_codes(np.diag([1.0, 2, 3, 1])) == "RAS"
    assert axis_codes(AFFINE) == "LAS"
    np.testing.assert_allclose(axis_spacing(np.diag([-1.0, 2, 3, 1])), [1, 2, 3])
    nibabel = pytest.importorskip("nibabel")
    for seed in range(20):
        rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = rotation @ np.diag([1, 2, 3])
        if np.abs(rotation).max(axis=0).min() > 0.8:
            assert axis_codes(affine) == "".join(nibabel.aff2axcodes(affine))


def test_reorient_keeps_every_voxel_where_it_is():
    array = np.arange(24).reshape(2, 3, 4)
    turned, transform = reorient(array, AFFINE, "RPI")
    assert axis_codes(AFFINE @ transform) == "RPI"
    for index in np.ndindex(turned.shape):
        source = np.rint(transform @ [*index, 1])[:3].astype(int)
        assert turned[index] == array[tuple(source)]


def test_first_axis_is_the_thickest():
    """Axis with the largest spacing first: z -> (z, y, x), y -> (y, z, x), x -> (x, z, y); z wins ties."""
    processor = ItemizedCLIPImageProcessor.from_domain(
        "brain-mri", accept=REFUSALS, scan_size=[4, 4, 4], do_resize=False, do_rescale=False
    )
    for spacing, order in (
        ((1, 1, 5), (2, 1, 0)),
        ((1, 5, 1), (1, 2, 0)),
        ((5, 1, 1), (0, 2, 1)),
        ((1, 1, 1), (2, 1, 0)),
    ):
        array = smooth_volume((4, 5, 6))
        scan = processor.process_study(Scan(array, np.diag([*spacing, 1.0]), "x"), do_normalize=False)[0]
        rpi = array[:, ::-1, ::-1]
        np.testing.assert_array_equal(scan.pixel_values[0].numpy(), rpi.transpose(order))


@pytest.mark.parametrize("domain", ["brain-mri", "chest-ct", "natural-images"])
def test_token_grid_to_scanner_and_back(domain):
    settings = {"brain-mri": {"scan_size": [8, 24, 24], "in_plane_size": 30}, "chest-ct": {"scan_size": [8, 24, 24]}}
    processor = ItemizedCLIPImageProcessor.from_domain(domain, accept=REFUSALS, **settings.get(domain, {}))
    if domain == "natural-images":
        source, affine = np.random.default_rng(0).integers(0, 255, (300, 260, 3), dtype=np.uint8), np.eye(4)
    else:
        source, affine = Scan(smooth_volume((40, 30, 12)), AFFINE, "s"), AFFINE
    scan = processor.process_study(source)[0]
    tokens = np.random.default_rng(1).uniform(0, 3, (50, 3))
    homogeneous = np.concatenate([tokens, np.ones((50, 1))], 1).T
    scanner = affine @ scan.to_source @ homogeneous
    back = np.linalg.inv(affine @ scan.to_source) @ scanner
    np.testing.assert_allclose(back, homogeneous, atol=1e-4)
    np.testing.assert_allclose(affine @ scan.to_source @ back, scanner, atol=1e-4)


@pytest.mark.parametrize("domain", ["brain-mri", "chest-ct"])
def test_a_spot_comes_back_to_its_place(domain):
    """A bright ball is found by the token that contains it, and the painted map peaks at the ball."""
    settings = (
        {"scan_size": [16, 64, 64], "in_plane_size": 64} if domain == "brain-mri" else {"scan_size": [32, 96, 96]}
    )
    processor = ItemizedCLIPImageProcessor.from_domain(domain, accept=REFUSALS, **settings)
    shape, affine = (60, 70, 20), np.diag([-1.2, 1.2, 4.0, 1.0])
    for centre in ((20, 30, 6), (35, 45, 14), (30, 20, 10)):
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        ball = (((grid - centre) * [1.2, 1.2, 4.0]) ** 2).sum(-1) < 6**2
        array = np.where(ball, 300.0, -1000.0 + np.random.default_rng(0).uniform(0, 20, shape)).astype(np.float32)
        scan = processor.process_study(Scan(array, affine, "s"))[0]
        size = tuple(scan.pixel_values.shape[1:])
        tokens = scan.pixel_values[0].reshape(size[0] // 4, 4, size[1] // 4, 4, size[2] // 4, 4).mean((1, 3, 5)).numpy()
        painted = token_map_to_source(tokens - tokens.min(), scan.to_source, size, shape)
        peak = np.unravel_index(painted.argmax(), shape)
        assert painted.shape == shape
        assert np.linalg.norm((np.array(peak) - centre) * [1.2, 1.2, 4.0]) < 9


def test_map_is_zero_where_the_model_saw_nothing():
    processor = ItemizedCLIPImageProcessor.from_domain(
        "chest-ct", accept=REFUSALS, scan_size=[8, 8, 8], spacing=[1, 1, 1]
    )
    scan = processor.process_study(Scan(smooth_volume((20, 20, 20)), np.eye(4), "s"))[0]
    painted = token_map_to_source(np.ones((2, 2, 2)), scan.to_source, (8, 8, 8), (20, 20, 20))
    assert painted.sum() == 8**3
    # LPS order: the crop is centred along every axis
    assert painted[6:14, 6:14, 6:14].all()


def test_nearest_paints_blocks():
    painted = token_map_to_source(np.arange(8.0).reshape(2, 2, 2), np.eye(4), (4, 4, 4), (4, 4, 4), "nearest")
    np.testing.assert_array_equal(painted, np.arange(8.0).reshape(2, 2, 2).repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_resampling_to_spacing():
    """n * spacing / target voxels, rounded down, for volumes with an affine."""
    processor = ItemizedCLIPImageProcessor.from_domain("chest-ct", accept=REFUSALS, scan_size=[64, 64, 64], fit="crop")
    array = np.full((30, 20, 10), -1150, dtype=np.float32)
    array[10:20, 5:15, 3:7] = 350
    scan = processor.process_study(Scan(array, np.diag([-1.5, -2.0, 5.0, 1.0]), "s"), do_normalize=False)[0]
    assert abs(scan.pixel_values.sum().item() - 10 * 1.5 * 10 * 2.0 * 4 * 5 / 3) < 400
    np.testing.assert_allclose(
        np.linalg.norm((np.diag([-1.5, -2.0, 5.0, 1.0]) @ scan.to_source)[:3, :3], axis=0)[0], 50 / 16
    )


@pytest.mark.parametrize("suffix", ["mri_tcga_fg_6692/flair.nii.gz", "mri_decubitus_hfs/t1_sag.nii.gz"])
def test_real_series_keep_their_world(suffix):
    nibabel = pytest.importorskip("nibabel")
    path = DATA / "volumes" / suffix
    if not path.exists():
        pytest.skip(f"{path} is not at hand; set ITEMIZED_CLIP_DATA")
    processor = ItemizedCLIPImageProcessor.from_domain("brain-mri", scan_size=[8, 32, 32], in_plane_size=36)
    image = nibabel.load(path)
    expected = processor.process_study(str(path))[0]
    moved, affine = stored_otherwise(np.asarray(image.dataobj), image.affine, (1, 2, 0), (True, False, True))
    got = processor.process_study(Scan(moved, affine, expected.name))[0]
    torch.testing.assert_close(got.pixel_values, expected.pixel_values, atol=1e-5, rtol=0)
