"""`--set`: dotted names reach every part of a recipe, and unknown ones are told with the nearest known one."""

import json

import pytest
from transformers import BertConfig, CLIPTextConfig, PreTrainedConfig

from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPTrainingArguments, ItemizedCLIPVisionConfig
from itemized_clip_hf.processing.image_processing_itemized_clip import ItemizedCLIPImageProcessorKwargs
from itemized_clip_hf.recipes import load_recipe
from itemized_clip_hf.recipes.schema import check_recipe
from itemized_clip_hf.recipes.settings import (
    apply_settings,
    image_names,
    model_names,
    names_in_source,
    require_shapes,
    text_names,
    training_names,
    vision_names,
)
from itemized_clip_hf.specs import hints_of


def test_names_read_from_the_source_are_those_of_the_classes():
    assert training_names() == set(ItemizedCLIPTrainingArguments.__dataclass_fields__)
    assert image_names() == set(hints_of(ItemizedCLIPImageProcessorKwargs))
    brain, natural = load_recipe("brain-mri"), load_recipe("natural-images")
    common = set(PreTrainedConfig.__dataclass_fields__)
    for found, config in (
        (model_names(), ItemizedCLIPConfig),
        (vision_names(), ItemizedCLIPVisionConfig),
        (text_names(brain), BertConfig),
        (text_names(natural), CLIPTextConfig),
    ):
        known = set(config.__dataclass_fields__)
        assert found is not None and found - {"model_type"} <= known
        assert known - common - {"model_type"} <= found  # what every config has is no business of a recipe
    assert names_in_source("itemized_clip_hf.nowhere", "Nothing") is None
    assert names_in_source("itemized_clip_hf.recipes", "Nothing") is None


def test_where_settings_go():
    recipe, training = apply_settings(
        load_recipe("remote-sensing"),
        {
            "model.hidden_size": 96,
            "model.projection_dim": 48,
            "model.text_config.hidden_size": 32,
            "text.num_hidden_layers": 2,
            "image.scan_size": [1, 32, 32],
            "tokenizer.vocab_size": 500,
            "global_batch_size": 4,
            "cache_pictures": None,
            "max_steps": 7,
            "training.learning_rate": 0.1,
            "objective_weights.kta_weight": 0.5,
        },
    )
    before = load_recipe("remote-sensing")
    assert recipe.model["vision_config"] == {**before.model["vision_config"], "hidden_size": 96}
    assert recipe.model["projection_dim"] == 48
    assert recipe.model["text_config"] == {**before.model["text_config"], "hidden_size": 32, "num_hidden_layers": 2}
    assert recipe.image == {**before.image, "scan_size": [1, 32, 32]}
    assert recipe.tokenizer == {"vocab_size": 500, "context_length": 32}
    assert (recipe.global_batch_size, recipe.cache_pictures) == (4, None)
    weights = {**before.training["objective_weights"], "kta_weight": 0.5}
    assert training == {"max_steps": 7, "learning_rate": 0.1, "objective_weights": weights}
    assert load_recipe("remote-sensing") == before, "the recipe itself is left alone"


def test_another_text_tower_has_names_of_its_own():
    settings = {"text.vocab_size": 300, "text.model_type": "clip_text_model", "text.eos_token_id": 2}
    recipe, _ = apply_settings(load_recipe("brain-mri"), settings)
    assert recipe.architecture()["text_config"] == {
        "model_type": "clip_text_model",
        "vocab_size": 300,
        "eos_token_id": 2,
    }


def test_another_objective_does_not_inherit_weights():
    settings = {"objective": "flair", "objective_weights.tcs_weight": 2.0}
    _, training = apply_settings(load_recipe("remote-sensing"), settings)
    assert training["objective_weights"] == {"tcs_weight": 2.0}


@pytest.mark.parametrize(
    "setting, expected",
    [
        ("max_stpes", "max_steps"),
        ("training.max_stpes", "max_steps"),
        ("model.hiden_size", "hidden_size"),
        ("model.vision_config.hiden_size", "hidden_size"),
        ("model.text_config.hiden_size", "hidden_size"),
        ("text.hiden_size", "hidden_size"),
        ("image.scan_sise", "scan_size"),
        ("tokenizer.vocab", "vocab_size"),
        ("cache_picture", "cache_pictures"),
    ],
)
def test_unknown_names_are_told_with_the_nearest(setting, expected):
    with pytest.raises(ValueError, match=f"--set {setting}: unknown keys .*perhaps '{expected}'"):
        apply_settings(load_recipe("brain-mri"), {setting: 1})


def test_values_are_checked_with_the_recipe():
    recipe, _ = apply_settings(load_recipe("brain-mri"), {"model.hidden_size": "wide"})
    with pytest.raises(ValueError, match="'hidden_size' expected int, got str"):
        check_recipe(recipe, "brain-mri")


def test_a_run_goes_on_with_the_model_that_it_began_with(tmp_path):
    recipe = load_recipe("brain-mri")
    (tmp_path / "config.json").write_text(json.dumps({"projection_dim": 64, "vision_config": {"hidden_size": 64}}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"scan_size": [8, 16, 16]}}))
    same = {"model.hidden_size": 64, "model.projection_dim": 64, "image.scan_size": [8, 16, 16], "max_steps": 9}
    require_shapes(recipe, same, tmp_path)
    for name, value in (("model.hidden_size", 96), ("image.scan_size", [8, 16, 32])):
        with pytest.raises(ValueError, match=f"--set {name}=.*was begun with"):
            require_shapes(recipe, {name: value}, tmp_path)


def test_image_settings_under_a_former_name(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "domain: remote-sensing\nimage: {train_turns: true}\nvariants: {upright: {image: {train_turns: false}}}\n"
    )
    recipe = load_recipe(str(path))
    assert recipe.image == {"train_rot90_flip": True}
    assert recipe.variant("upright").image == {"train_rot90_flip": False}
    assert apply_settings(recipe, {"image.train_turns": False})[0].image == {"train_rot90_flip": False}
    path.write_text("domain: remote-sensing\nimage: {train_turns: true, train_rot90_flip: false}\n")
    with pytest.raises(ValueError, match="recipe.yaml: image: train_turns is True and train_rot90_flip is False"):
        load_recipe(str(path))
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"train_turns": true}}')
    with pytest.raises(ValueError, match="begun with True"):
        require_shapes(load_recipe("remote-sensing"), {"image.train_rot90_flip": False}, tmp_path)
