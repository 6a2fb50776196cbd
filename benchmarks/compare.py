"""Objectives, parts of ItemizedCLIP and parts of the recipe on RSICD: same data, same number of steps, several seeds.

    python benchmarks/compare.py --data ../shared/data/rsicd -o runs/compare --steps 600 --seeds 0 1 2
    python benchmarks/compare.py --data ../shared/data/rsicd -o runs/recipe --group recipe --split val
    python benchmarks/compare.py -o runs/compare --table          # of the runs that are there

Every run is a process of its own and leaves a JSON file, so that the comparison can be stopped and goes on where it was.
Figures are those of the zero-shot protocol (`rsicd.py`) and, of objectives, item-level retrieval: every test image with the
captions of all of them. Intervals are over seeds and images together, differences are paired by both. Each objective has the
learning rate that is best for it on validation images, after short trials at every rate of one grid (`--trial-steps`); parts
of ItemizedCLIP have that of the whole.
"""

import argparse
import io
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from common import RESULTS, ROOT, about, place_of, put_table, run_missing
from PIL import Image
from rsicd import FIGURES, cells, class_ranks, figures, summarize
from transformers import TrainerCallback

from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.evaluation.tasks.items import evaluate_items
from itemized_clip_hf.recipes import Recipe, load_recipe, merge_recipes
from itemized_clip_hf.specs import merge
from itemized_clip_hf.trainer.run import train_recipe

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
WHOLE = "the recipe"
RECIPE = {
    "AdamW alone": {"training": {"muon_learning_rate": None, "learning_rate": 0.001}},
    "without patch dropout": {"model": {"vision_config": {"patch_dropout": 0.0}}},
    "without turns": {"image": {"train_rot90_flip": False}},
    "without crops": {"image": {"train_crop_scale": [1.0, 1.0]}},
    "without diverse sampling": {"training": {"diverse_sampling": None}},
    "the paper's weights": {"training": {"objective_weights": load_domain("remote-sensing").objective}},
    "batch 128, half of the steps": {"global_batch_size": 128},
    "float32": {"training": {"bf16": False}},
}
DOCS = ROOT / "docs" / "objectives.md"
ITEM_MARK = "<!-- items of benchmarks/results/rsicd-compare-objectives.json -->"
RATES = (0.5, 1.0, 2.0)
"""Factors of the recipe's learning rates, of Muon and AdamW alike."""
TRIAL_SEED = 1000
ITEM_FIGURES = ("COMPLETE@10", "COMPLETE@100", "I2T@10", "MLL")
CONTEXT = 64
"""Tokens of a text: objectives of one text an image join its captions."""


def variants(group: str) -> dict[str, dict]:
    """
    Name -> changes to the recipe.

    In the comparison of objectives the full one has the weights of the domain, every part switched on.
    """
    if group == "recipe":
        return {WHOLE: {}, **RECIPE}
    full = {"objective": FULL, "objective_weights": dict(load_domain("remote-sensing").objective)}
    found = {FULL: full}
    found |= {name: {"objective": name} for name in OBJECTIVES}
    found |= {f"{FULL}, {name}": merge(full, changes) for name, changes in PARTS.items()}
    return {name: {"training": training} for name, training in found.items()}


def recipe_of(base: str, group: str, name: str, steps: int, seed: int, batch: int | None, rate: float = 1.0) -> Recipe:
    whole = load_recipe(base)
    usual = batch or whole.global_batch_size
    warmup = min(whole.training["warmup_steps"], steps // 8)
    budget = {"max_steps": steps, "seed": seed, "save_strategy": "no", "warmup_steps": warmup}
    common: dict = {"global_batch_size": usual, "training": budget}
    if group == "objectives" and whole.tokenizer is not None:
        common["tokenizer"] = {"context_length": CONTEXT}
        common["model"] = {"text_config": {"max_position_embeddings": CONTEXT}}
    recipe = Recipe(**merge_recipes(merge_recipes(vars(whole), common), variants(group)[name]))
    for key in ("learning_rate", "muon_learning_rate"):
        if recipe.training.get(key) is not None:
            recipe.training[key] *= rate
    if usual and recipe.global_batch_size != usual:
        recipe.training["max_steps"] = steps * usual // recipe.global_batch_size
    return recipe


class Curve(TrainerCallback):
    """Figures of validation images while a run learns."""

    def __init__(self, data: Path, every: int):
        self.data, self.every, self.points = data, every, {}

    def on_step_end(self, args, state, control, model=None, processing_class=None, **_):
        """Measures every so many steps."""
        if state.global_step % self.every == 0:
            ranks = np.array(class_ranks(model.eval(), processing_class, self.data / "val.parquet"))
            self.points[str(state.global_step)] = {key: round(float(v), 3) for key, v in figures(ranks).items()}
            model.train()


def item_values(model, processor, path: Path) -> list[list[float]]:
    """`ITEM_FIGURES` of every image (images, figures), its captions among those of all images."""
    rows = pq.read_table(path, columns=["image", "captions_unique"]).to_pylist()
    studies = [
        {"images": partial(open_picture, row["image"]), "items": list(dict.fromkeys(row["captions_unique"]))}
        for row in rows
    ]
    found = evaluate_items(model, processor, studies, batch_size=64).per_study()
    return np.stack([found[name] for name in ITEM_FIGURES], 1).round(4).tolist()


def open_picture(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


def item_figures(values: np.ndarray) -> dict[str, float]:
    """Means of (..., figures), shares in percent."""
    factors = [1 if name == "MLL" else 100 for name in ITEM_FIGURES]
    return {name: f * values[..., place].mean() for place, (name, f) in enumerate(zip(ITEM_FIGURES, factors))}


def run_one(arguments, name: str, seed: int, rate: float, place: Path) -> None:
    """One run, in this process."""
    is_trial = seed == TRIAL_SEED
    steps = arguments.trial_steps if is_trial else arguments.steps
    recipe = recipe_of(arguments.recipe, arguments.group, name, steps, seed, arguments.batch, rate)
    data, start = Path(arguments.data), time.perf_counter()
    curve = Curve(data, max(steps // 8, 1))
    trainer = train_recipe(recipe, str(data / "train-*.parquet"), place / "model", disable_tqdm=True, callbacks=[curve])
    seconds = time.perf_counter() - start
    model, processor = trainer.model.eval(), trainer.processing_class
    splits = ("val",) if arguments.group == "recipe" or is_trial else ("val", "test")
    result = {
        "variant": name,
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "batch": arguments.batch or load_recipe(arguments.recipe).global_batch_size,
        "seconds": round(seconds, 1),
        "scoring": model.config.scoring,
        "curve": curve.points,
        "ranks": {split: class_ranks(model, processor, data / f"{split}.parquet") for split in splits},
        "items": {
            split: item_values(model, processor, data / f"{split}.parquet") for split in splits if split == "test"
        },
        **about(),
    }
    (place / "result.json").write_text(json.dumps(result))


def with_own_rate(group: str) -> list[str]:
    """Variants whose rate is looked for; the others have that of the first."""
    return [FULL, *OBJECTIVES] if group == "objectives" else []


def rates_of(folder: Path, group: str) -> dict[str, float]:
    """Factor of each variant: the best on validation images by mean rank after the trials; 1 where none were asked for."""
    best = {}
    for name in with_own_rate(group):
        paths = {rate: place_of(folder, name, TRIAL_SEED, rate) / "result.json" for rate in RATES}
        trials = {rate: json.loads(path.read_text()) for rate, path in paths.items() if path.exists()}
        if len(trials) == len(RATES):
            best[name] = min(trials, key=lambda rate: np.mean(trials[rate]["ranks"]["val"]))
    return {name: best.get(name, best.get(FULL, 1.0)) for name in variants(group)}


def run_all(arguments) -> None:
    """What is missing, all variants of a seed before the next seed, in as many processes as asked for."""
    folder, names = Path(arguments.output), arguments.variants or list(variants(arguments.group))
    trials = [name for name in with_own_rate(arguments.group) if name in names]
    run_missing(jobs_of(folder, trials, [TRIAL_SEED], dict.fromkeys(trials, RATES)), arguments.processes)
    rates = {name: (rate,) for name, rate in rates_of(folder, arguments.group).items()}
    run_missing(jobs_of(folder, names, arguments.seeds, rates), arguments.processes)


def jobs_of(
    folder: Path, names: list[str], seeds: list[int], rates: Mapping[str, Sequence[float]]
) -> dict[Path, list[str]]:
    return {
        place_of(folder, name, seed, rate): ["--one", name, str(seed), str(rate)]
        for seed in seeds
        for name in names
        for rate in rates[name]
    }


def collect(folder: Path, group: str) -> dict[str, list[dict]]:
    rates = rates_of(folder, group)
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        if result["seed"] != TRIAL_SEED and result["rate"] == rates[result["variant"]]:
            found.setdefault(result["variant"], []).append(result)
    return {name: found[name] for name in variants(group) if name in found}


def write_table(arguments) -> None:
    runs = collect(Path(arguments.output), arguments.group)
    if not runs:
        raise SystemExit(f"{arguments.output} holds no finished run.")
    first = next(iter(runs))
    ranks = {name: [run["ranks"][arguments.split] for run in own] for name, own in runs.items()}
    items = {name: [run["items"].get(arguments.split) for run in own] for name, own in runs.items()}
    rows = {}
    for name, own in ranks.items():
        others = first if name != first else None
        rows[name] = {
            **summarize(own, others and ranks[others]),
            "rate": runs[name][0]["rate"],
            "seconds": [run["seconds"] for run in runs[name]],
            "curves": {str(run["seed"]): run["curve"] for run in runs[name]},
        }
        if all(items[name]) and all(items[first]):
            rows[name]["items"] = summarize(items[name], others and items[others], figures=item_figures)
    facts = {name: runs[first][0][name] for name in ("steps", "batch", "device", "versions", "revision")}
    command = shlex.join(["python", "benchmarks/compare.py", *sys.argv[1:]])
    seeds = sorted({run["seed"] for own in runs.values() for run in own})
    document = {"command": command, "split": arguments.split, "seeds": seeds, **facts, "variants": rows}
    target = Path(arguments.results or RESULTS / f"rsicd-compare-{arguments.group}.json")
    target.write_text(json.dumps(document, indent=1) + "\n")
    plot(rows, target.with_suffix(".png"))
    plot_curves(rows, target.with_name(f"{target.stem}-curves.png"))
    print("\n".join(table_rows(document) + item_rows(document)))
    if arguments.results is None:
        put_table(DOCS, doc_mark(arguments.group), table_rows(document))
        if item_rows(document):
            put_table(DOCS, ITEM_MARK, item_rows(document))


def doc_mark(group: str) -> str:
    return f"<!-- table of benchmarks/results/rsicd-compare-{group}.json -->"


def table_rows(document: dict) -> list[str]:
    """Rows of a results file; the first variant is what the others are compared with."""
    first = next(iter(document["variants"]))
    lines = [
        f"| variant | seeds | top-1, % | top-5, % | mean rank | top-1 against {first} |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in document["variants"].items():
        own = row["figures"]
        change = own.get("top1_difference")
        against = "" if change is None else f"{change['value']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})"
        lines.append(f"| {name} | {len(row['by_seed']['top1'])} | {' | '.join([*cells(own), against])} |")
    return lines


def item_rows(document: dict) -> list[str]:
    """Item-level retrieval, where the results hold it."""
    variants = {name: row for name, row in document["variants"].items() if "items" in row}
    if not variants:
        return []
    first = next(iter(variants))
    lines = [
        f"| variant | {' | '.join(ITEM_FIGURES)} | COMPLETE@100 against {first} |",
        "|---" * (len(ITEM_FIGURES) + 2) + "|",
    ]
    for name, row in variants.items():
        own = row["items"]["figures"]
        cells_ = [f"{own[key]['value']:.1f} ({own[key]['low']:.1f} to {own[key]['high']:.1f})" for key in ITEM_FIGURES]
        change = own.get("COMPLETE@100_difference")
        against = "" if change is None else f"{change['value']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})"
        lines.append(f"| {name} | {' | '.join([*cells_, against])} |")
    return lines


def plot_curves(rows: dict[str, dict], path: Path) -> None:
    """Top-1 on validation images over the steps, mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for (name, row), colour in zip(rows.items(), plt.get_cmap("tab20").colors):
        curves = [curve for curve in row.get("curves", {}).values() if curve]
        if curves:
            steps = list(curves[0])
            means = [np.mean([curve[step]["top1"] for curve in curves]) for step in steps]
            axis.plot([int(step) for step in steps], means, "o-", markersize=3, color=colour, label=name)
    axis.set(xlabel="step", ylabel="top-1 on validation images, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
            colour = "tab:red" if place == len(names) - 1 else "tab:blue"
            axis.plot([own["low"], own["high"]], [place, place], color=colour, linewidth=2, alpha=0.5)
            axis.plot(own["value"], place, "o", color=colour)
            axis.plot(rows[name]["by_seed"][key], [place] * len(rows[name]["by_seed"][key]), "|", color="black")
        axis.set(title=title, yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of train-*.parquet, val.parquet and test.parquet")
    parser.add_argument("-o", "--output", required=True, help="folder of the runs")
    parser.add_argument("--group", default="objectives", choices=["objectives", "recipe"])
    parser.add_argument("--recipe", default="remote-sensing")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, help="pictures of a step; the recipe's if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="some of them only")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="only the table and the plot of what is there")
    parser.add_argument("--split", default="test", choices=["test", "val"])
    parser.add_argument("--results", help="results file; benchmarks/results/rsicd-compare-GROUP.json if left out")
    parser.add_argument("--trial-steps", type=int, default=600, help="of the trials that choose the learning rates")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "SEED", "RATE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, seed, rate = arguments.one[0], int(arguments.one[1]), float(arguments.one[2])
        return run_one(arguments, name, seed, rate, place_of(Path(arguments.output), name, seed, rate))
    if not arguments.table:
        if not arguments.data:
            parser.error("--data is needed")
        run_all(arguments)
    write_table(arguments)


if __name__ == "__main__":
    main()
