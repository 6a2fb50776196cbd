"""
The paper's claims on generated studies: IIS + KTA + worst-positive weighting beside plain TCS + MPS, several seeds.

    python benchmarks/claims.py [--seeds 0 1 2] [--steps 1600] [--folder runs/claims] [-o benchmarks/results/claims.json]

Complete (COMPLETE@k, higher), matched (MLL, higher), separable (mAMS, lower), grounded (pointing game, energy in the mask, item
swap, attention on the one series that shows a finding; all higher). Intervals are over seeds and studies. Runs that are in the
folder are not trained again.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

ARMS = {
    "IIS + KTA + UWP": {"iis_weight": 1.0, "kta_weight": 1.0, "worst_positive_factor": 1.5},
    "TCS + MPS": {"iis_weight": 0.0, "kta_weight": 0.0, "worst_positive_factor": 1.0},
    "IIS": {"iis_weight": 1.0, "kta_weight": 0.0, "worst_positive_factor": 1.0},
    "KTA": {"iis_weight": 0.0, "kta_weight": 1.0, "worst_positive_factor": 1.0},
    "UWP": {"iis_weight": 0.0, "kta_weight": 0.0, "worst_positive_factor": 1.5},
}
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


def measure(folder: Path, test_studies: int, seed: int) -> dict[str, np.ndarray]:
    """Figure -> one value per study or item."""
    from itemized_clip_hf.evaluation.grounding import PointingGame, energy_in_mask, swap_margins
    from itemized_clip_hf.evaluation.metrics import auroc
    from itemized_clip_hf.evaluation.tasks.items import evaluate_items
    from itemized_clip_hf.evaluation.zero_shot import score_studies
    from itemized_clip_hf.explain.maps import explain_items
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.phantom import FINDINGS, ZERO_SHOT_PROMPTS, PhantomDataset
    from itemized_clip_hf.phantom.experiment import SCAN_SIZE, as_scans

    model, processor = load(folder / "model", "cpu")
    studies = list(PhantomDataset("test", test_studies, seed=seed, shape=SCAN_SIZE))
    rows = [{"images": as_scans(study), "items": study.items} for study in studies]
    found = evaluate_items(model, processor, rows, batch_size=32)
    figures = {name: values for name, values in found.per_study().items() if name in BETTER}
    only = {name: finding.visible_in[0] for name, finding in FINDINGS.items() if len(finding.visible_in) == 1}
    shares, energies, swaps, game = [], [], [], PointingGame()
    for study, by_scan in zip(studies, found.shares):
        for number, finding in enumerate(study.item_findings):
            if finding in only:
                shares.append(float(by_scan[only[finding]][number]))
        if study.is_normal:
            continue
        maps = list(explain_items(model, processor, as_scans(study), study.items))
        focal = [number for number, words in enumerate(study.attributes) if "lobe" in words]
        masks = [[study.masks[number]] * len(study.scans) for number in focal]
        chosen = [maps[number] for number in focal]
        for number, own, mask in zip(focal, chosen, masks):
            game.add(study.item_findings[number], own, mask)
            energies.append(energy_in_mask(own, mask)[0])
        if len(focal) > 1:
            margins = swap_margins(chosen, masks)
            swaps += (margins[~np.isnan(margins)] > 0).tolist()
    figures["share of the only series"] = np.array(shares)
    figures["energy in mask"] = np.array(energies)
    figures["item swap"] = np.array(swaps, dtype=float)
    figures["pointing game"] = np.array([hit for hits in game.hits.values() for hit in hits], dtype=float)
    labels, scores = score_studies(model, processor, (row["images"] for row in rows), ZERO_SHOT_PROMPTS, batch_size=32)
    truth = np.array([[study.labels[label] for label in labels] for study in studies])
    figures["zero-shot AUC"] = np.array([auroc(truth[:, j], scores[:, j]) for j in range(len(labels))])
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--studies", type=int, default=3000)
    parser.add_argument("--test-studies", type=int, default=300)
    parser.add_argument("--folder", default="runs/claims")
    parser.add_argument("--arms", nargs="*", default=list(ARMS)[:2], help="a difference is that of the first two")
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "claims.json"))
    args = parser.parse_args()

    from itemized_clip_hf.evaluation import bootstrap as boot
    from itemized_clip_hf.phantom.experiment import train_phantom

    values: dict = {arm: {} for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            folder = Path(args.folder) / f"{''.join(c for c in arm.lower() if c.isalnum())}-{seed}"
            if not (folder / "model" / "model.safetensors").exists():
                start = time.time()
                train_phantom(
                    folder, seed, args.steps, args.studies, "cpu", objective_weights=ARMS[arm], disable_tqdm=True
                )
                print(f"{arm}, seed {seed}: trained in {time.time() - start:.0f} s", flush=True)
            measured = folder / f"measured-{args.test_studies}.npz"
            if not measured.exists():
                np.savez(measured, **measure(folder, args.test_studies, seed))
            values[arm][seed] = dict(np.load(measured))
    chosen = np.random.default_rng(0).integers(len(args.seeds), size=(boot.RESAMPLES, len(args.seeds)))
    summary: dict = {}
    for name, direction in BETTER.items():
        summary[name] = {"better": direction}
        drawn = {}
        for arm in args.arms:
            per_seed = [float(np.nanmean(values[arm][seed][name])) for seed in args.seeds]
            own = [values[arm][seed][name] for seed in args.seeds]
            # Seeds are resampled, and the studies of each; the same ones in all arms.
            each = np.stack([boot.resampled_mean(v, boot.draw_counts(len(v), seed=s)) for s, v in zip(args.seeds, own)])
            drawn[arm] = each[chosen, np.arange(boot.RESAMPLES)[:, None]].mean(1)
            low, high = boot.interval(drawn[arm])
            summary[name][arm] = {"value": float(np.mean(per_seed)), "low": low, "high": high, "seeds": per_seed}
        if len(args.arms) > 1:
            first, second = (drawn[arm] for arm in args.arms[:2])
            value = summary[name][args.arms[0]]["value"] - summary[name][args.arms[1]]["value"]
            low, high = boot.interval(first - second)
            summary[name]["difference"] = {"value": value, "low": low, "high": high}
        line = "  ".join(f"{arm} {summary[name][arm]['value']:.3f}" for arm in args.arms)
        print(f"{name:<26}{direction:<8}{line}  {summary[name].get('difference', '')}", flush=True)
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "torch": version("torch")}
    settings = {"seeds": args.seeds, "steps": args.steps, "studies": args.studies, "test_studies": args.test_studies}
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(
        json.dumps({"machine": machine, "settings": settings, "arms": ARMS, "figures": summary}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
