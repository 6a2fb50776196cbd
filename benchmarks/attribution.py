"""
Attributions compared on generated studies: do they point at the finding, and does the score hang on what they point at?

    itemized-clip demo -o runs/attribution/0 --seed 0; itemized-clip demo -o runs/attribution/1 --seed 1
    python benchmarks/attribution.py --models runs/attribution/0 runs/attribution/1 [-o benchmarks/results/attribution.json]

Findings that lie at one place, of unseen studies (seed of a model: its place in the list). Pointing game, energy in the mask:
higher is better. Deletion and insertion: mean height of the curve of the score, less that of random order; deletion: lower,
insertion: higher is better. In the pooler: the item may not attend to the tokens. In the scan: their patches show the mean of
the scan, before the vision tower. Intervals are over studies, of all models; differences are to raw attention.
"""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "attribution.json"
DOCS = Path(__file__).parents[1] / "docs" / "attribution.md"
MARK = "<!-- table of benchmarks/results/attribution.json -->"
COLUMNS = {
    "pointing game": "higher",
    "energy in mask": "higher",
    "deletion in the pooler": "lower",
    "insertion in the pooler": "higher",
    "deletion in the scan": "lower",
    "insertion in the scan": "higher",
}


def measure(folder: Path, count: int, in_scan: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """
    Method -> figure -> mean over the items of each study, (S,); NaN where a study has no item for it.

    Args:
        folder: of the demo.
        count: studies.
        in_scan: of them, those whose patches are blanked.
    """

    from itemized_clip_hf.evaluation.encode import encode_inputs, encode_texts
    from itemized_clip_hf.evaluation.grounding import patch_curves, token_curves
    from itemized_clip_hf.explain.attribution import ATTRIBUTIONS
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.phantom import PhantomDataset
    from itemized_clip_hf.phantom.experiment import SCAN_SIZE, as_scans

    model, processor = load(folder / "model", "cpu")
    values = {name: {column: np.full(count, np.nan) for column in COLUMNS} for name in ATTRIBUTIONS}
    for number, study in enumerate(PhantomDataset("test", count, seed=seed, shape=SCAN_SIZE)):
        focal = [k for k, words in enumerate(study.attributes) if "lobe" in words]
        if not focal:
            continue
        scans = processor.image_processor.process_study(as_scans(study))
        inputs = processor.image_processor.collate([scans], return_tensors="pt")
        encoded = encode_inputs(model, inputs)
        embeds = encode_texts(model, processor, [study.items[k] for k in focal])
        for name, figures in values.items():
            found: dict[str, list[float]] = {column: [] for column in COLUMNS}
            for embed in embeds:
                curves = {"pooler": token_curves(model, encoded, embed, attribution=name)}
                if number < in_scan:
                    curves["scan"] = patch_curves(model, inputs, embed, attribution=name)
                for where, own in curves.items():
                    areas = own.areas()
                    for kind in ("deletion", "insertion"):
                        found[f"{kind} in the {where}"].append(areas[kind] - areas[f"random_{kind}"])
            point_at(name, model, processor, study, focal, found)
            for column, per_item in found.items():
                figures[column][number] = np.mean(per_item) if per_item else np.nan
    return values


def point_at(name: str, model, processor, study, focal: list[int], found: dict[str, list[float]]) -> None:
    """Adds pointing game and energy of each item."""
    from itemized_clip_hf.evaluation.grounding import PointingGame, energy_in_mask
    from itemized_clip_hf.explain.maps import explain_items
    from itemized_clip_hf.phantom.experiment import as_scans

    texts = [study.items[k] for k in focal]
    for k, maps in zip(focal, explain_items(model, processor, as_scans(study), texts, attribution=name)):
        masks = [study.masks[k]] * len(maps)
        game = PointingGame()
        game.add("item", maps, masks)
        found["pointing game"].append(game.rates()[1])
        found["energy in mask"].append(energy_in_mask(maps, masks)[0])


def summarize(runs: list[dict[str, dict[str, np.ndarray]]], resamples: int = 1000) -> dict:
    """Figures with intervals over the studies of all runs, and differences to the first method, of the same studies."""
    from itemized_clip_hf.evaluation import bootstrap as boot

    methods, summary = list(runs[0]), {}
    for column, better in COLUMNS.items():
        all_runs = {name: np.concatenate([run[name][column] for run in runs]) for name in methods}
        base = all_runs[methods[0]]
        known = ~np.isnan(base)
        counts = boot.draw_counts(int(known.sum()), resamples)
        rows = {}
        for name, values in all_runs.items():
            rows[name] = {
                "value": float(values[known].mean()),
                "interval": boot.interval(boot.resampled_mean(values[known], counts)),
                "by_model": [float(np.nanmean(run[name][column])) for run in runs],
            }
            if name != methods[0]:
                away = (values - base)[known]
                rows[name]["difference"] = float(away.mean())
                rows[name]["interval_of_difference"] = boot.interval(boot.resampled_mean(away, counts))
        summary[column] = {"better": better, "studies": int(known.sum()), "methods": rows}
    return summary


def table_rows(document: dict) -> list[str]:
    """Of the documentation; bold: better than raw attention, the interval of the difference without 0."""
    figures = document["figures"]
    arrows = {"higher": "↑", "lower": "↓"}
    rows = ["| attribution | " + " | ".join(f"{name} {arrows[f['better']]}" for name, f in figures.items()) + " |"]
    rows.append("| --- |" + " ---: |" * len(figures))
    for method in next(iter(figures.values()))["methods"]:
        cells = []
        for name, figure in figures.items():
            own = figure["methods"][method]
            scale, digits = (100, 1) if name in ("pointing game", "energy in mask") else (1, 3)
            low, high = own["interval"]
            cell = f"{scale * own['value']:.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
            ends = own.get("interval_of_difference", (0, 0))
            won = ends[0] > 0 if figure["better"] == "higher" else ends[1] < 0
            cells.append(f"**{cell}**" if won else cell)
        rows.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="folders of the demo, one per seed from 0")
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--in-scan", type=int, default=100, help="studies whose patches are blanked")
    parser.add_argument("-o", "--output", default=str(RESULTS))
    args = parser.parse_args()
    runs = [measure(Path(folder), args.studies, args.in_scan, seed) for seed, folder in enumerate(args.models)]
    document = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": version("torch")},
        "models": len(runs),
        "studies_per_model": args.studies,
        "figures": summarize(runs),
    }
    print("\n".join(table_rows(document)))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
