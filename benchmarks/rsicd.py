"""RSICD from scratch: trains a recipe with several seeds, runs the zero-shot test protocol, writes a results file.

    python benchmarks/rsicd.py --data ../shared/data/rsicd --seeds 0 1 2 -o runs/rsicd
    python benchmarks/rsicd.py --readme          # the table of README from all results files

Runs that are there are not repeated; one that was cut goes on at its last checkpoint. The protocol: 30 classes, two templates
averaged; images of `playfields`, which has no class in it, are left out, and counted as `playground` in a second line. The test
split is read once, at the end of training; learning curves are those of the validation split.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT, about, put_table, run_missing

from itemized_clip_hf.evaluation.evaluate import evaluate_protocol
from itemized_clip_hf.evaluation.metrics import true_class_ranks
from itemized_clip_hf.evaluation.protocols import load_protocol

LINES = {"30 classes": None, "playfields as playground": "playfields-as-playground"}
FIGURES = {"top1": "top-1, %", "top5": "top-5, %", "mean_rank": "mean rank"}
DIGITS = {"top1": 1, "top5": 1, "mean_rank": 2}
PAPER = {"top1": 46.2, "top5": 78.7, "mean_rank": 3.86}
README_MARK = "<!-- table of benchmarks/results/rsicd-*.json -->"


def class_ranks(model, processor, data: Path, line: str = "30 classes") -> list[int]:
    """Rank of the true class of every image, 1 for the first."""
    protocol = load_protocol("rsicd", LINES[line])
    found = evaluate_protocol(model, processor, protocol, data, batch_size=64, resamples=0, progress=False)
    truth, scores = next(iter(found.truths.values())), next(iter(found.scores.values()))
    return true_class_ranks(scores, truth.classes).tolist()


def figures(ranks: np.ndarray) -> dict[str, float]:
    return {"top1": 100 * (ranks <= 1).mean(), "top5": 100 * (ranks <= 5).mean(), "mean_rank": ranks.mean()}


def summarize(
    ranks: list[list[int]],
    against: list[list[int]] | None = None,
    resamples: int = 2000,
    figures: Callable[[np.ndarray], dict[str, float]] = figures,
) -> dict:
    """
    Means over seeds with 95 % intervals over seeds and images together, and of the difference from `against`, which is paired
    by seed where both have as many.

    Args:
        ranks, against: (seeds, images), or one more axis of several values an image.
        figures: of a table like `ranks`.
    """
    generator = np.random.default_rng(0)
    table, other = np.array(ranks), None if against is None else np.array(against)
    names = list(figures(table))
    drawn: list[dict[str, float]] = []
    for _ in range(resamples):
        images = generator.integers(table.shape[1], size=table.shape[1])
        chosen = generator.integers(len(table), size=len(table))
        own = figures(table[chosen][:, images])
        if other is not None:
            same = chosen if len(other) == len(table) else generator.integers(len(other), size=len(other))
            theirs = figures(other[same][:, images])
            own |= {f"{name}_difference": own[name] - theirs[name] for name in names}
        drawn.append(own)
    values = figures(table)
    if other is not None:
        values |= {f"{name}_difference": values[name] - figures(other)[name] for name in names}
    summary = {}
    for name, value in values.items():
        low, high = np.percentile([one[name] for one in drawn], [2.5, 97.5])
        summary[name] = {"value": round(float(value), 3), "low": round(float(low), 3), "high": round(float(high), 3)}
    seeds = {name: [round(float(figures(row)[name]), 3) for row in table] for name in names}
    return {"images": table.shape[1], "figures": summary, "by_seed": seeds}


def json_or_text(value: str):
    try:
        return json.loads(value)
    except ValueError:
        return value


def run_one(arguments, seed: int) -> None:
    """Trains and tests one seed, in this process."""
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.recipes import load_recipe
    from itemized_clip_hf.trainer.run import train_recipe

    folder, data = Path(arguments.output) / f"seed-{seed}", Path(arguments.data)
    recipe = load_recipe(arguments.recipe)
    recipe = recipe.variant(arguments.variant) if arguments.variant else recipe
    recipe.cache_pictures = arguments.cache_pictures or recipe.cache_pictures
    resumed = any(folder.glob("checkpoint-*"))
    settings = {name: json_or_text(value) for name, _, value in (text.partition("=") for text in arguments.set)}
    start = time.perf_counter()
    trainer = train_recipe(
        recipe,
        str(data / "train-*.parquet"),
        folder,
        tokenizer=arguments.tokenizer,
        resume=resumed,
        seed=seed,
        disable_tqdm=True,
        **settings,
    )
    seconds = time.perf_counter() - start
    model, processor = trainer.model.eval(), trainer.processing_class
    curve = {}
    if arguments.curve:
        for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])):
            ranks = class_ranks(*load(checkpoint), data / "val.parquet")
            curve[checkpoint.name.split("-")[1]] = {n: round(float(v), 3) for n, v in figures(np.array(ranks)).items()}
    result = {
        "seed": seed,
        "steps": trainer.state.global_step,
        "batch": trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": None if resumed else round(seconds, 1),
        "images_per_second": None if resumed else trainer.state.log_history[-1].get("train_samples_per_second"),
        "val": class_ranks(model, processor, data / "val.parquet"),
        "curve": curve,
        "losses": {str(e["step"]): float(e["loss"]) for e in trainer.state.log_history if "loss" in e},
        "test": {line: class_ranks(model, processor, data / "test.parquet", line) for line in LINES},
        **about(),
    }
    (folder / "result.json").write_text(json.dumps(result))


def last_figures(arguments, seed: int) -> dict:
    """Figures on the validation images of the last checkpoint of a run that did not end."""
    from transformers.trainer_utils import get_last_checkpoint

    from itemized_clip_hf.models.load import load

    folder = Path(arguments.output) / f"seed-{seed}"
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if checkpoint is None:
        return {"seed": seed, "checkpoint": None}
    ranks = class_ranks(*load(checkpoint), Path(arguments.data) / "val.parquet")
    own = {name: round(float(value), 3) for name, value in figures(np.array(ranks)).items()}
    return {"seed": seed, "checkpoint": Path(checkpoint).name, "val": own, **about()}


def write_results(arguments) -> None:
    folders = [Path(arguments.output) / f"seed-{seed}" for seed in arguments.seeds]
    runs = [json.loads((folder / "result.json").read_text()) for folder in folders]
    name = arguments.variant or "best"
    document = {
        "recipe": arguments.recipe,
        "variant": arguments.variant,
        "command": shlex.join(["python", "benchmarks/rsicd.py", *sys.argv[1:]]),
        "seeds": arguments.seeds,
        "train_seconds": [run["seconds"] for run in runs],
        "images_per_second": [run["images_per_second"] for run in runs],
        **{key: runs[0][key] for key in ("steps", "batch", "parameters", "revision", "device", "versions")},
        "val": summarize([run["val"] for run in runs]),
        "test": {line: summarize([run["test"][line] for run in runs]) for line in LINES},
        "curve_val": {str(run["seed"]): run["curve"] for run in runs},
    }
    target = Path(arguments.results or RESULTS / f"rsicd-{name}.json")
    target.write_text(json.dumps(document, indent=1) + "\n")
    for line, found in document["test"].items():
        print(f"{line}: " + ", ".join(map(" ".join, zip(FIGURES.values(), cells(found["figures"])))))
    if arguments.curve:
        plot_curves(runs, target.with_suffix(".png"))


def plot_curves(runs: list[dict], path: Path) -> None:
    """Training loss and validation figures of every seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for run in runs:
        left.plot([int(step) for step in run["losses"]], list(run["losses"].values()), label=f"seed {run['seed']}")
        steps = [int(step) for step in run["curve"]]
        for name, colour in (("top1", "tab:blue"), ("top5", "tab:orange")):
            label = FIGURES[name] if run is runs[0] else None
            right.plot(steps, [one[name] for one in run["curve"].values()], "o-", color=colour, label=label, alpha=0.6)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    right.set(xlabel="step", ylim=(0, 100), title="validation images")
    left.legend()
    right.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def cells(own: dict) -> list[str]:
    """Figures with their intervals, as a table shows them."""
    return [
        f"{own[key]['value']:.{digits}f} ({own[key]['low']:.{digits}f} to {own[key]['high']:.{digits}f})"
        for key, digits in DIGITS.items()
    ]


def readme_rows(folder: Path = RESULTS) -> list[str]:
    """The paper's row and those of all results files, best last."""
    rows = [
        "| recipe | training | top-1, % | top-5, % | mean rank | playfields as playground |",
        "|---|---|---|---|---|---|",
    ]
    paper = " | ".join(f"{value}" for value in PAPER.values())
    rows.append(f"| paper: ViT-B/16 at 224 px | half an hour, several GPUs | {paper} | |")
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("rsicd-*.json"))]
    documents = [document for document in documents if "test" in document and "30 classes" in document["test"]]
    for document in sorted(documents, key=lambda one: one["test"]["30 classes"]["figures"]["top1"]["value"]):
        name = f"`{document['recipe']}`" + (f", variant `{document['variant']}`" if document["variant"] else "")
        seconds = [value for value in document["train_seconds"] if value is not None]
        minutes = f"{max(seconds) / 60:.0f} min, " if seconds else ""
        count = len(document["seeds"])
        what = f"{minutes}{document['device']}; {document['steps']:,} steps, {count} seed{'s' * (count > 1)}"
        own, second = (document["test"][line]["figures"] for line in LINES)
        other = " / ".join(f"{second[key]['value']:.{digits}f}" for key, digits in DIGITS.items())
        rows.append(f"| {name} | {what} | {' | '.join(cells(own))} | {other} |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of train-*.parquet, val.parquet and test.parquet")
    parser.add_argument("--recipe", default="remote-sensing")
    parser.add_argument("--variant")
    parser.add_argument("--tokenizer", help="vocabulary, where the recipe does not learn one")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="training arguments")
    parser.add_argument("--cache-pictures", type=int, help="shortest side of the pictures kept in memory")
    parser.add_argument("--last", action="store_true", help="only figures of a cut run's last checkpoint, on stdout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-o", "--output", help="folder of the runs")
    parser.add_argument("--results", help="results file; benchmarks/results/rsicd-VARIANT.json if left out")
    parser.add_argument("--curve", action="store_true", help="validation figures of every checkpoint, and a plot")
    parser.add_argument("--processes", type=int, default=1, help="seeds at a time")
    parser.add_argument("--readme", action="store_true", help="only write the table of README.md")
    parser.add_argument("--one", type=int, metavar="SEED", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.readme:
        return put_table(ROOT / "README.md", README_MARK, readme_rows())
    if not arguments.data or not arguments.output:
        parser.error("--data and -o are needed")
    if arguments.last:
        return print(json.dumps([last_figures(arguments, seed) for seed in arguments.seeds]))
    if arguments.one is not None:
        return run_one(arguments, arguments.one)
    jobs = {Path(arguments.output) / f"seed-{seed}": ["--one", str(seed)] for seed in arguments.seeds}
    run_missing(jobs, arguments.processes)
    write_results(arguments)


if __name__ == "__main__":
    main()
