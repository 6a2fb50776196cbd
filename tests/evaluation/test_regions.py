"""Segmentation, regions to texts and grounding on studies whose masks are known."""

import numpy as np
import pytest
import torch
from tiny_models import ITEMS

from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.evaluation.encode import encode_studies, encode_texts
from itemized_clip_hf.evaluation.grounding import energy_in_mask, patch_curves, swap_margins
from itemized_clip_hf.evaluation.region_to_text import rank_texts
from itemized_clip_hf.evaluation.tasks.segmentation import compare_with_mask, mark, mask_on_scan, segment
from itemized_clip_hf.explain.maps import HeatMap, explain_study, paint_tokens, touched_tokens

AFFINE = np.array([[0, 0, -2.0, 40], [0, -2.0, 0, 40], [4.0, 0, 0, -20], [0, 0, 0, 1]])


def study(seed=0, names=("T1", "FLAIR")):
    generator = np.random.default_rng(seed)
    return {name: Scan(generator.normal(100, 20, (8, 16, 16)).astype(np.float32), AFFINE, name) for name in names}


def heat_map(tokens, shape=(8, 16, 16)):
    matrix = np.diag([*(t / s for t, s in zip(tokens.shape, shape)), 1.0])
    matrix[:3, 3] = [0.5 * t / s - 0.5 for t, s in zip(tokens.shape, shape)]
    return HeatMap("item", "FLAIR", np.zeros(shape), AFFINE, np.zeros(shape), 1.0, tokens, matrix)


def test_tokens_and_voxels():
    """Painting blocks and asking which blocks a mask touches are inverse to each other."""
    tokens = np.zeros((2, 2, 2), bool)
    tokens[0, 1, 0] = tokens[1, 1, 1] = True
    heat = heat_map(tokens.astype(float))
    voxels = paint_tokens(tokens, heat.voxel_to_token, (8, 16, 16))
    expected = tokens.repeat(4, 0).repeat(8, 1).repeat(8, 2)
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_array_equal(touched_tokens(voxels, heat.voxel_to_token, (2, 2, 2)), tokens)


def test_iou_of_a_planted_map():
    tokens = np.random.default_rng(0).random((2, 4, 4))
    heat = heat_map(tokens)
    found = mark(heat, 5)
    order = np.argsort(-tokens.ravel())[:5]
    assert set(np.flatnonzero(found.tokens)) == set(order) and found.voxels.sum() == 5 * 4 * 4 * 4
    perfect = compare_with_mask(found, found.voxels)
    assert perfect["iou"] == perfect["dice"] == 1 and perfect["coverage"] == 1
    mask = np.zeros((8, 16, 16), bool)
    mask[:4, :8, :8] = True
    figures = compare_with_mask(found, mask, draws=3000)
    overlap = (found.voxels & mask).sum()
    assert figures["iou"] == pytest.approx(overlap / (found.voxels.sum() + mask.sum() - overlap))
    assert figures["dice"] == pytest.approx(2 * overlap / (found.voxels.sum() + mask.sum()))
    # Of 32 tokens the mask is made of 4; 5 are drawn.
    from math import comb

    chance = sum(comb(4, k) * comb(28, 5 - k) / comb(32, 5) * (k / (9 - k)) for k in range(5))
    assert figures["chance_iou"] == pytest.approx(chance, abs=0.01)
    with pytest.raises(ValueError, match="the mask is empty"):
        compare_with_mask(found, mask & False)


def test_mask_in_another_grid(ready):
    model, processor = ready
    heat = segment(model, processor, study(), "bleed", "flair", 4).heat
    mask = np.zeros((8, 16, 16), np.uint8)
    mask[2:5, 3:9, 4:12] = 2
    order = (2, 0, 1)
    flipped = mask.transpose(order)[::-1].copy()
    moved = np.zeros((4, 4))
    moved[3, 3] = 1
    for new, old in enumerate(order):
        moved[old, new] = 1
    back = np.diag([-1.0, 1, 1, 1])
    back[0, 3] = flipped.shape[0] - 1
    other = Scan(flipped, AFFINE @ moved @ back)
    np.testing.assert_array_equal(mask_on_scan(other, heat), mask > 0)
    np.testing.assert_array_equal(mask_on_scan(Scan(mask, AFFINE), heat), mask > 0)
    with pytest.raises(ValueError, match="without geometry they cannot be aligned"):
        mask_on_scan(Scan(mask[:4], None), heat)


def test_series_is_named_once(ready):
    model, processor = ready
    assert segment(model, processor, study(), "bleed", "FLAIR", 4).tokens.sum() == 4
    with pytest.raises(ValueError, match="0 of the scans .* are called 'SWI'"):
        segment(model, processor, study(), "bleed", "SWI")
    with pytest.raises(ValueError, match="2 of the scans"):
        segment(model, processor, study(names=("FLAIR_1", "FLAIR_2")), "bleed", "flair")
    assert segment(model, processor, study(names=("T1C", "T1")), "bleed", "t1").heat.scan_name == "T1"
    assert segment(model, processor, study(names=("AX_T1C", "AX_T1")), "bleed", "t1").heat.scan_name == "AX_T1"


def test_region_to_text_by_hand(ready):
    model, processor = ready
    texts = [
        f"{side} {place} {what}"
        for side in ("left", "right")
        for place in ("frontal", "small")
        for what in ("mass", "lobe")
    ]
    mask = np.zeros((8, 16, 16), bool)
    mask[1:3, 2:5, 9:12] = True
    ranked = rank_texts(model, processor, study(), texts, {"FLAIR": mask}, top=12)
    heat = explain_study(model, processor, study(), ["x"])[1]
    keep = torch.cat([torch.zeros(8, dtype=torch.bool), torch.from_numpy(heat.touched_tokens(mask)).flatten()])
    assert keep.sum() == 1
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        out = model(**processor(images=[study()], text=texts, return_tensors="pt"))
        query = unit(out.item_embeds, dim=-1)
        pooled = model.item_pooler(query[None], unit(out.image_tokens, dim=-1), keep[None, None, None])[0]
        scores = torch.cosine_similarity(pooled, query, dim=-1)
    assert [text for text, _ in ranked] == [texts[i] for i in scores.argsort(descending=True)]
    np.testing.assert_allclose([score for _, score in ranked], scores.sort(descending=True).values, atol=2e-5)
    box = [(1, 3), (2, 5), (9, 12)]
    again = rank_texts(model, processor, study(), texts, {"FLAIR": box}, 12, encode_texts(model, processor, texts))
    assert [text for text, _ in again] == [text for text, _ in ranked]
    (encoded,) = encode_studies(model, processor, [study()])
    model.vision_model = None  # it is not passed through again
    assert rank_texts(model, processor, encoded, texts, {"FLAIR": mask}, top=12) == ranked
    with pytest.raises(ValueError, match=r"has no scan \['SWI'\]"):
        rank_texts(model, processor, encoded, texts, {"SWI": mask})
    with pytest.raises(ValueError, match="does not lie in a scan of"):
        rank_texts(model, processor, encoded, texts, {"T1": [(0, 9), (0, 2), (0, 2)]})
    model.config.scoring = "global"
    with pytest.raises(ValueError, match="its item pooler is untrained"):
        rank_texts(model, processor, encoded, texts, {"FLAIR": mask})
    model.config.scoring = "items"
    with pytest.raises(ValueError, match="touch no token"):
        rank_texts(model, processor, encoded, texts, {"T1": mask & False})


def test_energy_and_swap():
    tokens = np.zeros((2, 2, 2))
    tokens[0, 0, 0], tokens[1, 1, 1] = 3, 1
    first, second = (np.zeros((8, 16, 16), bool) for _ in range(2))
    first[0, 0, 0], second[7, 15, 15] = True, True
    inside, even = energy_in_mask([heat_map(tokens)], [first])
    assert inside == pytest.approx(0.75) and even == pytest.approx(1 / 8)
    other = np.zeros((2, 2, 2))
    other[1, 1, 1] = 1
    margins = swap_margins([[heat_map(tokens)], [heat_map(other)]], [[first], [second]])
    assert margins[0, 1] == pytest.approx(0.75 - 0) and margins[1, 0] == pytest.approx(1 - 0.25)
    assert np.isnan(np.diag(margins)).all()


def test_deletion_and_insertion(ready):
    """Ends of the curves are the whole and the blank study; in between, blanked patches are those of highest attention."""
    model, processor = ready
    inputs = processor(images=[study()], text=[ITEMS[:1]], return_tensors="pt")
    text = inputs.pop("input_ids"), inputs.pop("attention_mask")
    inputs.pop("item_mask")
    with torch.no_grad():
        embed = model.get_text_features(*text).pooler_output[0, 0]
        curves = patch_curves(model, inputs, embed, steps=4)
        whole = model.encode_images(**inputs)[1]
        blank = inputs["pixel_values"].mean((-3, -2, -1), keepdim=True).expand_as(inputs["pixel_values"])
        query = torch.nn.functional.normalize(embed, dim=0)[None]

        def score(pixels):
            tokens = model.encode_images(**{**inputs, "pixel_values": pixels})[1]
            return model.score_items(query, torch.nn.functional.normalize(tokens, dim=-1))[0, 0].item()

        assert curves.deletion[0] == pytest.approx(score(inputs["pixel_values"]), abs=2e-5)
        assert curves.deletion[-1] == pytest.approx(score(blank), abs=2e-5)
        assert curves.insertion[0] == pytest.approx(curves.deletion[-1], abs=1e-6)
        assert curves.insertion[-1] == pytest.approx(curves.deletion[0], abs=1e-6)
        _, attention = model.item_pooler(query[None], whole, output_attentions=True)
        hottest = attention[0, 0].argsort(descending=True)[:4]
        pixels = inputs["pixel_values"].clone()
        for token in hottest.tolist():
            scan, rest = divmod(token, 8)
            d, h, w = rest // 4, rest // 2 % 2, rest % 2
            place = (0, scan, 0, slice(4 * d, 4 * d + 4), slice(8 * h, 8 * h + 8), slice(8 * w, 8 * w + 8))
            pixels[place] = blank[place]
        assert curves.deletion[1] == pytest.approx(score(pixels), abs=2e-5)
    assert curves.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    areas = curves.areas()
    expected = sum((a + b) / 2 * 0.25 for a, b in zip(curves.deletion, curves.deletion[1:]))
    assert areas["deletion"] == pytest.approx(expected)
