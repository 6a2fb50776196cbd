"""Cards: the five in hub_cards, those of folders, and what their metadata says."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conversion.sources import source, tokenizer_of_size, training_dictionary
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from itemized_clip_cli import main
from itemized_clip_hf.domains import available_domains
from itemized_clip_hf.hub.card import CardFacts, card_text, facts_of_folder

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
    assert header["library_name"] == "transformers" and header["pipeline_tag"] == "zero-shot-image-classification"
    assert header["license"] == "unknown" and header["language"] == "en" and "itemized_clip" in header["tags"]
    model_name, results = model_index_to_eval_results(header["model-index"])
    assert model_name == name and [r for r in results if "reported by the paper" in r.metric_name] == results
    assert ModelCardData(**{**card.data.to_dict()}).to_yaml()
    facts = CardFacts.read(CARDS / f"{name}.yaml")
    assert [(r.dataset_name, r.metric_value) for r in results] == [
        (r["benchmark"], r["value"]) for r in facts.paper
    ] or len(results) == len(facts.paper)


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


RESULTS = {
    "protocol": "ct-rate",
    "title": "CT-RATE",
    "tables": {"": {"studies": 12, "mean": {"auc": {"value": 0.831, "low": 0.8, "high": 0.87}, "f1": {"value": None}}}},
    "data": {"sha256": "0" * 64},
    "model": {"sha256": "1" * 64},
}


def test_card_of_a_converted_folder(converted, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    done = run_card("-m", converted, "--results", tmp_path / "results.json", "--name", "org/mine")
    assert done.exit_code == 0 and "not stated: license, training_data, access, population" in done.output, done.output
    text = (converted / "README.md").read_text()
    assert "| CT-RATE | 12 | auc | 83.1 (80.0 to 87.0) |" in text and "converted from a checkpoint" in text
    assert "| Size | 16 x 32 x 32 voxels" in text or "voxels (depth, height, width)" in text
    assert 'model="org/mine"' in text
    index = metadata_load(converted / "README.md")["model-index"][0]["results"][0]
    assert index["dataset"]["name"] == "CT-RATE" and index["metrics"][0]["value"] == 0.831
    # facts that a person adds stay, figures of the same benchmark are replaced
    facts = yaml.safe_load((converted / "card.yaml").read_text())
    (converted / "card.yaml").write_text(yaml.safe_dump({**facts, "population": "adults", "license": "cc-by-nc-4.0"}))
    done = run_card("-m", converted)
    assert done.exit_code == 1 and "pass --overwrite" in done.output
    RESULTS["tables"][""]["mean"]["auc"]["value"] = 0.9
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    done = run_card("-m", converted, "--results", tmp_path / "results.json", "--overwrite")
    assert done.exit_code == 0, done.output
    text = (converted / "README.md").read_text()
    assert "adults" in text and "Weights: cc-by-nc-4.0." in text and "90.0 (80.0" in text and "83.1" not in text


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
