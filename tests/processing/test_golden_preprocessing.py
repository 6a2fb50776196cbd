"""The recorded preprocessing of the reference."""

import numpy as np
import pytest
import torch
from golden_cases import assert_close, case

from itemized_clip_hf import ItemizedCLIPImageProcessor
from itemized_clip_hf.data.studies.items import choose_items
from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.processing.sequence_names_itemized_clip import encode_scan_name
from itemized_clip_hf.processing.volumes_itemized_clip import fit_crop


def test_series_names():
    meta, tensors, _ = case("metrics_series_names")
    encoded = np.stack([encode_scan_name(name) for name in meta["strings"]])
    assert torch.equal(torch.from_numpy(encoded), tensors["out.ids"])


def test_missing_name_is_unk():
    assert encode_scan_name(None)[:4].tolist() == [21, 14, 11, 46]


@pytest.mark.parametrize("index", range(5))
def test_chest_ct(index):
    meta, tensors, _ = case("preproc_ct")
    volume = tensors[f"in.ct.{index}"]
    processor = ItemizedCLIPImageProcessor.from_domain("chest-ct", scan_size=meta["target"])
    out = processor(volume, return_tensors="pt")["pixel_values"][0]
    assert_close(out, tensors[f"out.ct.crop.{index}"], "crop", 1e-6)
    assert_close(out, tensors[f"out.ct.train_center.{index}"], "training, centred", 1e-6)
    stretched = processor(volume, fit="stretch", return_tensors="pt")["pixel_values"][0]
    assert_close(stretched, tensors[f"out.ct.resize.{index}"], "stretch", 1e-5)


@pytest.mark.parametrize("index", range(5))
def test_chest_ct_random_crop(index):
    meta, tensors, _ = case("preproc_ct")
    window = ((tensors[f"in.ct.{index}"] + 1150) / 1500).clamp(0, 1)
    offsets = meta["train_random"][index]["offsets"]
    cropped, _ = fit_crop(window, tuple(meta["target"]), offsets=offsets)
    assert_close((cropped - 0.449) / 0.226, tensors[f"out.ct.train_random.{index}"][0, 0], "random crop", 1e-6)


def test_chest_ct_reports():
    meta, _, _ = case("preproc_ct")
    chest = load_domain("chest-ct")
    for items, recorded in zip(meta["reports"].values(), meta["train_center"]):
        assert chest.is_normal(items) == recorded["is_normal"]
        kept = [item.lower() for item in choose_items(items, 4)]
        real = [item for item, real in zip(recorded["items"], recorded["textmask"]) if real]
        assert kept == real
    generator = torch.Generator().manual_seed(0)
    assert sorted(choose_items(list("abc"), 4, generator)) == list("abc")


@pytest.mark.parametrize("index", range(3))
def test_head_ct_stored_volumes(index):
    meta, tensors, _ = case("preproc_mri")
    names = ["Blood", "Bone", "Brain"]
    study = {
        f"MPR-AX_HEAD-protocol_{name}Window": tensors[f"in.mri.{index}.img_{name.lower()}"].numpy() for name in names
    }
    processor = ItemizedCLIPImageProcessor.from_domain("head-ct", do_resize=False)
    out = processor(study, return_tensors="pt")
    assert_close(out["pixel_values"][0], tensors[f"out.mri.{index}.volume"], "volume", 1e-6)
    assert torch.equal(out["scan_name_ids"][0], tensors[f"out.mri.{index}.series_ids"])


@pytest.mark.parametrize("index", range(3))
def test_pub_brain_5(index):
    meta, tensors, _ = case("preproc_mri")
    recipe = meta["pb5"]
    low, high = recipe["crop"]
    processor = ItemizedCLIPImageProcessor.from_domain(
        "brain-mri", scan_size=[recipe["slices"], high - low, high - low], in_plane_size=recipe["resize"]
    )
    out = processor({recipe["series_name"]: tensors[f"in.pb5.{index}"].numpy()}, return_tensors="pt")
    assert_close(out["pixel_values"][0], tensors[f"out.pb5.{index}"], "volume", 1e-6)
    assert torch.equal(out["scan_name_ids"][0], tensors[f"out.pb5.{index}.series_ids"])
