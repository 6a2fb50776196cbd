"""Learn from generated studies in minutes, score unseen ones and show where the model looked."""

import json
import shutil
import time
from pathlib import Path

import click

from itemized_clip_cli import device_option, json_option

SCAN_SIZE = (8, 32, 32)
VISION = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "num_channels": 1,
    "image_size": list(SCAN_SIZE),
    "patch_size": [4, 8, 8],
    "attention_scopes": ["scan", "study"],
    "use_scan_name_encoder": True,
    "scan_name_hidden_size": 64,
    "scan_name_num_layers": 1,
    "scan_name_intermediate_size": 64,
}
TEXT = {
    "model_type": "bert",
    "hidden_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TRAINING: dict = {
    "per_device_train_batch_size": 32,
    "learning_rate": 1.5e-3,
    "weight_decay": 0.05,
    "warmup_steps": 50,
    "max_items": 4,
    "max_scans": 4,
    "objective_weights": {
        "mps_weight": 1.0,
        "kta_weight": 1.0,
        "iis_weight": 1.0,
        "keep_rate": 1.0,
        "worst_positive_factor": 1.0,
    },
}


@click.command()
@click.option("-o", "--output", default="demo-output", show_default=True, type=click.Path(file_okay=False))
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=1600, show_default=True, help="Optimiser steps.")
@click.option("--studies", default=3000, show_default=True, help="Generated training studies.")
@click.option("--test-studies", default=300, show_default=True)
@device_option
@json_option
def command(output, seed, steps, studies, test_studies, device, as_json):
    """
    The whole way on generated brain studies: train, score, explain, save.

    Four sequences of one head, findings of six kinds, reports as lists of items, a mask for every item. Needs neither data
    nor a GPU.
    """
    from itemized_clip_hf.phantom import PhantomDataset

    start = time.time()
    folder = Path(output)
    model, processor = train(folder, seed, steps, studies, device)
    trained = time.time() - start
    test = PhantomDataset("test", test_studies, seed=seed, shape=SCAN_SIZE)
    results = evaluate(model, processor, test, folder)
    results |= {"seed": seed, "steps": steps, "train_seconds": round(trained), "seconds": round(time.time() - start)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    click.echo(json.dumps(results, indent=1) if as_json else report(results, folder))


def train(folder: Path, seed: int = 0, steps: int = 1600, studies: int = 3000, device: str = "auto", **changes):
    """
    Model and processor, learned from generated studies and saved in `folder/model`.

    Args:
        changes: to the training arguments; `objective_weights` are added to the demo's.
    """
    import torch
    from tqdm.auto import tqdm

    from itemized_clip_hf import (
        ItemizedCLIPConfig,
        ItemizedCLIPModel,
        ItemizedCLIPProcessor,
        ItemizedCLIPTrainer,
        ItemizedCLIPTrainingArguments,
    )
    from itemized_clip_hf.bars import without_library_bars
    from itemized_clip_hf.models.load import pick_device
    from itemized_clip_hf.models.tokenizer import train_tokenizer
    from itemized_clip_hf.phantom import PhantomDataset

    torch.manual_seed(seed)
    data = PhantomDataset("train", studies, seed=seed, shape=SCAN_SIZE)
    generated = list(tqdm(data, desc="generating", unit="study"))
    tokenizer = train_tokenizer(
        (item for study in generated for item in study.items), vocab_size=512, context_length=32
    )
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=list(SCAN_SIZE), in_plane_size=SCAN_SIZE[1]
    )
    rows = [
        {
            "id": study.id,
            "pixel_values": torch.stack(
                [s.pixel_values for s in processor.image_processor.process_study(as_scans(study))]
            ),
            "scan_names": list(study.scans),
            "items": study.items,
            "is_normal": study.is_normal,
        }
        for study in tqdm(generated, desc="processing", unit="study")
    ]
    config = ItemizedCLIPConfig(
        vision_config=VISION,
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        projection_dim=96,
        num_pooler_heads=4,
        domain="brain-mri",
    )
    model = ItemizedCLIPModel(config)
    weights = {**TRAINING["objective_weights"], **changes.pop("objective_weights", {})}
    arguments = ItemizedCLIPTrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        seed=seed,
        logging_steps=100,
        save_strategy="no",
        use_cpu=pick_device(device).type == "cpu",
        **{**TRAINING, **changes, "objective_weights": weights},
    )
    trainer = ItemizedCLIPTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    trainer.train()
    model.eval()
    with without_library_bars():
        model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return model, processor


def as_scans(study) -> dict:
    """Scans of a generated study with their geometry, as from files."""
    from itemized_clip_hf.data.study import Scan
    from itemized_clip_hf.processing.geometry_itemized_clip import permutation

    depth_first = study.affine @ permutation((2, 1, 0))
    return {name: Scan(scan, depth_first, name) for name, scan in study.scans.items()}


def evaluate(model, processor, test, folder: Path) -> dict:
    """Zero-shot AUC of every finding, pointing game of every item, and pictures of three studies."""
    import numpy as np
    from tqdm.auto import tqdm

    from itemized_clip_hf.evaluation.grounding import PointingGame
    from itemized_clip_hf.evaluation.metrics import auroc
    from itemized_clip_hf.evaluation.zero_shot import score_studies
    from itemized_clip_hf.explain.maps import explain_study, write_map
    from itemized_clip_hf.explain.plots import plot_item, slug
    from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS

    studies = list(test)
    labels, scores = score_studies(
        model, processor, (as_scans(study) for study in studies), ZERO_SHOT_PROMPTS, batch_size=32
    )
    game, focal = PointingGame(), set()
    drawn: list = []
    for study in tqdm(studies, desc="explaining", unit="study"):
        if study.is_normal:
            continue
        maps = explain_study(model, processor, as_scans(study), study.items)
        draw = len(drawn) < 3 and len(study.items) >= 2
        if draw:
            drawn.append(study)
            place = folder / "heat-maps" / study.id
            place.mkdir(parents=True, exist_ok=True)
        per_item = len(study.scans)
        for number, (finding, mask) in enumerate(zip(study.item_findings, study.masks)):
            of_item = maps[number * per_item : (number + 1) * per_item]
            outline = [mask] * per_item
            game.add(finding, of_item, outline)
            if "lobe" in study.attributes[number]:
                focal.add(finding)
            if draw:
                plot_item(of_item, place / f"{number}_{slug(study.items[number])}.png", outline)
                for heat in of_item:
                    write_map(place / f"{number}_{slug(finding)}__{heat.scan_name}.nii.gz", heat)
    write_studies(drawn, folder)
    findings = {}
    for j, label in enumerate(labels):
        truth = np.array([study.labels[label] for study in studies])
        _, hit, chance = game.rates([label])
        findings[label] = {
            "prompt": ZERO_SHOT_PROMPTS[label],
            "positive": int(truth.sum()),
            "auc": auroc(truth, scores[:, j]),
            "localised": label in focal,
            "pointing": hit,
            "chance": chance,
        }
    _, hit, chance = game.rates(focal)
    mean = float(np.mean([finding["auc"] for finding in findings.values()]))
    return {"studies": len(studies), "findings": findings, "mean_auc": mean, "pointing": hit, "chance": chance}


def write_studies(studies: list, folder: Path) -> None:
    """Studies as NIfTI with masks, a list of them, and the scans of the first in `study`, which the README uses."""
    from itemized_clip_hf.phantom import write_study

    lines = []
    for study in studies:
        files = write_study(study, folder / "studies" / study.id)
        images = {name: f"studies/{study.id}/{file}" for name, file in files.items()}
        lines.append(json.dumps({"id": study.id, "images": images, "items": study.items}) + "\n")
        if study is studies[0]:
            (folder / "study").mkdir(parents=True, exist_ok=True)
            for file in files.values():
                shutil.copyfile(folder / "studies" / study.id / file, folder / "study" / file)
    (folder / "studies.jsonl").write_text("".join(lines), encoding="utf-8")


def report(results: dict, folder: Path) -> str:
    from itemized_clip_hf.evaluation.text_table import format_table

    rows = [
        [name, f["prompt"], f["positive"], f["auc"], f["pointing"], f["chance"]]
        for name, f in results["findings"].items()
    ]
    table = format_table(["finding", "prompt", "positive", "AUC", "pointing", "chance"], rows)
    local = ", ".join(name for name, f in results["findings"].items() if f["localised"])
    ratio = results["pointing"] / results["chance"]
    return (
        f"\nZero-shot on {results['studies']} unseen studies\n{table}\n\n"
        f"mean AUC {results['mean_auc']:.3f}\n"
        f"pointing game of the localised findings ({local}): the hottest patch touches the finding in "
        f"{results['pointing']:.1%} of the items, {ratio:.1f} times chance ({results['chance']:.1%})\n"
        f"seed {results['seed']}, {results['steps']} steps, {results['train_seconds']} s of training, "
        f"{results['seconds']} s in all\n\n"
        f"model      {folder / 'model'}\nheat maps  {folder / 'heat-maps'}\n"
        f"studies    {folder / 'studies'}, listed in {folder / 'studies.jsonl'}; one more time {folder / 'study'}\n"
        f"next       itemized-clip predict -m {folder / 'model'} -i {folder / 'study'} -p 'mass in the brain'"
    )
