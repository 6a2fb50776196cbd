"""Scores and metrics against independent formulations and recorded numbers."""

import numpy as np
import pytest
import torch
from golden_cases import case
from tiny_models import ITEMS

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.evaluation.encode import encode_prompts
from itemized_clip_hf.evaluation.metrics import auroc, classification_summary, true_class_ranks
from itemized_clip_hf.evaluation.zero_shot import match_class, score_studies


def test_recorded_classification():
    meta, tensors, _ = case("metrics_classification")
    scores, classes = tensors["in.logits"].numpy(), tensors["in.labels"].numpy()
    np.testing.assert_array_equal(true_class_ranks(scores, classes), tensors["out.rank"].numpy())
    summary = classification_summary(scores, classes)
    assert summary == pytest.approx({"top1": meta["top1"], "top5": meta["top5"], "mean_rank": meta["mean_rank"]})


def test_recorded_auc():
    meta, tensors, _ = case("metrics_ct")
    for j, recorded in enumerate(meta["per_class"]):
        assert auroc(tensors["in.labels"][:, j].numpy(), tensors["in.scores"][:, j].numpy()) == pytest.approx(
            recorded["auc"]
        )


def test_auroc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40), rng.integers(0, 8, 40).astype(float)
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None]
    expected = (positive > negative).mean() + 0.5 * (positive == negative).mean()
    assert auroc(labels, scores) == pytest.approx(expected)
    assert np.isnan(auroc([1, 1], [0.1, 0.2]))


def test_ranks_by_counting():
    rng = np.random.default_rng(1)
    scores, classes = rng.normal(size=(30, 7)), rng.integers(0, 7, 30)
    expected = [1 + sum(row[j] > row[c] for j in range(7)) for row, c in zip(scores, classes)]
    np.testing.assert_array_equal(true_class_ranks(scores, classes), expected)


@pytest.fixture
def ready(make_model, tokenizer):
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    return make_model(), processor


def studies(count):
    rng = np.random.default_rng(0)
    return [[rng.normal(size=(6, 16, 16)).astype(np.float32) for _ in range(1 + i % 3)] for i in range(count)]


def test_scores_by_hand_and_in_batches(ready):
    model, processor = ready
    prompts = {"a": ITEMS[:1], "b": ITEMS[1:3]}
    labels, scores = score_studies(model, processor, studies(5), prompts, batch_size=2)
    assert labels == ["a", "b"] and scores.shape == (5, 2)
    with torch.no_grad():
        encoded = processor(text=ITEMS[:3], return_tensors="pt")
        text = model.get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output
        mean = sum(text[i] / text[i].norm() for i in (1, 2)) / 2
        queries = torch.stack([text[0] / text[0].norm(), mean / mean.norm()])
        for number, study in enumerate(studies(5)):
            out = model(**processor(images=[study], text=ITEMS[:1], return_tensors="pt"))
            tokens = out.image_tokens / out.image_tokens.norm(dim=-1, keepdim=True)
            pooled = model.item_pooler(queries[None], tokens)[0]
            expected = (pooled / pooled.norm(dim=-1, keepdim=True) * queries).sum(-1)
            np.testing.assert_allclose(scores[number], expected, atol=2e-5)


def test_bad_study_is_reported_in_its_place(ready):
    model, processor = ready
    bad = [np.full((4, 8, 8), np.nan, np.float32)]
    seen = []
    _, scores = score_studies(
        model, processor, [*studies(2), bad, *studies(1)], ITEMS[:1], on_error=lambda n, e: seen.append((n, str(e)))
    )
    assert [n for n, _ in seen] == [2] and "NaN" in seen[0][1]
    assert np.isnan(scores).any(axis=1).tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="NaN"):
        score_studies(model, processor, [bad], ITEMS[:1])


def test_one_template_stays_raw(ready):
    model, processor = ready
    labels, embeds = encode_prompts(model, processor, ITEMS[:2])
    assert labels == ITEMS[:2] and not torch.allclose(embeds.norm(dim=-1), torch.ones(2))
    _, averaged = encode_prompts(model, processor, {"x": ITEMS[:2]})
    torch.testing.assert_close(averaged.norm(dim=-1), torch.ones(1))


def test_classes_are_matched_by_letters():
    classes = list(load_domain("remote-sensing").labels)
    assert match_class("BaseballField", classes) == "baseball field"
    assert match_class("DenseResidential", classes) == "dense residential area"
    assert match_class("Park", classes) == "park" and match_class("Parking", classes) == "parking"
    assert match_class("playfields", classes) is None and match_class("s", classes) is None
