"""Muon for matrices beside AdamW for the rest: who moves what, how far, and what a checkpoint holds."""

import copy

import pytest
import torch
from torch import nn

from itemized_clip_hf import ItemizedCLIPTrainingArguments
from itemized_clip_hf.trainer.muon import BatchedMuon, MuonWithAdamW, linear_weights

RATE = 0.01


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.layers = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 4))
        self.scale = nn.Parameter(torch.ones(1))


def make(seed=0, decay=0.0):
    torch.manual_seed(seed)
    net = Net()
    adamw = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.0)
    return net, MuonWithAdamW(adamw, linear_weights(net), RATE, decay)


def step(net, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    words, wanted = torch.randint(7, (32,), generator=generator), torch.randn(32, 4, generator=generator)
    optimizer.zero_grad()
    (net.layers(net.words(words)) * net.scale - wanted).square().mean().backward()
    optimizer.step()


def test_matrices_turn_and_the_rest_is_adamws():
    net, optimizer = make()
    before = copy.deepcopy(net)
    alone = torch.optim.AdamW(before.parameters(), lr=0.02, weight_decay=0.0)
    step(net, optimizer, 1)
    start = {name: value.detach().clone() for name, value in before.named_parameters()}
    step(before, alone, 1)
    expected, moved = dict(before.named_parameters()), dict(net.named_parameters())
    for name in ("words.weight", "layers.0.bias", "layers.2.bias", "scale"):
        assert torch.equal(moved[name], expected[name]), name
    for name in ("layers.0.weight", "layers.2.weight"):
        change = moved[name] - start[name]
        left, _, right = torch.linalg.svd(expected[name].grad, full_matrices=False)
        wanted = -0.2 * RATE * max(change.shape) ** 0.5 * left @ right
        # The iteration leaves singular values of 0.7 to 1.2 instead of 1.
        cosine = (change * wanted).sum() / change.norm() / wanted.norm()
        assert cosine > 0.95 and 0.7 < change.norm() / wanted.norm() < 1.25, name


def test_rates_follow_the_schedule():
    net, optimizer = make()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 0.5**number)
    rates = [[group["lr"] for group in optimizer.param_groups]]
    for number in range(2):
        step(net, optimizer, number)
        schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates == [[0.02, RATE], [0.01, RATE / 2], [0.005, RATE / 4]]
    assert optimizer.parts["muon"].param_groups[0]["lr"] == RATE / 4


def test_a_checkpoint_goes_on_bitwise():
    net, optimizer = make(decay=0.1)
    for number in range(3):
        step(net, optimizer, number)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net.state_dict())
    step(net, optimizer, 3)
    other, again = make(seed=5, decay=0.1)
    other.load_state_dict(weights)
    again.load_state_dict(saved)
    step(other, again, 3)
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for group in again.param_groups:
        group["lr"] = 0.0  # the groups that are shared with the parts, not copies of them
    before = copy.deepcopy(other.state_dict())
    step(other, again, 4)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_frozen_layers_are_left_out_and_shards_refused(tmp_path):
    net = Net()
    net.layers[0].requires_grad_(False)
    assert [id(weight) for weight in linear_weights(net)] == [id(net.layers[2].weight)]
    with pytest.raises(ValueError, match="whole matrices"):
        ItemizedCLIPTrainingArguments(str(tmp_path), muon_learning_rate=1e-3, fsdp=True)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_torch(decay):
    """Only the precision of the iteration differs."""
    shapes = [(6, 24), (6, 24), (24, 6), (5, 5)]
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    settings = {"lr": 0.05, "weight_decay": decay, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    first, second = BatchedMuon(ours, **settings), torch.optim.Muon(theirs, **settings)
    start = [weight.detach().clone() for weight in ours]
    for number in range(4):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        if number == 2:
            ours[1].grad = theirs[1].grad = None
        first.step()
        second.step()
    for one, other, before in zip(ours, theirs, start):
        assert (one - other).norm() < 0.02 * (other - before).norm()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(first.state[one]["momentum_buffer"], second.state[other]["momentum_buffer"])
