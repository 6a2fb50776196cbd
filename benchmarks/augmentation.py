"""
Training on few generated studies, with and without augmentation: zero-shot AUC and pointing game on unseen ones.

    python benchmarks/augmentation.py [--studies 100 --steps 500 --seeds 3] [-o benchmarks/results/augmentation.json]

Arms: none; `intensity`, the bias field, contrast and noise of the recipes' variant `augmented`; `affine`, these and its small
affine changes; `augmented`, all of it: studies are mirrored, too, left and right exchanged in their items. All arms of a seed
see the same studies in the same order. Runs that are in the results file already are not repeated.
"""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "augmentation.json"
ARMS = ("none", "intensity", "affine", "augmented")
TESTED = 300


def settings_of(arm: str) -> dict | None:
    """Training argument `augmentation` of an arm: parts of the variant's."""
    from itemized_clip_hf.recipes import load_recipe

    full = load_recipe("phantom").variant("augmented").training["augmentation"]
    left_out = {"none": None, "intensity": {"RandFlipd", "RandAffined"}, "affine": {"RandFlipd"}, "augmented": set()}[
        arm
    ]
    if left_out is None:
        return None
    transforms = [transform for transform in full["transforms"] if not left_out & set(transform)]
    return {**full, "transforms": transforms, "swap_sides": "RandFlipd" not in left_out}


def prepared(study, processor) -> dict:
    """The scans of a study as `itemized-clip prepare` stores them: what training draws is still left to do."""
    from itemized_clip_hf.data.studies.storage import load_scans, store_scan
    from itemized_clip_hf.phantom.experiment import as_scans

    standardize = processor.image_processor.standardize_scan
    scans = [(scan, standard) for scan in as_scans(study).values() for standard in standardize(scan)]
    return load_scans([store_scan(scan, standard, standard.name) for scan, standard in scans])


def train_and_score(arm: str, seed: int, studies: int, steps: int, folder: Path) -> dict:
    """Figures of one model."""
    from itemized_clip_hf.phantom import COARSE_SHAPE, PhantomDataset
    from itemized_clip_hf.phantom.experiment import evaluate_phantom
    from itemized_clip_hf.recipes import load_recipe
    from itemized_clip_hf.trainer.from_recipe import build_arguments, build_model, build_processor
    from itemized_clip_hf.trainer.trainer import ItemizedCLIPTrainer

    recipe = load_recipe("phantom").variant("coarse")
    generated = list(PhantomDataset("train", studies, seed=seed, shape=COARSE_SHAPE))
    processor = build_processor(recipe, (study.items for study in generated))
    rows = [
        {"id": study.id, "images": prepared(study, processor), "items": study.items, "is_normal": study.is_normal}
        for study in generated
    ]
    model = build_model(recipe, processor.tokenizer, seed)
    changes = {"max_steps": steps, "muon_learning_rate": 0.005, "seed": seed, "use_cpu": True, "disable_tqdm": True}
    arguments = build_arguments(recipe, folder, {**changes, "augmentation": settings_of(arm)})
    started = time.perf_counter()
    ItemizedCLIPTrainer(model, arguments, train_dataset=rows, processing_class=processor).train()
    seconds = time.perf_counter() - started
    model.eval()
    unseen = list(PhantomDataset("test", TESTED, seed=seed, shape=COARSE_SHAPE))
    results = evaluate_phantom(model, processor, unseen, folder)
    return {"auc": results.mean_auc, "pointing": results.pointing, "seconds": round(seconds, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("-o", "--output", default=str(RESULTS))
    args = parser.parse_args()
    path = Path(args.output)
    setting = {"studies": args.studies, "steps": args.steps, "tested": TESTED}
    document = json.loads(path.read_text()) if path.exists() else {**setting, "runs": {}}
    if any(document[name] != value for name, value in setting.items()):
        raise SystemExit(f"{path} holds runs of other settings: choose another file.")
    document["machine"] = {"cores": os.cpu_count(), "torch": version("torch"), "monai": version("monai")}
    for seed in range(args.seeds):
        for arm in args.arms:
            name = f"{arm}-{seed}"
            if name not in document["runs"]:
                folder = path.parent / "augmentation" / name
                document["runs"][name] = train_and_score(arm, seed, args.studies, args.steps, folder)
                path.write_text(json.dumps(document, indent=1) + "\n")
            print(name, document["runs"][name], flush=True)
    for arm in args.arms:
        runs = [run for name, run in document["runs"].items() if name.rsplit("-", 1)[0] == arm]
        means = {figure: np.mean([run[figure] for run in runs]) for figure in ("auc", "pointing", "seconds")}
        print(f"{arm:<10} AUC {means['auc']:.3f}, pointing game {means['pointing']:.3f}, {means['seconds']:.0f} s")


if __name__ == "__main__":
    main()
