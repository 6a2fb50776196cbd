"""Domains and recipes against the specification's tables."""

import json
import os
from pathlib import Path

import pytest

from itemized_clip_hf import ItemizedCLIPConfig
from itemized_clip_hf.domains import available_domains, load_domain
from itemized_clip_hf.recipes import Recipe, available_recipes, load_recipe, merge, merge_recipes
from itemized_clip_hf.trainer.from_recipe import build_model, build_processor
from itemized_clip_hf.trainer.objectives import load_objective
from itemized_clip_hf.trainer.training_args import ItemizedCLIPTrainingArguments

SPEC = Path(os.environ.get("ITEMIZED_CLIP_SPEC", Path(__file__).parents[3] / "shared" / "spec")) / "protocols"
KEYS = {
    "brain-mri": "brain_mri",
    "head-ct": "head_ct",
    "chest-ct": "chest_ct",
    "remote-sensing": "rsicd",
    "natural-images": "itemized_cc0_3m",
}


def protocol(name: str):
    if not SPEC.exists():
        pytest.skip(f"the specification is not at {SPEC}; set ITEMIZED_CLIP_SPEC")
    return json.loads((SPEC / f"{name}.json").read_text())


def check(recipe: Recipe, domain: str, values: dict):
    training = recipe.training
    weights = {**load_domain(domain).objective, **training.get("objective_weights", {})}
    assert recipe.global_batch_size == values["global_batch"]
    assert training["learning_rate"] == values["lr"] and training["weight_decay"] == values["weight_decay"]
    assert training["num_train_epochs"] == values["epochs"] and training["warmup_steps"] == values["warmup_steps"]
    assert training["max_items"] == values["max_items"]
    assert weights["iis_weight"] == values["lambda_iis"] and weights["mps_weight"] == values["lambda_mps"]
    assert weights["kta_weight"] == values["lambda_kta"] and weights["key_token_rate"] == values["kta_rate"]
    assert weights["keep_rate"] == pytest.approx(1 - values["p_mask"])
    assert weights["worst_positive_factor"] == values["w_uwp"]
    assert training["adam_epsilon"] == values.get("eps", training["adam_epsilon"])
    assert training.get("diverse_sampling") == values["diverse_sampling"]


@pytest.mark.parametrize("domain", available_domains())
def test_values_of_the_papers(domain):
    table = protocol("hyperparameters")[KEYS[domain]]
    recipe = load_recipe({"remote-sensing": "remote-sensing-paper"}.get(domain, domain))
    check(recipe, domain, table[table["default"]])
    other = {"released_script": "paper_table12", "paper_table12": "released_script"}[table["default"]]
    name = {"paper_table12": "paper-table-12", "released_script": "released-script"}[other]
    if name in recipe.variants:
        check(recipe.variant(name), domain, table[other])
    else:
        assert all(table[other][k] == table[table["default"]][k] for k in table[other])


def test_variants_of_another_recipe():
    own, paper = load_recipe("remote-sensing"), load_recipe("remote-sensing-paper")
    assert own.variant("paper") == Recipe(**{**vars(paper), "variants": {}})
    large = own.variant("large")
    assert large.architecture()["vision_config"]["hidden_size"] == 768 and large.image["train_rot90_flip"]
    assert large.training["num_train_epochs"] == paper.training["num_train_epochs"]


def test_windows_and_constants():
    windows = protocol("windows")
    assert load_domain("chest-ct").image["windows"] == {
        "": [windows["chest_ct"]["hu_min"], windows["chest_ct"]["hu_max"]]
    }
    for name, key in (("BrainWindow", "brain"), ("BloodWindow", "blood"), ("BoneWindow", "bone")):
        level, width = windows["head_ct"][key]["level"], windows["head_ct"][key]["width"]
        assert load_domain("head-ct").image["windows"][name] == [level - width / 2, level + width / 2]
    assert load_domain("brain-mri").image["percentiles"] == windows["mri"]["percentiles"]
    for domain in ("remote-sensing", "natural-images"):
        natural = windows["normalisation"]["natural_and_remote_sensing"]
        assert load_domain(domain).image["image_mean"] == natural["mean"]
        assert load_domain(domain).image["image_std"] == natural["std"]


def test_prompts():
    assert load_domain("chest-ct").labels == protocol("prompts_ct_rate")["prompts"]
    rsicd = protocol("prompts_rsicd")
    expected = {c: [t.format(c=c) for t in rsicd["templates"]] for c in rsicd["classes"]}
    assert load_domain("remote-sensing").prompts == expected
    brain = protocol("prompts_pub_brain_5")
    assert load_domain("brain-mri").labels == dict(zip(brain["classes"], brain["itemizedclip_prompts"]))
    assert {r["prompt"] for r in protocol("prompts_cq500")["aligned"]} == set(load_domain("head-ct").labels.values())


@pytest.mark.parametrize("name", available_recipes())
def test_recipes_build(name):
    recipe = load_recipe(name)
    config = ItemizedCLIPConfig(**recipe.architecture(), domain=recipe.domain)
    size = recipe.image.get("scan_size", load_domain(recipe.domain).image["scan_size"])
    assert list(config.vision_config.image_size) == list(size)
    weights = {**load_domain(recipe.domain).objective, **recipe.training.get("objective_weights", {})}
    load_objective("itemized_clip", **weights)
    known = ItemizedCLIPTrainingArguments.__dataclass_fields__
    assert set(recipe.training) <= set(known)
    for variant in recipe.variants:
        assert set(recipe.variant(variant).training) <= set(known)


@pytest.mark.parametrize("domain", available_domains())
def test_architecture_belongs_to_the_preprocessing(domain):
    facts = load_domain(domain)
    vision = facts.architecture["vision_config"]
    assert vision["image_size"] == facts.image["scan_size"] and vision["num_channels"] == facts.image["num_channels"]
    assert vision.get("use_scan_name_encoder", False) == facts.image["use_scan_names"]


def test_normal_rules():
    brain, chest = load_domain("brain-mri"), load_domain("chest-ct")
    assert brain.is_normal(["No significant abnormalities."])
    assert brain.is_normal(["The study is unremarkable today", "anything"])
    assert not brain.is_normal(["mass", "study is unremarkable"])
    assert chest.is_normal(["no abnormalities detected"])
    assert not chest.is_normal(["no abnormalities detected", "nodule"])
    assert not load_domain("remote-sensing").is_normal(["study is unremarkable"])
    assert not brain.is_normal([])


def test_recipe_files(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: brain-mri\ntraining: {learning_rate: 0.5}\nmodel: {vision_config: {drop_path_rate: 0.0}}\n")
    mine = load_recipe(str(path))
    assert mine.training["learning_rate"] == 0.5 and mine.training["max_items"] == 7
    assert mine.architecture()["vision_config"]["drop_path_rate"] == 0.0
    path.write_text("domain: brain-mri\nlearning_rate: 1\n")
    with pytest.raises(ValueError, match="unknown keys \\['learning_rate'\\]"):
        load_recipe(str(path))
    with pytest.raises(ValueError, match="no variant"):
        load_recipe("brain-mri").variant("mine")
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": 2}, "d": 4}


@pytest.mark.parametrize("context", [24, 256])
def test_the_context_of_a_recipe_is_that_of_its_tokenizer(context):
    """Also where it is longer than that of the domain's published checkpoints."""
    changes = {"tokenizer": {"vocab_size": 300, "context_length": context}}
    recipe = Recipe(**merge_recipes(vars(load_recipe("remote-sensing")), changes))
    processor = build_processor(recipe, [["many planes are parked next to a long building in an airport"]] * 3)
    model = build_model(recipe, processor.tokenizer)
    assert processor.tokenizer.model_max_length == context
    assert model.config.text.max_position_embeddings >= context
    assert processor(text=["plane " * 300])["input_ids"].shape[-1] == context
