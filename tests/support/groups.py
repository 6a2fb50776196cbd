"""Process groups on one machine (gloo), and batches that are split over them."""

import multiprocessing
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def spawn(function, arguments: tuple, world: int) -> None:
    """
    Calls `function(rank, *arguments)` in that many processes and raises what one of them raises.

    They are forked from a process that has imported torch and nothing else, once for all tests of a run.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "itemized_clip_hf.trainer.trainer"])
    mp.start_processes(function, arguments, nprocs=world, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(rank: int, world: int, port: int):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=world)


SPLIT = [
    ("clip", {}),
    ("siglip", {}),
    ("hlip", {"normal_check": True}),
    ("hlip", {"form": "siglip", "normal_check": True}),
    ("dreamlip", {"grouping_threshold": 0.2}),
    ("smartclip", {}),
    ("smartclip", {"hard_mask": False, "scale": 5.0}),
]


def shared_batch(objective, count=6, slots=3, width=8):
    """Inputs of a global batch in double precision, and a mask network."""
    from itemized_clip_hf.trainer.objectives import StudyTextObjective
    from itemized_clip_hf.trainer.objectives.smartclip import MaskNetwork

    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]).bool()
    if isinstance(objective, StudyTextObjective):
        slots, mask = 1, mask[:, :1]
    rows = {
        "image_embeds": torch.randn(count, width),
        "image_tokens": torch.randn(count, 5, width),
        "item_embeds": torch.randn(count, slots, width),
        "item_mask": mask,
        "is_normal": torch.tensor([1, 0, 1, 1, 0, 1]).bool(),
        "item_tokens": torch.randn(count, slots, 4, 6),
        "item_token_mask": torch.arange(4) < torch.tensor([4, 2, 3, 1, 4, 2])[:, None, None],
        "token_mask": torch.arange(5) < torch.tensor([5, 3, 5, 4, 2, 5])[:, None],
    }
    return {
        **{name: x.double() if x.is_floating_point() else x for name, x in rows.items()},
        "objective_module": MaskNetwork(6, 2, width).double(),
    }


def loss_and_gradients(objective, rows):
    """Loss, gradients of the rows, and those of scale, bias and network in one vector."""
    leaves = {name: rows[name].clone().requires_grad_() for name in ("image_embeds", "image_tokens", "item_embeds")}
    scale, bias = (torch.tensor([x], dtype=torch.double, requires_grad=True) for x in (1.5, -3.0))
    out = objective(**{**rows, **leaves}, logit_scale=scale, logit_bias=bias, pooler=None)
    out["loss"].backward()
    shared = [scale, bias, *rows["objective_module"].parameters()]
    flat = [(torch.zeros_like(x) if x.grad is None else x.grad).flatten() for x in shared]
    own = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return {name: term.detach().clone() for name, term in out.items()}, own, torch.cat(flat)
