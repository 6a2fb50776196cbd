"""Ragged batches: chosen, padded, masked, never duplicated; bad studies are left out and listed."""

import csv

import numpy as np
import pytest
import torch
from tiny_models import ITEMS

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.data.studies.items import choose_items, sample_diverse
from itemized_clip_hf.data.study import Skipped
from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.trainer.collator import ItemizedCLIPCollator
from itemized_clip_hf.trainer.sampler import SeededDataset, SeededSampler


@pytest.fixture
def processor(tokenizer):
    return ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16)


def example(index, scans, items, **more):
    return {
        "id": str(index),
        "pixel_values": torch.stack([torch.full((1, 8, 16, 16), 10.0 * index + n) for n in range(scans)]),
        "scan_names": [f"AX_{n}" for n in range(scans)],
        "items": items,
        **more,
    }


def test_scans_and_items_are_chosen_not_repeated(processor):
    collator = ItemizedCLIPCollator(processor, max_items=3, max_scans=4, is_normal=load_domain("brain-mri").is_normal)
    batch = collator([example(0, 9, ITEMS[:3] * 2, seed=5), example(1, 2, ITEMS[3:], seed=6)])
    assert batch["pixel_values"].shape == (2, 4, 1, 8, 16, 16)
    assert batch["scan_mask"].tolist() == [[True] * 4, [True, True, False, False]]
    chosen = batch["pixel_values"][0, :, 0, 0, 0, 0].tolist()
    assert len(set(chosen)) == 4 and chosen == sorted(chosen)
    assert batch["item_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["is_normal"].tolist() == [False, True]
    assert not batch["pixel_values"][1, 2:].any()


def test_every_scan_is_chosen_equally_often(processor):
    collator = ItemizedCLIPCollator(processor, max_items=1, max_scans=2)
    counts = np.zeros(5)
    for seed in range(500):
        values = collator([example(0, 5, ITEMS[:1], seed=seed)])["pixel_values"][0, :, 0, 0, 0, 0]
        counts[values.long()] += 1
    assert np.abs(counts - 200).max() < 50


def test_without_a_seed_nothing_is_random(processor):
    collator = ItemizedCLIPCollator(processor, max_items=2, max_scans=2)
    first, second = (collator([example(0, 5, ITEMS)]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["pixel_values"][0, :, 0, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(first["input_ids"], torch.as_tensor(processor(text=[ITEMS[:2]])["input_ids"]))


def test_repeat_reproduces_the_reference(processor):
    collator = ItemizedCLIPCollator(processor, max_items=2, max_scans=5, scan_fill="repeat")
    study = {
        "AX_T1": np.random.default_rng(0).normal(size=(6, 16, 16)),
        "AX_T2": np.random.default_rng(1).normal(size=(6, 16, 16)),
    }
    batch = collator([{"images": study, "items": ITEMS[:1], "seed": 1}])
    assert batch["scan_mask"].all() and batch["pixel_values"].shape[1] == 5
    assert torch.equal(batch["pixel_values"][0, 0], batch["pixel_values"][0, 2])
    with pytest.raises(ValueError, match="scan_fill"):
        ItemizedCLIPCollator(processor, scan_fill="copy")


def test_bad_studies_are_quarantined(processor, tmp_path):
    collator = ItemizedCLIPCollator(processor, max_items=2, max_scans=2, quarantine=tmp_path / "quarantine.csv")
    bad = [
        {"id": "gone", "images": {"AX_T1": str(tmp_path / "gone.nii.gz")}, "items": ITEMS[:1]},
        {"id": "nan", "images": [np.full((4, 8, 8), np.nan, np.float32)], "items": ITEMS[:1]},
        {"id": "mute", "images": [np.random.default_rng(0).normal(size=(4, 8, 8))], "items": []},
    ]
    batch = collator([example(1, 1, ITEMS[:1]), *bad, example(2, 1, ITEMS[1:2])])
    assert len(batch["pixel_values"]) == 2
    rows = list(csv.reader((tmp_path / "quarantine.csv").open()))
    assert rows[0] == ["study", "reason"]
    assert [row[0] for row in rows[1:]] == ["gone/AX_T1", "gone", "nan/None", "nan", "mute"]
    assert "no file" in rows[1][1] and "NaN" in rows[4][1] and "no item" in rows[5][1]
    assert "Errno" not in rows[1][1] + rows[2][1] and collator.studies_left_out() == 3
    with pytest.raises(ValueError, match="none of the 3 studies of this batch"):
        collator(bad)
    assert len(list(csv.reader((tmp_path / "quarantine.csv").open()))) == 6  # each is listed once


def test_diverse_sampling():
    items = ["a", "b", "c", "d"]
    generator = torch.Generator().manual_seed(0)
    strings = sample_diverse(items, 4000, generator)
    lengths = np.bincount([string.count(".") + 1 for string in strings], minlength=4)[1:]
    assert np.abs(lengths / 4000 - 1 / 3).max() < 0.04
    runs = {s for s in strings if s.count(".") == 1 and ord(s[-1]) - ord(s[0]) == 1}
    assert {"a. b", "b. c"} <= runs
    # The last window of neighbours is left out by the released sampler: "c. d" then comes from random pairs alone.
    pairs = [s for s in strings if s.count(".") == 1]
    assert pairs.count("c. d") < 0.5 * pairs.count("a. b")
    fixed = sample_diverse(items, 4000, torch.Generator().manual_seed(0), last_window=True)
    pairs = [s for s in fixed if s.count(".") == 1]
    assert pairs.count("c. d") > 0.7 * pairs.count("a. b")
    assert set(sample_diverse(["only one"], 10, generator)) == {"only one"}
    assert all(len(set(s.split(". "))) == len(s.split(". ")) for s in strings)


def test_choose_items():
    assert choose_items(ITEMS, 2) == ITEMS[:2]
    drawn = [tuple(choose_items(ITEMS, 2, torch.Generator().manual_seed(seed))) for seed in range(50)]
    assert len(set(drawn)) > 8 and all(len(set(pair)) == 2 for pair in drawn)


def test_sampler_repeats_itself_and_changes_with_the_epoch():
    sampler = SeededSampler(50, seed=3)
    first = list(sampler)
    assert first == list(SeededSampler(50, seed=3)) and first != list(SeededSampler(50, seed=4))
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(i for i, _ in second) == list(range(50)) and second != first
    assert dict(first) != dict(second)


def test_a_bad_study_is_replaced_by_another_one():
    def prepare(example):
        if example["id"] % 2:
            raise ValueError("damaged")
        return example

    reported = []
    rows = [{"id": number} for number in range(10)]
    dataset = SeededDataset(rows, prepare, lambda skipped: reported.append(int(skipped.study)))
    assert dataset[(4, 7)] == {"id": 4, "seed": 7}
    taken = [dataset[(3, seed)]["id"] for seed in range(30)]
    assert all(number % 2 == 0 for number in taken) and len(set(taken)) > 2 and set(reported) <= {1, 3, 5, 7, 9}
    assert taken == [dataset[(3, seed)]["id"] for seed in range(30)]
    with pytest.raises(ValueError, match="20 studies in a row"):
        SeededDataset(rows[1:2], prepare, lambda skipped: None)[(0, 1)]


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError])
def test_an_error_of_the_program_ends_the_run(processor, error, messages):
    """It is no fault of the study, which is not left out in silence."""

    def prepare(example):
        raise error("no such thing")

    reported = []
    dataset = SeededDataset([{"id": "7"}], prepare, lambda skipped: reported.append(skipped.study))
    with pytest.raises(error, match="no such thing"):
        dataset[(0, 1)]
    assert not reported and any("study 7: the program failed" in line for line in messages)
    collator = ItemizedCLIPCollator(processor, is_normal=prepare)
    with pytest.raises(error, match="no such thing"):
        collator([example(0, 1, ITEMS[:1])])


def test_studies_that_cannot_be_read_are_called_by_their_ids():
    class Rows(list):
        def __getitem__(self, index):
            raise OSError("gone")

        def id_of(self, index):
            return f"patient-1/study-{index}"

    reported = []
    with pytest.raises(ValueError, match="20 studies in a row"):
        SeededDataset(Rows([0]), dict, lambda skipped: reported.append(skipped.study))[(0, 1)]
    assert set(reported) == {"patient-1/study-0"}


def test_ids_with_a_slash_count_as_studies(processor, tmp_path):
    collator = ItemizedCLIPCollator(processor, quarantine=tmp_path / "q.csv")
    for study, scan in (("p1/s1", None), ("p1/s2", "AX_T2"), ("=p3", None)):
        collator.report(Skipped(study, scan, "read", "damaged"))
    assert collator.studies_left_out(["p1/s1", "p1/s2", "=p3"]) == 2


def test_a_bad_scan_is_left_out_of_its_study(processor, tmp_path):
    collator = ItemizedCLIPCollator(processor, max_items=1, max_scans=3, quarantine=tmp_path / "q.csv")
    good = np.random.default_rng(0).normal(size=(6, 16, 16))
    study = {"AX_T1": good, "AX_T2": str(tmp_path / "gone.nii.gz"), "AX_DWI": np.zeros((4, 8, 8))}
    for _ in range(2):
        batch = collator([{"id": "7", "images": study, "items": ITEMS[:1], "seed": 1}])
        assert batch["scan_mask"].tolist() == [[True]]
    rows = list(csv.reader((tmp_path / "q.csv").open()))
    assert [row[0] for row in rows[1:]] == ["7/AX_T2", "7/AX_DWI"]
    assert collator.studies_left_out() == 0  # the study is used
