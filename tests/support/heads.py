"""Tiny classifiers and studies whose labels can be learned, for the tests of heads."""

import numpy as np
import torch
from tiny_models import tiny_config

NAMES = ("bright", "striped", "dark")


def bright_studies(count: int, seed: int = 0, scans: int = 1) -> list[dict]:
    """Processed studies whose first label is their brightness; the others are its opposite and a coin."""
    rng = np.random.default_rng(seed)
    studies = []
    for number in range(count):
        bright = number % 2
        pixels = rng.normal(bright * 1.5, 0.5, (scans, 1, 8, 16, 16)).astype(np.float32)
        labels = np.array([bright, rng.integers(2), 1 - bright], dtype=np.float32)
        row = {"id": f"s{number}", "pixel_values": torch.from_numpy(pixels), "labels": labels}
        studies.append({**row, "scan_names": [f"AX_{place}" for place in range(scans)]})
    return studies


def make_classifier(seed: int = 0, labels=NAMES, **settings):
    """A classifier of a tiny model; the settings are those of `from_model`."""
    from itemized_clip_hf import ItemizedCLIPForImageClassification, ItemizedCLIPModel

    torch.manual_seed(seed)
    return ItemizedCLIPForImageClassification.from_model(ItemizedCLIPModel(tiny_config()), labels, **settings).eval()


def make_trainer(folder, processor, model=None, train=None, evaluate=None, num_labels=3, keywords=None, **arguments):
    """A Trainer of a tiny classifier, on the CPU."""
    from itemized_clip_hf.trainer.supervised.arguments import SupervisedArguments
    from itemized_clip_hf.trainer.supervised.labels import ClassificationCollator
    from itemized_clip_hf.trainer.supervised.trainer import SupervisedTrainer

    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1}
    args = SupervisedArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, **{**defaults, "learning_rate": 3e-3, **arguments}
    )
    collator = ClassificationCollator(
        processor, max_scans=args.max_scans, quarantine=folder / "quarantine.csv", num_labels=num_labels
    )
    return SupervisedTrainer(
        model if model is not None else make_classifier(),
        args,
        collator,
        bright_studies(12) if train is None else train,
        evaluate,
        processing_class=processor,
        **(keywords or {}),
    )
