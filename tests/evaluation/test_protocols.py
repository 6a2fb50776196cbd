"""
Protocols from files to figures: data sets laid out as the published ones, scored by a model whose scores are planted, so that
every AUC is known.
"""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import run
from forked import run_forked
from transformers import BatchFeature

pytest.importorskip("sklearn")
nibabel = pytest.importorskip("nibabel")

from itemized_clip_hf import ItemizedCLIPImageProcessor
from itemized_clip_hf.data.open import REFUSALS
from itemized_clip_hf.evaluation.evaluate import evaluate_protocol, open_record
from itemized_clip_hf.evaluation.metrics import auroc
from itemized_clip_hf.evaluation.protocols import Protocol, available_protocols, load_protocol
from itemized_clip_hf.evaluation.protocols.report import format_results
from itemized_clip_hf.evaluation.results import ProtocolResult

CT_RATE_COLUMNS = (
    "VolumeName,Medical material,Arterial wall calcification,Cardiomegaly,Pericardial effusion,Coronary artery wall "
    "calcification,Hiatal hernia,Lymphadenopathy,Emphysema,Atelectasis,Lung nodule,Lung opacity,Pulmonary fibrotic "
    "sequela,Pleural effusion,Mosaic attenuation pattern,Peribronchial thickening,Consolidation,Bronchiectasis,Interlobular "
    "septal thickening"
).split(",")


class Planted:
    """A model and a processor in one: studies score what the table says, in the order in which they are opened."""

    def __init__(
        self, domain: str, table: dict[str, np.ndarray], names: list[str], prompts: dict[str, list[str]], **image
    ):
        self.config = SimpleNamespace(
            domain=domain, scoring="items", name_or_path="planted", projection_dim=len(names) + 1
        )
        self.device = torch.device("cpu")
        self.image_processor = ItemizedCLIPImageProcessor.from_domain(domain, accept=REFUSALS, **image)
        self.tokenizer = SimpleNamespace(get_vocab=lambda: {})
        self.texts = [text for name in names for text in prompts[name]]
        self.owner = [number for number, name in enumerate(names) for _ in prompts[name]]
        self.table, self.opened, self.shapes = table, [], []
        self.names = []

    def state_dict(self):
        return {"x": torch.zeros(1)}

    def __call__(self, text, return_tensors):
        return BatchFeature(
            {"input_ids": torch.tensor([[self.texts.index(one)] for one in text]), "attention_mask": None}
        )

    def get_text_features(self, ids, mask):
        embeds = torch.eye(self.config.projection_dim)[torch.tensor(self.owner)[ids[:, 0]]]
        return SimpleNamespace(pooler_output=embeds)

    def encode_images(self, pixel_values, scan_mask, scan_name_ids):
        rows = np.stack([self.table[self.opened.pop(0)] for _ in range(len(pixel_values))])
        rest = np.sqrt(1 - (rows**2).sum(1, keepdims=True))
        tokens = torch.from_numpy(np.concatenate([rows, rest], 1)).float()[:, None]
        return tokens[:, 0], tokens, None

    def score_items(self, embeds, tokens, mask):
        return tokens[:, 0] @ embeds.t()

    def open(self, record):
        study = open_record(record)
        self.opened.append(record["id"])
        return study


def plant(protocol, ids, seed=0):
    """Labels (S, F) with both classes everywhere, and scores that tell them apart more or less."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((len(ids), len(protocol.names))) < 0.5).astype(int)
    labels[0], labels[1] = 0, 1
    scores = (0.4 * labels + generator.random(labels.shape)) / (2 * len(protocol.names) ** 0.5)
    return labels, dict(zip(ids, scores))


def save(path, shape=(20, 18, 12), value=0, spacing=2.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(len(path.name)).normal(value, 300, shape).astype(np.int16)
    array = np.abs(array) if value == 500 else array  # MR
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-spacing, -spacing, spacing, 1])), path)


def write_table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def evaluate(protocol, folder, scores, image, prompts=None, **settings):
    planted = Planted(protocol.domain, scores, protocol.names, protocol.choose_prompts(prompts), **image)
    found = evaluate_protocol(
        planted,
        planted,
        protocol,
        folder,
        prompts=prompts,
        open_study=planted.open,
        batch_size=3,
        **{"resamples": 50, **settings},
    )
    assert not planted.opened
    return found.results


def assert_aucs(results, protocol, labels, scores, table=""):
    for number, name in enumerate(protocol.names):
        own = np.array([row[number] for row in scores.values()])
        figure = results["tables"][table]["findings"][name]["auc"]
        assert figure["value"] == pytest.approx(auroc(labels[:, number], own)), name
        assert figure["low"] <= figure["value"] <= figure["high"]


CHEST = {"scan_size": [4, 8, 8], "do_resize": True}


def test_ct_rate(tmp_path):
    protocol = load_protocol("ct-rate")
    ids = [f"valid_{n}_{letter}_{k}" for n in range(1, 5) for letter in "ab" for k in (1, 2)]
    labels, scores = plant(protocol, ids)
    for name in ids:
        study, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
        save(tmp_path / "dataset" / "valid" / study / scan / f"{name}.nii.gz")
    own = [[row[protocol.names.index(c)] if c in protocol.names else 0 for c in CT_RATE_COLUMNS[1:]] for row in labels]
    table = tmp_path / "multi_abnormality_labels" / "valid_predicted_labels.csv"
    write_table(table, CT_RATE_COLUMNS, [[f"{name}.nii.gz", *row] for name, row in zip(ids, own)])
    results = evaluate(protocol, tmp_path, scores, CHEST)
    assert results["tables"][""]["studies"] == 16
    assert_aucs(results, protocol, labels, scores)
    mean = np.mean([own["auc"]["value"] for own in results["tables"][""]["findings"].values()])
    assert results["headline"]["value"] == pytest.approx(mean)
    assert "published data set has 3039" in " ".join(results["notes"])
    assert "mean auc" in format_results(results) and "Emphysema" in format_results(results)
    json.dumps(results)
    # Mistakes in the data are named.
    (tmp_path / "dataset" / "valid" / "valid_2" / "valid_2_b" / "valid_2_b_1.nii.gz").unlink()
    with pytest.raises(ValueError, match="1 of 16 studies.*valid_2_b_1"):
        evaluate(protocol, tmp_path, scores, CHEST)
    kept = evaluate(protocol, tmp_path, scores, CHEST, skip_missing=True)
    assert kept["missing"] == ["valid_2_b_1"] and kept["tables"][""]["studies"] == 15
    write_table(table, CT_RATE_COLUMNS[:-1], [[f"{name}.nii.gz", *row[:-1]] for name, row in zip(ids, own)])
    with pytest.raises(ValueError, match="no column for .*Interlobular septal thickening"):
        evaluate(protocol, tmp_path, scores, CHEST)
    write_table(table, CT_RATE_COLUMNS, [[f"{name}.nii.gz", *row] for name, row in zip([*ids, ids[3]], [*own, own[0]])])
    with pytest.raises(ValueError, match=f"1 duplicate ids.*{ids[3]}"):
        evaluate(protocol, tmp_path, scores, CHEST)
    write_table(table, CT_RATE_COLUMNS, [[f"{name}.nii.gz", *row[:-1], "maybe"] for name, row in zip(ids, own)])
    with pytest.raises(ValueError, match="'maybe', expected 0 or 1"):
        evaluate(protocol, tmp_path, scores, CHEST)


def test_rad_chestct(tmp_path):
    protocol = load_protocol("rad-chestct")
    ids = [f"trn{n:05d}" for n in range(10)]
    labels, scores = plant(protocol, ids)
    for name in ids:
        (tmp_path / "volumes").mkdir(exist_ok=True)
        array = np.random.default_rng(0).normal(-300, 400, (30, 40, 40)).astype(np.int16)
        np.savez_compressed(tmp_path / "volumes" / f"{name}.npz", ct=array)
    columns = [protocol.columns.get(name, name) for name in protocol.names]
    write_table(
        tmp_path / "radchest_labels.csv", ["NoteAcc_DEID", *columns], [[i, *row] for i, row in zip(ids, labels)]
    )
    results = evaluate(protocol, tmp_path, scores, CHEST)
    assert_aucs(results, protocol, labels, scores)
    assert len(protocol.names) == 14 and len(load_protocol("rad-chestct", "released").names) == 15
    assert results["settings"]["threshold_points"] == 4000


def test_arrays_get_the_geometry_of_the_protocol(tmp_path):
    from itemized_clip_hf.data.readers.read import read_file
    from itemized_clip_hf.evaluation.protocols.images import as_published

    array = np.random.default_rng(0).normal(-300, 400, (30, 40, 40)).astype(np.int16)
    np.savez_compressed(tmp_path / "trn1.npz", ct=array)
    (scan,) = as_published(load_protocol("rad-chestct"), read_file(tmp_path / "trn1.npz"))
    assert scan.orientation == "SPL" and scan.spacing == (0.8, 0.8, 0.8)
    processor = ItemizedCLIPImageProcessor.from_domain("chest-ct", spacing=None, scan_size=[30, 40, 40])
    (seen,), (plain,) = processor.process_study(scan), processor.process_study(array)
    torch.testing.assert_close(seen.pixel_values, plain.pixel_values)  # as stored: nothing is flipped
    resampled = ItemizedCLIPImageProcessor.from_domain("chest-ct", do_resize=True).standardize_scan(scan)
    assert tuple(resampled[0].pixel_values.shape) == (8, 32, 32)


HEAD = {"scan_size": [4, 8, 8], "in_plane_size": 8}


def test_rsna(tmp_path):
    protocol = load_protocol("rsna")
    ids = [f"ID_{n:04x}" for n in range(12)]
    labels, scores = plant(protocol, ids)
    for name in ids:
        save(tmp_path / "studies" / name / "series.nii.gz", value=40)
    columns = ["id", *"abcdefg", "any", "epidural", *protocol.names[1:]]
    rows = [[name, *"1234567", row[0], 1, *row[1:]] for name, row in zip([*ids, "ID_ffff"], [*labels, labels[0]])]
    write_table(tmp_path / "labels.csv", columns, rows)
    for name, part in (("train", ids[:7]), ("val", ids[7:9]), ("test", ids[9:])):
        (tmp_path / f"{name}.txt").write_text("\n".join(part) + "\n\n")
    results = evaluate(protocol, tmp_path, scores, HEAD)
    assert_aucs(results, protocol, labels, scores)
    assert results["tables"][""]["left_out"] == {"in none of the lists": 1}
    (tmp_path / "val.txt").write_text("ID_9999\n")
    with pytest.raises(ValueError, match="1 listed studies have no row.*id_9999"):
        evaluate(protocol, tmp_path, scores, HEAD)


def test_cq500(tmp_path):
    pytest.importorskip("pydicom")
    from dicom_files import make_grid, make_series
    from dicom_files import save as save_dicom

    protocol = load_protocol("cq500")
    ids = [f"CQ500CT{n}" for n in (0, 1, 2, 3, 163)]
    labels, scores = plant(protocol, ids[:4])
    for name in ids:
        series = make_series(make_grid(slices=6), SeriesDescription="CT Plain")
        save_dicom(series, tmp_path / f"{name} {name}" / "Unknown Study" / "CT Plain", name="CT{:06d}.dcm")
    wanted = [protocol.columns[name].removeprefix("consensus_") for name in protocol.names]
    columns = ["name", "Category", *(f"R{reader}:{name}" for reader in (1, 2, 3) for name in wanted)]
    generator = np.random.default_rng(0)
    rows = []
    for name, row in zip(ids, [*labels, labels[0]]):
        votes = np.array([generator.permutation([own, own, generator.integers(2)]) for own in row])
        rows.append([name.replace("CQ500CT", "CQ500-CT-"), "B1", *votes.T.ravel()])
    write_table(tmp_path / "reads.csv", columns, rows)
    results = evaluate(
        protocol, tmp_path, dict(zip([n.replace("CQ500CT", "CQ500-CT-") for n in ids], scores.values())), HEAD
    )
    assert_aucs(results, protocol, labels, scores)
    assert results["tables"][""]["left_out"] == {"excluded by the protocol": 1}
    released = load_protocol("cq500", "released")
    assert released.columns["MidlineShift"] == "consensus_MassEffect"
    assert protocol.name_scan("CT Plain") == "CT Plain_AX"


def test_pub_brain_5(tmp_path):
    protocol = load_protocol("pub-brain-5")
    ids = [f"sub-{n:03d}" for n in range(20)]
    generator = np.random.default_rng(0)
    classes = np.arange(20) % 5
    table = 0.1 * np.eye(5)[classes] + 0.2 * generator.random((20, 5))
    scores = dict(zip(ids, table))
    for name in ids:
        for series in ("T1", "FLAIR"):
            save(tmp_path / "images" / name / f"{name}-{series}.nii.gz", value=500)
    for file, kept in (("pub_brain_5.csv", range(20)), ("pub_brain_5_gt.csv", range(10))):
        rows = [[ids[i], *np.eye(5, dtype=int)[classes[i]]] for i in kept]
        write_table(tmp_path / file, ["study", *map(str.lower, protocol.names)], rows)
    results = evaluate(protocol, tmp_path, scores, {"scan_size": [4, 8, 8], "in_plane_size": 8})
    assert results["tables"]["pub_brain_5"]["studies"] == 20 and results["tables"]["pub_brain_5_gt"]["studies"] == 10
    balanced = []
    for table_name, count in (("pub_brain_5", 20), ("pub_brain_5_gt", 10)):
        for task, members in protocol.tasks.items():
            columns = [protocol.names.index(member) for member in members]
            own = [i for i in range(count) if classes[i] in columns]
            picked = [columns[int(table[i, columns].argmax())] for i in own]
            recalls = [np.mean([p == c for p, i in zip(picked, own) if classes[i] == c]) for c in columns]
            figure = results["tables"][table_name]["tasks"][task]["balanced_accuracy"]
            assert figure["value"] == pytest.approx(np.mean(recalls))
            assert figure["low"] <= figure["value"] <= figure["high"]
            balanced.append(np.mean(recalls))
            if len(members) == 2:
                margin = [table[i, columns[1]] - table[i, columns[0]] for i in own]
                auc = results["tables"][table_name]["tasks"][task]["auc"]["value"]
                assert auc == pytest.approx(auroc([classes[i] == columns[1] for i in own], margin))
    assert len(balanced) == 12 and results["headline"]["value"] == pytest.approx(np.mean(balanced))
    assert protocol.name_scan("sub-1-FLAIR") == "AX_FLAIR"


def test_own_table_and_best_prompt(tmp_path):
    """Like UM220K: a label table and prompts of one's own, the best of several."""
    protocol = load_protocol("um220k")
    with pytest.raises(ValueError, match="not public: pass them.*52 have none"):
        protocol.choose_prompts()
    own = Protocol("own", domain="brain-mri", findings=["glioma", "stroke"], best_prompt=True, tables={"": "*.csv"})
    prompts = {"glioma": ["glioma", "a glioma is seen"], "stroke": "acute stroke"}
    ids = [f"s{n}" for n in range(8)]
    labels, scores = plant(own, ids)
    for name in ids:
        save(tmp_path / name / "t1.nii.gz", value=500)
    rows = [[name, row[0], "" if name == "s3" else row[1]] for name, row in zip(ids, labels)]
    write_table(tmp_path / "labels.csv", ["id", "Glioma", "Stroke"], rows)
    results = evaluate(own, tmp_path, scores, {"scan_size": [4, 8, 8], "in_plane_size": 8}, prompts)
    row = results["tables"][""]["findings"]["stroke"]
    assert row["unknown"] == 1 and row["positive"] + row["negative"] == 7
    assert results["tables"][""]["findings"]["glioma"]["prompt"] in prompts["glioma"]
    assert any("selected by its AUC on the test labels" in note for note in results["notes"])
    with pytest.raises(ValueError, match=r"has no \['tumour'\]"):
        own.choose_prompts({"tumour": "x"})


def test_thresholds_of_a_validation_split(tmp_path):
    own = Protocol("own", domain="brain-mri", findings={"glioma": "glioma"}, tables={"": "*.csv"})
    image = {"scan_size": [4, 8, 8], "in_plane_size": 8}
    every, truth = {}, {}
    for split, seed in (("val", 1), ("test", 2)):
        ids = [f"{split}{n}" for n in range(12)]
        labels, scores = plant(own, ids, seed)
        every |= scores
        truth[split] = labels[:, 0], np.array(list(scores.values()))[:, 0]
        for name in ids:
            save(tmp_path / split / name / "t1.nii.gz", value=500)
        write_table(tmp_path / split / "labels.csv", ["id", "glioma"], [[n, *row] for n, row in zip(ids, labels)])
    from itemized_clip_hf.evaluation.metrics import roc_closest_threshold, threshold_metrics

    row = evaluate(own, tmp_path / "test", every, image, validation=tmp_path / "val")["tables"][""]["findings"][
        "glioma"
    ]
    labels, scores = truth["val"][0], truth["val"][1].astype(np.float32)
    threshold = roc_closest_threshold(labels, scores)
    assert row["threshold"] == pytest.approx(threshold, abs=1e-6)
    expected = threshold_metrics(truth["test"][0], truth["test"][1] > threshold)
    assert {name: row[name]["value"] for name in expected} == pytest.approx(expected)


def test_bad_studies_are_listed_and_a_killed_run_goes_on(tmp_path):
    own = Protocol("own", domain="brain-mri", findings={"glioma": "glioma"}, tables={"": "*.csv"})
    image = {"scan_size": [4, 8, 8], "in_plane_size": 8}
    ids = [f"s{n}" for n in range(9)]
    labels, scores = plant(own, ids)
    for name in ids:
        save(tmp_path / "data" / name / "t1.nii.gz", value=500)
    (tmp_path / "data" / "s4" / "t1.nii.gz").write_bytes(b"broken")
    write_table(tmp_path / "data" / "labels.csv", ["id", "glioma"], [[n, *row] for n, row in zip(ids, labels)])
    whole = evaluate(own, tmp_path / "data", scores, image, scores_file=tmp_path / "whole.jsonl")
    assert [entry["id"] for entry in whole["unreadable"]] == ["s4"] and whole["tables"][""]["studies"] == 8
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 10
    (tmp_path / "broken.jsonl").write_text("".join(lines[:5]) + lines[5][:10])
    opened = []

    def open_study(record):
        opened.append(record["id"])
        return planted.open(record)

    planted = Planted("brain-mri", scores, own.names, own.choose_prompts(), **image)
    again = evaluate_protocol(
        planted,
        planted,
        own,
        tmp_path / "data",
        scores_file=tmp_path / "broken.jsonl",
        resamples=50,
        open_study=open_study,
    ).results
    assert len(opened) == 6 and "s4" in opened and again == whole  # what could not be read is tried again
    other = Protocol("own", domain="brain-mri", findings={"glioma": "another prompt"}, tables={"": "*.csv"})
    with pytest.raises(ValueError, match="of another model, of other prompts or studies"):
        evaluate(other, tmp_path / "data", scores, image, scores_file=tmp_path / "broken.jsonl")


def test_every_protocol_is_whole():
    assert {"ct-rate", "rad-chestct", "rsna", "cq500", "pub-brain-5", "rsicd", "um220k"} <= set(available_protocols())
    for name in available_protocols():
        protocol = load_protocol(name)
        for variant in (None, *protocol.variants):
            chosen = load_protocol(name, variant)
            if not chosen.needs_prompts:
                assert all(chosen.choose_prompts().values())
    with pytest.raises(ValueError, match="there is no protocol 'nonsense'"):
        load_protocol("nonsense")


def test_published_prompts_and_tasks():
    """Against the protocols of the specification, where they are at hand."""
    from tiny_models import DATA

    folder = DATA.parent / "spec" / "protocols"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")

    def spec(name):
        return json.loads((folder / f"prompts_{name}.json").read_text())

    chosen = load_protocol("ct-rate").choose_prompts()
    assert {name: [text] for name, text in spec("ct_rate")["prompts"].items()} == chosen
    rad = spec("rad_chestct")
    assert load_protocol("rad-chestct").choose_prompts() == {
        name: [rad["prompts"][name]] for name in rad["paper_tasks"]
    }
    released = load_protocol("rad-chestct", "released").choose_prompts()
    assert released == {name: [rad["prompts"][name]] for name in rad["released_code_tasks"]}
    rsna = spec("rsna")
    assert load_protocol("rsna").choose_prompts() == dict(zip(rsna["tasks"], [[text] for text in rsna["prompts"]]))
    cq500 = load_protocol("cq500")
    assert [(n, p[0], cq500.columns[n]) for n, p in cq500.choose_prompts().items()] == [
        (row["task"], row["prompt"], row["label_column"]) for row in spec("cq500")["aligned"]
    ]
    brain = spec("pub_brain_5")
    pub = load_protocol("pub-brain-5")
    assert list(pub.choose_prompts().values()) == [[text] for text in brain["itemizedclip_prompts"]]
    assert pub.tasks == brain["tasks"]
    rsicd = spec("rsicd")
    expected = {c: [template.format(c=c) for template in rsicd["templates"]] for c in rsicd["classes"]}
    assert load_protocol("rsicd").choose_prompts() == expected
    tasks = json.loads((folder / "tasks_um220k.json").read_text())["tasks"]
    assert load_protocol("um220k").names == tasks


def test_model_index():
    table = {
        "studies": 3,
        "findings": {"a": {"positive": 1, "negative": 2, "auc": {"value": 0.8}}},
        "mean": {"auc": {"value": 0.8}},
    }
    results = {
        "protocol": "own",
        "title": "Own",
        "tables": {"": table},
    }
    (entry,) = ProtocolResult.from_dict(results).model_index("m")
    assert entry["results"][0]["metrics"] == [{"type": "auc", "name": "mean auc", "value": 0.8}]
    from huggingface_hub import ModelCard, ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results

    name, evaluated = model_index_to_eval_results([entry])
    assert name == "m" and evaluated[0].metric_value == 0.8
    card = ModelCard.from_template(
        ModelCardData(model_name="m", eval_results=evaluated, license="mit"), template_str="---\n{{ card_data }}\n---\n"
    )
    assert "auc" in str(card)


def test_the_command(tmp_path, model_folder):
    """In a process of its own: results, scores, plots, table; an error of the data is one line."""
    ids = [f"s{n}" for n in range(6)]
    for name in ids:
        save(tmp_path / "data" / name / "AX_T1.nii.gz", value=500)
    write_table(
        tmp_path / "data" / "labels.csv",
        ["id", "mass", "bleed"],
        [[n, i % 2, i % 3 == 0 and 1 or 0] for i, n in enumerate(ids)],
    )
    (tmp_path / "own.yaml").write_text(
        "title: Own\ndomain: brain-mri\nfindings: {mass: left frontal mass, bleed: [small bleed, bleed in the brain]}\n"
        "tables: {'': labels.csv}\n"
    )
    base = ["evaluate", "--protocol", tmp_path / "own.yaml", "-m", model_folder]
    base += ["-i", tmp_path / "data", "-o", tmp_path / "out" / "results.json", "--resamples", "50"]
    done = run(*base)
    assert "mass" in done.stdout and "mean auc" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tables"][""]["studies"] == 6 and len(results["model"]["sha256"]) == 64
    assert len((tmp_path / "out" / "results.scores.jsonl").read_text().splitlines()) == 7
    drawn = {path.name for path in (tmp_path / "out" / "results.plots").iterdir()}
    assert {"roc.png", "calibration.png"} <= drawn and sum(name.startswith("worst-") for name in drawn) == 6
    (tmp_path / "data" / "s2" / "AX_T1.nii.gz").unlink()
    (tmp_path / "data" / "s2").rmdir()
    failed = run_forked(*base, check=False)
    assert failed.returncode == 1 and "have no images" in failed.stderr and "s2" in failed.stderr
    assert "Traceback" not in failed.stderr
