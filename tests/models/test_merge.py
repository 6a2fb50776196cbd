"""What `merge` leaves beside the weights: the card of the adapters, with its history."""

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from tiny_models import tiny_config

from itemized_clip_cli import main
from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
from itemized_clip_hf.data.studies.training_ids import TrainingIds, remember
from itemized_clip_hf.hub.card import CardFacts, is_edited, write_card
from itemized_clip_hf.models.adapters import add_lora, save_adapters
from itemized_clip_hf.models.load import load_model
from itemized_clip_hf.provenance import hash_model

pytest.importorskip("peft")

MEASURED = [{"benchmark": "Own", "metric": "auc", "value": 0.7, "studies": 9, "dataset": "own", "data_sha256": "0"}]


@pytest.fixture
def run(tmp_path, tokenizer):
    """Adapters that change something, with a card, on a base model with a license."""
    torch.manual_seed(0)
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer, scan_size=[8, 16, 16], in_plane_size=16, use_scan_names=False
    )
    model = ItemizedCLIPModel(tiny_config())
    model.config.domain = "brain-mri"
    model.save_pretrained(tmp_path / "base")
    for folder in (tmp_path / "base", tmp_path / "run"):
        processor.save_pretrained(folder)
    CardFacts("org/base", "brain-mri", license="cc-by-nc-4.0", license_note="From MAE.").write(
        tmp_path / "base" / "card.yaml"
    )
    model = load_model(str(tmp_path / "base"))
    add_lora(model, "vision")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_adapters(model, tmp_path / "run")
    facts = CardFacts("run", "brain-mri", population="adults", training={"LoRA": "vision"}, measured=MEASURED)
    write_card(tmp_path / "run", facts)
    return tmp_path / "run"


def merge(run, output):
    done = CliRunner().invoke(main, ["merge", "-m", str(run), "-o", str(output)])
    assert done.exit_code == 0, done.output
    return CardFacts.read(output / "card.yaml"), (output / "README.md").read_text()


def test_the_card_goes_along(run, tmp_path):
    remember(run, ["study 7"])
    facts, text = merge(run, tmp_path / "merged")
    assert TrainingIds.read(tmp_path / "merged").count(["study 7"]) == 1
    assert (facts.name, facts.license, facts.license_note) == ("merged", "cc-by-nc-4.0", "From MAE.")
    assert facts.population == "adults" and list(facts.training) == ["LoRA", "merged"] and facts.measured == MEASURED
    assert "adapters were added to the weights of their base model" in text and not is_edited(tmp_path / "merged")
    assert ModelCard(text).data.license == "cc-by-nc-4.0"
    # the figures may stay: what `evaluate` scored under the adapters' name are these weights
    assert hash_model(load_model(str(run))) == hash_model(load_model(str(tmp_path / "merged")))
    assert hash_model(load_model(str(run))) != hash_model(load_model(str(tmp_path / "base")))


def test_a_license_of_the_adapters_and_a_chosen_name_stay(run, tmp_path):
    facts = CardFacts.read(run / "card.yaml")
    facts.name, facts.license = "org/chosen", "mit"
    write_card(run, facts)
    facts, _ = merge(run, tmp_path / "merged")
    assert (facts.name, facts.license, facts.license_note) == ("org/chosen", "mit", "")


def test_an_edited_readme_is_kept(run, tmp_path):
    (run / "README.md").write_text("# My adapters\n")
    _, text = merge(run, tmp_path / "merged")
    assert text.startswith("# My adapters\n\nThe LoRA adapters were added")
    assert is_edited(tmp_path / "merged")
    (tmp_path / "merged" / "README.md").write_text("# My model\n")
    assert merge(run, tmp_path / "merged")[1] == "# My model\n"


def test_adapters_without_a_card_get_one(run, tmp_path):
    for name in ("README.md", "card.yaml"):
        (run / name).unlink()
    facts, _ = merge(run, tmp_path / "merged")
    assert (facts.domain, facts.license) == ("brain-mri", "cc-by-nc-4.0") and facts.measured == []
