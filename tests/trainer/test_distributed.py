"""The loss in real process groups (gloo) against the reference's own multi-process runs."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from golden_cases import assert_close, case, names


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(rank: int, world: int, port: int):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=world)


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
    dist.destroy_process_group()


@pytest.mark.parametrize("name", names("loss_dist_*"))
def test_recorded_worlds(name):
    world = int(name[-1])
    mp.spawn(replay_rank, (world, free_port(), name), nprocs=world)


def unequal_rank(rank: int, world: int, port: int):
    from itemized_clip_hf.trainer.objectives import load_objective

    start(rank, world, port)
    batch = 2 + rank
    with pytest.raises(ValueError, match="all need the same"):
        load_objective("mps")(
            torch.randn(batch, 4), None, torch.randn(batch, 3, 4), None, None, torch.zeros(1), torch.zeros(1), None
        )
    dist.destroy_process_group()


def test_unequal_batches_are_refused():
    mp.spawn(unequal_rank, (2, free_port()), nprocs=2)


def test_all_worlds_are_here():
    assert len(names("loss_dist_*")) == 6
