"""MONAI's MetaTensor in, in every layout of its transforms: the same pixels and places as the file itself."""

import numpy as np
import pytest
import torch

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.explain.encoded import explain_result

data = pytest.importorskip("monai.data")
transforms = pytest.importorskip("monai.transforms")


@pytest.fixture
def path(write_volume):
    affine = np.array([[-2.0, 0.1, 0, 80], [0.1, 2.0, 0, -90], [0, 0, 6.0, -30], [0, 0, 0, 1]])
    return write_volume("AX_T1.nii.gz", affine=affine)


@pytest.fixture(params=["RPI", None])
def oriented(request, tokenizer):
    """With the domain's orientation, and without any: the depth comes first in both."""
    settings = {"scan_size": [8, 16, 16], "in_plane_size": 16, "orientation": request.param}
    return ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, **settings)


def pixels(processor, image) -> torch.Tensor:
    return processor(images=[image], return_tensors="pt")["pixel_values"]


def test_a_tensor_of_the_file_is_the_file(oriented, path):
    expected = pixels(oriented, str(path))
    loaded = transforms.LoadImage(image_only=True)(str(path))
    channel_first = transforms.EnsureChannelFirst()(loaded)
    assert loaded.ndim == 3 and channel_first.ndim == 4
    for tensor in (loaded, channel_first, channel_first.to(torch.float64)):
        torch.testing.assert_close(pixels(oriented, tensor), expected)


def test_other_axes_are_the_same_study(processor, path):
    """Whatever Orientation made of it: the processor brings it back to the domain's."""
    loaded = transforms.EnsureChannelFirst()(transforms.LoadImage(image_only=True)(str(path)))
    expected = pixels(processor, str(path))
    for codes in ("RAS", "LPS", "SAL"):
        turned = transforms.Orientation(axcodes=codes, labels=(("L", "R"), ("P", "A"), ("I", "S")))(loaded)
        torch.testing.assert_close(pixels(processor, turned), expected)


def test_lps_is_brought_to_ras(processor, path):
    loaded = transforms.LoadImage(image_only=True)(str(path))
    flipped = data.MetaTensor(
        loaded.as_tensor(),
        torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)) @ loaded.affine,
        {"space": "LPS"},
    )
    torch.testing.assert_close(pixels(processor, flipped), pixels(processor, str(path)))


def test_maps_of_a_tensor_lie_where_those_of_the_file_lie(make_model, processor, path):
    tensor = transforms.EnsureChannelFirst()(transforms.LoadImage(image_only=True)(str(path)))
    model = make_model(2)
    for_file = explain_result(model, processor, {"AX_T1": str(path)}, ["a mass"])
    for_tensor = explain_result(model, processor, {"AX_T1": tensor}, ["a mass"])
    assert for_tensor.findings[0].score == pytest.approx(for_file.findings[0].score, abs=1e-6)
    np.testing.assert_allclose(for_tensor.peak(0, 0), for_file.peak(0, 0), atol=1e-6)
    (own,), (theirs,) = for_tensor.heat_maps(0), for_file.heat_maps(0)
    np.testing.assert_allclose(own.values, theirs.values, atol=1e-5)
    np.testing.assert_allclose(own.affine, theirs.affine, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "meta", "words"),
    [((4, 9, 8, 7), {}, "4 channels"), ((1, 1, 9, 8, 7), {}, "5 axes"), ((9, 8, 7), {"space": "SCREEN"}, "RAS or LPS")],
)
def test_what_cannot_be_told_is_refused(processor, shape, meta, words):
    with pytest.raises(ValueError, match=words):
        pixels(processor, data.MetaTensor(torch.rand(shape), torch.eye(4), meta))


def test_a_batch_is_refused(processor):
    batch = data.MetaTensor(torch.rand(1, 9, 8, 7), torch.eye(4))
    batch.is_batch = True
    with pytest.raises(ValueError, match="decollate_batch"):
        pixels(processor, batch)
