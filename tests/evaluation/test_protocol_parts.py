"""Which images, labels, prompts and thresholds belong together."""

import json

import numpy as np
import pytest

pytest.importorskip("sklearn")

from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.evaluation.protocols import Protocol, load_protocol
from itemized_clip_hf.evaluation.protocols.images import ProtocolStudies, as_published, find_images
from itemized_clip_hf.evaluation.protocols.labels import Truth, read_truth
from itemized_clip_hf.evaluation.protocols.summary import choose_thresholds, summarize

OWN = Protocol("own", domain="brain-mri", findings={"mass": "mass"}, tables={"": "*.csv"})


def test_images_and_labels_by_one_column(tmp_path):
    rows = [{"id": str(n), "study_id": str(3 - n), "images": f"{n}.nii.gz", "mass": n % 2} for n in range(4)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for column, expected in (
        ("study_id", {str(3 - n): f"{n}.nii.gz" for n in range(4)}),
        (None, {str(n): f"{n}.nii.gz" for n in range(4)}),
    ):
        truth = read_truth(OWN, tmp_path / "list.jsonl", id_column=column)[""]
        studies = ProtocolStudies(tmp_path / "list.jsonl", truth.ids, id_column=column)
        found = {studies[n]["id"]: studies[n]["images"].rsplit("/", 1)[1] for n in range(4)}
        assert found == expected
        labels = dict(zip(truth.ids, truth.labels[:, 0]))
        assert labels == {study: int(name[0]) % 2 for study, name in expected.items()}
    rows.append({**rows[0]})
    (tmp_path / "twice.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="duplicate id 0"):
        ProtocolStudies(tmp_path / "twice.jsonl", ["0"])


def test_names_are_not_guessed(tmp_path):
    for name in ("11_2.npy", "a/1_12.npy", "b/CQ500CT7 CQ500CT7/x.npy", "c/5.npy", "c/5 old/x.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_images(tmp_path, ["1_12", "CQ500-CT-7", "5", "12_1"])
    assert {study: str(path.relative_to(tmp_path)) for study, path in found.items()} == {
        "1_12": "a/1_12.npy",
        "CQ500-CT-7": "b/CQ500CT7 CQ500CT7",
        "5": "c/5.npy",
    }
    (tmp_path / "c" / "1_12.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="the images of study 1_12 may be"):
        find_images(tmp_path, ["1_12"])


def test_scans_are_called_as_published():
    array = np.zeros((4, 4, 4), np.int16)
    rad, rsna, cq500 = (load_protocol(name) for name in ("rad-chestct", "rsna", "cq500"))
    for study in (Scan(array, None, "a"), [Scan(array, None, "a")], {"a": Scan(array, None, "a")}):
        (scan,) = as_published(rad, study)
        assert scan.spacing == (0.8, 0.8, 0.8)
    windows = [Scan(array, None, f"X_{name}Window", prepared=True) for name in ("Brain", "Blood", "Bone")]
    assert [scan.name for scan in as_published(rsna, windows)] == [
        f"MPR-AX_HEAD-protocol_{name}Window" for name in ("Brain", "Blood", "Bone")
    ]
    assert cq500.name_scan("X_BrainWindow", prepared=True) == "X_AX_BrainWindow"
    assert as_published(rsna, "picture.png") == "picture.png"


def test_best_prompt_and_threshold_of_a_validation_split():
    """Both are chosen there, and used here."""
    own = Protocol("own", findings={"a": ["x", "y"], "b": ["z", "w"]}, best_prompt=True)
    prompts = own.choose_prompts()
    generator = np.random.default_rng(0)
    labels = (generator.random((60, 2)) < 0.5).astype(float)
    noise = generator.random((60, 4)) / 2
    good = noise + np.stack([0 * labels[:, 0], labels[:, 0], 0 * labels[:, 1], labels[:, 1]], 1)
    truth = Truth([str(n) for n in range(60)], labels=labels)
    chosen = choose_thresholds(own, prompts, good, truth)
    assert {name: number for name, (number, _) in chosen.items()} == {"a": 1, "b": 1}
    assert all(0.4 < threshold < 1.1 for _, threshold in chosen.values())
    # On these studies the other prompt would win.
    other = noise + np.stack([labels[:, 0], 0.3 * labels[:, 0], labels[:, 1], 0.3 * labels[:, 1]], 1)
    found = summarize(own, prompts, other, truth, resamples=20, thresholds=chosen).to_dict()["findings"]
    assert found["a"]["prompt"] == "y" and found["a"]["auc"]["value"] < 1 and found["a"]["threshold"] == chosen["a"][1]
    assert summarize(own, prompts, other, truth, resamples=20).findings["a"].prompt == "x"


@pytest.mark.parametrize("thresholds", [None, {"mass": (0, 0.5), "bleed": (0, 0.5), "blank": (0, 0.5)}])
def test_findings_with_one_class_stay_out_of_the_mean(thresholds):
    own = Protocol("own", findings={"mass": "mass", "bleed": "bleed", "blank": "blank"})
    labels = np.array([[0, 0, np.nan], [1, 0, np.nan], [1, 0, np.nan], [0, 0, np.nan]])
    scores = np.array([[0.1, 0.9, 0], [0.6, 0.2, 0], [0.7, 0.3, 0], [0.2, 0.8, 0]], dtype=np.float32)
    truth = Truth(list("abcd"), labels=labels)
    found = summarize(own, own.choose_prompts(), scores, truth, resamples=30, thresholds=thresholds).to_dict()
    assert found["findings"]["bleed"] == {"positive": 0, "negative": 4}
    assert found["findings"]["blank"] == {"positive": 0, "negative": 0, "unknown": 4}
    for figure, own_figure in found["mean"].items():
        assert own_figure["value"] == found["findings"]["mass"][figure]["value"] == 1, figure
        assert own_figure["low"] <= 1 <= own_figure["high"]


def test_headline_of_each_kind():
    assert OWN.headline == "auc" and Protocol("own", classes={"a": "a", "b": "b"}).headline == "top1"
    assert Protocol("own", classes={"a": "a", "b": "b"}, tasks={"t": ["a", "b"]}).headline == "balanced_accuracy"
    with pytest.raises(ValueError, match="which are no classes"):
        Protocol("own", classes={"a": "a"}, tasks={"t": ["a", "c"]})


def test_lists_are_whole(tmp_path):
    (tmp_path / "labels.csv").write_text("id,any\na,1\n")
    (tmp_path / "train.txt").write_text("a\n")
    with pytest.raises(FileNotFoundError, match="none of the form"):
        read_truth(load_protocol("rsna"), tmp_path)


def test_series_that_are_folders(tmp_path):
    """Also on the command line: each image of a study may be a folder."""
    nibabel = pytest.importorskip("nibabel")
    from itemized_clip_hf.cli._studies import Opener

    for name in ("A", "B"):
        (tmp_path / name).mkdir()
        array = np.abs(np.random.default_rng(0).normal(100, 30, (16, 16, 8))).astype(np.float32)
        for number in range(1 if name == "A" else 2):
            nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 6, 1])), tmp_path / name / f"s{number}.nii.gz")
    opened = Opener(domain="brain-mri")({"id": "x", "images": {name: str(tmp_path / name) for name in ("A", "B")}})
    assert list(opened) == ["A", "B_s0", "B_s1"] and all(isinstance(scan, Scan) for scan in opened.values())
