"""Objectives and parts of ItemizedCLIP on RSICD: same data, same model, same number of steps, several seeds.

    python benchmarks/compare.py --data ../shared/data/rsicd -o runs/compare --steps 600 --seeds 0 1 2
    python benchmarks/compare.py --data ../shared/data/rsicd -o runs/compare --table          # of the runs that are there

Every run is a process of its own and leaves a JSON file, so that the comparison can be stopped and goes on where it was.
Figures are those of the test protocol (`evaluation/protocols/rsicd.yaml`); intervals are over seeds and images together.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.recipes import Recipe, load_recipe, merge

FULL = "itemized_clip"
OBJECTIVES = ("flair", "mps", "siglip", "clip", "dreamlip", "smartclip")
PARTS = {
    "without diverse sampling": {"diverse_sampling": None},
    "without IIS": {"objective_weights": {"iis_weight": 0.0}},
    "without KTA": {"objective_weights": {"kta_weight": 0.0}},
    "without worst-positive weighting": {"objective_weights": {"worst_positive_factor": 1.0}},
    "without masking": {"objective_weights": {"keep_rate": 1.0}},
    "without MPS": {"objective_weights": {"mps_weight": 0.0}},
}
FIGURES = {"top1": "top-1, %", "top5": "top-5, %", "mean_rank": "mean rank"}
CONTEXT = 64
"""Tokens of a text: objectives of one text an image join its captions."""


def variants() -> dict[str, dict]:
    """Name -> training arguments; the full objective has the weights of the domain, every part switched on."""
    full = {"objective": FULL, "objective_weights": dict(load_domain("remote-sensing").objective)}
    found = {FULL: full}
    found |= {name: {"objective": name} for name in OBJECTIVES}
    return found | {f"{FULL}, {name}": merge(full, changes) for name, changes in PARTS.items()}


def recipe_of(base: str, name: str, steps: int, seed: int, batch: int | None) -> Recipe:
    recipe = load_recipe(base)
    training = {k: v for k, v in recipe.training.items() if k != "objective_weights"}
    training |= {"max_steps": steps, "seed": seed, "save_strategy": "no", "warmup_steps": min(100, steps // 8)}
    recipe.training = {**training, **variants()[name]}
    if recipe.tokenizer is not None:
        recipe.tokenizer = {**recipe.tokenizer, "context_length": CONTEXT}
        recipe.model = merge(recipe.model, {"text_config": {"max_position_embeddings": CONTEXT}})
    recipe.global_batch_size = batch or recipe.global_batch_size
    return recipe


def run_one(arguments, name: str, seed: int, place: Path) -> None:
    """One run, in this process."""
    from itemized_clip_hf.evaluation.evaluate import evaluate_protocol
    from itemized_clip_hf.evaluation.metrics import true_class_ranks
    from itemized_clip_hf.evaluation.protocol import load_protocol
    from itemized_clip_hf.trainer.run import train_recipe

    recipe = recipe_of(arguments.recipe, name, arguments.steps, seed, arguments.batch)
    start = time.perf_counter()
    trainer = train_recipe(recipe, str(Path(arguments.data) / "train-*.parquet"), place / "model", disable_tqdm=True)
    seconds = time.perf_counter() - start
    model, processor = trainer.model.eval(), trainer.processing_class
    ranks = {}
    for split in ("val", "test"):
        protocol, data = load_protocol("rsicd"), Path(arguments.data) / f"{split}.parquet"
        found = evaluate_protocol(model, processor, protocol, data, batch_size=64, resamples=0, progress=False)
        truth, scores = next(iter(found.truths.values())), next(iter(found.scores.values()))
        ranks[split] = true_class_ranks(scores, truth.classes).tolist()
    result = {
        "variant": name,
        "seed": seed,
        "steps": arguments.steps,
        "batch": recipe.global_batch_size,
        "seconds": round(seconds, 1),
        "scoring": model.config.scoring,
        "ranks": ranks,
        **about(),
    }
    (place / "result.json").write_text(json.dumps(result))


def about() -> dict:
    import torch
    import transformers

    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    return {"revision": revision, "device": device, "versions": versions}


def place_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(',', '').replace(' ', '-')}-{seed}"


def run_all(arguments) -> None:
    """What is missing, the informative ones of every seed first, in as many processes as asked for."""
    names = arguments.variants or list(variants())
    missing = [
        (name, seed)
        for seed in arguments.seeds
        for name in names
        if not (place_of(Path(arguments.output), name, seed) / "result.json").exists()
    ]

    def start(job):
        name, seed = job
        place = place_of(Path(arguments.output), name, seed)
        place.mkdir(parents=True, exist_ok=True)
        given = [
            "--data",
            arguments.data,
            "-o",
            arguments.output,
            "--steps",
            str(arguments.steps),
            "--recipe",
            arguments.recipe,
        ]
        given += ["--batch", str(arguments.batch)] if arguments.batch else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // arguments.processes, 1))}
        with (place / "log.txt").open("w") as log:
            command = [sys.executable, __file__, *given, "--one", name, "--seeds", str(seed)]
            done = subprocess.run(command, stdout=log, stderr=log, env=environment)
        print(f"{name}, seed {seed}: {'done' if done.returncode == 0 else f'failed, see {place}/log.txt'}", flush=True)

    with ThreadPoolExecutor(arguments.processes) as pool:
        list(pool.map(start, missing))


def collect(folder: Path) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["variant"], []).append(result)
    return {name: found[name] for name in variants() if name in found}


def figures(ranks: np.ndarray) -> dict[str, float]:
    return {"top1": 100 * (ranks <= 1).mean(), "top5": 100 * (ranks <= 5).mean(), "mean_rank": ranks.mean()}


def summarize(runs: list[dict], against: list[dict] | None, split: str, resamples: int = 2000) -> dict:
    """Means over seeds with 95 % intervals over seeds and images, and of the difference from another variant."""
    generator = np.random.default_rng(0)
    table = np.array([run["ranks"][split] for run in runs])
    other = None if against is None else np.array([run["ranks"][split] for run in against])
    drawn: list[dict[str, float]] = []
    for _ in range(resamples):
        images = generator.integers(table.shape[1], size=table.shape[1])
        own = figures(table[generator.integers(len(table), size=len(table))][:, images])
        if other is not None:
            theirs = figures(other[generator.integers(len(other), size=len(other))][:, images])
            own |= {f"{name}_difference": own[name] - theirs[name] for name in FIGURES}
        drawn.append(own)
    values = figures(table)
    if other is not None:
        values |= {f"{name}_difference": values[name] - figures(other)[name] for name in FIGURES}
    summary = {}
    for name, value in values.items():
        low, high = np.percentile([one[name] for one in drawn], [2.5, 97.5])
        summary[name] = {"value": round(float(value), 3), "low": round(float(low), 3), "high": round(float(high), 3)}
    seeds = {name: [round(float(figures(row)[name]), 3) for row in table] for name in FIGURES}
    return {"figures": summary, "by_seed": seeds, "seconds": [run["seconds"] for run in runs]}


def write_table(arguments) -> None:
    runs = collect(Path(arguments.output))
    full = runs.get(FULL)
    rows = {name: summarize(own, full if name != FULL else None, arguments.split) for name, own in runs.items()}
    lines = [
        "| variant | seeds | top-1, % | top-5, % | mean rank | top-1 against the full objective |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        own = row["figures"]
        shown = [f"{own[f]['value']:.1f} ({own[f]['low']:.1f} to {own[f]['high']:.1f})" for f in ("top1", "top5")]
        shown.append(
            f"{own['mean_rank']['value']:.2f} ({own['mean_rank']['low']:.2f} to {own['mean_rank']['high']:.2f})"
        )
        change = own.get("top1_difference")
        shown.append(
            "" if change is None else f"{change['value']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})"
        )
        lines.append(f"| {name} | {len(runs[name])} | {' | '.join(shown)} |")
    print("\n".join(lines))
    first = next(iter(runs.values()))[0]
    facts = {name: first[name] for name in ("steps", "batch", "device", "versions", "revision")}
    document = {"command": " ".join(["python", *sys.argv]), "split": arguments.split, **facts, "variants": rows}
    target = Path(arguments.results)
    target.write_text(json.dumps(document, indent=1) + "\n")
    plot(rows, target.with_suffix(".png"))


def plot(rows: dict[str, dict], path: Path) -> None:
    """A point a seed, the mean and its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(rows)[::-1]
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.32 * len(names) + 1.2), sharey=True, layout="constrained")
    for axis, (key, title) in zip(axes, FIGURES.items()):
        for place, name in enumerate(names):
            own = rows[name]["figures"][key]
            colour = "tab:red" if name == FULL else "tab:blue"
            axis.plot([own["low"], own["high"]], [place, place], color=colour, linewidth=2, alpha=0.5)
            axis.plot(own["value"], place, "o", color=colour)
            axis.plot(rows[name]["by_seed"][key], [place] * len(rows[name]["by_seed"][key]), "|", color="black")
        axis.set(title=title, yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of train-*.parquet, val.parquet and test.parquet")
    parser.add_argument("-o", "--output", required=True, help="folder of the runs")
    parser.add_argument("--recipe", default="remote-sensing-small")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, help="pictures of a step; the recipe's if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="some of them only")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="only the table and the plot of what is there")
    parser.add_argument("--split", default="test", choices=["test", "val"])
    parser.add_argument("--results", default="benchmarks/results/rsicd-compare.json")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        place = place_of(Path(arguments.output), arguments.one, arguments.seeds[0])
        return run_one(arguments, arguments.one, arguments.seeds[0], place)
    if not arguments.table:
        run_all(arguments)
    write_table(arguments)


if __name__ == "__main__":
    main()
