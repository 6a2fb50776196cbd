"""The processor in MONAI's own pipelines, and what comes back from ours as MetaTensor; nothing of MONAI is replaced."""

import importlib
import itertools
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

data = pytest.importorskip("monai.data")
transforms = pytest.importorskip("monai.transforms")

from monai.data.utils import pickle_hashing

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.data.readers.read import read_file
from itemized_clip_hf.explain.encoded import explain_result
from itemized_clip_hf.monai_transforms import ItemizedCLIPProcessd, to_meta_tensor
from itemized_clip_hf.processing.scans_itemized_clip import ProcessedScan
from itemized_clip_hf.recipes import load_recipe
from itemized_clip_hf.trainer.augmentation import Augmentation

PAGE = Path(__file__).parents[1] / "docs" / "monai.md"

NAMES = ("AX_T1", "AX_T2")
OBLIQUE = np.array([[-2.0, 0.1, 0, 80], [0.1, 2.0, 0, -90], [0, 0, 6.0, -30], [0, 0, 0, 1]])


@pytest.fixture
def studies(write_volume):
    """Three of them as lists for MONAI: paths, items, labels; the last one lacks a scan."""
    rows = []
    for number in range(3):
        paths = {
            name: str(write_volume(f"{number}/{name}.nii.gz", affine=OBLIQUE, seed=10 * number + i))
            for i, name in enumerate(NAMES)
        }
        rows.append(
            {"id": f"s{number}", **paths, "items": ["a small mass.", "no bleed."][: 1 + number % 2], "label": number}
        )
    del rows[2]["AX_T2"]
    return rows


@pytest.fixture
def processd(processor):
    return ItemizedCLIPProcessd(NAMES, processor, "items", max_scans=2, max_items=3, allow_missing_keys=True)


def expected_of(processor, row):
    return processor(
        images=[{name: row[name] for name in NAMES if name in row}], text=[row["items"]], return_tensors="pt"
    )


def check_batch(batch, rows, processor):
    for number, row in enumerate(rows):
        expected = expected_of(processor, row)
        scans, items = expected["pixel_values"].shape[1], len(row["items"])
        torch.testing.assert_close(torch.as_tensor(batch["pixel_values"][number][:scans]), expected["pixel_values"][0])
        assert batch["scan_mask"][number].tolist() == [True] * scans + [False] * (2 - scans)
        assert batch["item_mask"][number].tolist() == [True] * items + [False] * (3 - items)
        width = expected["input_ids"].shape[-1]
        assert torch.equal(torch.as_tensor(batch["input_ids"][number][:items, :width]), expected["input_ids"][0])
        assert int(batch["label"][number]) == row["label"] and batch["id"][number] == row["id"]


def test_compose_dataset_loader_and_back(studies, processd, processor, make_model):
    dataset = data.Dataset(studies, transforms.Compose([processd]))
    (batch,) = data.DataLoader(dataset, batch_size=3)
    check_batch(batch, studies, processor)
    single = data.decollate_batch(batch)
    assert [row["id"] for row in single] == ["s0", "s1", "s2"] and single[1]["pixel_values"].shape == (2, 1, 8, 16, 16)
    model = make_model()
    with torch.no_grad():
        together = model(
            **{name: torch.as_tensor(batch[name]) for name in processor.model_input_names if name in batch}
        )
        alone = model(**expected_of(processor, studies[1]))
    torch.testing.assert_close(together.logits_per_image[1, 3:5], alone.logits_per_image[0], atol=1e-5, rtol=1e-5)


def test_caches_threads_and_pickles(studies, processd, processor, tmp_path):
    chain = transforms.Compose([processd])
    assert pickle.loads(pickle.dumps(processd)).max_items == 3
    for dataset in (
        data.CacheDataset(studies, chain, progress=False, num_workers=1),
        data.PersistentDataset(studies, chain, cache_dir=tmp_path / "cache"),
        data.PersistentDataset(studies, chain, cache_dir=tmp_path / "cache"),  # from the files of the first
    ):
        (batch,) = data.ThreadDataLoader(dataset, batch_size=3, num_workers=0)
        check_batch(batch, studies, processor)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_cache_tells_processors_apart(studies, processor, tokenizer, tmp_path):
    other = ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, scan_size=[8, 24, 24], in_plane_size=24)
    settings = {"cache_dir": tmp_path / "cache", "hash_transform": pickle_hashing}
    for own, size in ((processor, 16), (other, 24), (processor, 16)):
        chain = transforms.Compose([ItemizedCLIPProcessd("AX_T1", own)])
        rows = [{"id": row["id"], "AX_T1": row["AX_T1"]} for row in studies]
        assert data.PersistentDataset(rows, chain, **settings)[0]["pixel_values"].shape[-1] == size
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_monai_loaded_and_changed_before(studies, processor):
    """LoadImaged and Orientationd, then ours: the same pixels as from the path."""
    row = studies[0]
    chain = transforms.Compose(
        [
            transforms.LoadImaged(NAMES, image_only=True),
            transforms.EnsureChannelFirstd(NAMES),
            transforms.Orientationd(NAMES, axcodes="LAI", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            ItemizedCLIPProcessd(NAMES, processor),
        ]
    )
    torch.testing.assert_close(chain(row)["pixel_values"], expected_of(processor, row)["pixel_values"][0])


def test_places_of_the_voxels(studies, processor):
    made = ItemizedCLIPProcessd("study", processor)({"study": {"AX_T1": studies[0]["AX_T1"]}})
    (scan,) = processor.image_processor.process_study({"AX_T1": studies[0]["AX_T1"]})
    np.testing.assert_allclose(made["scan_affines"][0], np.asarray(scan.source.affine) @ scan.to_source)
    assert "study" not in made


def test_refused(studies, processor):
    row = studies[0]
    with pytest.raises(ValueError, match="max_scans=1"):
        ItemizedCLIPProcessd(NAMES, processor, max_scans=1)(row)
    with pytest.raises(ValueError, match="more than the 1 slots"):
        ItemizedCLIPProcessd(NAMES, processor, "items", max_items=1)({**row, "items": ["a", "b"]})
    with pytest.raises(KeyError, match="AX_T2"):
        ItemizedCLIPProcessd(NAMES, processor)(studies[2])
    with pytest.raises(ValueError, match="none of the scans"):
        ItemizedCLIPProcessd(["FLAIR"], processor, allow_missing_keys=True)(row)
    with pytest.raises(ValueError, match="rename"):
        ItemizedCLIPProcessd(NAMES, processor)({**row, "pixel_values": 1})
    with pytest.raises(ValueError, match="max_items is 0"):
        ItemizedCLIPProcessd(NAMES, processor, max_items=0)


@pytest.mark.parametrize("channels", [0, 1])
def test_all_48_orientations_are_the_file(processor, write_volume, channels):
    """Permuted and flipped in every way, with the affine of that, with and without a channel: always the file's pixels."""
    path = write_volume("AX_T1.nii.gz", affine=OBLIQUE, shape=(9, 10, 6))
    expected = processor(images=[str(path)], return_tensors="pt")["pixel_values"]
    loaded = transforms.LoadImage(image_only=True)(str(path))
    volume, affine = loaded.numpy(), loaded.affine.numpy()
    seen = 0
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            index = np.zeros((4, 4))  # indices of the turned volume -> of the file
            index[3, 3] = 1
            for axis, old in enumerate(order):
                index[old, axis] = -1 if flips[axis] else 1
                index[old, 3] = volume.shape[old] - 1 if flips[axis] else 0
            turned = np.flip(volume.transpose(order), [axis for axis in range(3) if flips[axis]]).copy()
            tensor = data.MetaTensor(torch.from_numpy(turned), torch.from_numpy(affine @ index))
            tensor = tensor[None] if channels else tensor
            torch.testing.assert_close(processor(images=[tensor], return_tensors="pt")["pixel_values"], expected)
            seen += 1
    assert seen == 48


def test_a_tensor_that_never_had_an_affine_is_refused(processor):
    for tensor in (data.MetaTensor(torch.rand(9, 8, 7)), data.MetaTensor(torch.rand(1, 9, 8, 7))):
        with pytest.raises(ValueError, match="identity for its affine"):
            processor(images=[tensor], return_tensors="pt")


def test_an_identity_that_a_file_states_is_taken(processor, write_volume):
    path = write_volume("AX_T1.nii.gz", affine=np.eye(4))
    loaded = transforms.LoadImage(image_only=True)(str(path))
    expected = processor(images=[str(path)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor(images=[loaded], return_tensors="pt")["pixel_values"], expected)


def test_out_and_in_again(make_model, processor, write_volume):
    """A scan, its processed form and its heat maps, as MONAI would have loaded them from files."""
    path = write_volume("AX_T1.nii.gz", affine=OBLIQUE)
    loaded = transforms.EnsureChannelFirst()(transforms.LoadImage(image_only=True)(str(path)))
    scan = to_meta_tensor(read_file(str(path)))
    torch.testing.assert_close(scan.as_tensor(), loaded.as_tensor())
    torch.testing.assert_close(scan.affine, loaded.affine)
    result = explain_result(make_model(2), processor, {"AX_T1": loaded}, ["a mass"])
    (heat,) = result.heat_maps(0)
    heat_tensor = to_meta_tensor(heat)
    assert heat_tensor.shape == loaded.shape
    torch.testing.assert_close(heat_tensor.affine, loaded.affine)
    np.testing.assert_allclose(heat_tensor[0].numpy(), heat.values.transpose(2, 1, 0))
    (processed,) = processor.image_processor.process_study({"AX_T1": str(path)})
    made = to_meta_tensor(processed)
    assert made.shape == (1, 16, 16, 8)
    np.testing.assert_allclose(
        (made.affine.numpy() @ [3, 5, 2, 1])[:3],
        (np.asarray(processed.source.affine) @ processed.to_source @ [2, 5, 3, 1])[:3],
    )
    with pytest.raises(ValueError, match="no affine"):
        to_meta_tensor(processor.image_processor.process_study(np.random.rand(8, 16, 16))[0])


def test_without_monai_the_extra_is_named(monkeypatch):
    for name in ("monai", "monai.data", "monai.transforms"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "itemized_clip_hf.monai_transforms")
    with pytest.raises(ImportError, match=r"itemized-clip-hf\[monai\]"):
        importlib.import_module("itemized_clip_hf.monai_transforms")
    with pytest.raises(ImportError, match=r"itemized-clip-hf\[monai\]"):
        Augmentation({"transforms": ["RandGaussianNoised"]})


def test_every_block_of_the_page(write_volume, make_model, processor, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for name in ("t1", "t2"):
        write_volume(f"{name}.nii.gz", affine=OBLIQUE)
    make_model(2).save_pretrained(tmp_path / "my-model")
    processor.save_pretrained(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, PAGE.name, "exec"), names)
        else:
            Augmentation(yaml.safe_load(text)["training"]["augmentation"])
    assert capsys.readouterr().out.split("\n")[:3] == ["True", "torch.Size([1, 8]) tensor([1])", "4"]


@pytest.mark.parametrize("name", ["phantom", "brain-mri", "head-ct", "chest-ct"])
def test_lists_of_the_recipes_work(name):
    settings = load_recipe(name).variant("augmented").training["augmentation"]
    scan = ProcessedScan("AX", torch.rand(1, 12, 32, 32), np.eye(4), None)
    study = Augmentation(settings).apply([scan], ["mass on the left"], 1, "RPI")
    assert not torch.equal(study.scans[0].pixel_values, scan.pixel_values)
    assert ("RandFlipd" in str(settings)) == (name != "chest-ct")  # a mirrored heart is on the wrong side
