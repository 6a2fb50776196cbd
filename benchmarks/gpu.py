"""
Checks and measurements that need one GPU, part by part; without one they run on the CPU, to rehearse.

    python benchmarks/gpu.py equality|bf16|peak|compile|batch|group -o OUT [--tiny]

equality: outputs, loss and gradients of every objective on the CPU and on the GPU, float32 without TF32.
bf16: the same on the GPU under autocast against float32.
peak: rate of a large bf16 product.
compile: the vision tower of RSICD with and without `torch.compile`.
batch: a training step of RSICD's batch by batch size, with and without checkpoints of activations.
group: the loss in a process group of one rank (torchrun --nproc-per-node 1), against the loss without a group.
"""

import argparse
import contextlib
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from step import load_text, published, train_step
from torch.utils.flop_counter import FlopCounterMode

from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPModel
from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.trainer.objectives import available_objectives, load_objective

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY_TEXT = {"vocab_size": 120, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_TEXT |= {"intermediate_size": 32, "max_position_embeddings": 24}
BERT = {"model_type": "bert", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **TINY_TEXT}
CLIP = {"model_type": "clip_text_model", "bos_token_id": 118, "eos_token_id": 119, "pad_token_id": 0, **TINY_TEXT}
VOLUME = {"num_channels": 1, "image_size": [8, 16, 16], "patch_size": [4, 8, 8]}
PICTURE = {"num_channels": 3, "image_size": [1, 16, 16], "patch_size": [1, 8, 8]}
MODELS = {
    "pictures": (CLIP, {**PICTURE, "attention_scopes": ["study"] * 3}),
    "chest-ct": (BERT, {**VOLUME, "max_num_scans": 1, "attention_scopes": ["slice", "scan", "study"]}),
    "several scans": (BERT, {**VOLUME, "attention_scopes": ["slice", "scan", "study"]}),
    "scan names": (BERT, {**VOLUME, "attention_scopes": ["slice", "scan", "study"], "use_scan_name_encoder": True}),
}


def tiny(name: str):
    """A model of a kind and a batch for it, on the CPU."""
    text, vision = MODELS[name]
    widths = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = ItemizedCLIPConfig(
        vision_config={**widths, **vision}, text_config=text, projection_dim=16, num_pooler_heads=2
    )
    scans = 3 if name.startswith("s") else 1
    shape = (3, *vision["image_size"][1:]) if name == "pictures" else (scans, 1, *vision["image_size"])
    batch = {
        "pixel_values": torch.randn(6, *shape),
        "input_ids": torch.randint(1, 118, (6, 3, 12)),
        "attention_mask": torch.ones(6, 3, 12, dtype=torch.long),
        "item_mask": torch.rand(6, 3) < 0.7,
    }
    batch["input_ids"][..., -1] = 119
    batch["item_mask"][:, 0] = True
    if name.startswith("s"):
        batch["scan_mask"] = torch.tensor([[True, True, row % 2 == 0] for row in range(6)])
    if name == "scan names":
        batch["scan_name_ids"] = torch.randint(1, 30, (6, 3, 8))
    return ItemizedCLIPModel(config), batch


def with_fixed_draws(objective, device: str):
    """The objective, whose random choices are drawn on the CPU whatever the device."""
    compute = objective.compute

    def fixed(x, draws=None):
        sizes = x.image_tokens.shape[1], x.pooler.num_heads
        draws = objective.draw(x.item_mask.cpu(), *sizes, torch.Generator().manual_seed(0))
        for name, value in vars(draws).items():
            setattr(draws, name, value.to(device) if isinstance(value, torch.Tensor) else value)
        return compute(x, draws)

    objective.compute = fixed
    return objective


def run(name: str, objective: str | None, device: str, bf16: bool = False, **settings) -> dict[str, torch.Tensor]:
    """Outputs, or loss and gradients, as float64 on the CPU."""
    model, batch = tiny(name)
    if objective is not None:
        made = load_objective(objective, **settings)
        one_text = hasattr(made, "join_items")
        if one_text:
            batch = {**batch, **{key: batch[key][:, :1] for key in ("input_ids", "attention_mask", "item_mask")}}
        torch.manual_seed(1)
        with_fixed_draws(made, device).attach(model)
    model = model.to(device).train(objective is not None)
    inputs = {key: value.to(device) for key, value in batch.items()}
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        outputs = model(**inputs, return_loss=objective is not None)
    found = {key: getattr(outputs, key) for key in ("image_embeds", "image_tokens", "item_embeds", "logits_per_image")}
    if objective is not None:
        outputs.loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found = {"loss": outputs.loss, "gradients": torch.cat(gradients)}
    return {key: value.detach().double().cpu() for key, value in found.items()}


def differences(one: dict, other: dict) -> dict[str, float]:
    """Length of the difference by that of the first, without the fill of padded logits."""
    found = {}
    for key, value in one.items():
        real = value > -1e30
        found[key] = float((value - other[key])[real].norm() / value[real].norm())
    return found


def cases():
    """(kind of model, objective or None, its settings)."""
    for name in MODELS:
        yield name, None, {}
        for formulation in ("plain", "fused"):
            yield name, "itemized_clip", {"formulation": formulation, "keep_rate": 1.0}
    for objective in available_objectives():
        yield "several scans", objective, {"keep_rate": 1.0} if objective == "itemized_clip" else {}


def equality(arguments) -> dict:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = []
    for name, objective, settings in cases():
        row: dict = {"model": name, "objective": objective, **settings}
        try:
            row |= differences(run(name, objective, "cpu", **settings), run(name, objective, DEVICE, **settings))
            row["agrees"] = all(
                value < 1e-4 for key, value in row.items() if isinstance(value, float) and key != "keep_rate"
            )
        except Exception as error:
            row |= {"error": f"{type(error).__name__}: {error}"[:300], "agrees": False}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"rows": rows, "agree": f"{sum(row['agrees'] for row in rows)} of {len(rows)}"}


def bf16(arguments) -> dict:
    rows = []
    for name, objective, settings in cases():
        row: dict = {"model": name, "objective": objective, **settings}
        try:
            row |= differences(run(name, objective, DEVICE, **settings), run(name, objective, DEVICE, True, **settings))
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"rows": rows}


def median_seconds(function, repeats: int = 10, warm: int = 3) -> float:
    times = []
    for repeat in range(repeats + warm):
        start = time.perf_counter()
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if repeat >= warm:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak(arguments) -> dict:
    size = 256 if arguments.tiny else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return {"product": size, "TFLOP/s": round(2 * size**3 / median_seconds(lambda: a @ b) / 1e12, 1)}


def pictures_model(tiny_size: bool):
    domain = load_domain("remote-sensing")
    architecture = published("remote-sensing")
    if tiny_size:
        for tower in ("vision_config", "text_config"):
            architecture[tower]["num_hidden_layers"] = 1
        architecture["vision_config"].pop("attention_scopes", None)
    torch.manual_seed(0)
    model = ItemizedCLIPModel(ItemizedCLIPConfig(domain=domain.name, **architecture)).to(DEVICE).train()
    load_objective("itemized_clip", **domain.objective).attach(model)
    return model


def compile_tower(arguments) -> dict:
    tower = pictures_model(arguments.tiny).vision_model
    pixels = torch.randn(2 if arguments.tiny else 256, 3, 224, 224, device=DEVICE)

    def step(vision):
        with torch.autocast(DEVICE, torch.bfloat16):
            vision(pixels).pooler_output.float().square().mean().backward()
        tower.zero_grad()

    repeats = (2, 1) if arguments.tiny else (10, 3)
    eager = median_seconds(lambda: step(tower), *repeats)
    start = time.perf_counter()
    compiled = torch.compile(tower, dynamic=False)
    step(compiled)
    first = time.perf_counter() - start
    fast = median_seconds(lambda: step(compiled), *repeats)
    times = {"eager_s": round(eager, 4), "compiled_s": round(fast, 4), "first_step_s": round(first, 1)}
    return {"pictures": len(pixels), **times, "ratio": round(eager / fast, 2)}


def batch(arguments) -> dict:
    """Seconds, TFLOP and memory of a step on captions of RSICD, 6 item slots, bf16."""
    rows = []
    for studies, checkpointing in ((4, False),) if arguments.tiny else ((512, False), (1024, False), (1024, True)):
        row: dict = {"studies": studies, "gradient_checkpointing": checkpointing}
        model = optimizer = inputs = None
        try:
            model = pictures_model(arguments.tiny)
            if checkpointing:
                model.gradient_checkpointing_enable()
            inputs = load_text(Path(arguments.data), studies, DEVICE)
            inputs["pixel_values"] = torch.randn(studies, 3, 224, 224, device=DEVICE)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
            with FlopCounterMode(display=False) as counter:
                train_step(model, inputs, optimizer, DEVICE, True)
            seconds = median_seconds(partial(train_step, model, inputs, optimizer, DEVICE, True), 4, 1)
            rate = counter.get_total_flops() / seconds / 1e12
            row |= {"step_s": round(seconds, 3), "images_per_s": round(studies / seconds), "TFLOP/s": round(rate, 1)}
            if DEVICE == "cuda":
                row["memory, GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        except torch.OutOfMemoryError:
            row["error"] = "out of memory"
        model = optimizer = inputs = None
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"rows": rows}


def group(arguments) -> dict:
    """Loss and gradients with the collectives of a group of one, and without."""
    import torch.distributed as dist

    from itemized_clip_hf.trainer import gather

    names = [name for name in available_objectives()]
    settings = {name: {"keep_rate": 1.0} if name == "itemized_clip" else {} for name in names}
    alone = {name: run("several scans", name, DEVICE, **settings[name]) for name in names}
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo")
    rows: list[dict] = [{"backend": dist.get_backend()}]
    x = torch.randn(4, 3, 5, device=DEVICE, requires_grad=True)
    gather.GatherWithGradient.apply(x).square().sum().backward()
    rows.append({"gather_with_gradient": bool(torch.equal(x.grad, 2 * x.detach()))})
    rows.append({"gather_sizes": gather.gather_sizes([6, 3], torch.device(DEVICE)) == [[6, 3]]})
    for name in names:
        together = run("several scans", name, DEVICE, **settings[name])
        rows.append({"objective": name, **differences(alone[name], together)})
    model, inputs = tiny("several scans")
    load_objective("itemized_clip").attach(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(model.to(DEVICE), find_unused_parameters=True)
    wrapped(**{key: value.to(DEVICE) for key, value in inputs.items()}, return_loss=True).loss.backward()
    rows.append(
        {"gradients_finite": all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)}
    )
    with contextlib.suppress(Exception):
        dist.destroy_process_group()
    return {"rows": rows}


PARTS = {
    "equality": equality,
    "bf16": bf16,
    "peak": peak,
    "compile": compile_tower,
    "batch": batch,
    "group": group,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("-o", "--output", default=".", help="folder of the results file gpu-PART.json")
    parser.add_argument("--data", default=str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--tiny", action="store_true", help="sizes for a rehearsal on the CPU")
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    found = {"part": arguments.part, "device": device, "torch": torch.__version__, **PARTS[arguments.part](arguments)}
    print(json.dumps({key: value for key, value in found.items() if key != "rows"}), flush=True)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"gpu-{arguments.part}.json").write_text(json.dumps(found, indent=1) + "\n")
    os._exit(0) if arguments.part == "group" else None


if __name__ == "__main__":
    main()
