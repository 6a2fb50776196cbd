"""Objectives, parts of ItemizedCLIP and parts of the recipe on RSICD: same data, same number of steps, several seeds.

    python benchmarks/compare.py --data ../shared/data/rsicd -o runs/compare --steps 600 --seeds 0 1 2
    python benchmarks/compare.py --data ../shared/data/rsicd -o runs/recipe --group recipe --split val
    python benchmarks/compare.py -o runs/compare --table          # of the runs that are there

Every run is a process of its own and leaves a JSON file, so that the comparison can be stopped and goes on where it was.
Figures are those of the zero-shot protocol (`rsicd.py`); intervals are over seeds and images together.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from rsicd import FIGURES, RESULTS, ROOT, about, cells, class_ranks, put_table, run_missing, summarize

from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.recipes import Recipe, load_recipe, merge_recipes
from itemized_clip_hf.specs import merge

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


def recipe_of(base: str, group: str, name: str, steps: int, seed: int, batch: int | None) -> Recipe:
    whole = load_recipe(base)
    usual = batch or whole.global_batch_size
    warmup = min(whole.training["warmup_steps"], steps // 8)
    budget = {"max_steps": steps, "seed": seed, "save_strategy": "no", "warmup_steps": warmup}
    common: dict = {"global_batch_size": usual, "training": budget}
    if group == "objectives" and whole.tokenizer is not None:
        common["tokenizer"] = {"context_length": CONTEXT}
        common["model"] = {"text_config": {"max_position_embeddings": CONTEXT}}
    recipe = Recipe(**merge_recipes(merge_recipes(vars(whole), common), variants(group)[name]))
    if usual and recipe.global_batch_size != usual:
        recipe.training["max_steps"] = steps * usual // recipe.global_batch_size
    return recipe


def run_one(arguments, name: str, seed: int, place: Path) -> None:
    """One run, in this process."""
    from itemized_clip_hf.trainer.run import train_recipe

    recipe = recipe_of(arguments.recipe, arguments.group, name, arguments.steps, seed, arguments.batch)
    start = time.perf_counter()
    trainer = train_recipe(recipe, str(Path(arguments.data) / "train-*.parquet"), place / "model", disable_tqdm=True)
    seconds = time.perf_counter() - start
    model, processor = trainer.model.eval(), trainer.processing_class
    splits = ("val",) if arguments.group == "recipe" else ("val", "test")
    result = {
        "variant": name,
        "seed": seed,
        "steps": arguments.steps,
        "batch": arguments.batch or load_recipe(arguments.recipe).global_batch_size,
        "seconds": round(seconds, 1),
        "scoring": model.config.scoring,
        "ranks": {split: class_ranks(model, processor, Path(arguments.data) / f"{split}.parquet") for split in splits},
        **about(),
    }
    (place / "result.json").write_text(json.dumps(result))


def place_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(',', '').replace(' ', '-')}-{seed}"


def run_all(arguments) -> None:
    """What is missing, all variants of a seed before the next seed, in as many processes as asked for."""
    jobs = {}
    for seed in arguments.seeds:
        for name in arguments.variants or variants(arguments.group):
            jobs[place_of(Path(arguments.output), name, seed)] = ["--one", name, "--seeds", str(seed)]
    run_missing(jobs, arguments.processes)


def collect(folder: Path, group: str) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["variant"], []).append(result)
    return {name: found[name] for name in variants(group) if name in found}


def write_table(arguments) -> None:
    runs = collect(Path(arguments.output), arguments.group)
    if not runs:
        raise SystemExit(f"{arguments.output} holds no finished run.")
    first = next(iter(runs))
    ranks = {name: [run["ranks"][arguments.split] for run in own] for name, own in runs.items()}
    rows = {
        name: {
            **summarize(own, ranks[first] if name != first else None),
            "seconds": [run["seconds"] for run in runs[name]],
        }
        for name, own in ranks.items()
    }
    facts = {name: runs[first][0][name] for name in ("steps", "batch", "device", "versions", "revision")}
    command = shlex.join(["python", "benchmarks/compare.py", *sys.argv[1:]])
    seeds = sorted({run["seed"] for own in runs.values() for run in own})
    document = {"command": command, "split": arguments.split, "seeds": seeds, **facts, "variants": rows}
    target = Path(arguments.results or RESULTS / f"rsicd-compare-{arguments.group}.json")
    target.write_text(json.dumps(document, indent=1) + "\n")
    plot(rows, target.with_suffix(".png"))
    print("\n".join(table_rows(document)))
    if arguments.results is None:
        put_table(DOCS, doc_mark(arguments.group), table_rows(document))


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
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        place = place_of(Path(arguments.output), arguments.one, arguments.seeds[0])
        return run_one(arguments, arguments.one, arguments.seeds[0], place)
    if not arguments.table:
        if not arguments.data:
            parser.error("--data is needed")
        run_all(arguments)
    write_table(arguments)


if __name__ == "__main__":
    main()
