"""Objectives and parts of ItemizedCLIP on mosaics of RSICD pictures: independent items in one image, each in a known place.

    python benchmarks/mosaics.py --data ../shared/data/rsicd -o runs/mosaics --grid --processes 2    # learning rates
    python benchmarks/mosaics.py --data ../shared/data/rsicd -o runs/mosaics --seeds 0 1 2 --processes 2
    python benchmarks/mosaics.py --data ../shared/data/rsicd -o runs/mosaics --table                 # of the finished runs
    python benchmarks/mosaics.py --data ../shared/data/rsicd -o runs/mosaics --maps maps.png         # heat maps

All variants see the same mosaics of a seed (`mosaic_pictures.py`), and train the model of the recipe `remote-sensing` at 72
pixels for as many steps; objectives of one text get all items joined. The learning rate of each objective is the one of RATES
with the best zero-shot AUC on validation mosaics after shorter runs (`--grid`); ItemizedCLIP without a part takes that of the
whole. Every run is a process of its own and leaves two files, so that the comparison can be stopped and goes on where it was.
Test mosaics are the same for all runs and are looked at once, at the end of training; learning curves are of validation
mosaics. `hlip` is left out: without normal studies its loss is that of `clip`, and items come in random order anyway.
"""

import argparse
import json
import shlex
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT, about, place_of, put_table, run_missing
from compare import FULL, OBJECTIVES, PARTS
from mosaic_figures import AUC, BETTER, classes_of, explain_maps, mean_auc, measure, score_classes, summarize
from mosaic_pictures import MOST_TILES, PATCH, SIDE, Mosaic, Mosaics, TilePictures

from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.recipes import Recipe, load_recipe, merge_recipes
from itemized_clip_hf.specs import merge

RECIPE = "remote-sensing"
RATES = (0.002, 0.004, 0.008)
"""Muon's; AdamW's rate goes along, in the recipe's ratio of the two."""
TAKEN_AWAY = ("without IIS", "without KTA", "without worst-positive weighting", "without MPS")
BATCH = 32
CONTEXT = 256
"""Tokens of a text: joined captions of nine tiles."""
TEST_MOSAICS, VAL_MOSAICS = 400, 200
CURVE_STEPS = 200
DOCS = ROOT / "docs" / "objectives.md"
DOC_MARK = "<!-- table of benchmarks/results/mosaics.json -->"
COLUMNS = [name for name in BETTER if name not in ("COMPLETE@10", "T2I@10")]
PLOTTED = (AUC, "pointing game", "token pointing", "item swap", "mAMS", "COMPLETE@1000", "mean rank")


def variants() -> dict[str, dict]:
    """Name -> training arguments; ItemizedCLIP has the weights of the domain, which are the paper's for such pictures."""
    full = {"objective": FULL, "objective_weights": dict(load_domain("remote-sensing").objective)}
    found = {FULL: full}
    found |= {name: {"objective": name} for name in OBJECTIVES}
    return found | {f"{FULL}, {name}": merge(full, PARTS[name]) for name in TAKEN_AWAY}


def recipe_of(name: str, steps: int, seed: int, rate: float, batch: int = BATCH) -> Recipe:
    """The recipe of a run."""
    whole = load_recipe(RECIPE)
    ratio = whole.training["learning_rate"] / whole.training["muon_learning_rate"]
    changes = {
        "global_batch_size": batch,
        "image": {"scan_size": [1, SIDE, SIDE], "train_crop_scale": None, "train_rot90_flip": False},
        "tokenizer": {"context_length": CONTEXT},
        "model": {
            "vision_config": {"image_size": [1, SIDE, SIDE], "patch_size": [1, PATCH, PATCH]},
            "text_config": {"max_position_embeddings": CONTEXT},
        },
        "training": {
            **variants()[name],
            "muon_learning_rate": rate,
            "learning_rate": rate * ratio,
            "max_steps": steps,
            "warmup_steps": min(whole.training["warmup_steps"], steps // 8),
            "max_items": MOST_TILES,
            "diverse_sampling": None,
            "save_strategy": "no",
            "seed": seed,
        },
    }
    return Recipe(**merge_recipes(vars(whole), changes))


def listed(data: Path, split: str, count: int) -> list[Mosaic]:
    """The first mosaics of a split for evaluation."""
    mosaics = Mosaics(TilePictures.read(data / f"{split}.parquet"), count, seed=0)
    return [mosaics.mosaic(number) for number in range(count)]


def train(recipe: Recipe, data: Path, folder: Path, curve_steps: int):
    """Trainer of a run that has ended; its log holds the zero-shot AUC of validation mosaics."""
    from itemized_clip_hf.trainer.from_recipe import build_arguments, build_model, build_processor
    from itemized_clip_hf.trainer.trainer import ItemizedCLIPTrainer

    pictures, val = TilePictures.read(data / "train-*.parquet", keep_ignored=True), listed(data, "val", VAL_MOSAICS)
    truth = classes_of(val)[1]
    processor = build_processor(recipe, pictures.captions)
    steps, seed = recipe.training["max_steps"], recipe.training["seed"]
    mosaics = Mosaics(pictures, steps * recipe.global_batch_size, seed, training=True)
    changes = {"eval_strategy": "steps", "eval_steps": curve_steps, "disable_tqdm": True}
    trainer = ItemizedCLIPTrainer(
        build_model(recipe, processor.tokenizer, seed),
        build_arguments(recipe, folder / "trainer", changes),
        train_dataset=mosaics,
        processing_class=processor,
        evaluators=[lambda model, own: {"auc": mean_auc(truth, score_classes(model, own, val))}],
    )
    trainer.train()
    return trainer


def run_one(arguments, name: str, seed: int, rate: float, folder: Path) -> None:
    """One run, in this process; one of the grid is not tested."""
    data, steps = Path(arguments.data), arguments.grid_steps if arguments.grid else arguments.steps
    recipe = recipe_of(name, steps, seed, rate, arguments.batch)
    start = time.perf_counter()
    trainer = train(recipe, data, folder, min(CURVE_STEPS, max(steps // 2, 1)))
    seconds = time.perf_counter() - start
    model, processor, log = trainer.model.eval(), trainer.processing_class, trainer.state.log_history
    result = {
        "variant": name,
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "batch": recipe.global_batch_size,
        "recipe": {name: getattr(recipe, name) for name in ("model", "image", "tokenizer")},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds, 1),
        "scoring": model.config.scoring,
        "val": mean_auc(classes_of(val := listed(data, "val", VAL_MOSAICS))[1], score_classes(model, processor, val)),
        "curve": {str(entry["step"]): round(entry["eval_auc"], 4) for entry in log if "eval_auc" in entry},
        "losses": {str(entry["step"]): float(entry["loss"]) for entry in log if "loss" in entry},
        **about(),
    }
    if not arguments.grid:
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        np.savez(folder / "measured.npz", **measure(model, processor, listed(data, "test", TEST_MOSAICS)))
    (folder / "result.json").write_text(json.dumps(result))


def grid_place(output: Path, name: str, rate: float) -> Path:
    return output / "grid" / f"{name}-{rate}"


def best_rates(output: Path) -> dict[str, dict[str, float]]:
    """Objective -> rate -> validation AUC, as far as the grid has been run."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted((output / "grid").glob("*/result.json")):
        run = json.loads(path.read_text())
        found.setdefault(run["variant"], {})[str(run["rate"])] = round(run["val"], 4)
    return found


def rate_of(name: str, grid: dict[str, dict[str, float]]) -> float:
    """
    The best rate of the variant's objective.

    Raises:
        SystemExit: its grid has not been run.
    """
    objective = variants()[name]["objective"]
    known = grid.get(objective, {})
    if len(known) < len(RATES):
        raise SystemExit(f"{objective}: run --grid first, only the rates {list(known)} were tried.")
    return float(max(known, key=lambda rate: known[rate]))


def run_all(arguments, names: list[str]) -> None:
    """What is missing, all variants of a seed before the next seed, in as many processes as asked for."""
    output, jobs = Path(arguments.output), {}
    if arguments.grid:
        objectives = [name for name in names if name in {own["objective"] for own in variants().values()}]
        for name in objectives:
            for rate in RATES:
                jobs[grid_place(output, name, rate)] = ["--one", name, "--rate", str(rate)]
    else:
        rates = {name: rate_of(name, best_rates(output)) for name in names}
        for seed in arguments.seeds:
            for name in names:
                more = ["--one", name, "--rate", str(rates[name]), "--seeds", str(seed)]
                jobs[place_of(output, name, seed)] = more
    run_missing(jobs, arguments.processes)


def collect(output: Path) -> tuple[dict[str, dict[int, dict]], dict[str, dict[int, dict]]]:
    """Variant -> seed -> facts, and the same of the figures, of all runs that ended."""
    facts: dict[str, dict[int, dict]] = {}
    for path in sorted(output.glob("*/result.json")):
        run = json.loads(path.read_text())
        facts.setdefault(run["variant"], {})[run["seed"]] = run | {"folder": str(path.parent)}
    facts = {name: facts[name] for name in variants() if name in facts}
    measured = {
        name: {seed: dict(np.load(Path(run["folder"]) / "measured.npz")) for seed, run in runs.items()}
        for name, runs in facts.items()
    }
    return facts, measured


def write_results(arguments) -> None:
    """Results file, plots, and the table in the documentation."""
    facts, measured = collect(Path(arguments.output))
    if not facts:
        raise SystemExit(f"{arguments.output} holds no finished run.")
    test = listed(Path(arguments.data), "test", TEST_MOSAICS)
    summary = summarize(measured, classes_of(test)[1], FULL)
    runs = [run for own in facts.values() for run in own.values()]
    settings = {json.dumps([run.get(name) for name in ("steps", "batch", "recipe")], sort_keys=True) for run in runs}
    if len(settings) > 1:
        raise SystemExit(f"{arguments.output} holds runs of several lengths, batches or models: {sorted(settings)}")
    chances = [np.mean([mask.mean() for mask in mosaic.masks()]) for mosaic in test]
    document = {
        "command": shlex.join(["python", "benchmarks/mosaics.py", *sys.argv[1:]]),
        "mosaics": {"test": len(test), "items": sum(len(mosaic.items) for mosaic in test), "val": VAL_MOSAICS},
        "texts": len({text for mosaic in test for text in mosaic.items}),
        "chance": {"pointing": round(float(np.mean(chances)), 4), "zero-shot AUC": 0.5, "item swap": 0.5},
        "seeds": sorted({run["seed"] for run in runs}),
        **{name: runs[0][name] for name in ("steps", "batch", "parameters", "device", "versions", "revision")},
        "grid": best_rates(Path(arguments.output)),
        "rates": {name: next(iter(own.values()))["rate"] for name, own in facts.items()},
        "seconds": {name: [run["seconds"] for run in own.values()] for name, own in facts.items()},
        "curves": {name: {str(seed): run["curve"] for seed, run in own.items()} for name, own in facts.items()},
        "variants": summary,
    }
    target = Path(arguments.results or RESULTS / "mosaics.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")
    plot(document, target.with_suffix(".png"))
    print("\n".join(table_rows(document)))
    if arguments.results is None:
        put_table(DOCS, DOC_MARK, table_rows(document))


def table_rows(document: dict) -> list[str]:
    """A table of the figures, and one of the differences from ItemizedCLIP."""

    def cell(entry: dict | None, figure: str, sign: str = "") -> str:
        if entry is None:
            return ""
        digits = 0 if figure == "mean rank" else 1 if figure == "MLL" else 3
        value, low, high = (f"{entry[name]:{sign}.{digits}f}" for name in ("value", "low", "high"))
        return f"{value} ({low} to {high})"

    head = ["| variant | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    rows, changes = list(head), ["", f"Differences from `{FULL}`, the same seeds and mosaics:", "", *head]
    for name, own in document["variants"].items():
        count = f"| {name} | {len(own[AUC]['seeds'])} | "
        rows.append(count + " | ".join(cell(own.get(figure), figure) for figure in COLUMNS) + " |")
        if name != FULL:
            found = [cell(own.get(figure, {}).get("difference"), figure, "+") for figure in COLUMNS]
            changes.append(count + " | ".join(found) + " |")
    return rows + (changes if len(changes) > 5 else [])


def plot(document: dict, path: Path) -> None:
    """A line a variant with its interval, a stroke a seed; and the learning curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(document["variants"])[::-1]
    size = (2.1 * len(PLOTTED) + 2.5, 0.32 * len(names) + 1.2)
    figure, axes = plt.subplots(1, len(PLOTTED), figsize=size, sharey=True, layout="constrained")
    for axis, key in zip(axes, PLOTTED):
        for place, name in enumerate(names):
            own = document["variants"][name].get(key)
            if own is None:
                continue
            colour = "tab:red" if name == FULL else "tab:blue"
            axis.plot([own["low"], own["high"]], [place, place], color=colour, linewidth=2, alpha=0.5)
            axis.plot(own["value"], place, "o", color=colour)
            axis.plot(list(own["seeds"].values()), [place] * len(own["seeds"]), "|", color="black")
        title = f"{key} ({BETTER[key]} is better)"
        axis.set_title("\n".join(textwrap.wrap(title, 18)), fontsize=9)
        axis.set(yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, curves in document["curves"].items():
        steps = sorted(set.intersection(*(set(map(int, curve)) for curve in curves.values())))
        means = [np.mean([curve[str(step)] for curve in curves.values()]) for step in steps]
        axis.plot(steps, means, "--" if name.startswith(f"{FULL},") else "-", label=name)
    axis.set(xlabel="step", ylabel="zero-shot AUC, validation mosaics")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.savefig(path.with_name(f"{path.stem}-curves.png"), dpi=110)
    plt.close(figure)


def draw_maps(arguments) -> None:
    """The first test mosaics with the attention of their items by a trained model, tiles outlined."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from itemized_clip_hf.models.load import load

    model, processor = load(place_of(Path(arguments.output), arguments.variants[0], arguments.seeds[0]) / "model")
    mosaics = listed(Path(arguments.data), "test", 6)
    figure, axes = plt.subplots(len(mosaics), 1 + MOST_TILES, figsize=(20, 2.7 * len(mosaics)), layout="constrained")
    for line, mosaic in zip(axes, mosaics):
        line[0].imshow(mosaic.picture)
        for axis, heat, box in zip(line[1:], explain_maps(model, processor, mosaic), mosaic.boxes):
            top, left, rows, columns = box
            axis.imshow(mosaic.picture.mean(2), cmap="gray")
            axis.imshow(heat.values, cmap="inferno", alpha=0.55, vmin=0)
            axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), columns, rows, fill=False, color="cyan", linewidth=2))
            title = f"{heat.item} (up to {heat.values.max():.1f} x mean)"
            axis.set_title("\n".join(textwrap.wrap(title, 32)), fontsize=6)
        for axis in line:
            axis.axis("off")
    figure.savefig(arguments.maps, dpi=90)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of train-*.parquet, val.parquet and test.parquet")
    parser.add_argument("-o", "--output", required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--grid-steps", type=int, default=400, help="of the shorter runs that choose the rates")
    parser.add_argument("--batch", type=int, default=BATCH, help="mosaics of a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", metavar="NAME", default=[], help="some of them only")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--grid", action="store_true", help="only the runs that choose the learning rates")
    parser.add_argument("--table", action="store_true", help="only table and plots of what is there")
    parser.add_argument("--maps", help="only a picture of heat maps, by the first of the variants and seeds")
    parser.add_argument("--results", help="results file; benchmarks/results/mosaics.json if left out")
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        output = Path(arguments.output)
        seed = 0 if arguments.grid else arguments.seeds[0]
        grid = grid_place(output, arguments.one, arguments.rate)
        folder = grid if arguments.grid else place_of(output, arguments.one, seed)
        return run_one(arguments, arguments.one, seed, arguments.rate, folder)
    names = arguments.variants or list(variants())
    if arguments.maps:
        arguments.variants = names
        return draw_maps(arguments)
    if not arguments.table:
        run_all(arguments, names)
    if not arguments.grid:
        write_results(arguments)


if __name__ == "__main__":
    main()
