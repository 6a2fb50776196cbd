"""
What each part of the method is worth on generated studies, whose truth is known: every arm trained to its end, paired by seed.

    python benchmarks/claims.py -o ../runs/claims --processes 2
    python benchmarks/claims.py -o ../runs/claims --table           # of the runs that are there

Complete (COMPLETE@k, higher), matched (MLL, higher), separable (mAMS, lower), grounded (pointing game, energy in the mask, item
swap, attention on the one sequence that shows a finding; all higher), and zero-shot AUC. Every arm has the same model, studies
and number of steps; its learning rate is the best of the same grid by the zero-shot AUC of validation studies. Arms without a
pooler are scored by their global embeddings and draw no maps. Intervals are over seeds and studies together; differences take
the same seeds and studies on both sides. Runs that are in the folder are not trained again.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, about, place_of, put_table, run_missing
from transformers import TrainerCallback

from itemized_clip_hf.evaluation import bootstrap as boot
from itemized_clip_hf.evaluation.grounding import PointingGame, energy_in_mask, swap_margins
from itemized_clip_hf.evaluation.metrics import auroc
from itemized_clip_hf.evaluation.tasks.items import evaluate_items
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.explain.maps import explain_items
from itemized_clip_hf.phantom import FINDINGS, ZERO_SHOT_PROMPTS, PhantomDataset
from itemized_clip_hf.phantom.experiment import as_example, as_scans
from itemized_clip_hf.recipes import Recipe, load_recipe, merge_recipes
from itemized_clip_hf.trainer.from_recipe import build_arguments, build_model, build_processor
from itemized_clip_hf.trainer.trainer import ItemizedCLIPTrainer

FULL, BASE = "itemized_clip", "TCS + MPS"
DOCS = ROOT / "docs" / "objectives.md"
WEIGHTS = {"iis_weight": 1.0, "kta_weight": 1.0, "worst_positive_factor": 1.5, "mps_weight": 1.0, "keep_rate": 1.0}
OFF = {"IIS": {"iis_weight": 0.0}, "KTA": {"kta_weight": 0.0}, "UWP": {"worst_positive_factor": 1.0}}


def arm(*parts: str) -> dict[str, Any]:
    """ItemizedCLIP with some of its parts."""
    weights = dict(WEIGHTS)
    for name, off in OFF.items():
        weights |= {} if name in parts else off
    return {"objective_weights": weights}


ARMS: dict[str, dict[str, Any]] = {
    FULL: arm(*OFF),
    BASE: arm(),
    **{f"{BASE} + {name}": arm(name) for name in OFF},
    **{f"without {name}": arm(*(other for other in OFF if other != name)) for name in OFF},
    "without MPS": {"objective_weights": {**WEIGHTS, "mps_weight": 0.0}},
    **{name: {"objective": name, "objective_weights": {}} for name in ("clip", "siglip", "mps")},
}
RATES = (0.0025, 0.005, 0.01)
"""Of Muon; that of AdamW follows in the recipe's ratio."""
BETTER = {
    "mAMS": "lower",
    "MLL": "higher",
    "COMPLETE@10": "higher",
    "COMPLETE@100": "higher",
    "pointing game": "higher",
    "energy in mask": "higher",
    "item swap": "higher",
    "share of the only series": "higher",
    "zero-shot AUC": "higher",
}
VALIDATION_SEED = 1000
"""Runs of this seed choose the learning rates, by studies of their own; the others are what is reported."""
SETTING = {
    "tokenizer": {"context_length": 64},
    "model": {"text_config": {"max_position_embeddings": 64}, "logit_bias_init_value": -3.4},
}
"""Objectives of one text a study join up to four items; the bias is the log odds of a pair in a batch of 32."""


def measure(model, processor, seed: int, count: int) -> dict[str, np.ndarray]:
    """Figure -> one value per study, item or finding; figures that the model cannot have are left out."""
    shape = tuple(processor.image_processor.scan_size)
    studies = list(PhantomDataset("test", count, seed=seed, shape=shape))
    rows = [{"images": as_scans(study), "items": study.items} for study in studies]
    found = evaluate_items(model, processor, rows, batch_size=32)
    figures = {name: values for name, values in found.per_study().items() if name in BETTER}
    if model.config.scoring == "items":
        figures |= ground(model, processor, studies, found.shares)
    else:
        figures.pop("mAMS")
    figures["zero-shot AUC"] = zero_shot(model, processor, studies)
    return figures


def zero_shot(model, processor, studies: list) -> np.ndarray:
    """AUC of every finding by its canonical prompt."""
    labels, scores = score_studies(model, processor, map(as_scans, studies), ZERO_SHOT_PROMPTS, batch_size=32)
    truth = np.array([[study.labels[label] for label in labels] for study in studies])
    return np.array([auroc(truth[:, j], scores[:, j]) for j in range(len(labels))])


def ground(model, processor, studies: list, shares: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Where the maps of the items lie."""
    only = {name: finding.visible_in[0] for name, finding in FINDINGS.items() if len(finding.visible_in) == 1}
    own_shares, energies, swaps, game = [], [], [], PointingGame()
    for study, by_scan in zip(studies, shares):
        own_shares += [
            float(by_scan[only[finding]][number])
            for number, finding in enumerate(study.item_findings)
            if finding in only
        ]
        focal = [number for number, words in enumerate(study.attributes) if "lobe" in words]
        if not focal:
            continue
        maps = list(explain_items(model, processor, as_scans(study), study.items))
        masks = [[study.masks[number]] * len(study.scans) for number in focal]
        chosen = [maps[number] for number in focal]
        for number, own, mask in zip(focal, chosen, masks):
            game.add(study.item_findings[number], own, mask)
            energies.append(energy_in_mask(own, mask)[0])
        if len(focal) > 1:
            margins = swap_margins(chosen, masks)
            swaps += (margins[~np.isnan(margins)] > 0).tolist()
    return {
        "share of the only series": np.array(own_shares),
        "energy in mask": np.array(energies),
        "item swap": np.array(swaps, dtype=float),
        "pointing game": np.array([hit for hits in game.hits.values() for hit in hits], dtype=float),
    }


class Curve(TrainerCallback):
    """Mean zero-shot AUC of validation studies while an arm learns."""

    def __init__(self, processor, steps: int, every: int, count: int):
        shape = tuple(processor.image_processor.scan_size)
        self.studies = list(PhantomDataset("test", count, seed=VALIDATION_SEED, shape=shape))
        self.processor, self.steps, self.every = processor, steps, every
        self.points: dict[int, float] = {}

    def on_step_end(self, args, state, control, model=None, **_):
        """Measures every so many steps."""
        if state.global_step % self.every == 0 or state.global_step == self.steps:
            model.eval()
            self.points[state.global_step] = round(float(np.nanmean(zero_shot(model, self.processor, self.studies))), 4)
            model.train()


def run_one(arguments, name: str, seed: int, rate: float, place: Path) -> None:
    """Trains and measures one arm: a trial on validation studies, other runs on test studies."""
    start = time.perf_counter()
    recipe = load_recipe("phantom").variant("coarse")
    recipe = Recipe(**merge_recipes(vars(recipe), SETTING))
    shape = tuple(recipe.image["scan_size"])
    generated = list(PhantomDataset("train", arguments.studies, seed=seed, shape=shape))
    processor = build_processor(recipe, (study.items for study in generated))
    rows = [as_example(study, processor.image_processor) for study in generated]
    model = build_model(recipe, processor.tokenizer, seed)
    steps = arguments.steps
    changes = {"max_steps": steps, "seed": seed, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    changes |= {"muon_learning_rate": rate, "learning_rate": recipe.training["learning_rate"] * rate / RATES[1]}
    curve = Curve(processor, steps, max(steps // 8, 1), 100)
    training = build_arguments(recipe, place / "trainer", {**changes, **ARMS[name]})
    trainer = ItemizedCLIPTrainer(model, training, train_dataset=rows, processing_class=processor, callbacks=[curve])
    trainer.train()
    seconds = time.perf_counter() - start
    is_trial = seed >= VALIDATION_SEED
    measured = measure(model.eval(), processor, VALIDATION_SEED if is_trial else seed, arguments.test_studies)
    np.savez(place / "measured.npz", **measured)
    losses = {str(e["step"]): float(e["loss"]) for e in trainer.state.log_history if "loss" in e}
    result = {
        "arm": name,
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "studies": arguments.studies,
        "seconds": round(seconds),
        "curve": curve.points,
        "losses": losses,
        "means": {figure: round(float(np.nanmean(values)), 4) for figure, values in measured.items()},
        **about(),
    }
    (place / "result.json").write_text(json.dumps(result))


def jobs_of(arguments, seeds: list[int], rates: dict[str, list[float]]) -> dict[Path, list[str]]:
    """All arms of a seed before the next seed."""
    return {
        place_of(Path(arguments.output), name, seed, rate): ["--one", name, str(seed), str(rate)]
        for seed in seeds
        for name in arguments.arms
        for rate in rates[name]
    }


def chosen_rates(arguments) -> dict[str, float]:
    """The rate of each arm whose trial has the highest zero-shot AUC on validation studies."""
    best = {}
    for name in arguments.arms:
        places = {rate: place_of(Path(arguments.output), name, VALIDATION_SEED, rate) for rate in RATES}
        trials = {
            r: json.loads((p / "result.json").read_text()) for r, p in places.items() if (p / "result.json").exists()
        }
        if len(trials) < len(RATES):
            raise SystemExit(f"{name}: trials at {sorted(trials)} of {RATES} are there; run without --table first.")
        best[name] = max(trials, key=lambda rate: trials[rate]["means"]["zero-shot AUC"])
    return best


def write_table(arguments) -> None:
    rates = chosen_rates(arguments)
    runs: dict[str, dict[int, dict]] = {}
    for name in arguments.arms:
        places = {seed: place_of(Path(arguments.output), name, seed, rates[name]) for seed in arguments.seeds}
        runs[name] = {
            seed: {**json.loads((place / "result.json").read_text()), "measured": dict(np.load(place / "measured.npz"))}
            for seed, place in places.items()
            if (place / "result.json").exists()
        }
    seeds = [seed for seed in arguments.seeds if all(seed in own for own in runs.values())]
    if not seeds:
        raise SystemExit("no seed has runs of all arms.")
    figures = {name: summarize({own: runs[own] for own in arguments.arms}, name, seeds) for name in BETTER}
    first = runs[arguments.arms[0]][seeds[0]]
    document = {
        "command": shlex.join(["python", "benchmarks/claims.py", *sys.argv[1:]]),
        "seeds": seeds,
        **{key: first[key] for key in ("steps", "studies", "revision", "device", "versions")},
        "arms": {name: {**ARMS[name], "muon_learning_rate": rates[name]} for name in arguments.arms},
        "figures": figures,
        "curves": {name: {str(seed): runs[name][seed]["curve"] for seed in seeds} for name in arguments.arms},
    }
    target = Path(arguments.results or RESULTS / "claims.json")
    target.write_text(json.dumps(document, indent=1) + "\n")
    plot(document, target.with_suffix(".png"))
    print("\n".join(claim_rows(document) + part_rows(document)))
    if arguments.results is None:
        put_table(DOCS, "<!-- claims of benchmarks/results/claims.json -->", claim_rows(document))
        put_table(DOCS, "<!-- parts of benchmarks/results/claims.json -->", part_rows(document))


def summarize(runs: dict[str, dict[int, dict]], figure: str, seeds: list[int]) -> dict:
    """Value of every arm that has the figure, and the full method's difference from it."""
    draws = np.random.default_rng(0).integers(len(seeds), size=(boot.RESAMPLES, len(seeds)))
    drawn, found = {}, {}
    for name, own in runs.items():
        values = [own[seed]["measured"].get(figure) for seed in seeds]
        if any(value is None for value in values):
            continue
        # Seeds are resampled, and the studies of each; the same ones in all arms.
        each = np.stack([boot.resampled_mean(v, boot.draw_counts(len(v), seed=s)) for s, v in zip(seeds, values)])
        drawn[name] = each[draws, np.arange(boot.RESAMPLES)[:, None]].mean(1)
        found[name] = {**spread(drawn[name], np.mean([np.nanmean(v) for v in values]))}
        found[name]["seeds"] = [round(float(np.nanmean(v)), 4) for v in values]
        if name != FULL and FULL in drawn:
            found[name]["full_minus_this"] = spread(
                drawn[FULL] - drawn[name], found[FULL]["value"] - found[name]["value"]
            )
    return {"better": BETTER[figure], "arms": found}


def spread(drawn: np.ndarray, value: float) -> dict[str, float]:
    low, high = boot.interval(drawn)
    return {"value": round(float(value), 4), "low": round(low, 4), "high": round(high, 4)}


def claim_rows(document: dict) -> list[str]:
    """The full method beside TCS + MPS."""
    rows = [f"| figure | better | {FULL} | {BASE} | difference | |", "|---|---|---|---|---|---|"]
    for name, figure in document["figures"].items():
        full, base = figure["arms"][FULL], figure["arms"][BASE]
        change = base["full_minus_this"]
        sign = 1 if figure["better"] == "higher" else -1
        verdict = "holds" if min(sign * change["low"], sign * change["high"]) > 0 else "does not show"
        if max(sign * change["low"], sign * change["high"]) < 0:
            verdict = "the other way"
        change = f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})"
        rows.append(
            f"| {name} | {figure['better']} | {full['value']:.3f} | {base['value']:.3f} | {change} | {verdict} |"
        )
    return rows


def part_rows(document: dict) -> list[str]:
    """Every arm; figures that it cannot have are blank, and those that differ from the full method's for sure are marked."""
    figures = document["figures"]
    rows = ["| | Muon's rate | " + " | ".join(figures) + " |", "|---" * (len(figures) + 2) + "|"]
    for name, arm_ in document["arms"].items():
        cells = [f"{arm_['muon_learning_rate']:g}"]
        for figure in figures.values():
            own = figure["arms"].get(name)
            change = (own or {}).get("full_minus_this")
            mark = "" if change is None or change["low"] <= 0 <= change["high"] else " *"
            cells.append("" if own is None else f"{own['value']:.3f}{mark}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def plot(document: dict, path: Path) -> None:
    """Learning curves of every arm, on validation studies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    for (name, by_seed), colour in zip(document["curves"].items(), colours):
        for number, curve in enumerate(by_seed.values()):
            steps = [int(step) for step in curve]
            axis.plot(steps, list(curve.values()), color=colour, alpha=0.7, label=name if number == 0 else None)
    axis.set(xlabel="step", ylabel="zero-shot AUC of validation studies")
    axis.legend(fontsize=8, ncols=2)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True, help="folder of the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--studies", type=int, default=3000)
    parser.add_argument("--test-studies", type=int, default=300)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="only the tables and the plot of what is there")
    parser.add_argument("--results", help="results file; benchmarks/results/claims.json if left out")
    parser.add_argument("--one", nargs=3, metavar=("ARM", "SEED", "RATE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, seed, rate = arguments.one[0], int(arguments.one[1]), float(arguments.one[2])
        return run_one(arguments, name, seed, rate, place_of(Path(arguments.output), name, seed, rate))
    if not arguments.table:
        run_missing(jobs_of(arguments, [VALIDATION_SEED], dict.fromkeys(arguments.arms, RATES)), arguments.processes)
        rates = {name: [rate] for name, rate in chosen_rates(arguments).items()}
        run_missing(jobs_of(arguments, arguments.seeds, rates), arguments.processes)
    write_table(arguments)


if __name__ == "__main__":
    main()
