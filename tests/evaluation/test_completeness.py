"""Item retrieval, MLL, mAMS and shares of series by plain loops, one study and one item at a time."""

import numpy as np
import pytest
import torch

from itemized_clip_hf.evaluation.tasks.items import evaluate_items, map_overlap

BANK = [
    f"{side} {place} {what}"
    for side in ("left", "right")
    for place in ("frontal", "parietal")
    for what in ("mass", "bleed", "lobe")
]


def studies(count):
    generator = np.random.default_rng(0)
    rows = []
    for i in range(count):
        scans = {
            name: generator.normal(size=(6, 16, 16)).astype(np.float32) for name in ("T1", "T2", "FLAIR")[: 1 + i % 3]
        }
        rows.append({"images": scans, "items": [BANK[(5 * i + k) % len(BANK)] for k in range(1 + i % 4)]})
    return rows


def test_by_hand(ready):
    model, processor = ready
    rows = studies(10)
    found = evaluate_items(model, processor, rows, batch_size=3)
    texts = list(dict.fromkeys(item for row in rows for item in row["items"]))
    assert found.texts == texts
    scores, overlaps, shares = [], [], []
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        for row in rows:
            out = model(**processor(images=[row["images"]], text=texts, return_tensors="pt"))
            queries = unit(out.item_embeds, dim=-1)
            pooled = model.item_pooler(queries[None], unit(out.image_tokens, dim=-1))[0]
            scores.append(torch.cosine_similarity(pooled, queries, dim=-1).numpy())
            _, attention = model.item_pooler(queries[None], out.image_tokens, output_attentions=True)
            own = [attention[0, texts.index(item)] for item in row["items"]]
            pairs = [torch.cosine_similarity(a, b, dim=0).item() for i, a in enumerate(own) for b in own[:i]]
            overlaps.append(np.mean(pairs) if pairs else np.nan)
            parts = [one.chunk(len(row["images"])) for one in own]
            shares.append([[p.sum().item() / one.sum().item() for p in part] for part, one in zip(parts, own)])
    scores = np.stack(scores)
    np.testing.assert_allclose(found.scores, scores, atol=2e-5)
    per_study = found.per_study()
    np.testing.assert_allclose(per_study["mAMS"], overlaps, atol=1e-4)
    places = [[texts.index(item) for item in row["items"]] for row in rows]
    np.testing.assert_allclose(
        per_study["MLL"], [100 * min(r[p] for p in own) for r, own in zip(scores, places)], atol=2e-3
    )
    ranks = [[sum(row > row[p]) for p in own] for row, own in zip(scores, places)]
    np.testing.assert_allclose(per_study["mean_rank"], [np.mean(own) for own in ranks])
    np.testing.assert_allclose(per_study["worst_rank"], [max(own) for own in ranks])
    np.testing.assert_allclose(per_study["COMPLETE@10"], [max(own) < 10 for own in ranks])
    np.testing.assert_allclose(per_study["I2T@10"], [min(own) < 10 for own in ranks])
    owners = [[i for i, own in enumerate(places) if t in own] for t in range(len(texts))]
    t2i = [min(sum(scores[:, t] > scores[s, t]) for s in own) for t, own in enumerate(owners)]
    np.testing.assert_allclose(found.per_text()["T2I@1"], [rank < 1 for rank in t2i])
    for by_scan, expected, row in zip(found.shares, shares, rows):
        assert list(by_scan) == list(row["images"])
        for number, name in enumerate(by_scan):
            np.testing.assert_allclose(by_scan[name], [item[number] for item in expected], atol=1e-5)
    summary = found.summary(resamples=100)
    assert summary["MLL"].low <= summary["MLL"].value <= summary["MLL"].high
    assert summary["mAMS"].value == pytest.approx(np.nanmean(overlaps), abs=1e-4)
    one = found.series_shares(lambda study, item: "three" if len(rows[study]["images"]) == 3 else None)
    assert set(one) == {"three"} and sum(one["three"].values()) == pytest.approx(1)


def test_bank_and_empty_studies(ready):
    model, processor = ready
    rows = studies(3)
    found = evaluate_items(model, processor, rows, bank=["something else", rows[0]["items"][0]])
    assert found.texts[:2] == ["something else", rows[0]["items"][0]] and found.scores.shape == (3, len(found.texts))
    assert len(found.per_text()["T2I@1"]) == len(found.texts) - 1
    with pytest.raises(ValueError, match="1 studies have no item, e.g. number 1"):
        evaluate_items(model, processor, [rows[0], {**rows[1], "items": []}])


def test_overlap_of_known_maps():
    maps = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
    assert map_overlap(maps) == pytest.approx((0 + 2 * 0.5**0.5) / 3)
    assert np.isnan(map_overlap(maps[:1]))


def test_model_of_a_global_objective(ready):
    """Its pooler was not trained: scores are global cosines, and nothing is said of attention."""
    from itemized_clip_hf.explain.maps import explain_study
    from itemized_clip_hf.trainer.objectives import load_objective

    model, processor = ready
    load_objective("mps").attach(model)
    assert model.config.scoring == "global"
    rows = studies(3)
    found = evaluate_items(model, processor, rows)
    with torch.no_grad():
        out = model(**processor(images=[rows[2]["images"]], text=found.texts, return_tensors="pt"))
        expected = torch.cosine_similarity(out.image_embeds, out.item_embeds, dim=-1).numpy()
        logits = (out.logits_per_image[0] - model.logit_bias) / model.logit_scale.exp()
    np.testing.assert_allclose(found.scores[2], expected, atol=1e-5)
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5)
    assert np.isnan(found.overlaps).all() and found.series_shares() == {}
    with pytest.raises(ValueError, match="its item pooler is untrained"):
        explain_study(model, processor, rows[0]["images"], ["x"])
    load_objective("flair").attach(model)
    assert model.config.scoring == "items"
