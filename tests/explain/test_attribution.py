"""Attributions against independent formulations, their sums, and a case whose truth is planted."""

import numpy as np
import pytest
import torch
from tiny_models import ITEMS
from torch.nn import functional as F

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.evaluation.encode import encode_inputs
from itemized_clip_hf.evaluation.grounding import patch_curves, token_curves
from itemized_clip_hf.explain import attribution as module
from itemized_clip_hf.explain.attribution import ATTRIBUTIONS, attribute, contributions
from itemized_clip_hf.explain.encoded import explain_result
from itemized_clip_hf.explain.maps import attend, explain_study, write_map
from itemized_clip_hf.modeling.pooling_itemized_clip import ItemizedCLIPItemPooler

P, H, L = 12, 3, 7


@pytest.fixture
def case():
    """A pooler of random weights, items (2, 3, P), tokens (2, L, P) and a mask that keeps 5 tokens of the second study."""
    torch.manual_seed(0)
    pooler = ItemizedCLIPItemPooler(P, H)
    for parameter in pooler.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    keep = torch.ones(2, 1, 1, L, dtype=torch.bool)
    keep[1, ..., 5:] = False
    return pooler, torch.randn(2, 3, P), torch.randn(2, L, P), keep


def pooled_by_hand(pooler, item, tokens, attention=None):
    """One item (P,) and its tokens (L, P) in numpy: attention (H, L), values (H, L, P) after the output projection, p."""
    w = {name: value.detach().double().numpy() for name, value in pooler.named_parameters()}

    def norm(x, which):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * w[f"layer_norm_{which}.weight"] + w[f"layer_norm_{which}.bias"]

    def project(x, which):
        return norm(x, which) @ w[f"{which}_proj.weight"].T + w[f"{which}_proj.bias"]

    d = P // H
    q, k, v = project(item, "q"), project(tokens, "k"), project(tokens, "v")
    values, weights = [], []
    for head in range(H):
        own = slice(head * d, (head + 1) * d)
        e = np.exp(k[:, own] @ q[own] / np.sqrt(d))
        weights.append(e / (e.sum() + 1))  # the empty slot: key 0, value 0
        values.append(v[:, own] @ w["out_proj.weight"][:, own].T)
    weights = np.array(weights) if attention is None else attention
    values = np.array(values)
    return weights, values, w["out_proj.bias"] + np.einsum("hl,hlp->p", weights, values)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def each(case):
    """Every item with the tokens it may attend to: (place, item, tokens), as float64."""
    _, items, tokens, keep = case
    for b in range(2):
        kept = keep[b, 0, 0].numpy()
        for m in range(3):
            yield (b, m), items[b, m].double().numpy(), tokens[b].double().numpy()[kept]


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_shape_sign_and_padding(case, name):
    pooler, items, tokens, keep = case
    values = ATTRIBUTIONS[name](pooler, items.clone(), tokens.clone(), keep)
    assert values.shape == (2, 3, L) and (values >= 0).all() and (values > 0).any()
    assert not values[1, :, 5:].any() and not any(p.grad is not None for p in pooler.parameters())
    for b, count in ((0, L), (1, 5)):  # as a study by itself, without padding
        alone = ATTRIBUTIONS[name](pooler, items[b : b + 1].clone(), tokens[b : b + 1, :count].clone(), None)
        torch.testing.assert_close(alone[0], values[b, :, :count], rtol=1e-4, atol=1e-6)


def test_contributions_sum_to_the_score(case):
    pooler, items, tokens, keep = case
    terms, bias = contributions(pooler, items, tokens, keep)
    score = F.cosine_similarity(pooler(items, tokens, keep), items, dim=-1)
    torch.testing.assert_close(terms.sum(-1) + bias, score, rtol=1e-4, atol=1e-5)
    assert (terms < 0).any()
    torch.testing.assert_close(ATTRIBUTIONS["contribution"](pooler, items, tokens, keep), terms.clamp(min=0))
    b = pooler.out_proj.bias
    expected = (F.normalize(items, dim=-1) @ b) / pooler(items, tokens, keep).norm(dim=-1)
    torch.testing.assert_close(bias, expected, rtol=1e-4, atol=1e-5)
    for (b, m), item, own in each(case):
        weights, values, pooled = pooled_by_hand(pooler, item, own)
        shares = np.einsum("hl,hlp,p->l", weights, values, item) / np.linalg.norm(item) / np.linalg.norm(pooled)
        np.testing.assert_allclose(terms[b, m, : len(own)].numpy(), shares, rtol=1e-3, atol=1e-5)


def test_gradient_weighted_attention_by_differences(case):
    """d score / d attention of each head and token, by central differences in float64."""
    pooler, items, tokens, keep = case
    values = ATTRIBUTIONS["gradient-weighted"](pooler, items, tokens, keep)
    for (b, m), item, own in each(case):
        weights = pooled_by_hand(pooler, item, own)[0]
        expected = np.zeros(len(own))
        for h, t in np.ndindex(weights.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = weights.copy()
                moved[h, t] += step
                ends.append(cosine(item, pooled_by_hand(pooler, item, own, moved)[2]))
            expected[t] += max((ends[0] - ends[1]) / 2e-5 * weights[h, t], 0) / H
        np.testing.assert_allclose(values[b, m, : len(own)].detach().numpy(), expected, rtol=1e-3, atol=1e-6)


def test_occlusion_is_the_fall_of_the_score_without_the_token(case):
    pooler, items, tokens, keep = case
    values = ATTRIBUTIONS["occlusion"](pooler, items, tokens, keep)
    for (b, m), item, own in each(case):
        whole = cosine(item, pooled_by_hand(pooler, item, own)[2])
        without = [cosine(item, pooled_by_hand(pooler, item, np.delete(own, t, 0))[2]) for t in range(len(own))]
        np.testing.assert_allclose(
            values[b, m, : len(own)].detach().numpy(), np.maximum(whole - np.array(without), 0), atol=1e-5
        )


def test_the_score_does_not_know_the_length_of_a_token(case):
    """Why gradient times token is not among the methods."""
    pooler, items, tokens, keep = case
    tokens = (100 * tokens).requires_grad_()  # long, so that the norm's epsilon is nothing
    score = F.cosine_similarity(pooler(items, tokens, keep), items, dim=-1)
    (gradient,) = torch.autograd.grad(score[:, 0].sum(), tokens)
    assert (gradient * tokens).sum(-1).abs().max() < 1e-4 < (gradient.norm(dim=-1) * tokens.norm(dim=-1)).max()


def planted():
    """One token's value is the item; another gets most of the attention, and its value is at right angles to the item."""
    pooler = ItemizedCLIPItemPooler(8, 1)
    with torch.no_grad():
        for projection in (pooler.q_proj, pooler.k_proj, pooler.v_proj, pooler.out_proj):
            projection.weight.copy_(torch.eye(8))
            projection.bias.zero_()
        item = torch.tensor([1.0, -1, 0, 0, 0, 0, 0, 0])
        fooling = torch.tensor([0.0, 0, 1, -1, 0, 0, 0, 0])
        key = torch.zeros(8, 8)
        key[0, 0] = key[1, 1] = 0.2
        key[0, 2] = key[1, 3] = 2  # the fooling token's key is the item, louder
        pooler.k_proj.weight.copy_(key)
        rest = torch.tensor([[0.0, 0, 0, 0, 1, -1, 0, 0], [0.0, 0, 0, 0, 0, 0, 1, -1]])
    return pooler, item[None, None], torch.stack([rest[0], fooling, rest[1], item])[None]


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_a_token_that_carries_the_item(name):
    """Its removal alone lowers the score; raw attention points elsewhere."""
    pooler, items, tokens = planted()
    values = ATTRIBUTIONS[name](pooler, items.clone(), tokens.clone(), None)[0, 0]
    assert int(values.argmax()) == (1 if name == "attention" else 3), values


@pytest.fixture
def ready(make_model, tokenizer):
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    rng = np.random.default_rng(0)
    study = {name: rng.normal(100, 20, (8, 16, 16)).astype(np.float32) for name in ("T1", "FLAIR")}
    return make_model(), processor, study


def encoded_study(model, processor, study):
    scans = processor.image_processor.process_study(study)
    return encode_inputs(model, processor.image_processor.collate([scans], return_tensors="pt"))


def test_every_method_in_maps_and_results(ready):
    model, processor, study = ready
    encoded = encoded_study(model, processor, study)
    embeds = torch.randn(1, 2, encoded.tokens.shape[-1])
    assert torch.equal(attribute(model, embeds, encoded.tokens), attend(model, embeds, encoded.tokens, None))
    results = {}
    for name in ATTRIBUTIONS:
        with torch.inference_mode():  # as some callers are
            result = explain_result(model, processor, study, ITEMS[:2], attribution=name)
        assert result.attribution == result.to_dict()["attribution"] == name
        assert result.heat_maps(0)[0].attribution == name
        maps = explain_study(model, processor, study, ITEMS[:2], attribution=name)
        for k, finding in enumerate(result.findings):
            results[name] = np.stack([heat.tokens for heat in maps[2 * k : 2 * k + 2]])
            np.testing.assert_allclose(finding.attention, results[name], rtol=1e-4, atol=1e-5)
            assert finding.shares.sum() == pytest.approx(1, abs=1e-5)
            assert finding.attention.mean() == pytest.approx(1, abs=1e-5)
    assert all(
        np.abs(results["attention"] - results[name]).max() > 1e-3 for name in ATTRIBUTIONS if name != "attention"
    )
    plain = explain_study(model, processor, study, ITEMS[:2])
    assert plain[0].attribution == "attention"
    np.testing.assert_array_equal(np.stack([heat.tokens for heat in plain[2:]]), results["attention"])


def test_unknown_methods_are_named(ready):
    model, processor, study = ready
    with pytest.raises(ValueError, match="unknown attribution 'contributions', expected one of .*did you mean"):
        explain_result(model, processor, study, ITEMS[:1], attribution="contributions")
    with pytest.raises(ValueError, match="expected one of"):
        explain_study(model, processor, study, ITEMS[:1], attribution="")
    model.config.scoring = "global"
    with pytest.raises(ValueError, match="its item pooler is untrained"):
        attribute(model, torch.ones(1, 1, 4), torch.ones(1, 2, 4))


def test_a_method_is_one_function(ready, monkeypatch):
    model, processor, study = ready
    monkeypatch.setattr(module, "ATTRIBUTIONS", dict(ATTRIBUTIONS))

    @module.attribution("first")
    def first_token(pooler, items, tokens, keep_mask):
        values = torch.zeros(*items.shape[:2], tokens.shape[1])
        values[..., 0] = 1
        return values

    result = explain_result(model, processor, study, ITEMS[:1], attribution="first")
    assert result.findings[0].shares.tolist() == [1, 0] and result.findings[0].attention.flat[0] == 16


def test_curves_in_the_pooler(ready):
    """Scores with the most attributed tokens out of, or alone in, the pooler's keys, one mask at a time."""
    model, processor, study = ready
    encoded = encoded_study(model, processor, study)
    embed = torch.randn(encoded.tokens.shape[-1])
    item, tokens = F.normalize(embed, dim=-1)[None, None], F.normalize(encoded.tokens, dim=-1)
    curves = token_curves(model, encoded, embed, steps=4, attribution="occlusion")
    order = attribute(model, embed[None, None], encoded.tokens, None, "occlusion")[0, 0].argsort(descending=True)
    raising = int((attribute(model, embed[None, None], encoded.tokens, None, "occlusion") > 0).sum())
    for step, share in enumerate(curves.shares):
        taken = torch.zeros(16, dtype=torch.bool)
        taken[order[: int(16 * share)]] = True
        if 16 * share > raising and share < 1:
            continue  # among zeros the order is drawn
        for curve, shown in ((curves.deletion, ~taken), (curves.insertion, taken)):
            pooled = model.item_pooler(item, tokens, shown[None, None, None])
            assert curve[step] == pytest.approx(F.cosine_similarity(pooled, item, dim=-1).item(), abs=1e-5)
    assert raising >= 4 and curves.deletion[1] < curves.deletion[0]
    assert curves.random_deletion[[0, -1]] == pytest.approx(curves.deletion[[0, -1]], abs=1e-6)


def test_the_order_of_blanked_patches_is_that_of_the_method(ready):
    model, processor, study = ready
    scans = processor.image_processor.process_study(study)
    inputs = processor.image_processor.collate([scans], return_tensors="pt")
    embed = torch.randn(model.config.projection_dim)
    by = {name: patch_curves(model, inputs, embed, steps=4, attribution=name) for name in ("attention", "occlusion")}
    assert by["attention"].deletion[1] != by["occlusion"].deletion[1]
    assert by["attention"].deletion[0] == pytest.approx(by["occlusion"].deletion[0], abs=1e-6)
    np.testing.assert_array_equal(by["attention"].random_deletion, by["occlusion"].random_deletion)


def test_a_result_shows_the_best_method_and_names_it(ready, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    model, processor, study = ready
    result = explain_result(model, processor, study, ITEMS[:1])
    assert result.attribution == module.BEST != "attention"
    heat = result.heat_maps(0)[0]
    assert f"of the {module.BEST}" in repr(heat)
    heat.affine = np.eye(4)
    write_map(tmp_path / "map.nii.gz", heat)
    assert b"contribution / mean contribution" in nibabel.load(tmp_path / "map.nii.gz").header["descrip"].tobytes()


def test_the_verb_shows_what_it_is_asked_for():
    """Maps without a report stay attention; a choice changes what a folder is of, attention does not."""
    from itemized_clip_hf.cli.explain import choose_attribution, list_choices

    assert choose_attribution(None, None) == "attention" and choose_attribution(None, "x.html") == module.BEST
    assert choose_attribution("occlusion", "x.html") == "occlusion"
    with pytest.raises(ValueError, match="unknown attribution"):
        choose_attribution("ocluson", None)
    assert list_choices(None, "fp32", "similarity", "attention") == []
    assert list_choices(None, "fp32", "similarity", "occlusion") == ["occlusion"]
