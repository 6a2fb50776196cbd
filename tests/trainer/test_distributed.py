"""The loss in real process groups (gloo) against the reference's own multi-process runs."""

import os

import pytest
import torch
import torch.distributed as dist
from golden_cases import assert_close, case, names
from groups import SPLIT, free_port, loss_and_gradients, shared_batch, spawn, start
from tiny_models import leave_group


def replay_rank(rank: int, world: int, port: int, name: str):
    from itemized_clip_hf.conversion import convert_pooler
    from itemized_clip_hf.trainer.objectives import Draws, load_objective

    start(rank, world, port)
    meta, tensors, _ = case(name)
    config = meta["config"]
    batch, slots, dim = config["batch"], config["num_items"], config["dim"]
    own = {k.removeprefix(f"rank{rank}."): v for k, v in tensors.items() if k.startswith(f"rank{rank}.")}
    inputs = {k: own[f"in.{k}"].clone().requires_grad_() for k in ("image_features", "image_tokens", "text_features")}
    scale = own["in.logit_scale"].log().requires_grad_()
    bias = own["in.logit_bias"].clone().requires_grad_()
    source = {k.removeprefix("param.visual_proj."): v for k, v in tensors.items() if k.startswith("param.")}
    pooler = convert_pooler(source, config["heads"])
    order = meta["text_source_rank_per_pass"][f"rank{rank}"]
    masks = [own[f"draw.keep_mask.{order.index(r)}"].bool() for r in range(world)]
    objective = load_objective(
        "itemized_clip",
        ila_weight=config["ila_weight"],
        mps_weight=config["mps_weight"],
        kta_weight=config["kta_weight"],
        iis_weight=config["iis_weight"],
        keep_rate=config["keep_rate"],
        key_token_rate=config["key_token_rate"],
        worst_positive_factor=config["uwp_factor"],
        normal_check=config["variant"] == "rad" and not config.get("no_normal_check", False),
    )
    out = objective(
        image_embeds=inputs["image_features"],
        image_tokens=inputs["image_tokens"],
        item_embeds=inputs["text_features"].view(batch, slots, dim),
        item_mask=own["in.textmask"].bool(),
        is_normal=own["in.normals"].view(-1).bool() if "in.normals" in own else None,
        logit_scale=scale,
        logit_bias=bias,
        pooler=pooler,
        draws=Draws(own["draw.neg_index"], masks),
    )
    for term, recorded in (("loss", "total"), ("ila", "ila"), ("kta", "kta"), ("mps", "mps"), ("iis", "iis")):
        assert_close(out[term], own[f"out.{recorded}"], f"rank {rank}, {term}")
    out["loss"].backward()
    for k, leaf in inputs.items():
        assert_close(leaf.grad, own[f"grad.{k}"], f"rank {rank}, gradient of {k}", 3e-4)
    assert_close(scale.grad, own["grad.logit_scale"] * own["in.logit_scale"], f"rank {rank}, scale", 3e-4)
    assert_close(bias.grad, own["grad.logit_bias"], f"rank {rank}, bias", 3e-4)
    for part in "qkv":
        weight = getattr(pooler, f"{part}_proj").weight.grad
        recorded = own["grad.visual_proj.attn.in_proj_weight"].chunk(3)["qkv".index(part)]
        assert_close(weight, recorded, f"rank {rank}, {part} projection", 3e-4)
    leave_group()


SLOW = ("world3", "rad_world4")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith(SLOW)) for name in names("loss_dist_*")]
)
def test_recorded_worlds(name):
    world = int(name[-1])
    spawn(replay_rank, (world, free_port(), name), world)


def split_rank(rank: int, world: int, port: int):
    """The mean over ranks, which data-parallel training takes, is the loss of the whole batch in one process."""
    from itemized_clip_hf.trainer.objectives import load_objective

    cases = [(load_objective(name, **arguments), f"{name} {arguments}") for name, arguments in SPLIT]
    batches = [shared_batch(objective) for objective, _ in cases]
    whole = [loss_and_gradients(objective, rows) for (objective, _), rows in zip(cases, batches)]
    start(rank, world, port)
    for (objective, what), rows, (terms, gradients, shared) in zip(cases, batches, whole):
        rows["objective_module"].zero_grad()
        part = {name: x if name == "objective_module" else x.chunk(world)[rank] for name, x in rows.items()}
        own_terms, own_gradients, own_shared = loss_and_gradients(objective, part)
        for name, term in own_terms.items():
            dist.all_reduce(term)
            torch.testing.assert_close(term / world, terms[name], msg=lambda m: f"{what}, {name}: {m}")  # noqa: B023
        for name, gradient in own_gradients.items():
            torch.testing.assert_close(gradient / world, gradients[name].chunk(world)[rank], msg=f"{what}, {name}")
        dist.all_reduce(own_shared)
        torch.testing.assert_close(own_shared / world, shared, msg=f"{what}, shared parameters")
    leave_group()


@pytest.mark.parametrize("world", [2, 3])
def test_mean_over_processes_is_the_whole_batch(world):
    spawn(split_rank, (world, free_port()), world)


def trainer_rank(rank: int, world: int, port: int, folder: str):
    """Without a search for unused parameters, as with gradient checkpointing: each one left trainable needs a gradient."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    start(rank, world, port)
    from tiny_models import ITEMS
    from trainers import make_trainer

    from itemized_clip_hf import ItemizedCLIPProcessor
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=train_tokenizer(ITEMS, 120, 24), scan_size=[8, 16, 16], in_plane_size=16
    )
    for name in ("clip", "siglip", "hlip", "dreamlip", "smartclip"):
        trainer = make_trainer(
            processor,
            folder,
            objective=name,
            max_steps=3,
            per_device_train_batch_size=4,
            ddp_find_unused_parameters=False,
        )
        before = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
        trainer.train()
        after = [p.detach() for p in trainer.model.parameters() if p.requires_grad]
        assert trainer.args.world_size == world and any(not torch.equal(x, y) for x, y in zip(before, after))
        mine = torch.cat([p.flatten() for p in after])
        theirs = mine.clone()
        dist.broadcast(theirs, 0)
        assert torch.equal(mine, theirs), f"{name}: the ranks' models differ"
    leave_group()


def test_trainer_in_two_processes(tmp_path):
    spawn(trainer_rank, (2, free_port(), str(tmp_path)), 2)


def test_all_worlds_are_here():
    assert len(names("loss_dist_*")) == 6
