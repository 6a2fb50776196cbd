"""Time and memory of one training step and of scoring, per domain, at the published size or a fraction of it.

Every case runs in a process of its own, so that its peak memory is its own. Prints a table and writes
`benchmarks/results/step.json` with machine and versions.

    python benchmarks/step.py [--scale 0.25] [--domains brain-mri remote-sensing]
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


def measure(domain: str, scale: float, repeats: int, queue):
    import torch

    from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPModel
    from itemized_clip_hf.domains import load_domain

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch, scans, items = CASES[domain]
    architecture = json.loads(json.dumps(load_domain(domain).architecture))
    vision = architecture["vision_config"]
    depth, height, width = vision["image_size"]
    if scale < 1:
        # The same patches and widths on a smaller field of view.
        for axis, size in ((1, height), (2, width)):
            patch = vision["patch_size"][axis]
            vision["image_size"][axis] = max(round(size * scale**0.5 / patch), 1) * patch
    torch.manual_seed(0)
    model = ItemizedCLIPModel(ItemizedCLIPConfig(domain=domain, **architecture)).to(device)
    inputs = {
        "pixel_values": torch.randn(batch, scans, vision["num_channels"], *vision["image_size"], device=device),
        "input_ids": torch.randint(1000, 2000, (batch, items, 24), device=device),
        "attention_mask": torch.ones(batch, items, 24, dtype=torch.long, device=device),
        "item_mask": torch.ones(batch, items, dtype=torch.bool, device=device),
        "scan_mask": torch.ones(batch, scans, dtype=torch.bool, device=device),
    }
    inputs["input_ids"][..., -1] = model.config.text_config.vocab_size - 1
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    times = {"training step": [], "scoring": []}
    for _ in range(repeats + 1):
        model.train()
        start = time.perf_counter()
        model(**inputs, return_loss=True, return_logits=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times["training step"].append(time.perf_counter() - start)
        model.eval()
        start = time.perf_counter()
        with torch.no_grad():
            model(**inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        times["scoring"].append(time.perf_counter() - start)
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    queue.put(
        {
            "domain": domain,
            "studies": batch,
            "scans": scans,
            "items": items,
            "scan_size": vision["image_size"],
            **{f"{name}, s": round(statistics.median(values[1:]), 4) for name, values in times.items()},
            "peak memory, GiB": round(peak / 2**30, 2),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        }
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", nargs="*", default=list(CASES))
    parser.add_argument("--scale", type=float, default=0.25, help="share of the in-plane field of view")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "step.json"))
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = []
    for domain in arguments.domains:
        queue = context.Queue()
        process = context.Process(target=measure, args=(domain, arguments.scale, arguments.repeats, queue))
        process.start()
        rows.append(queue.get())
        process.join()
        print(json.dumps(rows[-1]))
    from importlib.metadata import version

    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "processor": platform.machine()}
    versions = {name: version(name) for name in ("torch", "transformers", "itemized-clip-hf")}
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.output).write_text(
        json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
