"""Masks as files -> a model that draws them; what cannot be used is left out, what does not fit is refused."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("monai")
pytest.importorskip("nibabel")

from itemized_clip_hf.data.studies.masks import UNKNOWN, read_mask_records
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.models.load import load_model
from itemized_clip_hf.models.segmenter import load_segmenter
from itemized_clip_hf.phantom import PhantomDataset, write_dataset
from itemized_clip_hf.trainer.augmentation import Augmentation
from itemized_clip_hf.trainer.supervised.masks import MaskCollator
from itemized_clip_hf.trainer.supervised.segmentation import SegmentationOptions, train_segmenter

QUICK = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 2, "save_strategy": "no"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_dataset(PhantomDataset("train", 4, shape=(8, 16, 16)), tmp_path_factory.mktemp("studies"))


def collate(processor, studies, **settings):
    records = read_mask_records(studies)
    collator = MaskCollator(processor, **settings)
    return [records[n] for n in range(len(records))], collator


def test_batches(processor, studies):
    records, collator = collate(processor, studies, max_items=3, drawn_scans=2)
    batch = collator([{**record, "seed": 5} for record in records])
    count, scans, items = batch["labels"].shape[:3]
    assert (count, scans) == (4, 4) and items <= 3 and batch["labels"].dtype == torch.uint8
    assert batch["input_ids"].shape[:2] == (4, items) == batch["item_mask"].shape
    known = (batch["labels"] != UNKNOWN).flatten(2).any(2)
    assert known.sum(1).tolist() == [2, 2, 2, 2], "two scans of each study are drawn"
    again = collator([{**record, "seed": 5} for record in records])
    assert torch.equal(again["labels"], batch["labels"]) and torch.equal(again["input_ids"], batch["input_ids"])
    whole = collator(records)
    assert ((whole["labels"] != UNKNOWN).flatten(2).any(2)).all(), "without a seed nothing is left out"
    empty = (whole["labels"] == 0).flatten(3).any(3) & ~(whole["labels"] == 1).flatten(3).any(3)
    assert empty.any(), "absent findings have empty masks"


def test_a_mask_that_cannot_be_read_leaves_its_study_out(processor, studies, tmp_path):
    records, _ = collate(processor, studies)
    collator = MaskCollator(processor, quarantine=tmp_path / "quarantine.csv")
    drawn = [record for record in records if any(record["masks"])]
    broken = {**drawn[0], "masks": [str(tmp_path / "none.nii.gz")] * len(drawn[0]["items"])}
    batch = collator([broken, drawn[1]])
    assert (batch["labels"][0] == UNKNOWN).all() and (batch["labels"][1] != UNKNOWN).any()
    assert "none.nii.gz" in (tmp_path / "quarantine.csv").read_text()
    assert collator.studies_left_out() == 1
    with pytest.raises(ValueError, match="max_items is 0"):
        MaskCollator(processor, max_items=0)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_masks_move_with_the_scans(processor, flip):
    """A scan that is bright where its mask is stays so; a mirrored one is of the other side."""
    rng = np.random.default_rng(0)
    truth = np.zeros((10, 40, 36), np.uint8)
    truth[3:7, 8:22, 4:14] = 1
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = 5, 2, 2, 1
    scan = Scan((rng.normal(100, 3, truth.shape) + 800.0 * truth).astype(np.float32), affine, "AX_T1")
    transforms = [{"RandAffined": {"prob": 1.0, "rotate_range": [0.2, 0, 0], "translate_range": [0, 2, 2]}}]
    transforms += [{"RandFlipd": {"prob": 1.0, "spatial_axis": "left-right"}}] if flip else []
    augmentation = Augmentation({"transforms": transforms, "swap_sides": bool(flip)})
    example = {"images": {"AX_T1": scan}, "items": ["left mass"], "masks": [Scan(truth, affine)], "absent": []}
    plain = MaskCollator(processor)([example])
    moved = MaskCollator(processor, augmentation=augmentation).prepare({**example, "seed": 3})
    labels, pixels = moved.target.labels[0, 0], moved.scans[0].pixel_values[0].numpy()
    bright = pixels > (pixels.min() + pixels.max()) / 2
    known = labels != UNKNOWN
    assert 2 * (bright & (labels == 1)).sum() / (bright[known].sum() + (labels == 1).sum()) > 0.8
    assert (labels != plain["labels"][0, 0, 0].numpy()).any()
    assert moved.target.texts == (["right mass"] if flip else ["left mass"])
    side = np.argwhere(labels == 1)[:, 2].mean() - 7.5
    assert side * (np.argwhere(plain["labels"][0, 0, 0].numpy() == 1)[:, 2].mean() - 7.5) * (-1 if flip else 1) > 0
    if flip:
        with pytest.raises(ValueError, match="leave out RandFlipd"):
            MaskCollator(processor, augmentation=augmentation, num_labels=2)


def test_the_decoder_learns_and_the_model_stays(model_folder, studies, tmp_path):
    options = SegmentationOptions(studies, tmp_path / "run", str(model_folder), studies, channels=4, max_items=2)
    trainer, results = train_segmenter(options, QUICK)
    assert trainer.state.global_step == 2 and trainer.studies_left_out == 0
    model, processor = load_segmenter(tmp_path / "run", "cpu")
    base = load_model(str(model_folder)).state_dict()
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in base.items())
    assert model.config.mask_decoder == {"mode": "items", "channels": 4, "item_dropout": 0.5}
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["trained"]["figures"]["all findings"]["dice"]["value"] is not None
    assert written["training"] == {"studies": 4, "left_out": 0} and results["task"] == "segmentation"
    assert load_model(str(tmp_path / "run")).config.mask_decoder["channels"] == 4, (
        "the folder is a model for scores, too"
    )


@pytest.mark.slow
def test_training_goes_on_with_a_decoder(model_folder, studies, tmp_path):
    train_segmenter(SegmentationOptions(studies, tmp_path / "run", str(model_folder), channels=4), QUICK)
    own = load_segmenter(tmp_path / "run", "cpu")[0].state_dict()
    more = SegmentationOptions(studies, tmp_path / "more", str(tmp_path / "run"), max_items=1)
    trainer, _ = train_segmenter(more, {**QUICK, "max_steps": 1})
    moved = trainer.model.state_dict()
    name = "mask_decoder.head.weight"
    assert not torch.equal(moved[name], own[name]) and torch.allclose(moved[name], own[name], atol=0.1)
    with pytest.raises(ValueError, match="--channels: the model has a mask decoder already"):
        train_segmenter(SegmentationOptions(studies, tmp_path / "no", str(tmp_path / "run"), channels=8), QUICK)


@pytest.mark.slow
def test_classes(model_folder, studies, tmp_path):
    lines = []
    for line in studies.read_text().splitlines():
        record = json.loads(line)
        if any(record["masks"]):
            mask = next(mask for mask in record["masks"] if mask)
            images = {name: str(studies.parent / path) for name, path in record["images"].items()}
            lines.append(json.dumps({"id": record["id"], "images": images, "label_map": str(studies.parent / mask)}))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    options = SegmentationOptions(
        tmp_path / "list.jsonl", tmp_path / "run", str(model_folder), classes=("finding",), channels=4, train="all"
    )
    trainer, _ = train_segmenter(options, QUICK)
    model, _ = load_segmenter(tmp_path / "run", "cpu")
    assert model.config.id2label == {0: "background", 1: "finding"} and model.mask_decoder.head.out_channels == 2
    assert not torch.equal(
        model.vision_model.embeddings.class_embedding,
        load_model(str(model_folder)).vision_model.embeddings.class_embedding,
    )


def test_what_is_refused(model_folder, studies, tmp_path, make_model):
    with pytest.raises(ValueError, match="expected an ItemizedCLIPForSemanticSegmentation"):
        load_segmenter(model_folder, "cpu")
    for changes, settings, told in (
        ({}, {"lora": "attention"}, "pass --train all"),
        ({"patience": 2}, {}, "--patience needs studies"),
        ({"train": "towers"}, {}, "expected 'decoder' or 'all'"),
        ({"classes": ("a",), "item_dropout": 0.5}, {}, "takes no items"),
        ({"channels": 5}, {}, "multiple of 4"),
    ):
        with pytest.raises(ValueError, match=told):
            options = SegmentationOptions(studies, tmp_path / "run", str(model_folder), **changes)
            train_segmenter(options, {**QUICK, **settings})
    model = make_model()
    model.config.scoring = "global"
    model.save_pretrained(tmp_path / "global")
    load_segmenter_free = load_model(str(tmp_path / "global"))
    from itemized_clip_hf.trainer.supervised.segmentation import require_pooler_for_items

    with pytest.raises(ValueError, match="item pooler is untrained"):
        require_pooler_for_items(load_segmenter_free, SegmentationOptions(studies, tmp_path, "global"))
