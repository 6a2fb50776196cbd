"""The fused formulation of the composite loss against the plain one: sums, gradients, chunks, absorption."""

import itertools

import pytest
import torch

from itemized_clip_hf.modeling.pooling_itemized_clip import ItemizedCLIPItemPooler
from itemized_clip_hf.trainer.losses.blocks import Block, SeededMask
from itemized_clip_hf.trainer.losses.functional import draw_keep_mask, draw_negatives, normal_pairs
from itemized_clip_hf.trainer.losses.fused import fused_terms
from itemized_clip_hf.trainer.losses.plain import plain_terms
from itemized_clip_hf.trainer.objectives import load_objective

WIDTH, HEADS = 32, 4


def build(
    batch, slots, length, ranks=1, seed=0, dtype=torch.float64, keep_rate=0.7, scans=False, local=True, scale=2.65
):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    pooler = ItemizedCLIPItemPooler(WIDTH, HEADS).to(dtype)
    with torch.no_grad():
        for parameter in pooler.parameters():
            parameter.copy_(rand(*parameter.shape) * 0.3 + (parameter.ndim == 1) * 0.5)
    token_mask = torch.rand(batch, length, generator=generator) < 0.8 if scans else None
    blocks, texts = [], []
    normal = torch.rand(batch, generator=generator) < 0.4
    for rank in range(ranks):
        mask = torch.rand(batch, slots, generator=generator) < 0.6
        mask[torch.arange(batch), torch.randint(slots, (batch,), generator=generator)] = True
        other = normal if rank == 0 else torch.rand(batch, generator=generator) < 0.4
        is_local = local and rank == ranks // 2
        table = draw_negatives(mask, generator)
        keep = draw_keep_mask((batch, HEADS, table.shape[1], length), keep_rate, generator)
        items = (rand(batch, slots, WIDTH) * mask[..., None]).requires_grad_()
        texts.append(items)
        blocks.append(Block(items, mask, table, normal_pairs(normal, other, is_local), is_local, keep))
    tokens = rand(batch, length, WIDTH).requires_grad_()
    scale = torch.tensor([scale], dtype=dtype, requires_grad=True)
    bias = torch.tensor([-3.0], dtype=dtype, requires_grad=True)
    leaves = [tokens, scale, bias, *texts, *pooler.parameters()]
    return pooler, tokens, blocks, token_mask, scale, bias, leaves


def compare(case, loss_tolerance, gradient_tolerance, more, **settings):
    *arguments, leaves = case
    settings = {
        "ila_weight": 1.0,
        "kta_weight": 0.7,
        "iis_weight": 0.5,
        "key_token_rate": 0.2,
        "worst_positive_factor": 1.5,
        "worst_positive_select": "reference",
        **settings,
    }
    expected, expected_terms = plain_terms(*arguments, **settings)
    expected_gradients = torch.autograd.grad(expected, leaves, allow_unused=True)
    loss, terms = fused_terms(*arguments, **more, **settings)
    gradients = torch.autograd.grad(loss * 3, leaves, allow_unused=True)
    assert abs(loss - expected) <= loss_tolerance * max(1, abs(expected))
    assert set(terms) == set(expected_terms)
    for name, term in terms.items():
        assert abs(term - expected_terms[name]) <= loss_tolerance * max(1, abs(expected_terms[name])), name
    for got, wanted in zip(gradients, expected_gradients):
        wanted = torch.zeros_like(got) if wanted is None else wanted * 3
        got = torch.zeros_like(wanted) if got is None else got
        largest = max(float(wanted.abs().max()), 1.0)
        assert float((got - wanted).abs().max()) <= gradient_tolerance * largest


SHAPES = [(1, 1, 5), (2, 1, 9), (1, 4, 7), (5, 3, 20), (7, 2, 33)]


@pytest.mark.parametrize(("shape", "absorb"), itertools.product(SHAPES, [True, False, None]))
def test_shapes(shape, absorb):
    for scans, chunk in ((False, None), (True, 1), (True, HEADS * shape[2] * 4)):
        compare(build(*shape, scans=scans), 1e-10, 1e-8, {"absorb": absorb, "chunk_scores": chunk})


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize(
    "weights",
    [
        {"kta_weight": 0.0},
        {"iis_weight": 0.0},
        {"ila_weight": 0.0},
        {"ila_weight": 0.0, "kta_weight": 0.0},
        {"kta_weight": 0.0, "iis_weight": 0.0},
        {"worst_positive_factor": 1.0},
        {"worst_positive_select": "strict"},
        {"key_token_rate": 1.0},
        {"key_token_rate": 1e-6},
    ],
)
def test_weights(weights, absorb):
    compare(build(5, 3, 20, scans=True), 1e-10, 1e-8, {"absorb": absorb}, **weights)


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("local", [True, False])
def test_texts_of_several_ranks(ranks, local, absorb):
    for chunk in (None, 1, HEADS * 20 * 7):
        case = build(5, 3, 20, ranks=ranks, scans=True, local=local)
        compare(case, 1e-10, 1e-8, {"absorb": absorb, "chunk_scores": chunk})


@pytest.mark.parametrize("absorb", [True, False])
def test_masks_drawn_image_by_image(absorb):
    """The same mask whatever the chunks, and the same as when it is drawn at once."""
    for chunk in (None, 1, HEADS * 20 * 7):
        case = build(5, 3, 20, ranks=2)
        for number, block in enumerate(case[2]):
            block.keep_mask = SeededMask(number, 0.5)
        compare(case, 1e-10, 1e-8, {"absorb": absorb, "chunk_scores": chunk})
    mask = SeededMask(3, 0.9).rows(0, (6, 4, 50, 60), torch.device("cpu"))
    assert abs(mask.double().mean() - 0.9) < 0.005
    assert torch.equal(mask[2:4], SeededMask(3, 0.9).rows(2, (2, 4, 50, 60), torch.device("cpu")))
    assert SeededMask(3, 1.0).rows(0, (6, 4, 5, 6), torch.device("cpu")) is None


@pytest.mark.parametrize("absorb", [True, False])
def test_tokens_of_no_scan_and_hidden_tokens(absorb):
    """A study without any real token, and a mask that hides everything: nothing is not a number."""
    case = build(4, 2, 12, scans=True)
    case[3][1] = False
    case[2][0].keep_mask = torch.zeros_like(case[2][0].keep_mask)
    compare(case, 1e-10, 1e-8, {"absorb": absorb})


def test_single_precision():
    for absorb in (True, False):
        compare(build(6, 4, 64, dtype=torch.float32), 1e-5, 5e-4, {"absorb": absorb}, key_token_rate=1.0)


@pytest.mark.parametrize("formulation", ["fused", "plain"])
def test_objective(formulation):
    """Through the objective: random masks come from the global generator, nothing is hidden in evaluation."""
    pooler, tokens, blocks, _, scale, bias, _ = build(4, 3, 16, dtype=torch.float32)
    objective = load_objective("itemized_clip", formulation=formulation)
    arguments = (tokens.mean(1), tokens, blocks[0].items, blocks[0].item_mask, None, scale, bias, pooler)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(objective(*arguments)["loss"].item())
    assert losses[0] == losses[1] != losses[2]
    other = load_objective("itemized_clip", formulation={"fused": "plain", "plain": "fused"}[formulation])
    torch.manual_seed(0)
    assert other(*arguments)["loss"].item() == pytest.approx(losses[0], rel=1e-5)
    torch.manual_seed(0)
    with torch.no_grad():
        assert objective(*arguments)["loss"].item() == pytest.approx(losses[0], rel=1e-5)


def test_one_backward_pass():
    *arguments, leaves = build(3, 2, 8)
    settings = {"ila_weight": 1.0, "kta_weight": 1.0, "iis_weight": 1.0, "key_token_rate": 0.2}
    loss, _ = fused_terms(*arguments, **settings, worst_positive_factor=1.0, worst_positive_select="strict")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="formulation='plain' allows more"):
        loss.backward()
