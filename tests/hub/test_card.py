"""Cards: the five in hub_cards, those of folders, and what their metadata says."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from sources import source, tokenizer_of_size, training_dictionary
from tiny_models import ITEMS, TRAINING

from itemized_clip_cli import main
from itemized_clip_hf import (
    ItemizedCLIPForImageClassification,
    ItemizedCLIPProcessor,
    ItemizedCLIPTrainer,
    ItemizedCLIPTrainingArguments,
)
from itemized_clip_hf.domains import available_domains, load_domain
from itemized_clip_hf.evaluation.results import measured_figures, read_result
from itemized_clip_hf.hub.card import CardFacts, card_text, facts_of_folder, is_edited, labels_of_config
from itemized_clip_hf.hub.load_test import run_load_test

CARDS = Path(__file__).parents[2] / "hub_cards"
NAMES = sorted(path.stem for path in CARDS.glob("*.yaml"))


def run_card(*arguments):
    return CliRunner().invoke(main, ["card", *map(str, arguments)])


def test_every_domain_has_a_card():
    assert sorted(CardFacts.read(CARDS / f"{name}.yaml").domain for name in NAMES) == available_domains()


@pytest.mark.parametrize("name", NAMES)
def test_the_command_makes_the_same_bytes(tmp_path, name):
    done = run_card("-i", CARDS / f"{name}.yaml", "-o", tmp_path / "card.md")
    assert done.exit_code == 0, done.output
    advice = f"run itemized-clip card -i hub_cards/{name}.yaml -o hub_cards/{name}.md"
    assert (tmp_path / "card.md").read_bytes() == (CARDS / f"{name}.md").read_bytes(), advice


@pytest.mark.parametrize("name", NAMES)
def test_metadata_as_the_hub_reads_it(name):
    """The library's own readers, which raise for metadata that the Hub would not take."""
    card = ModelCard.load(CARDS / f"{name}.md", ignore_metadata_errors=False)
    assert isinstance(card.data, ModelCardData)
    header = metadata_load(CARDS / f"{name}.md")
    picture = load_domain(name.removeprefix("itemizedclip-")).image["scan_size"][0] == 1
    assert header.get("pipeline_tag") == ("zero-shot-image-classification" if picture else None)
    assert header["library_name"] == "transformers"
    assert header["license"] == "unknown" and header["language"] == "en" and "itemized_clip" in header["tags"]
    model_name, results = model_index_to_eval_results(header["model-index"])
    assert model_name == name and [r for r in results if "reported by the paper" in r.metric_name] == results
    facts = CardFacts.read(CARDS / f"{name}.yaml")
    shares = [r["value"] if r["metric"] == "mean rank" else round(r["value"] / 100, 4) for r in facts.paper]
    assert sorted(r.metric_value for r in results) == sorted(shares)


@pytest.mark.parametrize("name", NAMES)
def test_what_every_card_says(name):
    text = (CARDS / f"{name}.md").read_text()
    for part in (
        "Intended use",
        "Out of scope",
        "Input",
        "Training data",
        "Training procedure",
        "Evaluation",
        "Explanations",
    ):
        assert f"## {part}\n" in text
    for part in ("Bias, risks and limits", "Privacy", "Licence", "Citation"):
        assert f"## {part}\n" in text
    assert "not a medical device" in text and "The licence of these weights has not been stated" in text
    measured, paper = text.split("### Reported by the paper")
    assert "Nothing has been measured with these weights" in measured and "not measured here" in paper
    assert "pip install itemized-clip-hf" not in text  # it is in no package index
    assert "{{" not in text and "None" not in text and "\n\n\n" not in text


def test_paper_figures_are_those_of_the_specification():
    path = CARDS.parents[1] / "shared" / "spec" / "protocols" / "results.json"
    if not path.exists():
        pytest.skip("the specification's figures are not at hand")
    tables = json.loads(path.read_text())
    headline, supplement = tables["main_secondary"]["headline"], tables["supplementary"]
    chest = supplement["table15_chest_ct"]
    expected = {
        "brain-mri": {
            headline["um220k_mauc_52"]["ItemizedCLIP"],
            headline["pub_brain_5_mean_bacc_12"]["ItemizedCLIP"],
            17.5,
        },
        "head-ct": {
            supplement["table13_rsna_auc"]["ItemizedCLIP_zs"][-1],
            supplement["table14_cq500_auc"]["ItemizedCLIP_zs"][-1],
            headline["headct240k_mauc_83"]["ItemizedCLIP"],
        },
        "chest-ct": {value for part in chest.values() for value in part["Mean"]["ItemizedCLIP"].values()},
        "remote-sensing": {46.2, 78.7, 3.86},
    }
    for domain, values in expected.items():
        facts = CardFacts.read(CARDS / f"itemizedclip-{domain}.yaml")
        assert {row["value"] for row in facts.paper} == values


@pytest.fixture
def converted(tmp_path):
    import torch

    from itemized_clip_hf.conversion.folder import convert_folder

    state, domain, config = source("volumes")
    torch.save(training_dictionary(state), tmp_path / "c.pt")
    convert_folder(
        tmp_path / "c.pt", domain, tmp_path / "model", tokenizer_of_size(config.text_config.vocab_size), config
    )
    return tmp_path / "model"


def rows_of(results):
    return [row.to_dict() for row in measured_figures(read_result(results))]


def write_results(path, folder, auc=0.831, **changes):
    from itemized_clip_hf.models.load import load_model
    from itemized_clip_hf.provenance import hash_model

    model = {"domain": "chest-ct", "sha256": hash_model(load_model(str(folder)))}
    mean = {"auc": {"value": auc, "low": 0.8, "high": 0.95}, "f1": {"value": None}}
    tables = {"tables": {"": {"studies": 12, "mean": mean}}}
    results = {
        "protocol": "ct-rate",
        "title": "CT-RATE",
        "data": {"sha256": "0" * 64},
        "model": model,
        **tables,
        **changes,
    }
    path.write_text(json.dumps(results))
    return path


def test_card_of_a_converted_folder(converted, tmp_path):
    results = write_results(tmp_path / "results.json", converted)
    done = run_card("-m", converted, "--results", results, "--name", "org/mine")
    assert done.exit_code == 0 and "not stated: license, training_data, access, population" in done.output, done.output
    text = (converted / "README.md").read_text()
    assert "| CT-RATE | 12 | auc | 83.1 (80.0 to 95.0) |" in text and "converted from a checkpoint" in text
    size = json.loads((converted / "config.json").read_text())["vision_config"]["image_size"]
    assert f"| Size | {' x '.join(map(str, size))} voxels (depth, height, width) |" in text
    assert 'model="org/mine"' in text
    index = metadata_load(converted / "README.md")["model-index"][0]["results"][0]
    assert index["dataset"]["name"] == "CT-RATE" and index["metrics"][0]["value"] == 0.831
    # what a person adds stays, figures of the same benchmark are replaced
    facts = yaml.safe_load((converted / "card.yaml").read_text())
    changed = {**facts, "population": "adults", "license": "cc-by-nc-4.0", "limits": None}
    (converted / "card.yaml").write_text(yaml.safe_dump(changed))
    done = run_card("-m", converted, "--results", write_results(tmp_path / "results.json", converted, 0.9))
    assert done.exit_code == 0, done.output
    text = (converted / "README.md").read_text()
    assert "adults" in text and "Weights: cc-by-nc-4.0." in text and "90.0 (80.0" in text and "83.1" not in text


def test_an_edited_card_is_kept(converted):
    assert run_card("-m", converted).exit_code == 0
    readme = converted / "README.md"
    readme.write_text(readme.read_text() + "\nOur own words.\n")
    done = run_card("-m", converted)
    assert done.exit_code == 1 and "pass --overwrite" in done.output and "Our own words." in readme.read_text()
    assert run_card("-m", converted, "--overwrite").exit_code == 0 and "Our own words." not in readme.read_text()


def test_results_of_another_model_are_refused(converted, tmp_path):
    other = {"model": {"domain": "chest-ct", "sha256": "1" * 64}}
    done = run_card("-m", converted, "--results", write_results(tmp_path / "r.json", converted, **other))
    assert done.exit_code == 1 and "results of another model" in done.output
    (tmp_path / "r.json").write_text("{}")
    done = run_card("-m", converted, "--results", tmp_path / "r.json")
    assert done.exit_code == 1 and "no results of `itemized-clip evaluate`" in done.output


def test_tables_of_a_protocol_stay_apart_in_the_index(tmp_path):
    tables = {
        name: {"studies": 9, "mean": {"auc": {"value": value}}} for name, value in (("full", 0.8), ("verified", 0.6))
    }
    results = {
        "protocol": "pub-brain-5",
        "title": "Pub-Brain-5",
        "tables": tables,
        "data": {"sha256": "0"},
        "model": {},
    }
    facts = CardFacts(name="a/b", domain="brain-mri", measured=rows_of(results))
    facts.paper = [{"benchmark": "Pub-Brain-5", "metric": "auc", "value": 83.6, "source": "paper"}]
    (tmp_path / "card.md").write_text(card_text(facts))
    _, index = model_index_to_eval_results(metadata_load(tmp_path / "card.md")["model-index"])
    assert [(r.dataset_name, r.metric_value) for r in index] == [
        ("Pub-Brain-5", 0.836),
        ("Pub-Brain-5, full", 0.8),
        ("Pub-Brain-5, verified", 0.6),
    ]


def test_figures_of_tasks():
    figure = {"value": 0.4628, "low": 0.4, "high": 0.5}
    about = {"data": {"sha256": "0"}, "model": {}}
    grouped = {"protocol": "retrieval", "images": 500, "figures": {"text to image": {"R@1": figure}}, **about}
    plain = {"protocol": "items", "studies": 20, "figures": {"MLL": {"value": 0.64}}, **about}
    rows = rows_of(grouped) + rows_of(plain)
    assert [(r["benchmark"], r["metric"], r["studies"]) for r in rows] == [
        ("retrieval, text to image", "R@1", 500),
        ("items", "MLL", 20),
    ]
    text = card_text(CardFacts(name="a/b", domain="natural-images", measured=rows))
    assert (
        "| retrieval, text to image | 500 | R@1 | 46.3 (40.0 to 50.0) |" in text
        and "| items | 20 | MLL | 0.64 |" in text
    )


def test_the_card_of_a_training(tmp_path, make_model, tokenizer):
    """Its contract is the saved processor's; what people wrote stays, what was said of other weights goes."""
    import torch

    model = make_model()
    model.config.domain = "brain-mri"
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer, scan_size=[8, 16, 16], in_plane_size=16, use_scan_names=False
    )
    data = [{"id": f"S{i}", "images": {"T1": torch.rand(8, 16, 16)}, "items": ITEMS[:2]} for i in range(8)]
    run = tmp_path / "run"
    run.mkdir()
    measured = [{"benchmark": "B", "metric": "auc", "value": 0.5}]
    before = {"name": "org/mine", "domain": "brain-mri", "population": "adults", "measured": measured}
    (run / "card.yaml").write_text(yaml.safe_dump(before))
    settings = {**TRAINING, "max_steps": 2, "per_device_train_batch_size": 4, "freeze_text": "except_layernorm"}

    def train():
        arguments = ItemizedCLIPTrainingArguments(str(run), **settings)
        trainer = ItemizedCLIPTrainer(model, arguments, train_dataset=data, processing_class=processor)
        trainer.train()
        trainer.save_model()

    train()
    text = (run / "README.md").read_text()
    assert "| Size | 8 x 16 x 16 voxels" in text and 'model="org/mine"' in text and "adults" in text
    assert f"at most 24 tokens; a vocabulary of its own ({model.config.text_config.vocab_size} entries)" in text
    assert "| steps | 2 |" in text and "| frozen | text (except_layernorm) |" in text and "| studies | 8 |" in text
    assert "Nothing has been measured" in text and not is_edited(run)
    (run / "README.md").write_text("# my words")
    train()
    assert (run / "README.md").read_text() == "# my words"


def test_facts_with_errors(tmp_path):
    (tmp_path / "f.yaml").write_text("name: a/b\ndomain: brain-mri\nlicence: mit\n")
    with pytest.raises(ValueError, match=r"unknown keys \['licence'\]"):
        CardFacts.read(tmp_path / "f.yaml")
    (tmp_path / "f.yaml").write_text("name: a/b\n")
    with pytest.raises(ValueError, match="lacks"):
        CardFacts.read(tmp_path / "f.yaml")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say which domain"):
        facts_of_folder(tmp_path)


def test_a_model_scored_by_its_global_embedding_promises_no_heat_maps():
    text = card_text(CardFacts(name="a/b", domain="head-ct", scoring="global"))
    assert "there are no heat maps" in text and "This model has none" in text


def test_a_classifier_promises_its_labels_and_no_texts(tmp_path, make_model, processor):
    model = make_model(use_scan_name_encoder=True, scan_name_hidden_size=32)
    model.config.domain = "brain-mri"
    prompts = {"mass": "a small mass", "bleed": "bleed"}
    classifier = ItemizedCLIPForImageClassification.from_prompts(model, processor, prompts)
    for part in (classifier, processor):
        part.save_pretrained(tmp_path)
    facts = facts_of_folder(tmp_path, "org/heads")
    assert facts.head == "image-classification" and facts.labels == ["mass", "bleed"]
    card = ModelCard(card_text(facts))
    assert "image-classification" in card.data.tags and "zero-shot" not in card.data.tags
    assert "takes no texts: mass, bleed." in card.text and 'pipeline("image-classification"' in card.text
    assert "cosine" not in card.text and "candidate_labels" not in card.text and "| Text |" not in card.text


@pytest.mark.slow  # two processes that import all; what else it loads is pushed in test_push
def test_a_classifier_passes_its_load_test(tmp_path, make_model, processor):
    model = make_model(use_scan_name_encoder=True, scan_name_hidden_size=32)
    for part in (
        ItemizedCLIPForImageClassification.from_prompts(model, processor, {"mass": "a small mass"}),
        processor,
    ):
        part.save_pretrained(tmp_path)
    run_load_test(tmp_path)


def test_a_model_that_draws_says_what_it_draws():
    facts = CardFacts(name="org/masks", domain="brain-mri", head="image-segmentation")
    assert "of what a text names." in card_text(facts) and '-i STUDY -p "..." -o masks' in card_text(facts)
    facts.labels = ["liver", "tumor"]
    assert "of liver, tumor." in card_text(facts) and "-i STUDY -o masks" in card_text(facts)
    assert labels_of_config({"id2label": {"0": "air", "1": "liver"}, "mask_decoder": {"mode": "classes"}}) == ["liver"]
    assert labels_of_config({"id2label": {"0": "LABEL_0"}, "mask_decoder": {"mode": "items"}}) == []


def test_a_hash_that_looks_like_a_number_stays_a_text(tmp_path):
    facts = CardFacts(name="org/own", domain="remote-sensing", rendered="123456789e012345")
    facts.write(tmp_path / "card.yaml")
    assert CardFacts.read(tmp_path / "card.yaml") == facts


@pytest.mark.slow
def test_a_calibration_is_on_the_card_and_goes_along(converted, tmp_path):
    import shutil

    import numpy as np

    from itemized_clip_hf.evaluation.calibrate import fit_findings
    from itemized_clip_hf.evaluation.calibration import Calibration
    from itemized_clip_hf.evaluation.protocols import Protocol
    from itemized_clip_hf.evaluation.protocols.labels import Truth
    from itemized_clip_hf.hub.push import choose_files
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.provenance import hash_model, hash_processor

    pytest.importorskip("sklearn")
    folder = tmp_path / "calibrated"
    shutil.copytree(converted, folder)
    assert "Uncalibrated: no score of this model is a probability." in card_text(facts_of_folder(folder))
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 1)) < 0.5).astype(float)
    truth = Truth([str(number) for number in range(60)], labels=labels)
    protocol = Protocol("own", findings=["beach"])
    findings = fit_findings(protocol, {"beach": ["a beach"]}, rng.normal(size=(60, 1)) + labels, truth, resamples=20)
    model, processor = load(folder, "cpu")
    hashes = hash_model(model), hash_processor(processor)
    Calibration(*hashes, "own", "Own", {"studies": 60}, findings, "youden").save(folder)
    (folder / "calibration.scores.jsonl").write_text("{}\n")
    text = card_text(facts_of_folder(folder))
    assert "calibrated on 60 studies of Own" in text and "| beach | " in text and "| platt | " in text
    chosen, left = choose_files(folder)
    assert "calibration.json" in chosen and "calibration.scores.jsonl" in left
    Calibration("other", hashes[1], "own", "Own", {"studies": 60}, findings, "youden").save(folder)
    with pytest.raises(ValueError, match="was made with other weights"):
        facts_of_folder(folder)
