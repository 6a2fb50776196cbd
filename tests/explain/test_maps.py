"""Heat maps: shares, units, tokens under a mask, pictures."""

import numpy as np
import pytest
import torch
from tiny_models import ITEMS

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.evaluation.grounding import PointingGame
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.explain.maps import explain_study, write_map
from itemized_clip_hf.explain.plots import display_slices, plot_item

AFFINE = np.diag([-3.0, 3.0, 8.0, 1.0])


@pytest.fixture
def explained(make_model, tokenizer):
    model = make_model()
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    rng = np.random.default_rng(0)
    study = {
        "AX_T1": Scan(rng.normal(100, 20, (20, 24, 12)).astype(np.float32), AFFINE, "AX_T1"),
        "SAG_T2": Scan(rng.normal(100, 20, (10, 30, 28)).astype(np.float32), np.diag([7.0, 2, 2, 1]), "SAG_T2"),
    }
    return explain_study(model, processor, study, ITEMS[:2]), study, model, processor


def test_every_item_in_every_scan(explained):
    maps, study, model, processor = explained
    assert [(heat.item, heat.scan_name) for heat in maps] == [(i, s) for i in ITEMS[:2] for s in study]
    for heat in maps:
        assert heat.values.shape == heat.source.shape == study[heat.scan_name].array.shape
        np.testing.assert_array_equal(heat.affine, study[heat.scan_name].affine)
        assert (heat.values >= 0).all() and heat.values.max() > 0
    for k in range(2):
        of_item = maps[2 * k : 2 * k + 2]
        assert sum(heat.share for heat in of_item) == pytest.approx(1, abs=1e-5)
        # 1 is what even attention over the study gives
        assert np.mean([heat.tokens.mean() for heat in of_item]) == pytest.approx(1, abs=1e-5)


def test_maps_are_the_pooler_s_attention(explained):
    maps, study, model, processor = explained
    inputs = processor(images=study, text=ITEMS[:2], return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
        queries = torch.nn.functional.normalize(out.item_embeds, dim=-1)[None]
        _, attention = model.item_pooler(queries, out.image_tokens, output_attentions=True)
    attention = attention[0] / attention[0].sum(-1, keepdim=True) * attention.shape[-1]
    got = np.stack([heat.tokens for heat in maps]).reshape(2, -1)
    np.testing.assert_allclose(got, attention.numpy(), rtol=1e-4)


def test_maps_carry_the_similarity_that_predict_prints(explained):
    maps, study, model, processor = explained
    expected = score_studies(model, processor, [study], ITEMS[:2])[1][0]
    np.testing.assert_allclose([heat.similarity for heat in maps], np.repeat(expected, 2), rtol=1e-5)


def test_headers_of_written_maps(explained, tmp_path):
    """Units, range and place, for viewers; the values are the map's."""
    nibabel = pytest.importorskip("nibabel")
    heat = explained[0][0]
    write_map(tmp_path / "map.nii.gz", heat)
    image = nibabel.load(tmp_path / "map.nii.gz")
    assert image.header.get_xyzt_units()[0] == "mm" and image.header["cal_min"] == 0
    assert float(image.header["cal_max"]) == pytest.approx(max(heat.values.max(), 1))
    assert b"mean attention" in image.header["descrip"].tobytes()
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), heat.values.transpose(2, 1, 0))


def test_tokens_under_a_mask(explained):
    heat = explained[0][0]
    assert heat.touched_tokens(np.ones(heat.source.shape, bool)).all()
    inverse = np.linalg.inv(heat.voxel_to_token)
    for token in np.ndindex(heat.tokens.shape):
        voxel = np.rint(inverse @ [*token, 1])[:3].astype(int)
        mask = np.zeros(heat.source.shape, bool)
        if (voxel >= 0).all() and (voxel < mask.shape).all():
            mask[tuple(voxel)] = True
            touched = heat.touched_tokens(mask)
            assert touched.sum() == 1 and touched[token]


def test_pointing_game(explained):
    maps = explained[0][:2]
    game = PointingGame()
    hottest = max(maps, key=lambda heat: heat.tokens.max())
    place = np.unravel_index(hottest.tokens.argmax(), hottest.tokens.shape)
    voxel = np.rint(np.linalg.inv(hottest.voxel_to_token) @ [*place, 1])[:3].astype(int)
    masks = [np.zeros(heat.source.shape, bool) for heat in maps]
    for mask, heat in zip(masks, maps):
        if heat is hottest:
            mask[tuple(np.clip(voxel, 0, np.array(mask.shape) - 1))] = True
    game.add("found", maps, masks)
    game.add("missed", maps, [np.zeros(heat.source.shape, bool) for heat in maps])
    assert game.rates(["found"]) == (1, 1.0, pytest.approx(1 / (2 * hottest.tokens.size)))
    assert game.rates() == (2, 0.5, pytest.approx(1 / (4 * hottest.tokens.size)))
    assert np.isnan(game.rates(["unknown"])[1])


def test_pictures(make_model, tokenizer, tmp_path):
    model = make_model(num_channels=3, image_size=[1, 32, 32], patch_size=[1, 8, 8])
    processor = ItemizedCLIPProcessor.from_domain("remote-sensing", tokenizer=tokenizer, scan_size=[1, 32, 32])
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    maps = explain_study(model, processor, picture, ITEMS[:1])
    assert maps[0].values.shape == (60, 80) and maps[0].affine is None
    # what the centre crop cut off was not seen
    assert not maps[0].values[:, :9].any() and maps[0].values[:, 11:69].all()
    plot_item(maps, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_plot_of_volumes(explained, tmp_path):
    maps, study, *_ = explained
    mask = np.zeros(study["AX_T1"].array.shape, bool)
    mask[5:10, 5:10, 5:8] = True
    plot_item(maps[:2], tmp_path / "item.png", [mask, None])
    assert (tmp_path / "item.png").stat().st_size > 1000


def test_slices_are_shown_the_usual_way():
    """Axial: front up, patient's left on the right. Sagittal and coronal: head up."""
    array = np.zeros((20, 22, 8))
    array[:, -1, :] = 1  # the front in RAS
    slices, aspect = display_slices(array, np.diag([1.0, 1, 5, 1]))
    assert slices.shape == (8, 22, 20) and slices[:, 0].all() and aspect == 1
    array = np.zeros((20, 22, 8))
    array[0] = 1  # patient's left in RAS is the low end
    slices, _ = display_slices(array, np.diag([1.0, 1, 5, 1]))
    assert slices[:, :, -1].all()
    array = np.zeros((6, 22, 20))
    array[:, :, -1] = 1  # the top in RAS
    slices, _ = display_slices(array, np.diag([5.0, 1, 1, 1]))
    assert slices.shape == (6, 20, 22) and slices[:, 0].all()


def test_a_heat_map_is_printed_in_one_line():
    from itemized_clip_hf.explain.maps import HeatMap

    heat = HeatMap(
        "a mass", "AX_T1", np.ones((8, 16, 16)), None, np.ones((8, 16, 16)), 0.25, np.ones((2, 2, 2)), np.eye(4)
    )
    assert repr(heat) == "HeatMap('a mass', scan 'AX_T1', 8 x 16 x 16, 25% of the attention)"
    heat.quantity, heat.score = "similarity", 0.1234
    assert repr(heat).endswith("of the attention, similarity 0.123)")
