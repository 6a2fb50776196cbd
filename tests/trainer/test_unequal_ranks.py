"""Processes that hold different numbers of studies, items and tokens: losses and gradients against plain loops over ranks."""

import pytest
import reference_ranks
import torch
import torch.distributed as dist
from groups import SPLIT, free_port, loss_and_gradients, shared_batch, spawn, start
from tiny_models import leave_group

WIDTH, HEADS = 8, 2
KEY_TOKEN_RATE = 0.5
WEIGHTS = {"ila": 1.0, "kta": 0.7, "iis": 0.4, "mps": 0.3}

# (studies, item slots, tokens) of every rank
WORLDS = {
    "two": [(3, 2, 4), (2, 3, 6)],
    "more here than there": [(1, 3, 5), (4, 2, 4)],
    "three": [(2, 3, 4), (1, 1, 6), (3, 2, 5)],
    "equal": [(2, 3, 4), (2, 3, 4)],
    "four": [(1, 2, 4), (2, 1, 4), (3, 2, 3), (1, 1, 4)],
}


def pooler():
    from itemized_clip_hf.modeling.pooling_itemized_clip import ItemizedCLIPItemPooler

    torch.manual_seed(1)
    module = ItemizedCLIPItemPooler(WIDTH, HEADS).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def world_of(shapes, one_text):
    """Inputs of every rank, with draws made by hand."""
    torch.manual_seed(0)
    if one_text:
        shapes = [(studies, 1, tokens) for studies, _, tokens in shapes]
    ranks = []
    for studies, slots, tokens in shapes:
        counts = torch.randint(1, slots + 1, (studies,))
        lengths = torch.randint(2, tokens + 1, (studies,))
        table = []
        for i in range(studies):
            row = []
            for j in range(studies):
                drawn = int(torch.randint(int(counts[j]), ()))
                row += [i * slots + k for k in range(slots)] if i == j else [j * slots + drawn]
            table.append(row)
        ranks.append(
            {
                "image_embeds": torch.randn(studies, WIDTH).double(),
                "image_tokens": torch.randn(studies, tokens, WIDTH).double(),
                "item_embeds": torch.randn(studies, slots, WIDTH).double(),
                "item_mask": torch.arange(slots) < counts[:, None],
                "is_normal": torch.rand(studies) < 0.6,
                "token_mask": torch.arange(tokens) < lengths[:, None],
                "negatives": torch.tensor(table),
                "keep_mask": [torch.rand(studies, HEADS, b + k - 1, tokens) < 0.7 for b, k, _ in shapes],
            }
        )
    return ranks


LEAVES = ("image_embeds", "image_tokens", "item_embeds")


def expected(name, shapes):
    """Terms of every rank, and the gradients of the sum of their losses: per rank, and of pooler, scale and bias."""
    ranks, shared = world_of(shapes, name == "siglip"), pooler()
    for rank in ranks:
        rank.update({leaf: rank[leaf].requires_grad_() for leaf in LEAVES})
    s, bias = (torch.tensor([x], dtype=torch.double, requires_grad=True) for x in (1.5, -3.0))
    scale = s.exp()
    if name == "itemized_clip":
        results = reference_ranks.itemized_clip(ranks, scale, bias, shared, WEIGHTS, KEY_TOKEN_RATE, factor=1.5)
    elif name == "flair":
        results = reference_ranks.flair(ranks, scale, bias, shared)
    else:
        results = reference_ranks.mps(ranks, scale, bias, normal_check=name == "mps")
    sum(result["loss"] for result in results).sum().backward()
    gradients = [{leaf: rank[leaf].grad for leaf in LEAVES} for rank in ranks]
    return results, gradients, [x.grad for x in (s, bias, *shared.parameters())]


def compare_rank(rank: int, world: int, port: int, shapes, names):
    from itemized_clip_hf.trainer.objectives import Draws, load_objective

    cases = [(name, *expected(name, shapes)) for name in names]
    start(rank, world, port)
    for name, results, gradients, shared_gradients in cases:
        arguments = {}
        if name == "itemized_clip":
            arguments = {f"{term}_weight": weight for term, weight in WEIGHTS.items()}
            arguments |= {"key_token_rate": KEY_TOKEN_RATE, "worst_positive_factor": 1.5}
        own, shared = world_of(shapes, name == "siglip")[rank], pooler()
        own.update({leaf: own[leaf].requires_grad_() for leaf in LEAVES})
        s, bias = (torch.tensor([x], dtype=torch.double, requires_grad=True) for x in (1.5, -3.0))
        draws = Draws(own.pop("negatives"), own.pop("keep_mask"))
        objective = load_objective(name, **arguments)
        out = objective(**own, logit_scale=s, logit_bias=bias, pooler=shared, draws=draws)
        out["loss"].backward()

        def check(got, want, what):
            got = torch.zeros_like(want) if got is None else got
            torch.testing.assert_close(got.view(want.shape), want, msg=lambda m: f"rank {rank}, {name}, {what}: {m}")  # noqa: B023

        for term, value in results[rank].items():
            check(out[term].detach(), torch.as_tensor(value).detach(), term)
        for leaf in LEAVES:
            want = gradients[rank][leaf]
            check(own[leaf].grad, torch.zeros_like(own[leaf]) if want is None else want, f"gradient of {leaf}")
        for parameter, want in zip((s, bias, *shared.parameters()), shared_gradients):
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            dist.all_reduce(got)
            check(got, torch.zeros_like(got) if want is None else want, "shared parameters")
    leave_group()


@pytest.mark.parametrize("world", WORLDS)
def test_sum_over_blocks_is_that_of_loops(world):
    names = ["flair", "mps", "siglip", "itemized_clip"]
    spawn(compare_rank, (len(WORLDS[world]), free_port(), WORLDS[world], names), len(WORLDS[world]))


STUDIES = [2, 1, 3]
SLOTS = [3, 1, 2]


def split_rank(rank: int, world: int, port: int):
    """
    The mean over ranks is the loss of the whole batch in one process, with unequal numbers of studies, and of slots where an
    objective takes more than one.
    """
    from itemized_clip_hf.trainer.objectives import load_objective

    cases = [(n, a) for n, a in [*SPLIT, ("clip", {"global_loss": True})] if n != "siglip" and "form" not in a]
    objectives = [load_objective(name, **arguments) for name, arguments in cases]
    batches = [shared_batch(objective) for objective in objectives]
    first = sum(STUDIES[:rank])
    place = slice(first, first + STUDIES[rank])
    for rows in batches:
        if rows["item_mask"].shape[1] > 1:  # nobody's slots hold more than SLOTS of its rank
            limit = torch.tensor([k for b, k in zip(STUDIES, SLOTS) for _ in range(b)])[:, None]
            rows["item_mask"] = rows["item_mask"] & (torch.arange(3) < limit)
    whole = [loss_and_gradients(objective, rows) for objective, rows in zip(objectives, batches)]
    start(rank, world, port)
    for (name, arguments), objective, rows, (terms, gradients, shared) in zip(cases, objectives, batches, whole):
        what, share = f"{name} {arguments}", 1 if arguments.get("global_loss") else world
        rows["objective_module"].zero_grad()
        part = {key: x if key == "objective_module" else x[place] for key, x in rows.items()}
        slots = SLOTS[rank] if name == "dreamlip" else 1
        for key in ("item_embeds", "item_mask", "item_tokens", "item_token_mask"):
            part[key] = part[key][:, :slots]
        own_terms, own_gradients, own_shared = loss_and_gradients(objective, part)
        for key, term in own_terms.items():
            dist.all_reduce(term)
            torch.testing.assert_close(term / world, terms[key], msg=lambda m: f"{what}, {key}: {m}")  # noqa: B023
        for key, gradient in own_gradients.items():
            want = gradients[key][place]
            want = want[:, :slots] if key == "item_embeds" else want
            torch.testing.assert_close(gradient / share, want, msg=lambda m: f"{what}, {key}: {m}")  # noqa: B023
        dist.all_reduce(own_shared)
        torch.testing.assert_close(own_shared / world, shared, msg=lambda m: f"{what}, shared: {m}")  # noqa: B023
    leave_group()


def test_mean_over_unequal_processes_is_the_whole_batch():
    spawn(split_rank, (3, free_port()), 3)


def draw_rank(rank: int, world: int, port: int):
    from itemized_clip_hf.trainer.losses.functional import draw_keep_mask, draw_negatives
    from itemized_clip_hf.trainer.objectives import load_objective

    start(rank, world, port)
    shapes = [(3, 2), (1, 4)]
    objective = load_objective("itemized_clip", keep_rate=0.5)
    mask = torch.ones(shapes[rank], dtype=torch.bool)
    draws = objective.draw(mask, 6, HEADS, torch.Generator().manual_seed(rank))
    assert [tuple(x.shape) for x in draws.keep_mask] == [(len(mask), HEADS, b + k - 1, 6) for b, k in shapes]
    # Equal shapes: the masks of all ranks first, then the table.
    mask = torch.ones(2, 3, dtype=torch.bool)
    draws = objective.draw(mask, 6, HEADS, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    for drawn in draws.keep_mask:
        assert torch.equal(drawn, draw_keep_mask((2, HEADS, 4, 6), 0.5, generator))
    assert torch.equal(draws.negatives, draw_negatives(mask, generator))
    # A rank without a study is named on every rank instead of being waited for.
    mask = torch.ones(2 * (1 - rank), 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"ranks \[1\] have no study"):
        objective.draw(mask, 6, HEADS)
    leave_group()


def test_draws_have_the_shapes_of_each_rank():
    spawn(draw_rank, (2, free_port()), 2)
