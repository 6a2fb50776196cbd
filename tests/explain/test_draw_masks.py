"""Masks in the grid of the scan as it came in: a model that marks what is bright, on scans whose bright places are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_config

pytest.importorskip("monai")
pytest.importorskip("nibabel")

from itemized_clip_hf import ItemizedCLIPForSemanticSegmentation, ItemizedCLIPProcessor
from itemized_clip_hf.data.readers.nifti import read_nifti
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.explain.mask_files import known_masks, list_masks, write_masks
from itemized_clip_hf.explain.masks import MaskOptions, draw_study
from itemized_clip_hf.modeling.segmentation_itemized_clip import ItemizedCLIPSegmentationOutput

ITEM = ["something bright"]


class Bright(ItemizedCLIPForSemanticSegmentation):
    """Marks voxels above 0 of the normalized scan, whatever the item; the second class of three, the same."""

    def forward(self, pixel_values, input_ids=None, **kwargs):
        self.shapes.append(tuple(pixel_values.shape))
        marked = torch.where(pixel_values[:, :, 0] > 0, 20.0, -20.0)[:, :, None]
        if input_ids is not None:
            return ItemizedCLIPSegmentationOutput(logits=marked.expand(-1, -1, input_ids.shape[-2], -1, -1, -1))
        return ItemizedCLIPSegmentationOutput(logits=torch.cat([-marked, marked, torch.full_like(marked, -90)], 2))


def build(mode="items", **vision):
    torch.manual_seed(0)
    config = tiny_config(**vision)
    config.mask_decoder = {"mode": mode, "channels": 4}
    if mode == "classes":
        config.id2label = {0: "background", 1: "bright", 2: "other"}
    model = Bright(config).eval()
    model.shapes = []
    return model


def box(shape, corner, size):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, low + width) for low, width in zip(corner, size))] = True
    return mask


def scan_with(mask, spacing=(5.0, 2.0, 2.0), name="AX_T1", flip=False):
    rng = np.random.default_rng(0)
    array = (rng.normal(100, 3, mask.shape) + 800 * mask).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = spacing
    affine[3, 3] = 1
    if flip:
        affine[0, 2] *= -1
    return Scan(array, affine, name)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture
def chest(tokenizer):
    own = ItemizedCLIPProcessor.from_domain("chest-ct", tokenizer=tokenizer, scan_size=[8, 16, 16])
    own.image_processor.accept = ("not-hu", "not-raw")  # a body of air is none
    return own


@pytest.mark.parametrize("flip", [False, True])
def test_masks_lie_where_the_scan_is_bright(processor, flip):
    truth = box((10, 40, 36), (3, 6, 20), (4, 12, 8))
    scan = scan_with(truth, flip=flip)
    drawn = draw_study(build(), processor, {"AX_T1": scan, "AX_T2": scan_with(truth, name="AX_T2")}, [*ITEM, "again"])
    assert [len(masks) for masks in drawn.masks] == [2, 2]
    for masks in drawn.masks:
        assert masks[0].values.shape == truth.shape and masks[0].values.dtype == np.uint8
        assert dice(masks[0].values > 0, truth) > 0.8 and dice(masks[1].values > 0, truth) > 0.8
        assert sum(mask.share for mask in masks) == pytest.approx(1)
    volume = drawn.masks[0][0].values.sum() * 5 * 2 * 2 / 1000
    assert drawn.masks[0][0].volume_ml == pytest.approx(volume)
    assert drawn.main(0) is max(drawn.masks[0], key=lambda mask: mask.share)


def ct(mask, spacing=(3.0, 1.0, 1.0)):
    scan = scan_with(mask, spacing, "chest")
    scan.array = np.where(mask, 300.0, -1000.0).astype(np.float32) + scan.array / 100
    scan.modality = "CT"
    return scan


def test_a_large_scan_is_drawn_window_by_window(chest):
    truth = box((20, 50, 60), (14, 38, 2), (4, 9, 10))  # outside of the field in the center
    model = build()
    drawn = draw_study(model, chest, ct(truth), ITEM)
    assert len(model.shapes) > 1 and all(shape[3:] == (8, 16, 16) for shape in model.shapes)
    (mask,) = drawn.masks[0]
    assert dice(mask.values > 0, truth) > 0.9 and mask.field == 1 and not drawn.notes


def test_of_several_large_scans_the_field_alone_is_drawn_and_said(chest):
    truth = box((20, 50, 60), (14, 38, 2), (4, 9, 10)) | box((20, 50, 60), (8, 20, 26), (4, 6, 6))
    drawn = draw_study(build(), chest, {"one": ct(truth), "two": ct(truth)}, ITEM)
    mask = drawn.masks[0][0]
    assert mask.values[8:12, 20:26, 26:32].mean() > 0.8 and not mask.values[14:18, 38:47, 2:12].any()
    assert mask.field == pytest.approx(8 * 16 * 16 / truth.size, rel=0.05)
    assert "outside of that masks are empty" in drawn.notes[0] and drawn.notes[0].startswith("one: ")


def test_windows_of_a_scan_make_one_mask(tokenizer):
    head = ItemizedCLIPProcessor.from_domain("head-ct", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16)
    head.image_processor.accept = ("not-hu", "not-raw")
    truth = box((20, 50, 60), (6, 10, 20), (8, 20, 20))
    model = build()
    drawn = draw_study(model, head, {"scan": ct(truth, (5.0, 4.0, 4.0))}, ITEM)
    windows = model.shapes[0][1]
    assert windows > 1 and [len(masks) for masks in drawn.masks] == [1]
    assert drawn.masks[0][0].share == pytest.approx(1) and dice(drawn.masks[0][0].values > 0, truth) > 0.7


def test_components_and_holes(processor):
    shape = (10, 40, 36)
    large, small = box(shape, (1, 5, 5), (8, 20, 20)), box(shape, (1, 30, 30), (8, 6, 5))
    hole = box(shape, (4, 12, 12), (2, 6, 6))
    study = {"AX_T1": scan_with((large | small) & ~hole)}

    def marked(**options):
        return draw_study(build(), processor, study, ITEM, MaskOptions(**options)).masks[0][0].values > 0

    plain, one, filled = marked(), marked(keep_largest=1), marked(keep_largest=1, fill_holes=True)
    assert plain[small].mean() > 0.5 and not one[small].any() and one[large].mean() > 0.5
    assert not one[hole].all() and filled[hole].all() and (filled >= one).all()
    for wrong, told in (
        ({"threshold": 1}, "threshold"),
        ({"keep_largest": 0}, "keep_largest"),
        ({"overlap": 1}, "overlap"),
    ):
        with pytest.raises(ValueError, match=told):
            MaskOptions(**wrong)


def test_classes_and_pictures(processor, tokenizer, tmp_path):
    truth = box((10, 40, 36), (3, 6, 20), (4, 12, 8))
    drawn = draw_study(build("classes"), processor, {"AX_T1": scan_with(truth)})
    (label_map,) = drawn.label_maps
    assert [masks[0].item for masks in drawn.masks] == ["bright", "other"] and set(np.unique(label_map)) == {0, 1}
    np.testing.assert_array_equal(label_map > 0, drawn.masks[0][0].values > 0)
    assert dice(label_map == 1, truth) > 0.8 and not drawn.masks[1][0].values.any()
    with pytest.raises(ValueError, match="pass no texts"):
        draw_study(build("classes"), processor, {"AX_T1": scan_with(truth)}, ITEM)
    with pytest.raises(ValueError, match="pass texts"):
        draw_study(build(), processor, {"AX_T1": scan_with(truth)})
    pictures = ItemizedCLIPProcessor.from_domain("remote-sensing", tokenizer=tokenizer, scan_size=[1, 32, 32])
    flat = box((20, 30), (4, 10), (5, 12))
    model = build(image_size=[1, 32, 32], patch_size=[1, 8, 8], num_channels=3)
    drawn = draw_study(model, pictures, np.repeat(flat[..., None] * np.uint8(255), 3, 2), ITEM)
    values = drawn.masks[0][0].values
    assert values.shape == (20, 30) and dice(values > 0, flat) > 0.8
    (entry,) = write_masks(tmp_path, "s", drawn)
    assert entry["file"].endswith(".png") and entry["volume_ml"] is None


def test_files(processor, tmp_path):
    truth = box((10, 40, 36), (3, 6, 20), (4, 12, 8))
    scan = scan_with(truth, flip=True)
    drawn = draw_study(build(), processor, {"AX_T1": scan}, ITEM)
    folder = tmp_path / "study"
    entries = write_masks(folder, "s1", drawn)
    written = read_nifti(entries[0]["file"])
    np.testing.assert_array_equal(written.array, drawn.masks[0][0].values)
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-5)
    assert written.array.dtype == np.uint8 and entries[0]["voxels"] == written.array.sum()
    list_masks(folder, {"id": "s1", "made_of": "x"}, entries)
    assert known_masks(folder, "x")["masks"] == entries and known_masks(folder, "y") is None
    (folder / "00_something-bright__AX_T1.nii.gz").unlink()
    assert known_masks(folder, "x") is None and known_masks(tmp_path / "none", "x") is None


def test_bad_scans_are_told(processor):
    truth = box((10, 40, 36), (3, 6, 20), (4, 12, 8))
    study = {"AX_T1": scan_with(truth), "AX_T2": SimpleNamespace(array=np.zeros((4, 4)), affine=np.eye(4))}
    told = []
    drawn = draw_study(build(), processor, study, ITEM, on_bad_scan=lambda name, error: told.append(name))
    assert told == ["AX_T2"] and "AX_T2 was left out" in drawn.notes[0] and len(drawn.masks[0]) == 1
