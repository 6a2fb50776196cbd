"""`pipeline("image-classification")` of a classifier: studies, files, pictures; other models keep the library's own."""

import numpy as np
import pytest
import torch
from dicom_files import make_grid, make_series, save
from PIL import Image
from tiny_models import ITEMS, tiny_config
from transformers import pipeline

from itemized_clip_hf import ItemizedCLIPForImageClassification, ItemizedCLIPModel, ItemizedCLIPProcessor

TASK = "image-classification"
PROMPTS = {"mass": ITEMS[0], "bleed": ITEMS[1], "ventricles": ITEMS[2]}
STUDY = {
    "AX_T1": np.random.default_rng(0).normal(size=(6, 16, 16)),
    "AX_T2": np.random.default_rng(1).normal(size=(7, 18, 16)),
}


@pytest.fixture
def saved(make_model, processor, tmp_path):
    """A classifier of studies whose scores are not all tiny, and its folder."""
    model = ItemizedCLIPForImageClassification.from_prompts(make_model(), processor, PROMPTS)
    with torch.no_grad():
        model.logit_bias.zero_()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return model, str(tmp_path / "model")


def expected(model, processor, study) -> dict[str, float]:
    with torch.no_grad():
        logits = model(**processor(images=study, return_tensors="pt")).logits[0]
    return dict(zip(model.label_names, logits.tolist()))


def test_studies(saved, processor):
    model, folder = saved
    classify = pipeline(TASK, model=folder, device="cpu")
    found = classify(STUDY)
    assert [entry["score"] for entry in found] == sorted((entry["score"] for entry in found), reverse=True)
    logits = expected(model, processor, STUDY)
    sigmoid = {name: 1 / (1 + np.exp(-value)) for name, value in logits.items()}
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(sigmoid, abs=1e-5)
    raw = {entry["label"]: entry["score"] for entry in classify(STUDY, function_to_apply="none")}
    assert raw == pytest.approx(logits, abs=1e-4)
    model.config.problem_type = "single_label_classification"
    one = pipeline(TASK, model=model, image_processor=processor.image_processor, device="cpu")
    assert sum(entry["score"] for entry in one(STUDY)) == pytest.approx(1, abs=1e-5)
    assert len(classify([STUDY, STUDY], top_k=1)) == 2 and len(classify([STUDY], top_k=2)[0]) == 2
    assert next(classify(iter([STUDY]))) == found


def test_files_and_dicom_folders(saved, processor, write_volume, tmp_path):
    model, folder = saved
    classify = pipeline(TASK, model=folder, device="cpu")
    path = write_volume()
    found = {entry["label"]: entry["score"] for entry in classify(str(path), function_to_apply="none")}
    assert found == pytest.approx(expected(model, processor, str(path)), abs=1e-4)
    series = tmp_path / "series"
    series.mkdir()
    save(make_series(make_grid(), "MR"), series)
    scores = classify(str(series), accept=["orientation-unknown"], function_to_apply="none")
    assert {e["label"]: e["score"] for e in scores} == pytest.approx(expected(model, processor, str(series)), abs=1e-4)


def test_heat_maps_say_where_a_label_looks(saved, processor):
    model, folder = saved
    found = pipeline(TASK, model=folder, device="cpu")(STUDY, heat_maps=True)
    inputs = processor(images=STUDY, return_tensors="pt")
    attention = model.label_attentions(**inputs)[0].detach()
    for entry in found:
        first, second = entry["heat_maps"]
        share = attention[model.label_names.index(entry["label"])].unflatten(0, (2, -1)).sum(1)
        assert [first.scan_name, second.scan_name] == ["AX_T1", "AX_T2"] and first.values.shape == (6, 16, 16)
        assert first.share / second.share == pytest.approx(float(share[0] / share[1]), rel=1e-3)


def test_pictures(tokenizer, tmp_path):
    config = tiny_config(num_channels=3, image_size=[1, 16, 16], patch_size=[1, 8, 8])
    processor = ItemizedCLIPProcessor.from_domain("remote-sensing", tokenizer=tokenizer, scan_size=[1, 16, 16])
    model = ItemizedCLIPForImageClassification.from_prompts(ItemizedCLIPModel(config).eval(), processor, PROMPTS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    classify = pipeline(TASK, model=str(tmp_path), device="cpu")
    found = classify(picture, function_to_apply="none")
    assert {e["label"]: e["score"] for e in found} == pytest.approx(expected(model, processor, picture), abs=1e-4)
    assert classify(str(tmp_path / "picture.png"), function_to_apply="none") == found
    assert classify([picture, picture], function_to_apply="none") == [found, found]


def test_what_cannot_be_scored_is_refused(saved, model_folder, tmp_path):
    with pytest.raises(ValueError, match="a ItemizedCLIPModel without a head for labels"):
        pipeline(TASK, model=str(model_folder), device="cpu")
    classify = pipeline(TASK, model=saved[1], device="cpu")
    for arguments, error, message in (
        ({"candidate_labels": ["mass"]}, TypeError, "no arguments"),
        ({"top_k": 0}, ValueError, "top_k is 0"),
        ({"function_to_apply": "relu"}, ValueError, "function_to_apply is 'relu'"),
    ):
        with pytest.raises(error, match=message):
            classify(STUDY, **arguments)
    token = ItemizedCLIPForImageClassification.from_model(ItemizedCLIPModel(tiny_config()), ["a"], head="class_token")
    alone = pipeline(TASK, model=token.eval(), image_processor=classify.image_processor, device="cpu")
    assert alone(STUDY)[0]["score"] == 0.5  # from zeros
    with pytest.raises(ValueError, match="no heat maps"):
        alone(STUDY, heat_maps=True)


def test_a_folder_of_the_whole_model_is_one_of_labels_once_it_is_trained(model_folder, processor):
    model = ItemizedCLIPForImageClassification.from_pretrained(model_folder, num_labels=2)
    parts = {"image_processor": processor.image_processor, "device": "cpu"}
    with pytest.raises(ValueError, match="random"):
        pipeline(TASK, model=model, **parts)
    inputs = processor(images=STUDY, return_tensors="pt")
    model.train()(**inputs, labels=torch.tensor([[1.0, 0.0]])).loss.backward()
    assert len(pipeline(TASK, model=model.eval(), **parts)(STUDY)) == 2


def test_other_models_get_the_library_s_own_pipeline():
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
    from transformers.pipelines import ImageClassificationPipeline

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = ViTForImageClassification(ViTConfig(**tower, image_size=16, patch_size=8)).eval()
    parts = {"model": vit, "image_processor": ViTImageProcessorPil(size={"height": 16, "width": 16}), "device": "cpu"}
    classify, plain = pipeline(TASK, **parts), ImageClassificationPipeline(**parts, task=TASK)
    picture = Image.fromarray(np.zeros((20, 20, 3), np.uint8))
    assert type(classify) is type(plain) and classify(picture) == plain(picture)
