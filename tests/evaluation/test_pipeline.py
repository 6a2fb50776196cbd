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
    results = classify(study, candidate_labels=ITEMS)
    assert {result["label"] for result in results} == set(ITEMS)
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
    inputs = classify.processor(images=study, text=ITEMS, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.sigmoid()[0]
    assert {r["label"]: r["score"] for r in results} == pytest.approx(dict(zip(ITEMS, expected.tolist())), abs=1e-5)
    # a label's score does not depend on the other labels
    alone = classify(study, candidate_labels=ITEMS[:1])[0]["score"]
    assert alone == pytest.approx(expected[0].item(), abs=1e-5)
    several = classify([study, {"AX_T1": rng.normal(size=(6, 16, 16))}], candidate_labels={"mass": ITEMS[:2]})
    assert len(several) == 2 and len(several[0]) == 1
    _, scores = score_studies(model, classify.processor, [study], {"mass": ITEMS[:2]}, normalize_pool_inputs=False)
    logit = scores[0, 0] * model.logit_scale.exp().item()
    assert several[0][0]["score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert classify(study, candidate_labels=ITEMS[0])[0]["label"] == ITEMS[0]


def test_pictures(saved):
    _, folder = saved(
        "remote-sensing", {"scan_size": [1, 16, 16]}, num_channels=3, image_size=[1, 16, 16], patch_size=[1, 8, 8]
    )
    classify = pipeline("zero-shot-image-classification", model=folder)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    results = classify(picture, candidate_labels=["left frontal mass", "bleed"])
    assert {result["label"] for result in results} == {"left frontal mass", "bleed"}
