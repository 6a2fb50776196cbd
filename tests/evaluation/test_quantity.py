"""Similarity, logit and probability against the model's own forward pass."""

import numpy as np
import pytest
import torch
from tiny_models import ITEMS

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.evaluation.quantity import MEANINGS, convert, describe
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.pipelines import classify_studies


@pytest.fixture(params=["items", "global"])
def ready(request, make_model, tokenizer):
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    model = make_model()
    model.config.scoring = request.param
    with torch.no_grad():
        model.logit_bias.fill_(-0.5)
    return model, processor


def by_label(found) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in found}


def test_every_quantity_is_what_it_is_called(ready):
    model, processor = ready
    rng = np.random.default_rng(0)
    studies = [[rng.normal(size=(6, 16, 16)).astype(np.float32) for _ in range(count)] for count in (1, 3)]
    found = {name: list(classify_studies(model, processor, studies, ITEMS, scores=name)) for name in MEANINGS}
    _, similarities = score_studies(model, processor, studies, ITEMS)  # of the protocols of `evaluate`
    for number, study in enumerate(studies):
        with torch.no_grad():
            logits = model(**processor(images=[study], text=ITEMS, return_tensors="pt")).logits_per_image[0]
        expected = {"logit": logits, "sigmoid": 1 / (1 + torch.exp(-logits))}
        expected["similarity"] = torch.from_numpy(similarities[number])
        for name, wanted in expected.items():
            assert by_label(found[name][number]) == pytest.approx(dict(zip(ITEMS, wanted.tolist())), abs=2e-5)
            assert {entry["quantity"] for entry in found[name][number]} == {name}
    assert found["probability"] == found["sigmoid"]  # without a calibration, and by its name
    assert by_label(next(classify_studies(model, processor, studies, ITEMS))) == by_label(found["similarity"][0])


def test_conversion_by_hand(ready):
    model, _ = ready
    similarities = np.array([[0.1, np.nan], [-1, 1]], np.float32)
    scale = float(np.exp(model.logit_scale.item()))
    np.testing.assert_allclose(convert(model, similarities, "logit"), similarities * scale - 0.5, rtol=1e-5)
    np.testing.assert_allclose(
        convert(model, similarities, "sigmoid"), 1 / (1 + np.exp(0.5 - similarities * scale)), rtol=1e-5
    )
    assert convert(model, similarities, "similarity") is similarities
    with pytest.raises(ValueError, match="uncalibrated"):
        convert(model, similarities, "probability")
    assert "uncalibrated: not a probability" in describe("sigmoid") and "averaged" not in describe("logit")
    assert "averaged" in describe("logit", 2)
