"""
Text-prompted segmentation on generated studies: masks of findings and phrasings that were held out of training.

    itemized-clip demo -o runs/attribution/0 --seed 0; itemized-clip demo -o runs/attribution/1 --seed 1
    python benchmarks/segmentation.py --models runs/attribution/0 runs/attribution/1 [-o benchmarks/results/segmentation.json]

A decoder learns from masks of all findings but two, which its model knows from reports alone; the model itself stays as it is.
Then findings that lie at one place are drawn in unseen studies, by sentences of templates that neither the model nor the
decoder saw. Dice in the grid of the scan that most of the item's score rests on, with intervals over studies. Beside it the
heat maps of the same items in the same scans, cut at the threshold that is best for them on these very studies (a share of a
map's maximum, or a multiple of its mean over the study): one for all items, and one for each item. `absent`: share of prompts
of findings that a study does not have for which something is marked.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results" / "segmentation.json"
DOCS = Path(__file__).parents[1] / "docs" / "segmentation.md"
MARK = "<!-- table of benchmarks/results/segmentation.json -->"
HELD_OUT = (("bleed", "cyst"), ("mass", "white_matter_lesion"))
FOCAL = tuple(name for pair in HELD_OUT for name in pair)
MAPS = ("contribution", "attention")
SHARES = np.linspace(0.02, 0.98, 49)
"""Thresholds of heat maps, of the highest value of each map."""
MULTIPLES = np.geomspace(0.5, 200, 40)
"""The same, of the mean of a patch over the study, the unit of the maps."""


def training_records(count: int, seed: int, held_out: tuple[str, ...]) -> list[dict]:
    """Studies with masks of the findings that are not held out; their templates tell of absent findings, too."""
    from itemized_clip_hf.phantom import FINDINGS, PhantomDataset
    from itemized_clip_hf.phantom.experiment import as_scans
    from itemized_clip_hf.phantom.findings import LOBES, SIDES
    from itemized_clip_hf.phantom.reports import TEMPLATES

    rng, records = np.random.default_rng(seed), []
    for study in PhantomDataset("train", count, seed=seed):
        absent = []
        for finding in FINDINGS:
            if not study.labels[finding] and finding not in held_out:
                words = {"size": "small", "side": rng.choice(SIDES), "lobe": rng.choice(list(LOBES))}
                absent.append(str(rng.choice(TEMPLATES[finding])).format(**words))
        drawn = [None if f in held_out else mask for f, mask in zip(study.item_findings, study.masks)]
        records.append(
            {"id": study.id, "images": as_scans(study), "items": study.items, "masks": drawn, "absent": absent}
        )
    return records


def test_records(count: int, seed: int) -> list[dict]:
    """Unseen studies; items that lie at one place, in words that were never seen."""
    from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS, PhantomDataset
    from itemized_clip_hf.phantom.experiment import as_scans
    from itemized_clip_hf.phantom.reports import HELD_OUT_TEMPLATES

    records = []
    for number, study in enumerate(PhantomDataset("test", count, seed=seed)):
        places = [k for k, words in enumerate(study.attributes) if "lobe" in words]
        findings = [study.item_findings[k] for k in places]
        templates = [HELD_OUT_TEMPLATES[f][number % len(HELD_OUT_TEMPLATES[f])] for f in findings]
        records.append(
            {
                "id": study.id,
                "images": as_scans(study),
                "items": [text.format(**study.attributes[k]) for text, k in zip(templates, places)],
                "findings": findings,
                "masks": [study.masks[k] for k in places],
                "absent": [ZERO_SHOT_PROMPTS[name] for name in FOCAL if not study.labels[name]],
            }
        )
    return [record for record in records if record["items"] or record["absent"]]


def train(folder: Path, held_out: tuple[str, ...], seed: int, studies: int, steps: int, channels: int):
    """Model and processor after training, and seconds that it took."""
    from itemized_clip_hf.trainer.supervised.segmentation import (
        SegmentationOptions,
        build_segmenter,
        build_trainer,
        segmentation_arguments,
    )

    with tempfile.TemporaryDirectory() as place:
        options = SegmentationOptions(
            place, place, str(folder / "model"), channels=channels, max_items=2, drawn_scans=2
        )
        settings = {"max_steps": steps, "learning_rate": 3e-3, "weight_decay": 0.01, "use_cpu": True, "seed": seed}
        settings |= {"save_strategy": "no", "logging_strategy": "steps", "logging_steps": 100, "disable_tqdm": True}
        args = segmentation_arguments(options, settings)
        model, processor = build_segmenter(options, seed)
        records = training_records(studies, 100 + seed, held_out)
        start = time.time()
        build_trainer(model, processor, records, None, options, args).train()
    return model.eval(), processor, time.time() - start


def heat_map_dice(model, processor, records: list[dict], method: str) -> dict[str, np.ndarray]:
    """Finding -> (items, thresholds) Dice of the heat map in the scan with the largest share of the contributions."""
    from itemized_clip_hf.explain.maps import explain_items

    rows: dict[str, list[np.ndarray]] = {}
    for record in records:
        if not record["items"]:
            continue
        items = record["items"]
        shares = [
            [heat.share for heat in maps]
            for maps in explain_items(model, processor, record["images"], items, attribution="contribution")
        ]
        found = explain_items(model, processor, record["images"], items, attribution=method)
        for finding, truth, own, maps in zip(record["findings"], record["masks"], shares, found):
            values = maps[int(np.argmax(own))].values
            thresholds = np.concatenate([SHARES * values.max(), MULTIPLES])
            cut = values[None] >= thresholds[:, None, None, None]
            both = (cut & truth).sum((1, 2, 3))
            rows.setdefault(finding, []).append(2 * both / (cut.sum((1, 2, 3)) + truth.sum()))
    return {finding: np.stack(table) for finding, table in rows.items()}


def measure(folder: Path, held_out: tuple[str, ...], seed: int, args: argparse.Namespace) -> dict:
    """Figures of one model and one pair of findings that are held out."""
    from itemized_clip_hf.evaluation.masks import evaluate_masks

    model, processor, seconds = train(folder, held_out, seed, args.studies, args.steps, args.channels)
    records = test_records(args.test_studies, 200 + seed)
    result = evaluate_masks(model, processor, records).to_dict()
    figures = {name: own for name, own in result["figures"].items() if name != "all findings"}
    document = {
        "seed": seed,
        "held_out": list(held_out),
        "training_seconds": round(seconds),
        "absent": result["figures"]["all findings"]["marked_if_absent"],
        "findings": {},
    }
    maps = {method: heat_map_dice(model, processor, records, method) for method in MAPS}
    for finding, own in figures.items():
        row = {"held_out": finding in held_out, "items": len(maps[MAPS[0]][finding]), **own}
        for method in MAPS:
            every = np.concatenate(list(maps[method].values()))
            best = int(every.mean(0).argmax())
            row[f"{method}, one threshold"] = float(maps[method][finding][:, best].mean())
            row[f"{method}, threshold of each item"] = float(maps[method][finding].max(1).mean())
        document["findings"][finding] = row
    print(json.dumps(document, indent=1), flush=True)
    if args.save:
        target = Path(args.save) / f"{seed}-{'-'.join(held_out)}"
        model.save_pretrained(target)
        processor.save_pretrained(target)
    return document


def table_rows(document: dict) -> list[str]:
    """Of the documentation: a row for every finding of every run; the better one of the heat maps."""
    rows = [
        "| finding | masks in training | model | Dice | surface distance (mm) | best heat map | best of each item |"
    ]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    listed = [(finding, run["seed"], row) for run in document["runs"] for finding, row in run["findings"].items()]
    for finding, seed, row in sorted(listed, key=lambda entry: (entry[2]["held_out"], entry[0], entry[1])):
        dice = row["dice"]
        heat = [max(row[f"{m}, {way}"] for m in MAPS) for way in ("one threshold", "threshold of each item")]
        cells = [finding.replace("_", " "), "no" if row["held_out"] else "yes", str(seed)]
        cells.append(f"**{dice['value']:.2f}** [{dice['low']:.2f}, {dice['high']:.2f}]")
        cells += [f"{row['surface_distance']['value']:.1f}", *(f"{value:.2f}" for value in heat)]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="folders of the demo, one per seed from 0")
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--test-studies", type=int, default=150)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--save", help="folder for the trained models")
    parser.add_argument("-o", "--output", default=str(RESULTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    document = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": version("torch")},
        "training": {"studies": args.studies, "steps": args.steps, "batch": 4, "channels": args.channels},
        "test_studies": args.test_studies,
        "runs": [],
    }
    for held_out in HELD_OUT:
        for seed, folder in enumerate(args.models):
            document["runs"].append(measure(Path(folder), held_out, seed, args))
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            Path(args.output).write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(table_rows(document)))


if __name__ == "__main__":
    main()
