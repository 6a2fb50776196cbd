"""hlip, dreamlip and smartclip in double precision against the numpy formulation; joined texts; padding; gradients."""

import copy
from collections import Counter

import numpy as np
import pytest
import reference_numpy as reference
import torch
from tiny_models import tiny_config

from itemized_clip_hf import ItemizedCLIPModel
from itemized_clip_hf.data.studies.items import join_sentences
from itemized_clip_hf.trainer.losses.functional import group_tokens, straight_through, unit
from itemized_clip_hf.trainer.objectives import StudyTextObjective, available_objectives, load_objective
from itemized_clip_hf.trainer.objectives.smartclip import MaskNetwork

SCALE, BIAS = 1.3, -2.0
JOINED = ["clip", "siglip", "hlip", "smartclip"]
REPORT = ["a mass.", "some edema", "a bleed. ", "old infarcts"]


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def call(objective, images, tokens, items, mask=None, normal=None, **more):
    as_tensor = [None if x is None else torch.as_tensor(x) for x in (images, tokens, items, mask, normal)]
    scale, bias = (torch.tensor([x], dtype=torch.double) for x in (SCALE, BIAS))
    return objective(*as_tensor, scale, bias, None, **more)


def same(actual, expected):
    assert float(actual.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("form", ["clip", "siglip"])
@pytest.mark.parametrize("normal_check", [False, True])
def test_hlip(form, normal_check):
    images, texts = arrays((5, 6), (5, 6))
    normal = np.array([True, False, True, False, True])
    out = call(
        load_objective("hlip", form=form, normal_check=normal_check), images, None, texts[:, None], normal=normal
    )
    same(out["loss"], reference.hlip(images, texts, normal, SCALE, BIAS, form, normal_check))
    plain = call(load_objective(form), images, None, texts[:, None], normal=normal)["loss"]
    assert (abs(float(out["loss"] - plain)) < 1e-12) == (not normal_check)


RAGGED = np.array([[True, True, True], [True, False, False], [True, True, False], [False, True, True]])


@pytest.mark.parametrize("threshold", [0.0, 0.4, -1.0])
@pytest.mark.parametrize("mask", [np.ones((4, 3), bool), RAGGED])
@pytest.mark.parametrize("valid", [None, (7, 3, 5, 2)])
def test_dreamlip(threshold, mask, valid):
    images, tokens, items = arrays((4, 6), (4, 7, 6), (4, 3, 6))
    token_mask = None if valid is None else np.arange(7) < np.array(valid)[:, None]
    weights = {"clip_weight": 0.7, "grouping_weight": 1.9, "grouping_threshold": threshold}
    expected = reference.dreamlip(images, tokens, items, mask, SCALE, token_mask, **weights)
    more = {} if token_mask is None else {"token_mask": torch.as_tensor(token_mask)}
    out = call(load_objective("dreamlip", **weights), images, tokens, items, mask, **more)
    for name, value in expected.terms.items():
        same(out[name], value)
    same(out["loss"], expected.loss)


def test_dreamlip_ignores_what_is_padding():
    images, tokens, items = arrays((4, 6), (4, 7, 6), (4, 3, 6))
    token_mask = torch.arange(7) < torch.tensor([7, 4, 5, 2])[:, None]
    objective = load_objective("dreamlip")

    def run(tokens, items, mask, token_mask):
        leaves = [torch.tensor(x, requires_grad=True) for x in (images, tokens, items)]
        out = call(objective, *leaves, mask, token_mask=token_mask)
        out["loss"].backward()
        return out["loss"].item(), [leaf.grad for leaf in leaves]

    loss, gradients = run(tokens, items, RAGGED, token_mask)
    assert all(torch.isfinite(g).all() for g in gradients)
    assert not gradients[1][~token_mask].any() and not gradients[2][~torch.as_tensor(RAGGED)].any()
    tokens, items = tokens.copy(), items.copy()
    tokens[~token_mask.numpy()] = 9.0
    items[~RAGGED] = 0.0
    wider = np.concatenate([items, np.ones((4, 1, 6))], 1), np.concatenate([RAGGED, np.zeros((4, 1), bool)], 1)
    assert run(tokens, items, RAGGED, token_mask)[0] == pytest.approx(loss, rel=1e-12)
    assert run(tokens, *wider, token_mask)[0] == pytest.approx(loss, rel=1e-12)


def test_groups():
    """A text that equals one token picks it and leaves out the least similar one; one token alone gives finite gradients."""
    tokens = torch.eye(3).double()[None] + 0.01
    group = group_tokens(unit(tokens[:, :1]), unit(tokens), threshold=0.5)
    torch.testing.assert_close(group, unit(tokens[:, :1]))
    one = torch.randn(2, 1, 4, dtype=torch.double, requires_grad=True)
    text = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    group_tokens(unit(text), unit(one)).sum().backward()
    assert torch.isfinite(one.grad).all() and torch.isfinite(text.grad).all()


def call_smartclip(logits, images, texts, **arguments):
    """The objective with a network that returns these logits."""
    return call(
        load_objective("smartclip", **arguments),
        images,
        None,
        texts,
        item_tokens=torch.zeros(4, 1, 2, 3),
        item_token_mask=torch.ones(4, 1, 2),
        objective_module=lambda tokens, mask: logits,
    )


@pytest.mark.parametrize("hard", [True, False])
def test_smartclip(hard):
    images, texts, logits = arrays((4, 8), (4, 8), (4, 8))
    soft = 1 / (1 + np.exp(-logits))
    masks = (soft >= 0.5).astype(float) if hard else soft
    weights = {"alignment_weight": 3.0, "sparsity_weight": 0.5, "scale": 4.0}
    expected = reference.smartclip(images, texts, masks, **weights)
    out = call_smartclip(torch.as_tensor(logits), images, texts[:, None], hard_mask=hard, **weights)
    for name, value in expected.terms.items():
        same(out[name], value)
    same(out["loss"], expected.loss)


@pytest.mark.parametrize("hard", [True, False])
def test_gradient_of_the_mask(hard):
    """Finite differences of the numpy loss: of the hard mask moved by the sigmoid's change, which is straight-through."""
    images, texts, logits = arrays((4, 8), (4, 8), (4, 8), seed=1)
    weights = {"alignment_weight": 3.0, "sparsity_weight": 0.5, "scale": 4.0}
    leaf = torch.tensor(logits, requires_grad=True)
    call_smartclip(leaf, images, texts[:, None], hard_mask=hard, **weights)["loss"].backward()

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    start = (logits >= 0).astype(float) if hard else sigmoid(logits)
    numeric, step = np.zeros_like(logits), 1e-5
    for place in np.ndindex(logits.shape):
        sides = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            sides.append(reference.smartclip(images, texts, start + sigmoid(moved) - sigmoid(logits), **weights).loss)
        numeric[place] = (sides[0] - sides[1]) / (2 * step)
    np.testing.assert_allclose(leaf.grad.numpy(), numeric, atol=2e-6)
    assert (np.abs(numeric) > 1e-4).mean() > 0.8


def test_straight_through():
    x = torch.linspace(-3, 3, 8, dtype=torch.double, requires_grad=True)
    mask = straight_through(x.sigmoid())
    assert mask.tolist() == [0.0] * 4 + [1.0] * 4
    (mask * torch.arange(8)).sum().backward()
    torch.testing.assert_close(x.grad, torch.arange(8) * x.sigmoid().detach() * (1 - x.sigmoid().detach()))


def test_empty_mask_is_harmless():
    images, texts = arrays((4, 8), (4, 8))
    leaves = [torch.tensor(x, requires_grad=True) for x in (images, texts[:, None], np.full((4, 8), -3.0))]
    out = call_smartclip(leaves[2], *leaves[:2])
    out["loss"].backward()
    same(out["sidm"], np.log(4))
    assert out["sparsity"] == 0 and all(torch.isfinite(leaf.grad).all() for leaf in leaves)


def random_network(width=12, heads=3, dim=5):
    torch.manual_seed(0)
    network = MaskNetwork(width, heads, dim).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("training", [True, False])
def test_mask_network(training):
    """Each text without its padding, in numpy; what stands in the padding is never seen."""
    network = random_network().train(training)
    lengths = [4, 2, 6]
    tokens = torch.randn(3, 6, 12, dtype=torch.double)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    parameters = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    with torch.no_grad():
        actual = network(tokens.masked_fill(~mask[..., None], 1e3), mask)
    for n, length in enumerate(lengths):
        expected = reference.mask_logits(parameters, tokens[n, :length].numpy(), 3)
        np.testing.assert_allclose(actual[n].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("text", ["bert", "clip"])
def test_the_model_passes_its_tokens(text):
    """The mask comes from the text tower's hidden states without padding; no gradient goes back through it."""
    torch.manual_seed(0)
    model = ItemizedCLIPModel(tiny_config(text=text)).eval()
    # The contrast gives the text tower gradients of its own: without it only the mask is left.
    objective = load_objective("smartclip", alignment_weight=0.0, sparsity_weight=1.0, hard_mask=False)
    objective.attach(model)
    ids = torch.randint(3, 100, (3, 1, 7))
    ids[:, :, -1] = 119
    attention = torch.ones_like(ids)
    attention[1, 0, 4:] = 0
    if text == "clip":
        ids[1, 0, 3] = 119
    seen = {}
    model.objective_module.register_forward_hook(
        lambda module, inputs, out: seen.update(tokens=inputs[0], mask=inputs[1])
    )
    inputs = {"pixel_values": torch.randn(3, 1, 1, 8, 16, 16), "input_ids": ids, "attention_mask": attention}
    for item_mask in (None, torch.ones(3, 1).bool()):
        out = model(**inputs, item_mask=item_mask, return_loss=True)
        assert torch.equal(seen["mask"], attention[:, 0].bool())
        hidden = model.text_model(input_ids=ids[:, 0], attention_mask=attention[:, 0]).last_hidden_state
        kept = attention[:, 0].bool()
        torch.testing.assert_close(seen["tokens"][kept], hidden[kept])
    out.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.text_model.parameters())
    assert model.objective_module.projection.weight.grad.any()
    again = copy.deepcopy(model)(**inputs, return_loss=True).loss
    torch.testing.assert_close(again, out.loss)


def test_attach_replaces_the_last_objective():
    model = ItemizedCLIPModel(tiny_config())
    names = set(model.state_dict())
    load_objective("smartclip").attach(model)
    assert {n for n in model.state_dict() if n not in names} and model.logit_scale.exp().item() == pytest.approx(100)
    load_objective("itemized_clip").attach(model)
    assert set(model.state_dict()) == names


def test_smartclip_without_its_network_says_so():
    images, texts = arrays((4, 8), (4, 8))
    with pytest.raises(ValueError, match="objective.attach"):
        call(load_objective("smartclip"), images, None, texts[:, None])


@pytest.mark.parametrize("name", JOINED)
def test_several_slots_are_refused(name):
    images, texts = arrays((4, 8), (4, 3, 8))
    with pytest.raises(ValueError, match="one text per study, found 3 item slots.*join_items"):
        call(load_objective(name), images, None, texts)
    with pytest.raises(ValueError, match="1 of 4 studies have no text"):
        call(load_objective(name), images, None, texts[:, :1], np.arange(4)[:, None] > 0)


def test_which_objectives_join():
    joined = [name for name in available_objectives() if isinstance(load_objective(name), StudyTextObjective)]
    assert sorted(joined) == sorted(JOINED)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_joined_text_is_fixed(name):
    objective = load_objective(name)
    assert objective.join_items(REPORT) == "a mass. some edema. a bleed. old infarcts"
    assert objective.join_items(REPORT, generator(0)) == objective.join_items(REPORT)


def test_hlip_text():
    objective = load_objective("hlip", prefix="This MRI study shows: ")
    assert objective.join_items(["a.", "b.", "c."]) == "This MRI study shows: a. b. c."
    seen = Counter(objective.join_items(["a.", "b.", "c."], generator(seed)) for seed in range(600))
    assert len(seen) == 6 and min(seen.values()) > 60
    assert objective.join_items(["a.", "b.", "c."], generator(3)) == objective.join_items(
        ["a.", "b.", "c."], generator(3)
    )


def test_smartclip_text():
    objective = load_objective("smartclip")
    assert objective.join_items(REPORT) == join_sentences(REPORT)
    seen = Counter(objective.join_items(["a", "b", "c"], generator(seed)) for seed in range(900))
    sizes = Counter()
    for text, count in seen.items():
        sizes[len(text.split(". "))] += count
    assert set(seen) == {"a", "b", "c", "a. b", "a. c", "b. c", "a. b. c"}
    assert all(abs(count - 300) < 70 for count in sizes.values())
