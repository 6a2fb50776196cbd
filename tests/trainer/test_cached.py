"""Cached features: gradients of the whole batch, whatever the objective, in a fraction of the memory."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from groups import free_port, spawn, start
from ragged_batches import build, compare, loss_and_gradients, make_batch
from tiny_models import SUPPORT, leave_group
from trainers import make_trainer

from itemized_clip_hf import ItemizedCLIPTrainingArguments
from itemized_clip_hf.modeling.text_batching_itemized_clip import group_by_length
from itemized_clip_hf.trainer import cached
from itemized_clip_hf.trainer.cached import HostTensor, cached_encoding
from itemized_clip_hf.trainer.distributed import check_caching_supported
from itemized_clip_hf.trainer.objectives import available_objectives


class KeepGraph:
    """The same micro-batches in one ordinary graph: what caching has to equal where the towers draw random numbers."""

    @staticmethod
    def apply(encode, chunks, device, *parameters):
        return tuple(torch.cat(parts) for parts in zip(*[encode(*chunk) for chunk in chunks]))


@pytest.mark.parametrize("text", ["bert", "clip"])
@pytest.mark.parametrize("objective", available_objectives())
def test_gradients_are_those_of_the_whole_batch(objective, text):
    model, loss = build(objective, text)
    batch = make_batch(loss)
    expected = loss_and_gradients(model, batch)
    for micro_batch_size in (1, 4, 6):
        compare(expected, loss_and_gradients(model, batch, micro_batch_size), 1e-9)
    single, loss = build(objective, text, dtype=torch.float32)
    batch = make_batch(loss, dtype=torch.float32)
    compare(loss_and_gradients(single, batch), loss_and_gradients(single, batch, 4), 1e-5)


@pytest.mark.parametrize("objective", ["itemized_clip", "smartclip"])
def test_texts_in_groups_and_parts(objective):
    """So many texts that they are grouped by length, each group in parts of its own."""
    model, loss = build(objective)
    batch = make_batch(loss, count=24)
    batch["attention_mask"] &= torch.arange(12) < 2 + torch.arange(24)[:, None, None] % 10
    assert len(group_by_length(batch["attention_mask"][batch["item_mask"]], 4)) > 1
    expected = loss_and_gradients(model, batch)
    for micro_batch_size in (5, 12):
        compare(expected, loss_and_gradients(model, batch, micro_batch_size), 1e-9)


@pytest.mark.parametrize("objective", available_objectives())
def test_dropout_and_dropped_paths_are_the_same_in_both_passes(objective, monkeypatch):
    model, loss = build(objective, dropout=0.3)
    batch = make_batch(loss)
    got = loss_and_gradients(model, batch, 4)
    assert not torch.allclose(got[0], loss_and_gradients(model, batch, 4, seed=2)[0])
    monkeypatch.setattr(cached, "CachedEncoding", KeepGraph)
    compare(loss_and_gradients(model, batch, 4), got, 1e-9)


def test_autocast_in_both_passes(monkeypatch):
    model, loss = build(dropout=0.2, dtype=torch.float32)
    batch = make_batch(loss, dtype=torch.float32)
    dtypes = []
    model.visual_projection.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    model.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16), cached_encoding(model, 4, min_texts=2):
        first = model(**batch, return_loss=True, return_logits=False).loss
    first.backward()  # outside of autocast, as the Trainer does
    got = first.detach(), {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    assert set(dtypes) == {torch.bfloat16}
    monkeypatch.setattr(cached, "CachedEncoding", KeepGraph)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(model, batch, 4)
    compare(expected, got, 2e-2)  # one graph adds up in bfloat16, micro-batches in the parameters' float32


def test_parts_that_are_frozen_pixels_on_the_host_and_studies_without_items():
    model, loss = build()
    for part in (model.vision_model, model.text_model, model.text_projection):
        part.requires_grad_(False)
    model.text_model.encoder.layer[0].output.LayerNorm.requires_grad_(True)
    batch = make_batch(loss)
    expected = loss_and_gradients(model, batch)
    trained = {name for name, gradient in expected[1].items() if gradient is not None}
    assert "visual_projection.weight" in trained and not [n for n in trained if n.startswith("vision_model.")]
    got = loss_and_gradients(model, {**batch, "pixel_values": HostTensor(batch["pixel_values"])}, 2)
    for name in trained:
        torch.testing.assert_close(got[1][name], expected[1][name], rtol=1e-9, atol=1e-12)
    assert trained == {name for name, gradient in got[1].items() if gradient is not None}
    model, loss = build("mps")
    batch["item_mask"][4:] = False  # all of the last micro-batch
    compare(loss_and_gradients(model, batch), loss_and_gradients(model, batch, 2), 1e-9)
    everything = {**batch, "item_mask": None, "attention_mask": None}
    compare(loss_and_gradients(model, everything), loss_and_gradients(model, everything, 2), 1e-9)


def test_scaled_losses_add_up_and_the_model_is_left_as_it_was():
    """Gradient accumulation, and the loss scale of half precision."""
    model, loss = build()
    first, second = make_batch(loss), make_batch(loss, seed=3)
    parts = [loss_and_gradients(model, batch, None, scale=64.0)[1] for batch in (first, second)]
    model.zero_grad()
    for batch in (first, second):
        torch.manual_seed(1)
        with cached_encoding(model, 4):
            out = model(**batch, return_loss=True, return_logits=False)
        (out.loss * 64).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, parts[0][name] + parts[1][name], rtol=1e-9, atol=1e-10)
    assert not {"encode_images", "get_text_features"} & set(vars(model))
    assert model(**first, return_loss=True).vision_model_output is not None


def ddp_rank(rank: int, world: int, port: int):
    from torch.nn.parallel import DistributedDataParallel

    start(rank, world, port)
    for objective in ("itemized_clip", "clip", "smartclip"):
        model, loss = build(objective)
        wrapped = DistributedDataParallel(model)  # without a search for unused parameters
        batch = make_batch(loss, seed=rank)
        found = []
        for micro_batch_size in (None, 4):
            model.zero_grad()
            torch.manual_seed(1 + rank)
            if micro_batch_size is None:
                out = wrapped(**batch, return_loss=True, return_logits=False)
            else:
                with cached_encoding(model, micro_batch_size):
                    out = wrapped(**batch, return_loss=True, return_logits=False)
            out.loss.backward()
            gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
            found.append((out.loss.detach(), gradients))
        compare(*found, 1e-9)
        mine = torch.cat([g.flatten() for g in found[1][1].values() if g is not None])
        theirs = mine.clone()
        dist.broadcast(theirs, 0)
        assert torch.equal(mine, theirs), f"{objective}: the ranks' gradients differ"
    leave_group()


@pytest.mark.slow
def test_two_processes():
    spawn(ddp_rank, (2, free_port()), 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2, "freeze_text": "except_layernorm"},
        {"objective": "smartclip", "gradient_checkpointing": True},
    ],
)
def test_a_run_is_the_same_with_and_without(processor, tmp_path, settings):
    models = []
    for micro_batch_size in (None, 3):
        trainer = make_trainer(
            processor, tmp_path, cached_micro_batch_size=micro_batch_size, optim="sgd", learning_rate=1e-2, **settings
        )
        trainer.train()
        models.append((trainer.model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    (plain, losses), (trained, cached_losses) = models
    assert losses == pytest.approx(cached_losses, rel=1e-4) and losses[0] != losses[-1]
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), parameter, rtol=1e-4, atol=1e-6, msg=name)


def test_it_is_refused_where_it_cannot_work(processor, tmp_path):
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="expected 1 or more"):
            ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), cached_micro_batch_size=wrong)
    with pytest.raises(ValueError, match="FSDP"):
        ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), cached_micro_batch_size=2, fsdp=True)
    trainer = make_trainer(processor, tmp_path, cached_micro_batch_size=2)
    for name, what in (("is_fsdp_enabled", "FSDP"), ("is_deepspeed_enabled", "DeepSpeed")):
        setattr(trainer, name, True)
        with pytest.raises(ValueError, match=what):
            check_caching_supported(trainer)
        setattr(trainer, name, False)


MEMORY = """
import sys; sys.path.insert(0, sys.argv[1])
import resource, torch
torch.set_num_threads(1)
from ragged_batches import build, make_batch
from itemized_clip_hf.trainer.cached import cached_encoding
from contextlib import nullcontext
model, loss = build("mps", dtype=torch.float32, num_hidden_layers=4, attention_scopes=["scan"] * 4, patch_size=[2, 2, 2])
batch = make_batch(loss, count=96, dtype=torch.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for context in (cached_encoding(model, 4), nullcontext()):  # the peak of a process only grows
    with context:
        out = model(**batch, return_loss=True, return_logits=False).loss
    out.backward()
    model.zero_grad()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_peak_memory():
    command = [sys.executable, "-c", MEMORY, str(SUPPORT)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    cached_peak, plain_peak = (float(line) for line in done.stdout.split()[-2:])
    assert cached_peak < 0.6 * plain_peak, f"{cached_peak} MiB with cached features, {plain_peak} MiB without"
