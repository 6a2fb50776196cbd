"""What holds for every volume: how its axes are stored does not matter, and tokens lie where the scanner saw them."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

nibabel = pytest.importorskip("nibabel")

from itemized_clip_hf import ItemizedCLIPImageProcessor
from itemized_clip_hf.data.open import REFUSALS
from itemized_clip_hf.data.readers.read import read_file

AFFINE = np.array([[-4.0, 0.3, 0.2, 70.0], [0.25, 4.5, -0.4, -80.0], [-0.3, 0.35, 9.0, -50.0], [0, 0, 0, 1]])
SHAPE = (36, 40, 13)
SETTINGS = {
    "brain-mri": {"scan_size": [8, 24, 24], "in_plane_size": 28},
    "head-ct": {"scan_size": [8, 24, 24], "in_plane_size": 28},
    "chest-ct": {"scan_size": [16, 48, 48], "spacing": [9, 4, 4]},
}
GRIDS = {"brain-mri": (2, 3, 3), "head-ct": (2, 3, 3), "chest-ct": (2, 4, 4)}
# RAS mm: away from the edges of the volume, with no symmetry between them.
LANDMARKS = {"right": (45.0, 12.0, 8.0), "front": (-8.0, 55.0, -6.0), "top": (14.0, -20.0, 36.0)}


def processor_of(domain: str) -> ItemizedCLIPImageProcessor:
    return ItemizedCLIPImageProcessor.from_domain(domain, accept=REFUSALS, **SETTINGS[domain])


def points_of(affine: np.ndarray, shape) -> np.ndarray:
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def volume(seed: int, affine=AFFINE, shape=SHAPE) -> np.ndarray:
    """Waves of the scanner's millimetres, rounded: -1024 (air) to 1000."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(0, 1 / 40, (3, 4))
    values = np.sin(points_of(affine, shape) @ waves + rng.uniform(0, 6, 4)).sum(-1)
    return np.rint(np.clip(400 * values - 200, -1024, 1000)).astype(np.int16)


def stored_as(array, affine, order, flips):
    """The same world, the axes of its array permuted and flipped; written down apart from the package's own transforms."""
    columns = affine[:3, :3].copy()
    origin = affine[:3, 3].copy()
    for axis in range(3):
        if flips[axis]:
            origin += columns[:, axis] * (array.shape[axis] - 1)
            columns[:, axis] *= -1
    moved = np.flip(array, [axis for axis in range(3) if flips[axis]]).transpose(order)
    stored = np.eye(4)
    stored[:3, :3], stored[:3, 3] = columns[:, order], origin
    return np.ascontiguousarray(moved), stored


def save(path, array, affine):
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("domain", SETTINGS)
def test_48_ways_to_store_a_nifti_file(tmp_path, domain):
    processor, array = processor_of(domain), volume(0)
    expected = processor.process_study(save(tmp_path / "scan.nii", array, AFFINE))
    assert len({one.pixel_values.unique().numel() > 50 for one in expected}) == 1
    for order, flips in product(permutations(range(3)), product([False, True], repeat=3)):
        got = processor.process_study(save(tmp_path / "scan.nii", *stored_as(array, AFFINE, order, flips)))
        assert [one.name for one in got] == [one.name for one in expected]
        for a, b in zip(got, expected):
            torch.testing.assert_close(a.pixel_values, b.pixel_values, atol=1e-5, rtol=0, msg=f"{order} {flips}")
            np.testing.assert_allclose(a.token_affine(GRIDS[domain]), b.token_affine(GRIDS[domain]), atol=1e-4)


def test_a_mirrored_world_gives_other_pixels(tmp_path):
    """The test above can fail: flipped voxels under the same affine are another patient."""
    processor, array = processor_of("head-ct"), volume(0)
    a = processor.process_study(save(tmp_path / "scan.nii", array, AFFINE))[0]
    b = processor.process_study(save(tmp_path / "scan.nii", array[::-1], AFFINE))[0]
    assert (a.pixel_values - b.pixel_values).abs().max() > 0.1


@pytest.mark.parametrize("domain", SETTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_random_volumes_in_random_order(tmp_path, domain, seed):
    rng = np.random.default_rng(seed)
    spacing = rng.permutation([2.0, 3.1, 5.3]) * rng.uniform(0.9, 1.1)
    turn, _ = np.linalg.qr(np.eye(3) + rng.normal(0, 0.12, (3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) * spacing
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    array = volume(seed, affine, tuple(rng.integers(20, 40, 3)))
    processor = processor_of(domain)
    expected = processor.process_study(save(tmp_path / "a.nii.gz", array, affine))
    moved = stored_as(array, affine, rng.permutation(3), rng.integers(0, 2, 3).astype(bool))
    for a, b in zip(processor.process_study(save(tmp_path / "a.nii.gz", *moved)), expected):
        torch.testing.assert_close(a.pixel_values, b.pixel_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("domain", SETTINGS)
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_tokens_to_scanner_and_back(tmp_path, domain, order):
    path = save(tmp_path / "scan.nii", *stored_as(volume(1), AFFINE, order, (True, False, True)))
    for scan in processor_of(domain).process_study(path):
        for grid in (GRIDS[domain], scan.pixel_values.shape[1:]):
            to_mm = scan.token_affine(grid)
            tokens = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3).astype(float)
            mm = tokens @ to_mm[:3, :3].T + to_mm[:3, 3]
            inverse = np.linalg.inv(to_mm)
            back = mm @ inverse[:3, :3].T + inverse[:3, 3]
            np.testing.assert_allclose(back, tokens, atol=1e-6)
            np.testing.assert_allclose(back @ to_mm[:3, :3].T + to_mm[:3, 3], mm, atol=1e-4)


@pytest.mark.parametrize("domain", SETTINGS)
def test_outer_faces_of_a_whole_scan_stay_in_place(tmp_path, domain):
    """Without crop or padding, the corners of the token grid are the corners of the file."""
    affine = np.diag([-4.0, 4.0, 9.0, 1.0]) + np.array([[0, 0, 0, 50.0], [0, 0, 0, -60], [0, 0, 0, -20], [0, 0, 0, 0]])
    settings = {"fit": "stretch", "spacing": None, "thickest_axis_first": False}
    processor = ItemizedCLIPImageProcessor.from_domain(domain, accept=REFUSALS, **{**SETTINGS[domain], **settings})
    scan = processor.process_study(save(tmp_path / "scan.nii", volume(2, affine), affine))[0]
    for grid in ((1, 1, 1), (2, 3, 3), (16, 48, 48)):
        to_mm = scan.token_affine(grid)
        faces = np.array(list(product(*((-0.5, n - 0.5) for n in grid)))) @ to_mm[:3, :3].T + to_mm[:3, 3]
        corners = np.array(list(product(*((-0.5, n - 0.5) for n in SHAPE)))) @ affine[:3, :3].T + affine[:3, 3]
        np.testing.assert_allclose(np.sort(faces, 0), np.sort(corners, 0), atol=1e-4)


@pytest.mark.parametrize("landmark", LANDMARKS)
@pytest.mark.parametrize("domain", SETTINGS)
@pytest.mark.parametrize("order, flips", [((0, 1, 2), (0, 0, 0)), ((2, 0, 1), (1, 0, 1)), ((1, 2, 0), (0, 1, 1))])
def test_landmarks_lie_where_the_source_affine_says(tmp_path, domain, landmark, order, flips):
    """A ball of bone in soft tissue: the centre of what the model sees of it, through the token affine, is its place in mm."""
    place = np.array(LANDMARKS[landmark])
    distance = np.linalg.norm(points_of(AFFINE, SHAPE) - place, axis=-1)
    array = np.rint(1000 * np.exp(-((distance / 11) ** 2))).astype(np.int16)
    path = save(tmp_path / "scan.nii", *stored_as(array, AFFINE, order, flips))
    source = read_file(path)
    peak = np.unravel_index(source.array.argmax(), source.array.shape)
    half_a_voxel = np.linalg.norm(source.spacing) / 2
    assert np.linalg.norm((source.affine @ [*peak, 1])[:3] - place) <= half_a_voxel
    processor = ItemizedCLIPImageProcessor.from_domain(
        domain,
        accept=REFUSALS,
        **{**SETTINGS[domain], "percentiles": [0, 100], "windows": None, "do_normalize": False},
    )
    scan = processor.process_study(path)[0]
    seen = scan.pixel_values[0].numpy().astype(float)
    seen[seen < 0.1] = 0
    grid = seen.shape
    centre = [(seen * axis).sum() / seen.sum() for axis in np.meshgrid(*map(np.arange, grid), indexing="ij")]
    found = scan.token_affine(grid) @ [*centre, 1]
    step = np.linalg.norm(scan.token_affine(grid)[:3, :3], axis=0).max()
    assert np.linalg.norm(found[:3] - place) < 0.6 * step, (found, place)
