"""Time and memory of one training step and of scoring, per domain, at the published size or a fraction of it.

Every case runs in a process of its own, so that its peak memory is its own. Prints a table and writes
`benchmarks/results/step.json` with machine and versions.

    python benchmarks/step.py [--scale 0.25] [--domains brain-mri remote-sensing]
    python benchmarks/step.py --compare [--layers 3] [--data ../shared/data]

`--compare` times whole 2-D training steps (ViT-B/16 at 224 px, CLIP text, RSICD captions in 6 slots, fewer layers in both
towers), plain against fast, in turns in one process: plain encodes every slot at the full context and uses the plain loss.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from pathlib import Path

CASES = {"brain-mri": (2, 4, 7), "head-ct": (2, 6, 7), "chest-ct": (2, 1, 10), "remote-sensing": (16, 1, 6)}


BF16_PEAK = 989e12
"""Dense bf16 FLOP/s of an H100 or H200 by its datasheet."""


def published(domain: str) -> dict:
    """A copy of the architecture of a domain's published model."""
    from itemized_clip_hf.domains import load_domain

    return json.loads(json.dumps(load_domain(domain).architecture))


def train_step(model, inputs, optimizer, device: str, bf16: bool = False) -> None:
    import torch

    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = model(**inputs, return_loss=True, return_logits=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()


def measure(domain: str, scale: float, repeats: int, factor: int, bf16: bool, queue):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, scans, items = CASES[domain]
    batch *= factor
    architecture = published(domain)
    vision = architecture["vision_config"]
    depth, height, width = vision["image_size"]
    if scale < 1:
        # The same patches and widths on a smaller field of view.
        for axis, size in ((1, height), (2, width)):
            patch = vision["patch_size"][axis]
            vision["image_size"][axis] = max(round(size * scale**0.5 / patch), 1) * patch
    torch.manual_seed(0)
    model = ItemizedCLIPModel(ItemizedCLIPConfig(domain=domain, **architecture)).to(device)
    inputs = random_studies(model, batch, scans, items, device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    with FlopCounterMode(display=False) as counter:
        train_step(model, inputs, optimizer, device, bf16)
    flops = counter.get_total_flops()
    times = {"training step": [], "scoring": []}
    for _ in range(repeats + 1):
        model.train()
        start = time.perf_counter()
        train_step(model, inputs, optimizer, device, bf16)
        times["training step"].append(time.perf_counter() - start)
        model.eval()
        start = time.perf_counter()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            model(**inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        times["scoring"].append(time.perf_counter() - start)
    peak = peak_memory(device)
    rate = flops / statistics.median(times["training step"][1:])
    queue.put(
        {
            "domain": domain,
            "studies": batch,
            "scans": scans,
            "items": items,
            "scan_size": vision["image_size"],
            **{f"{name}, s": round(statistics.median(values[1:]), 4) for name, values in times.items()},
            "peak memory, GiB": round(peak / 2**30, 2),
            "TFLOP a step": round(flops / 1e12, 3),
            "TFLOP/s": round(rate / 1e12, 2),
            **({"share of the bf16 peak": round(rate / BF16_PEAK, 3)} if bf16 and device == "cuda" else {}),
            "precision": "bf16" if bf16 else "float32",
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        }
    )


def random_studies(model, batch: int, scans: int, items: int, device: str) -> dict:
    """Inputs of full studies: noise, and texts of 24 tokens."""
    import torch

    vision = model.config.vision
    inputs = {
        "pixel_values": torch.randn(batch, scans, vision.num_channels, *vision.image_size, device=device),
        "input_ids": torch.randint(1000, 2000, (batch, items, 24), device=device),
        "attention_mask": torch.ones(batch, items, 24, dtype=torch.long, device=device),
        "item_mask": torch.ones(batch, items, dtype=torch.bool, device=device),
        "scan_mask": torch.ones(batch, scans, dtype=torch.bool, device=device),
    }
    inputs["input_ids"][..., -1] = model.config.text.vocab_size - 1
    return inputs


def peak_memory(device: str) -> int:
    """Bytes that this process has taken at most."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_text(data: Path, studies: int, device: str) -> dict:
    """Captions of RSICD's validation images in 6 slots, at the full context."""
    import pyarrow.parquet as parquet
    import torch

    from itemized_clip_hf import ItemizedCLIPProcessor
    from itemized_clip_hf.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"), 100)
    processor = ItemizedCLIPProcessor.from_domain("remote-sensing", tokenizer=tokenizer)
    rows = parquet.read_table(data / "rsicd" / "val.parquet", columns=["captions_unique"]).slice(0, studies).to_pylist()
    text = processor.encode_text([row["captions_unique"][:6] for row in rows], num_slots=6, padding="max_length")
    return {name: torch.as_tensor(value).to(device) for name, value in text.items()}


def compare(layers: int, studies: int, repeats: int, data: Path, bf16: bool = False) -> dict:
    """Medians of both kinds of step, and their ratio."""
    import torch

    from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPModel
    from itemized_clip_hf.domains import load_domain
    from itemized_clip_hf.trainer.objectives import load_objective

    device = "cuda" if torch.cuda.is_available() else "cpu"
    domain = load_domain("remote-sensing")
    architecture = published(domain.name)
    for tower in ("vision_config", "text_config"):
        architecture[tower]["num_hidden_layers"] = layers
    architecture["vision_config"].pop("attention_scopes", None)
    torch.manual_seed(0)
    model = ItemizedCLIPModel(ItemizedCLIPConfig(domain=domain.name, **architecture)).to(device).train()
    inputs = load_text(data, studies, device)
    inputs["pixel_values"] = torch.randn(studies, 3, 224, 224, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    encode_items = model.encode_items

    def encode_all(input_ids, attention_mask, item_mask, **kwargs):
        outputs = model.get_text_features(input_ids, attention_mask, **kwargs)
        return outputs.pooler_output, outputs

    times: dict = {"plain": [], "fast": []}
    for repeat in range(repeats + 1):
        for kind in times:
            load_objective(
                "itemized_clip", **{**domain.objective, "formulation": {"plain": "plain", "fast": "fused"}[kind]}
            ).attach(model)
            model.encode_items = encode_all if kind == "plain" else encode_items
            start = time.perf_counter()
            train_step(model, inputs, optimizer, device, bf16)
            if repeat:
                times[kind].append(time.perf_counter() - start)
    ratios = [plain / fast for plain, fast in zip(*times.values())]
    return {
        "studies": studies,
        "layers": layers,
        "items_per_study": round(float(inputs["item_mask"].sum()) / studies, 2),
        **{f"{kind}_s": round(statistics.median(values), 3) for kind, values in times.items()},
        "time_ratio": round(statistics.median(ratios), 2),
        "precision": "bf16" if bf16 else "float32",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", nargs="*", default=list(CASES))
    parser.add_argument("--scale", type=float, default=0.25, help="share of the in-plane field of view")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "step.json"))
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--studies", type=int, default=16)
    parser.add_argument("--bf16", action="store_true", help="autocast, as the recipes train on a GPU")
    parser.add_argument("--batch-factor", type=int, default=1, help="times the studies of every domain's batch")
    parser.add_argument("--data", default=str(Path(__file__).parents[2] / "shared" / "data"))
    arguments = parser.parse_args()
    if arguments.compare:
        row = compare(arguments.layers, arguments.studies, arguments.repeats, Path(arguments.data), arguments.bf16)
        print(json.dumps(row))
        output = Path(arguments.output).with_name("step-compare.json")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(row, indent=1) + "\n")
        return
    context = multiprocessing.get_context("spawn")
    rows = []
    for domain in arguments.domains:
        queue = context.Queue()
        own = (domain, arguments.scale, arguments.repeats, arguments.batch_factor, arguments.bf16, queue)
        process = context.Process(target=measure, args=own)
        process.start()
        while process.is_alive() and queue.empty():
            time.sleep(0.2)
        if queue.empty() and process.exitcode:
            print(f"{domain}: failed with exit code {process.exitcode}", flush=True)
            continue
        rows.append(queue.get())
        process.join()
        print(json.dumps(rows[-1]), flush=True)
    from importlib.metadata import version

    from itemized_clip_hf.version import __version__

    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "processor": platform.machine()}
    versions = {name: version(name) for name in ("torch", "transformers")}
    versions["itemized-clip-hf"] = __version__
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.output).write_text(
        json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
