"""
The composite loss, plain against fused: time (interleaved in one process, medians) and peak memory (a process each).

    python benchmarks/loss.py [--ranks 1 8] [--cases 2-d chest-ct brain-mri] [--repeats 5] [-o benchmarks/results/loss.json]

Shapes are those of the released runs; `--ranks 8` emulates what one of eight ranks computes. Cases measured before
on the same machine stay in the output. Memory is what forward and
backward add to that of the inputs.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

# studies, item slots, tokens; keep rate, key token rate, worst-positive factor
CASES = {
    "2-d": (64, 6, 196, 0.6, 0.1, 1.5),
    "chest-ct": (16, 10, 2744, 0.95, 0.05, 1.0),
    "brain-mri": (8, 7, 11760, 0.9, 0.05, 1.5),
    "tiny": (2, 2, 16, 0.9, 0.05, 1.5),
}
WIDTH, HEADS = 512, 8


def build(case: str, ranks: int, device: str):
    """A function formulation -> loss and gradients, on fixed inputs."""
    import torch

    from itemized_clip_hf.modeling.pooling_itemized_clip import ItemizedCLIPItemPooler
    from itemized_clip_hf.trainer.losses.blocks import Block, SeededMask
    from itemized_clip_hf.trainer.losses.functional import draw_negatives, normal_pairs
    from itemized_clip_hf.trainer.losses.fused import fused_terms
    from itemized_clip_hf.trainer.losses.plain import plain_terms

    batch, slots, length, keep_rate, key_rate, factor = CASES[case]
    generator = torch.Generator().manual_seed(0)
    pooler = ItemizedCLIPItemPooler(WIDTH, HEADS).to(device)
    tokens = torch.randn(batch, length, WIDTH, generator=generator).to(device).requires_grad_()
    mask = torch.rand(batch, slots, generator=generator) < 0.7
    mask[:, 0] = True
    normal = (torch.rand(batch, generator=generator) < 0.1).to(device)
    mask = mask.to(device)
    scale, bias = (torch.tensor([x], device=device, requires_grad=True) for x in (2.65926, -10.0))
    blocks, texts = [], []
    for rank in range(ranks):
        items = torch.randn(batch, slots, WIDTH, generator=generator).to(device).requires_grad_()
        texts.append(items)
        table = draw_negatives(mask.cpu(), generator).to(device)
        dropped = normal_pairs(normal, normal, rank == 0)
        blocks.append(Block(items, mask, table, dropped, rank == 0, SeededMask(rank, keep_rate)))
    leaves = [tokens, scale, bias, *texts, *pooler.parameters()]
    settings = {
        "ila_weight": 1.0,
        "kta_weight": 1.0,
        "iis_weight": 1.0,
        "key_token_rate": key_rate,
        "worst_positive_factor": factor,
        "worst_positive_select": "reference",
    }

    def run(formulation: str):
        compute = fused_terms if formulation == "fused" else plain_terms
        loss, _ = compute(pooler, tokens, blocks, None, scale, bias, **settings)
        gradients = torch.autograd.grad(loss, leaves)
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach()), gradients

    return run


def measure_times(case: str, ranks: int, repeats: int, device: str) -> dict:
    run = build(case, ranks, device)
    times: dict = {"plain": [], "fused": []}
    losses = {}
    for repeat in range(repeats + 1):
        for formulation in times:
            start = time.perf_counter()
            losses[formulation], _ = run(formulation)
            if repeat:
                times[formulation].append(time.perf_counter() - start)
    ratios = [plain / fused for plain, fused in zip(*times.values())]
    return {
        **{f"{name}_s": round(statistics.median(values), 4) for name, values in times.items()},
        "time_ratio": round(statistics.median(ratios), 2),
        "loss_difference": abs(losses["plain"] - losses["fused"]) / abs(losses["plain"]),
    }


def measure_memory(case: str, ranks: int, formulation: str, device: str, queue) -> None:
    import threading

    import psutil
    import torch

    build("tiny", ranks, device)(formulation)  # libraries load on first use
    run = build(case, ranks, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(formulation)
        queue.put(torch.cuda.max_memory_allocated() - before)
        return
    process, peak, stop = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch():
        while not stop.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    run(formulation)
    stop.set()
    thread.join()
    queue.put(peak[0] - before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[case for case in CASES if case != "tiny"])
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "loss.json"))
    args = parser.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "torch": version("torch"),
    }
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    kept = json.loads(output.read_text()) if output.exists() else {}
    rows = kept["rows"] if kept.get("machine") == machine else []
    for ranks in args.ranks:
        for case in args.cases:
            row = {"case": case, "ranks": ranks, **measure_times(case, ranks, args.repeats, device)}
            memory = {}
            for formulation in ("plain", "fused"):
                queue = context.Queue()
                process = context.Process(target=measure_memory, args=(case, ranks, formulation, device, queue))
                process.start()
                memory[formulation] = queue.get()
                process.join()
                row[f"{formulation}_MiB"] = round(memory[formulation] / 2**20)
            row["memory_ratio"] = round(memory["plain"] / memory["fused"], 2)
            rows = [old for old in rows if (old["case"], old["ranks"]) != (case, ranks)] + [row]
            print(json.dumps(row), flush=True)
            output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
