"""
Zero-shot evaluation in batches against one study and one prompt at a time, and the memory that more studies take.

    python benchmarks/evaluate.py [--studies 200] [--prompts 50] [-o benchmarks/results/evaluate.json]

Generated studies of four scans and the demo's model with random weights; both ways give the same scores.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np


def build(num_prompts: int):
    from itemized_clip_hf.phantom import PhantomDataset
    from itemized_clip_hf.phantom.experiment import RECIPE, SCAN_SIZE
    from itemized_clip_hf.recipes import load_recipe
    from itemized_clip_hf.trainer.from_recipe import build_model, build_processor

    items = dict.fromkeys(item for study in PhantomDataset("test", 400, shape=SCAN_SIZE) for item in study.items)
    prompts, recipe = list(items)[:num_prompts], load_recipe(RECIPE)
    processor = build_processor(recipe, [prompts])
    return build_model(recipe, processor.tokenizer).eval(), processor, prompts


def studies(count: int):
    """One after the other, as from files."""
    from itemized_clip_hf.phantom import PhantomDataset
    from itemized_clip_hf.phantom.experiment import SCAN_SIZE, as_scans

    return (as_scans(study) for study in PhantomDataset("test", count, shape=SCAN_SIZE))


def measure_memory(count: int, queue) -> None:
    import resource

    from itemized_clip_hf.evaluation.zero_shot import score_studies

    model, processor, prompts = build(50)
    score_studies(model, processor, studies(64), prompts, batch_size=32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    score_studies(model, processor, studies(count), prompts, batch_size=32)
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "evaluate.json"))
    args = parser.parse_args()
    import torch

    from itemized_clip_hf.evaluation.zero_shot import score_studies

    model, processor, prompts = build(args.prompts)
    kept = list(studies(args.studies))  # making them is no part of either way
    start = time.perf_counter()
    _, batched = score_studies(model, processor, kept, prompts, batch_size=32)
    fast = time.perf_counter() - start
    start = time.perf_counter()
    single = np.empty_like(batched)
    with torch.no_grad():
        for row, study in enumerate(kept):
            for column, prompt in enumerate(prompts):
                single[row, column] = score_studies(model, processor, [study], [prompt])[1][0, 0]
    slow = time.perf_counter() - start
    context, growth = multiprocessing.get_context("spawn"), {}
    for count in (args.studies, 5 * args.studies):
        queue = context.Queue()
        process = context.Process(target=measure_memory, args=(count, queue))
        process.start()
        growth[str(count)] = round(queue.get() / 1024, 1)
        process.join()
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": version("torch")},
        "studies": args.studies,
        "prompts": len(prompts),
        "batched_s": round(fast, 2),
        "one_by_one_s": round(slow, 2),
        "ratio": round(slow / fast, 1),
        "largest_difference": float(np.abs(batched - single).max()),
        "extra_peak_MiB_after_the_first_64_studies": growth,
    }
    print(json.dumps(result, indent=1))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
