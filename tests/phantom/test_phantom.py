import json
import re
import subprocess
import sys

import numpy as np
import pytest

from itemized_clip_hf.phantom import (
    COARSE_SHAPE,
    DEFAULT_SHAPE,
    FINDINGS,
    NORMAL,
    NORMAL_ITEMS,
    SEQUENCES,
    ZERO_SHOT_PROMPTS,
    PhantomDataset,
    generate_study,
    located_prompt,
    write_dataset,
    write_study,
)
from itemized_clip_hf.phantom.findings import LOBES, SIDES
from itemized_clip_hf.phantom.reports import HELD_OUT_TEMPLATES, TEMPLATES


def assert_same(first, second):
    assert first.items == second.items
    assert first.labels == second.labels
    for name in SEQUENCES:
        np.testing.assert_array_equal(first.scans[name], second.scans[name])


@pytest.fixture(scope="module")
def train():
    return list(PhantomDataset("train", 300, shape=COARSE_SHAPE))


def test_generate_study_is_deterministic():
    first = generate_study(7)
    generate_study(8)
    assert_same(first, generate_study(7))
    assert_same(first, generate_study(np.random.SeedSequence(7)))
    assert not np.array_equal(first.scans["T1"], generate_study(8).scans["T1"])


def test_study_structure(train):
    for study in train[:50]:
        assert tuple(study.scans) == SEQUENCES
        for scan in study.scans.values():
            assert scan.shape == COARSE_SHAPE and scan.dtype == np.float32
            assert np.isfinite(scan).all() and scan.min() >= 0
        assert study.spacing == (16.0, 6.0, 6.0)
        assert len(study.items) == len(study.item_findings) == len(study.masks) == len(study.attributes)
        for finding, mask in zip(study.item_findings, study.masks):
            if finding == NORMAL:
                assert mask is None
            else:
                assert mask.dtype == bool and mask.shape == COARSE_SHAPE and mask.sum() >= 8


def test_labels_agree_with_items(train):
    for study in train:
        assert list(study.labels) == list(FINDINGS)
        present = [name for name, label in study.labels.items() if label]
        assert len(present) <= 4
        assert study.is_normal == (not present)
        assert study.item_findings == (present or [NORMAL])
        for item, words in zip(study.items, study.attributes):
            stated = set(re.findall(r"\b(left|right|frontal|parietal|temporal|occipital|small|large)\b", item))
            assert stated <= set(words.values()), (item, words)
        if study.is_normal:
            assert study.items[0] in NORMAL_ITEMS


def test_prevalence_is_near_nominal(train):
    for name, finding in FINDINGS.items():
        assert abs(np.mean([study.labels[name] for study in train]) - finding.prevalence) < 0.08
    assert 0.10 < np.mean([study.is_normal for study in train]) < 0.20


def test_stated_location_is_where_the_mask_lies(train):
    for study in train[:150]:
        for mask, words in zip(study.masks, study.attributes):
            if "side" in words:
                k, j, i = np.argwhere(mask).mean(axis=0)
                x = (study.affine @ [i, j, k, 1])[0]  # x grows to the patient's right
                assert (x > 0) == (words["side"] == "right")


def test_findings_hardly_overlap(train):
    overlap = []
    for study in train:
        masks = [mask for mask in study.masks if mask is not None]
        for i, first in enumerate(masks):
            overlap += [(first & second).sum() / min(first.sum(), second.sum()) for second in masks[:i]]
    assert np.mean(overlap) < 0.02
    assert np.quantile(overlap, 0.99) < 0.25


@pytest.mark.parametrize("name", FINDINGS)
@pytest.mark.parametrize("shape", [COARSE_SHAPE, DEFAULT_SHAPE])
def test_finding_changes_the_scans_that_show_it_where_its_mask_is(name, shape):
    for seed in range(6 if shape == COARSE_SHAPE else 3):
        healthy = generate_study(seed, shape, findings=[])
        study = generate_study(seed, shape, findings=[name])
        assert healthy.is_normal and study.item_findings == [name]
        for sequence in SEQUENCES:
            change = np.abs(study.scans[sequence] - healthy.scans[sequence])
            if sequence not in FINDINGS[name].visible_in:
                assert not change.any()
                continue
            mask = study.masks[0]
            assert change[mask].mean() > 10 * change[~mask].mean()
            strong = change > 0.5 * np.quantile(change[mask], 0.95)
            assert (strong & mask).sum() >= 0.6 * strong.sum()
        if name != "enlarged_ventricles":  # the middle of enlarged ventricles was ventricle before
            sequence = max(FINDINGS[name].intensity, key=FINDINGS[name].intensity.get)
            assert (study.scans[sequence][mask] != healthy.scans[sequence][mask]).mean() > 0.95


def test_head_does_not_depend_on_the_shape():
    coarse, fine = (generate_study(11, shape, findings=["mass"]) for shape in ((16, 32, 32), (32, 64, 64)))
    assert coarse.attributes == fine.attributes
    centres = [study.affine @ [*np.argwhere(study.masks[0]).mean(axis=0)[::-1], 1] for study in (coarse, fine)]
    np.testing.assert_allclose(*centres, atol=3)
    volumes = [study.masks[0].sum() * np.prod(study.spacing) for study in (coarse, fine)]
    assert 0.8 < volumes[0] / volumes[1] < 1.25


@pytest.mark.parametrize("shape", [(4, 16, 16), (5, 24, 40), (24, 96, 96)])
def test_other_shapes(shape):
    study = generate_study(3, shape, findings=["mass", "bleed", "enlarged_ventricles"])
    assert all(scan.shape == shape for scan in study.scans.values())
    assert all(mask.shape == shape and mask.any() for mask in study.masks)


def test_mask_of_a_finding_outside_the_grid_is_empty():
    study = generate_study(3, spacing=(0.5, 0.5, 0.5), findings=["mass"])
    assert study.spacing == (0.5, 0.5, 0.5)
    assert not study.masks[0].any()


def test_splits_are_disjoint():
    datasets = [PhantomDataset(split, 30, seed=3, shape=(4, 16, 16)) for split in ("train", "test")]
    scans = {study.scans["T1"].tobytes() for dataset in datasets for study in dataset}
    assert len(scans) == 60
    keys = [{d.seed_sequence(i).spawn_key for i in range(30)} for d in datasets]
    assert not keys[0] & keys[1]
    assert len({study.id for dataset in datasets for study in dataset}) == 60


def test_dataset_is_map_style():
    dataset = PhantomDataset("test", 5, shape=(4, 16, 16))
    assert len(dataset) == 5
    assert_same(dataset[-1], dataset[4])
    assert_same(dataset[2], PhantomDataset("test", 50, shape=(4, 16, 16))[2])
    with pytest.raises(IndexError):
        dataset[5]
    with pytest.raises(ValueError, match="split"):
        PhantomDataset("validation")


def as_pattern(template):
    return re.compile(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(template)))


def test_held_out_templates_are_used_by_the_test_split_only(train):
    test = list(PhantomDataset("test", 120, shape=(4, 16, 16)))
    for name, templates in HELD_OUT_TEMPLATES.items():
        assert len(TEMPLATES[name]) >= 5 and templates
        patterns = [as_pattern(template) for template in templates]
        for studies in (train, test):
            items = [i for s in studies for i, f in zip(s.items, s.item_findings) if f == name]
            used = any(pattern.fullmatch(item) for item in items for pattern in patterns)
            assert used == (studies is test)


def test_vocabulary():
    words = {"size": "small", "side": "left", "lobe": "frontal"}
    templates = {name: TEMPLATES[name] + HELD_OUT_TEMPLATES[name] for name in FINDINGS}
    vocabulary = set()
    for name, prompt in ZERO_SHOT_PROMPTS.items():
        sentences = [template.format(**words) for template in templates[name]]
        assert all(sentence == sentence.lower() and sentence.endswith(".") for sentence in sentences)
        assert prompt.rstrip(".") not in [sentence.rstrip(".") for sentence in sentences]
        trained = set(" ".join(template.format(**words) for template in TEMPLATES[name]).replace(".", "").split())
        assert set(prompt.split()) <= trained
        vocabulary |= set(re.findall(r"\w+", " ".join(sentences)))
    assert len(vocabulary) < 300
    assert located_prompt("mass", SIDES[0], next(iter(LOBES))) == "mass in the left frontal lobe of the brain"


def test_bad_findings_are_refused():
    with pytest.raises(ValueError, match="unknown"):
        generate_study(0, findings=["fracture"])
    with pytest.raises(ValueError, match="at most one"):
        generate_study(0, findings=["mass", "mass"])
    with pytest.raises(ValueError, match="shape"):
        generate_study(0, (32, 32))


def test_import_needs_numpy_only():
    script = (
        "import importlib, os, sys, types\n"
        "package = types.ModuleType('itemized_clip_hf')\n"
        "package.__path__ = [os.path.join(os.getcwd(), 'itemized_clip_hf')]\n"
        "sys.modules['itemized_clip_hf'] = package\n"
        "importlib.import_module('itemized_clip_hf.phantom').generate_study(0)\n"
        "assert not {'torch', 'scipy', 'nibabel'} & set(sys.modules)\n"
    )
    root = __file__.rsplit("tests", 1)[0]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


def test_written_study_reads_back(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    study = generate_study(2, (6, 20, 24), findings=["mass", "bleed"])
    write_study(study, tmp_path)
    for name, scan in study.scans.items():
        image = nibabel.load(tmp_path / f"{name}.nii.gz")
        assert image.shape == (24, 20, 6)
        np.testing.assert_allclose(image.affine, study.affine)
        np.testing.assert_allclose(image.header.get_zooms(), study.spacing[::-1], rtol=1e-6)
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32).T, scan)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    for index, (finding, mask) in enumerate(zip(study.item_findings, study.masks)):
        image = nibabel.load(tmp_path / "masks" / f"item{index}_{finding}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj).T.astype(bool), mask)
    record = json.loads((tmp_path / "items.json").read_text())
    assert record == {
        "id": study.id,
        "items": study.items,
        "item_findings": study.item_findings,
        "labels": study.labels,
    }


def test_written_dataset(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    dataset = PhantomDataset("test", 3, shape=(6, 20, 24))
    table = write_dataset(dataset, tmp_path)
    records = [json.loads(line) for line in table.read_text().splitlines()]
    assert table == tmp_path / "studies.jsonl"
    for study, record in zip(dataset, records, strict=True):
        assert set(record) == {"id", "images", "items", "findings", "masks", "absent", "labels"}
        assert record["findings"] == study.item_findings and len(record["absent"]) == 6 - sum(study.labels.values())
        for path, mask in zip(record["masks"], study.masks, strict=True):
            assert (path is None) == (mask is None)
            if path is not None:
                np.testing.assert_array_equal(nibabel.load(tmp_path / path).get_fdata().transpose(2, 1, 0) > 0, mask)
        assert (record["id"], record["items"], record["labels"]) == (study.id, study.items, study.labels)
        assert list(record["images"]) == list(SEQUENCES)
        assert all((tmp_path / path).is_file() for path in record["images"].values())
