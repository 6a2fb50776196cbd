"""
Calibration: are intervals right, and what is it worth on the demo's model?

    itemized-clip demo -o runs/demo --seed 0
    python benchmarks/calibration.py --model runs/demo/model [-o benchmarks/results/calibration.json]

Simulated scores with known probabilities: share of repeats in which the truth lies in the 95 % interval, of Platt scaling as it
is specified, of isotonic scaling, and of the gap between groups (two, and the pair that is chosen among three and four). The
demo's model: expected calibration error of the sigmoid of its logits, and of calibrated probabilities, on unseen studies;
intervals over studies.
"""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
from common import put_table

RESULTS = Path(__file__).parent / "results" / "calibration.json"
DOCS = Path(__file__).parents[1] / "docs" / "calibration.md"
MARK = "<!-- tables of benchmarks/results/calibration.json -->"
SLOPE, INTERCEPT = 1.5, -1.0
SCORES = np.array([-1.5, -0.7, 0.0, 0.7, 1.5])
GAPS = {
    "two groups": (1.5, 0.9),
    "two groups, no gap": (1.2, 1.2),
    "three groups": (1.5, 1.2, 0.7),
    "three groups, no gap": (1.2, 1.2, 1.2),
    "four groups, one apart": (1.2, 1.2, 1.2, 0.7),
}
"""How far positives lie above negatives in each group, in standard deviations."""


def probabilities_covered(method: str, studies: int, repeats: int) -> dict:
    """Share of repeats in which the true probability lies in its interval, at each score."""
    from itemized_clip_hf.evaluation import bootstrap as boot
    from itemized_clip_hf.evaluation.scaling import METHODS, sigmoid

    hits, truth = [], sigmoid(SLOPE * SCORES + INTERCEPT)
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        scores = rng.normal(size=studies)
        labels = rng.random(studies) < sigmoid(SLOPE * scores + INTERCEPT)
        fitted = METHODS[method].fit(labels, scores, boot.draw_counts(studies, 200, repeat))
        low, high = fitted.interval(SCORES)
        hits.append((low <= truth) & (truth <= high))
    shares = np.mean(hits, 0)
    about = {"method": method, "studies": studies, "repeats": repeats, "scores": SCORES.tolist()}
    return {**about, "covered": shares.tolist(), "mean": float(shares.mean())}


def gaps_covered(shifts: tuple[float, ...], studies: int, repeats: int) -> dict:
    """Share of repeats in which the true gap of the chosen pair, and the true largest gap, lie in the interval."""
    from scipy.stats import norm

    from itemized_clip_hf.evaluation import bootstrap as boot
    from itemized_clip_hf.evaluation.metrics import auroc
    from itemized_clip_hf.evaluation.protocols.subgroups import largest_gap

    truth, places = norm.cdf(np.array(shifts) / np.sqrt(2)), np.repeat(np.arange(len(shifts)), studies)
    hits = []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        labels = rng.random(len(places)) < 0.4
        scores = rng.normal(size=len(places)) + np.array(shifts)[places] * labels
        counts = boot.draw_counts(len(places), 300, repeat)
        groups = {}
        for group in range(len(shifts)):
            rows = places == group
            drawn = boot.resampled_auroc(labels[rows], scores[rows], counts[:, rows])
            groups[str(group)] = auroc(labels[rows], scores[rows]), drawn
        gap, (one, other) = largest_gap(groups)
        chosen, largest = truth[int(one)] - truth[int(other)], truth.max() - truth.min()
        hits.append([gap.low <= chosen <= gap.high, gap.low <= largest <= gap.high])
    pair, whole = np.mean(hits, 0).tolist()
    about = {"studies_per_group": studies, "repeats": repeats, "auc": truth.tolist()}
    return {**about, "gap of the chosen pair": pair, "largest gap": whole}


def measure_model(folder: Path, studies: int, seed: int, resamples: int = 1000) -> dict:
    """Calibration error of every finding before and after, on studies behind those that it was calibrated on."""
    from itemized_clip_hf.evaluation import bootstrap as boot
    from itemized_clip_hf.evaluation.quantity import convert
    from itemized_clip_hf.evaluation.scaling import choose_scaling
    from itemized_clip_hf.evaluation.zero_shot import score_studies
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.phantom import PhantomDataset
    from itemized_clip_hf.phantom.experiment import as_scans
    from itemized_clip_hf.phantom.reports import ZERO_SHOT_PROMPTS

    model, processor = load(folder, "cpu")
    shape = tuple(processor.image_processor.scan_size)
    phantoms = [*PhantomDataset("test", 2 * studies, seed=seed, shape=shape)]
    scans = [as_scans(study) for study in phantoms]
    names, similarities = score_studies(model, processor, scans, ZERO_SHOT_PROMPTS)
    _, pooled = score_studies(model, processor, scans, ZERO_SHOT_PROMPTS, normalize_pool_inputs=False)
    sigmoids, labels = convert(model, pooled, "sigmoid"), np.array([[s.labels[n] for n in names] for s in phantoms])
    counts, rows, drawn = boot.draw_counts(studies, resamples), {}, []
    for place, name in enumerate(names):
        scaling, reason, _ = choose_scaling(labels[:studies, place], similarities[:studies, place])
        if scaling is None:
            raise ValueError(f"{name}: {reason}")
        truth = labels[studies:, place]
        after = scaling.probability(similarities[studies:, place])
        found = {"before": sigmoids[studies:, place].astype(float), "after": after}
        rows[name] = {"method": scaling.method, "positive": int(truth.sum())}
        drawn.append({})
        for when, probability in found.items():
            drawn[-1][when] = boot.resampled_calibration_error(truth, probability, counts)
            rows[name][when] = describe(truth, probability, drawn[-1][when])
    means = {when: float(np.mean([row[when]["value"] for row in rows.values()])) for when in ("before", "after")}
    ends = {when: boot.interval(np.mean([own[when] for own in drawn], 0)) for when in means}
    mean = {when: {"value": value, "low": ends[when][0], "high": ends[when][1]} for when, value in means.items()}
    return {"studies": studies, "seed": seed, "findings": rows, "mean": mean}


def describe(truth: np.ndarray, probability: np.ndarray, drawn: np.ndarray) -> dict:
    """Calibration error with its interval, and that of chance."""
    from itemized_clip_hf.evaluation import bootstrap as boot
    from itemized_clip_hf.evaluation.metrics import chance_calibration_error, expected_calibration_error

    low, high = boot.interval(drawn)
    value, chance = expected_calibration_error(truth, probability), chance_calibration_error(probability)
    return {"value": value, "low": low, "high": high, "by_chance": chance}


def table_rows(document: dict) -> list[str]:
    """Of the documentation: the model's errors before and after, and how often intervals hold the truth."""
    model = document["model"]
    rows = ["| finding | method | sigmoid of the logit | calibrated | by chance |", "|---|---|---|---|---|"]
    for name, row in model["findings"].items():
        after = row["after"]
        rows.append(
            f"| {name} | {row['method']} | {_show(row['before'])} | {_show(after)} | {100 * after['by_chance']:.1f} |"
        )
    rows.append(f"| mean | | {_show(model['mean']['before'])} | {_show(model['mean']['after'])} | |")
    rows += ["", "| interval of | truth inside |", "|---|---|"]
    for one in document["probabilities"]:
        about = f"probability, {one['method']}, {one['studies']} studies, {one['repeats']} repeats"
        rows.append(f"| {about} | {100 * min(one['covered']):.1f} to {100 * max(one['covered']):.1f} % by score |")
    for name, one in document["gaps"].items():
        shown = f"{100 * one['gap of the chosen pair']:.1f} %"
        rows.append(f"| gap, {name}, {one['studies_per_group']} studies each, {one['repeats']} repeats | {shown} |")
    return rows


def _show(error: dict) -> str:
    return f"{100 * error['value']:.1f} ({100 * error['low']:.1f}-{100 * error['high']:.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder of the demo")
    parser.add_argument("--studies", type=int, default=400, help="of each split")
    parser.add_argument("--seed", type=int, default=7, help="of the studies")
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("-o", "--output", default=str(RESULTS))
    args = parser.parse_args()
    document = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": version("torch")},
        "model": measure_model(args.model, args.studies, args.seed),
        "probabilities": [
            probabilities_covered("platt", 300, args.repeats),
            probabilities_covered("isotonic", 1000, max(args.repeats // 5, 1)),
        ],
        "gaps": {name: gaps_covered(shifts, 200, args.repeats) for name, shifts in GAPS.items()},
    }
    print("\n".join(table_rows(document)))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(document, indent=1) + "\n")
    if Path(args.output) == RESULTS:
        put_table(DOCS, MARK, table_rows(document))


if __name__ == "__main__":
    main()
