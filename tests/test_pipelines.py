"""The two pipelines, by their names."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ITEMS
from transformers import pipeline

from itemized_clip_hf import ItemizedCLIPPipeline, ItemizedCLIPProcessor
from itemized_clip_hf.evaluation.zero_shot import score_studies


@pytest.fixture
def saved(make_model, tokenizer, tmp_path):
    def save(domain: str, settings: dict, **vision):
        model = make_model(**vision)
        with torch.no_grad():
            model.logit_bias.zero_()
        model.save_pretrained(tmp_path)
        ItemizedCLIPProcessor.from_domain(domain, tokenizer=tokenizer, **settings).save_pretrained(tmp_path)
        return model, str(tmp_path)

    return save


def test_studies(saved):
    model, folder = saved("brain-mri", {"scan_size": [8, 16, 16], "in_plane_size": 16})
    classify = pipeline("zero-shot-study-classification", model=folder)
    assert isinstance(classify, ItemizedCLIPPipeline)
    rng = np.random.default_rng(0)
    study = {"AX_T1": rng.normal(size=(6, 16, 16)), "AX_T2": rng.normal(size=(7, 18, 16))}
    results = classify(study, candidate_labels=ITEMS, scores="probability")
    assert {result["label"] for result in results} == set(ITEMS)
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
    inputs = classify.processor(images=study, text=ITEMS, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.sigmoid()[0]
    assert {r["label"]: r["score"] for r in results} == pytest.approx(dict(zip(ITEMS, expected.tolist())), abs=1e-5)
    # a label's score does not depend on the other labels
    alone = classify(study, candidate_labels=ITEMS[:1], scores="probability")[0]["score"]
    assert alone == pytest.approx(expected[0].item(), abs=1e-5)
    two = [study, {"AX_T1": rng.normal(size=(6, 16, 16))}]
    several = classify(two, candidate_labels={"mass": ITEMS[:2]}, scores="probability")
    assert len(several) == 2 and len(several[0]) == 1
    _, scores = score_studies(model, classify.processor, [study], {"mass": ITEMS[:2]}, normalize_pool_inputs=False)
    logit = scores[0, 0] * model.logit_scale.exp().item()
    assert several[0][0]["score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert classify(study, candidate_labels=ITEMS[0])[0]["label"] == ITEMS[0]


def test_pictures(saved, tmp_path):
    model, folder = saved(
        "remote-sensing", {"scan_size": [1, 16, 16]}, num_channels=3, image_size=[1, 16, 16], patch_size=[1, 8, 8]
    )
    classify = pipeline("zero-shot-image-classification", model=folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    results = classify(picture, candidate_labels=["left frontal mass", "bleed"])
    assert {result["label"] for result in results} == {"left frontal mass", "bleed"}
    # each label by itself, whatever the others are
    alone = classify(picture, candidate_labels=["bleed"])
    assert alone[0]["score"] == pytest.approx(next(r["score"] for r in results if r["label"] == "bleed"), abs=1e-6)
    alone = classify(picture, candidate_labels=["bleed"], scores="probability")
    inputs = classify.processor(images=picture, text=["bleed"], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.sigmoid().item()
    assert alone[0]["score"] == pytest.approx(expected, abs=1e-5)
    settings = {"candidate_labels": ["bleed"], "hypothesis_template": "small {}"}
    made = pipeline("zero-shot-image-classification", model=folder, **settings)
    expected = classify(picture, candidate_labels=["small bleed"])[0]["score"]
    assert made(picture)[0] == {
        "label": "bleed",
        "score": pytest.approx(expected, abs=1e-6),
        "quantity": "similarity",
        "calibrated": False,
    }
    batch = np.stack([np.asarray(picture)] * 2)
    assert len(classify(batch, candidate_labels=["bleed"])) == 2
    assert len(list(classify((p for p in [picture] * 3), candidate_labels=["bleed"], num_workers=0))) == 3
    picture.save(tmp_path / "picture.png")
    prompts = {"bleed": ["bleed", "a bleed"], "mass": "left frontal mass"}
    both = classify([picture, str(tmp_path / "picture.png")], candidate_labels=prompts, batch_size=2, heat_maps=True)
    assert both[0][0]["heat_maps"][0].values.shape == (40, 30)
    assert [r["score"] for r in both[0]] == pytest.approx([r["score"] for r in both[1]], abs=1e-6)


def test_other_models_get_the_library_s_own_pipeline():
    """The class and the scores that they have without this package."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast
    from transformers.pipelines import ZeroShotImageClassificationPipeline

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 12, "bos_token_id": 10, "eos_token_id": 11, "max_position_embeddings": 16}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    words = Tokenizer(models.WordLevel({**{w: i for i, w in enumerate("pad a dog cat".split())}, "end": 11}, "pad"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="pad", eos_token="end", unk_token="pad")
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    parts = {"model": clip, "tokenizer": tokenizer, "image_processor": images}
    classify = pipeline("zero-shot-image-classification", **parts)
    plain = ZeroShotImageClassificationPipeline(**parts, task="zero-shot-image-classification")
    assert type(classify) is type(plain) and vars(classify).keys() == vars(plain).keys()
    picture = Image.fromarray(np.zeros((20, 20, 3), np.uint8))
    labels = {"candidate_labels": ["dog", "cat", "a"], "hypothesis_template": "{} end"}
    results = classify(picture, **labels)
    assert results == plain(picture, **labels)
    assert sum(result["score"] for result in results) == pytest.approx(1)


def test_batches_give_the_scores_of_single_studies(saved):
    _, folder = saved("brain-mri", {"scan_size": [8, 16, 16], "in_plane_size": 16})
    rng = np.random.default_rng(0)
    studies = [{f"AX_{i}": rng.normal(size=(6, 16, 16)) for i in range(count)} for count in (1, 3, 2)]
    classify = pipeline("zero-shot-study-classification", model=folder, batch_size=3)
    together = classify(studies, candidate_labels=ITEMS)
    for study, found in zip(studies, together):
        alone = {r["label"]: r["score"] for r in classify([study], candidate_labels=ITEMS, batch_size=1)[0]}
        assert {r["label"]: r["score"] for r in found} == pytest.approx(alone, abs=1e-5)


def test_what_the_pipeline_was_made_with(saved):
    _, folder = saved("brain-mri", {"scan_size": [8, 16, 16], "in_plane_size": 16})
    study = {"AX_T1": np.random.default_rng(0).normal(size=(6, 16, 16))}
    plain = pipeline("zero-shot-study-classification", model=folder)
    made = pipeline(
        "zero-shot-study-classification", model=folder, candidate_labels=["mass"], hypothesis_template="small {}"
    )
    expected = plain(study, candidate_labels=["small mass"])[0]["score"]
    (found,) = made(study, num_workers=0)
    assert found == {
        "label": "mass",
        "score": pytest.approx(expected, abs=1e-6),
        "quantity": "similarity",
        "calibrated": False,
    }
    with pytest.raises(ValueError, match="no candidate_labels"):
        plain(study)
    with pytest.raises(ValueError, match="one has no text"):
        plain(study, candidate_labels={"mass": []})


@pytest.mark.parametrize("task", ["zero-shot-study-classification", "zero-shot-image-classification"])
def test_top_k_and_quantities_of_both_pipelines(saved, task):
    if "image" in task:
        size = {"num_channels": 3, "image_size": [1, 16, 16], "patch_size": [1, 8, 8]}
        _, folder = saved("remote-sensing", {"scan_size": [1, 16, 16]}, **size)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    else:
        _, folder = saved("brain-mri", {"scan_size": [8, 16, 16], "in_plane_size": 16})
        image = {"AX_T1": np.random.default_rng(0).normal(size=(6, 16, 16))}
    classify = pipeline(task, model=folder)
    every = classify(image, candidate_labels=ITEMS, heat_maps=True)
    for made, asked in ((classify, {"top_k": 2}), (pipeline(task, model=folder, top_k=2), {})):
        best = made(image, candidate_labels=ITEMS, heat_maps=True, num_workers=2, **asked)
        assert [entry["label"] for entry in best] == [entry["label"] for entry in every[:2]]
        for entry, whole in zip(best, every):
            assert entry["score"] == pytest.approx(whole["score"], abs=1e-6)
            np.testing.assert_allclose(entry["heat_maps"][0].values, whole["heat_maps"][0].values, atol=1e-5)
    assert len(classify(image, candidate_labels=ITEMS, top_k=9)) == len(ITEMS)
    made = pipeline(task, model=folder, calibration=False)
    assert [entry["calibrated"] for entry in made(image, candidate_labels=ITEMS[:1])] == [False]
    with pytest.raises(FileNotFoundError, match="there is no calibration at"):
        classify(image, candidate_labels=ITEMS, point="youden")
    made = pipeline(task, model=folder, scores="logit")
    assert made(image, candidate_labels=ITEMS)[0]["quantity"] == "logit"
    for wrong, known in (({"scores": "cosine"}, "similarity, logit, probability"), ({"top_k": 0}, "at least 1")):
        with pytest.raises(ValueError, match=known):
            classify(image, candidate_labels=ITEMS, **wrong)
        with pytest.raises(ValueError, match=known):
            pipeline(task, model=folder, **wrong)


def test_generators_and_data_sets_are_read_one_by_one(saved, tmp_path):
    class Studies(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"AX_T1": np.random.default_rng(index % 3).normal(size=(6, 16, 16))}

    _, folder = saved("brain-mri", {"scan_size": [8, 16, 16], "in_plane_size": 16})
    classify = pipeline("zero-shot-study-classification", model=folder)
    expected = classify([Studies()[i] for i in range(3)], candidate_labels=ITEMS[:2], batch_size=2)
    for stream in (Studies(), (Studies()[i] for i in range(3))):
        results = classify(stream, candidate_labels=ITEMS[:2])
        assert not isinstance(results, list)
        for found, wanted in zip(list(results), expected, strict=True):
            assert found[0]["label"] == wanted[0]["label"] and found[0]["score"] == pytest.approx(
                wanted[0]["score"], abs=1e-5
            )


def test_heat_maps_are_those_of_explain(saved):
    from itemized_clip_hf.explain.maps import explain_study

    model, folder = saved("brain-mri", {"scan_size": [8, 16, 16], "in_plane_size": 16})
    rng = np.random.default_rng(0)
    study = {"AX_T1": rng.normal(size=(6, 16, 20)), "AX_T2": rng.normal(size=(7, 18, 16))}
    classify = pipeline("zero-shot-study-classification", model=folder, batch_size=2)
    found = classify([study, {"AX_T1": study["AX_T1"]}], candidate_labels=ITEMS[:2], heat_maps=True)
    assert len(found[1][0]["heat_maps"]) == 1
    for entry in found[0]:
        expected = explain_study(model, classify.processor, study, [entry["label"]])
        assert [heat.scan_name for heat in entry["heat_maps"]] == ["AX_T1", "AX_T2"]
        for heat, other in zip(entry["heat_maps"], expected):
            np.testing.assert_allclose(heat.values, other.values, atol=1e-4)
            assert heat.share == pytest.approx(other.share, abs=1e-5) and heat.item == entry["label"]


def test_a_volume_model_is_no_picture_model(saved):
    _, folder = saved("brain-mri", {"scan_size": [8, 16, 16], "in_plane_size": 16})
    classify = pipeline("zero-shot-image-classification", model=folder)
    with pytest.raises(ValueError, match="zero-shot-study-classification"):
        classify(Image.new("RGB", (20, 20)), candidate_labels=["bleed"])
