"""Forms of input, and what is said about bad ones."""

import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ITEMS

from itemized_clip_hf import ItemizedCLIPImageProcessor, ItemizedCLIPProcessor
from itemized_clip_hf.data.readers.nifti import read_nifti
from itemized_clip_hf.data.readers.read import read_file
from itemized_clip_hf.domains import available_domains, load_domain

SMALL = {"scan_size": [8, 16, 16], "in_plane_size": 16}


@pytest.fixture
def brain(tokenizer):
    return ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, **SMALL)


def volume(seed=0, shape=(6, 18, 20)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_studies_of_different_sizes(brain, write_volume):
    path = str(write_volume("AX_T2.nii.gz"))
    batch = brain(
        images=[
            {"AX_T1": volume(0), "AX_FLAIR": torch.from_numpy(volume(1))},
            [volume(2)],
            [path, volume(3), volume(4)],
        ],
        text=[ITEMS[:2], ITEMS[2:3], ITEMS[3:]],
        return_tensors="pt",
    )
    assert list(batch) == brain.model_input_names
    assert batch["pixel_values"].shape == (3, 3, 1, 8, 16, 16)
    assert batch["scan_mask"].tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert batch["scan_name_ids"].shape == (3, 3, 110)
    assert batch["item_mask"].tolist() == [[True, True], [True, False], [True, False]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 2, batch["input_ids"].shape[-1])
    # the file's name is the sequence name
    alone = brain.image_processor({"AX_T2": volume(3)}, return_tensors="pt")["scan_name_ids"]
    assert torch.equal(batch["scan_name_ids"][2, 0], alone[0, 0])


def test_one_scan_one_study_or_many(brain):
    assert brain(images=volume(), return_tensors="pt")["pixel_values"].shape[:2] == (1, 1)
    assert brain(images=[volume(), volume(1)], return_tensors="pt")["pixel_values"].shape[:2] == (1, 2)
    chest = ItemizedCLIPImageProcessor.from_domain("chest-ct", scan_size=[8, 16, 16])
    assert chest([volume(), volume(1)], return_tensors="pt")["pixel_values"].shape[:2] == (2, 1)
    pictures = ItemizedCLIPImageProcessor.from_domain("remote-sensing")
    assert pictures([Image.new("RGB", (300, 200))] * 3, return_tensors="pt")["pixel_values"].shape == (
        3,
        1,
        3,
        1,
        224,
        224,
    )


def test_prompts_are_shared(brain):
    encoded = brain(text=ITEMS, return_tensors="pt")
    assert encoded["input_ids"].ndim == 2 and encoded["item_mask"].all()
    assert brain(text=ITEMS[0])["input_ids"].shape[0] == 1


def test_head_ct_shows_every_series_in_three_windows():
    processor = ItemizedCLIPImageProcessor.from_domain("head-ct", **SMALL)
    hounsfield = np.linspace(-1000, 2000, 6 * 18 * 20).reshape(6, 18, 20).astype(np.float32)
    scans = processor.process_study({"head_AX": hounsfield}, do_normalize=False, do_resize=False)
    assert [scan.name for scan in scans] == ["head_AX_BrainWindow", "head_AX_BloodWindow", "head_AX_BoneWindow"]
    for scan, (low, high) in zip(scans, ((0, 80), (-20, 180), (-800, 2000))):
        expected = np.clip((hounsfield - low) / (high - low), 0, 1)
        np.testing.assert_allclose(scan.pixel_values[0], expected, atol=1e-6)


def test_mri_percentiles():
    processor = ItemizedCLIPImageProcessor.from_domain("brain-mri", do_resize=False, do_normalize=False)
    array = np.random.default_rng(0).gamma(2, 100, (6, 30, 30)).astype(np.float32)
    got = processor.process_study(array)[0].pixel_values[0].numpy()
    low, high = np.percentile(array, [0.5, 99.5])
    np.testing.assert_allclose(got, np.clip((array - low) / (high - low), 0, 1), atol=1e-5)


def test_picture_preset_matches_the_usual_pipeline():
    """Shortest side to 224 bicubic, centre crop, CLIP's constants."""
    array = np.random.default_rng(0).integers(0, 255, (260, 320, 3), dtype=np.uint8)
    processor = ItemizedCLIPImageProcessor.from_domain("natural-images")
    resized = np.asarray(Image.fromarray(array).resize((276, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    expected = (resized[:, 26:250] / 255 - processor.image_mean) / processor.image_std
    for picture in (Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1)):
        got = processor(picture, return_tensors="pt")["pixel_values"][0, 0, :, 0]
        np.testing.assert_allclose(got.permute(1, 2, 0), expected, atol=1e-5)


def test_random_crops_stay_in_range_and_repeat():
    processor = ItemizedCLIPImageProcessor.from_domain("remote-sensing", scan_size=[1, 32, 32])
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    crops = [processor.process_study(picture, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(crops[0].pixel_values, crops[1].pixel_values)
    assert not torch.equal(crops[0].pixel_values, crops[2].pixel_values)
    for seed in range(50):
        to_source = processor.process_study(picture, torch.Generator().manual_seed(seed))[0].to_source
        area = to_source[1, 1] * 32 * to_source[2, 2] * 32 / 64**2
        assert 0.85 < area <= 1.0
        corner = to_source @ [0, 31, 31, 1]
        assert (corner[1:3] <= 63.5).all()


def test_items_longer_than_the_context(brain):
    from transformers.utils import logging

    logger = logging.get_logger("itemized_clip_hf.processing.processing_itemized_clip")
    seen = []
    logger.addFilter(lambda record: seen.append(record.getMessage()) or True)
    encoded = brain(text=["mass " * 100, "mass"])
    assert encoded["input_ids"].shape[1] == 24
    assert any("1 of 2 items were cut to the context of 24 tokens" in message for message in seen)


def test_chest_items_are_lower_cased(tokenizer):
    chest = ItemizedCLIPProcessor.from_domain("chest-ct", tokenizer=tokenizer)
    assert chest.lowercase and not ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer).lowercase


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((20, 20), np.float32), "expected a volume with three axes"),
        (volume(shape=(2, 5, 6, 7)), "A series of volumes has to be split"),
        (np.full((4, 5, 6), np.nan, np.float32), "120 voxels that are NaN or infinite, of 120"),
        (np.full((4, 5, 6), 7.0, np.float32), "is constant \\(every voxel is 7.0\\)"),
        (Image.new("RGB", (20, 20)), "is a picture; this processor takes volumes"),
        (np.zeros((0, 5, 5), np.float32), "is empty"),
        ([], "is empty"),
        ({}, "at least one scan"),
        ("nowhere.nii.gz", "there is no file or folder nowhere.nii.gz"),
    ],
)
def test_bad_volumes(brain, image, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        brain(images=image)


def test_volume_for_a_picture(write_volume):
    processor = ItemizedCLIPImageProcessor.from_domain("remote-sensing")
    with pytest.raises(ValueError, match="a volume of \\(10, 24, 20\\) voxels was given for a picture"):
        processor(str(write_volume()))


@pytest.mark.parametrize(
    "text, message",
    [
        ([], "empty list"),
        ([["a"], []], "studies \\[1\\] have no item"),
        ([["a", "  "]], "1 of 2 items are blank"),
        ([["a", 3]], "items must be strings"),
    ],
)
def test_bad_items(brain, text, message):
    with pytest.raises(ValueError, match=message):
        brain(text=text)


def test_nothing_to_process(brain):
    with pytest.raises(ValueError, match="images.*text"):
        brain()


def test_unknown_domain(tokenizer):
    for make in (ItemizedCLIPImageProcessor.from_domain, load_domain):
        with pytest.raises(ValueError, match="unknown domain 'knee'.*brain-mri"):
            make("knee")
    with pytest.raises(ValueError, match="unknown domain"):
        ItemizedCLIPProcessor.from_domain("knee", tokenizer=tokenizer)


def test_truncated_file(write_volume):
    path = write_volume()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="scan.nii.gz cannot be read: it is truncated"):
        read_nifti(path)


def test_text_file_renamed(tmp_path):
    path = tmp_path / "report.nii.gz"
    path.write_bytes(gzip.compress(b"not an image"))
    with pytest.raises(ValueError, match="cannot be read"):
        read_nifti(path)
    other = tmp_path / "notes.txt"
    other.write_text("x")
    with pytest.raises(ValueError, match="not a known kind of image file"):
        read_file(other)


def test_four_dimensions_need_a_choice(write_volume):
    array = np.random.default_rng(0).normal(size=(6, 7, 8, 3)).astype(np.float32)
    path = write_volume("dwi.nii.gz", array)
    with pytest.raises(ValueError, match="holds 3 volumes .* choose one with volume_index"):
        read_nifti(path)
    with pytest.raises(ValueError, match="there is no volume 3"):
        read_nifti(path, 3)
    np.testing.assert_array_equal(read_nifti(path, 1).array, array[..., 1].T)


def test_picture_stored_as_nifti(write_volume):
    path = write_volume("localizer.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 1)).astype(np.float32))
    with pytest.raises(ValueError, match="that is a picture, expected a volume"):
        read_nifti(path)


def test_folder_with_one_bad_file(brain, write_volume, tmp_path):
    write_volume("AX_T1.nii.gz")
    write_volume("AX_T2.nii.gz", seed=1)
    (tmp_path / "AX_FLAIR.nii.gz").write_bytes(b"\x1f\x8b broken")
    study = read_file(tmp_path)
    assert list(study.scans) == ["AX_T1", "AX_T2"]
    assert [skipped.scan for skipped in study.skipped] == ["AX_FLAIR.nii.gz"]
    assert brain(images=str(tmp_path), return_tensors="pt")["pixel_values"].shape[1] == 2


@pytest.mark.parametrize("domain", available_domains())
def test_saved_and_loaded(domain, tokenizer, tmp_path):
    from transformers import AutoProcessor

    from itemized_clip_hf import ItemizedCLIPModel  # noqa: F401  registers

    processor = ItemizedCLIPProcessor.from_domain(domain, tokenizer=tokenizer)
    processor.save_pretrained(tmp_path)
    again = ItemizedCLIPProcessor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert again.lowercase == processor.lowercase
    assert again.tokenizer.model_max_length == processor.tokenizer.model_max_length
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "ItemizedCLIPProcessor"


def test_quarter_turns_carry_their_transform():
    from itemized_clip_hf.processing.pictures_itemized_clip import rot90_flip

    picture = torch.arange(25.0).view(1, 5, 5)
    seen = set()
    for seed in range(60):
        turned, transform = rot90_flip(picture, torch.Generator().manual_seed(seed))
        seen.add(tuple(turned.flatten().tolist()))
        for row, column in np.ndindex(5, 5):
            _, y, x, _ = np.rint(transform @ [0, row, column, 1]).astype(int)
            assert turned[0, row, column] == picture[0, y, x]
    assert len(seen) == 8


def test_turns_under_their_former_name(tokenizer, tmp_path):
    """Folders written before hold `train_turns`: it is read, wins or loses as before, and is saved under the present name."""
    processor = ItemizedCLIPProcessor.from_domain("remote-sensing", tokenizer=tokenizer, train_rot90_flip=True)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    written = json.loads(path.read_text())
    written["image_processor"]["train_turns"] = written["image_processor"].pop("train_rot90_flip")
    path.write_text(json.dumps(written))
    again = ItemizedCLIPProcessor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert again.preprocessing() == processor.preprocessing() and not hasattr(again.image_processor, "train_turns")
    picture = np.random.default_rng(0).integers(0, 255, (224, 224, 3)).astype(np.uint8)
    crops = [
        one.image_processor.process_study(picture, torch.Generator().manual_seed(3))[0] for one in (processor, again)
    ]
    assert torch.equal(crops[0].pixel_values, crops[1].pixel_values)
    for name in ("train_turns", "train_rot90_flip"):
        written = processor.image_processor.to_dict()
        assert not ItemizedCLIPImageProcessor.from_dict(written, **{name: False}).train_rot90_flip
    with pytest.raises(ValueError, match="train_turns is True and train_rot90_flip is False, expected one"):
        ItemizedCLIPImageProcessor(train_turns=True, train_rot90_flip=False)


def test_constants_have_to_fit_the_channels():
    processor = ItemizedCLIPImageProcessor(num_channels=1, scan_size=[1, 16, 16])
    with pytest.raises(ValueError, match="3 values for 1 channels"):
        processor(np.zeros((16, 16), np.uint8))


@pytest.mark.parametrize("domain", [None, "brain-mri", "chest-ct", "remote-sensing"])
def test_settings_do_not_change_in_a_round_trip(domain):
    processor = ItemizedCLIPImageProcessor.from_domain(domain) if domain else ItemizedCLIPImageProcessor()
    saved = processor.to_dict()
    again = ItemizedCLIPImageProcessor.from_dict(json.loads(json.dumps(saved))).to_dict()
    assert again == saved and not any(isinstance(value, tuple) for value in saved.values())


@pytest.mark.parametrize(
    ("domain", "shape", "words"),
    [("chest-ct", (8, 16, 16), "taken for HU"), ("remote-sensing", (3, 32, 32), "as if they were 0 to 255")],
)
def test_values_in_the_unit_interval_are_said(domain, shape, words, messages):
    """HU and 8-bit values are never all in [0, 1]: what was scaled before is taken as it is, with a word."""
    processor = ItemizedCLIPImageProcessor.from_domain(domain)
    scaled = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    processor(scaled)
    assert len(messages) == 1 and "values in [0, 1]" in messages[0] and words in messages[0]
    messages.clear()
    processor(scaled * 200)
    processor(scaled, do_rescale=False)
    ItemizedCLIPImageProcessor.from_domain("brain-mri")(np.random.default_rng(0).uniform(0, 1, (8, 16, 16)))
    assert not any("[0, 1]" in message for message in messages)
