"""A Trainer of a tiny model on generated studies."""

import json
import os

import numpy as np
import torch
from tiny_models import ITEMS, TRAINING, tiny_config

from itemized_clip_hf import (
    ItemizedCLIPModel,
    ItemizedCLIPProcessor,
    ItemizedCLIPTrainer,
    ItemizedCLIPTrainingArguments,
)


def dataset(count=24, seed=0):
    """Studies in which item k is a bright block at place k."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        present = rng.permutation(3)[: 1 + index % 2]
        scans = torch.from_numpy(rng.normal(0, 0.3, (1 + index % 3, 1, 8, 16, 16)).astype(np.float32))
        for place in present:
            scans[:, :, 4 * (place % 2) : 4 * (place % 2) + 4, 8 * (place // 2) : 8 * (place // 2) + 8, :8] += 2
        rows.append({"id": str(index), "pixel_values": scans, "items": [ITEMS[place] for place in present]})
    return rows


def make_trainer(processor, folder, model=None, rows=None, evaluators=(), **settings):
    torch.manual_seed(0)
    model = model or ItemizedCLIPModel(tiny_config(attention_scopes=["scan", "scan", "study"]))
    defaults = {**TRAINING, "max_steps": 4, "per_device_train_batch_size": 8}
    args = ItemizedCLIPTrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    return ItemizedCLIPTrainer(
        model, args, train_dataset=rows or dataset(), processing_class=processor, evaluators=evaluators
    )


def resume_run(folder, stop_after, resume, objective):
    """Ten steps over two and a half epochs; dies hard after `stop_after` steps."""
    from transformers import TrainerCallback

    from itemized_clip_hf.models.tokenizer import train_tokenizer

    class Die(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == int(stop_after):
                os._exit(9)

    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=train_tokenizer(ITEMS, 120, 24), scan_size=[8, 16, 16], in_plane_size=16
    )
    torch.manual_seed(0)
    model = ItemizedCLIPModel(
        tiny_config(attention_scopes=["scan", "scan", "study"], max_num_scans=4, drop_path_rate=0.2)
    )
    trainer = make_trainer(
        processor,
        folder,
        model=model,
        max_steps=10,
        save_strategy="steps",
        save_steps=3,
        per_device_train_batch_size=6,
        objective=objective,
        muon_learning_rate=1e-3 if objective == "smartclip" else None,
    )
    trainer.add_callback(Die())
    trainer.train(resume_from_checkpoint=resume == "True")
    torch.save(trainer.model.state_dict(), os.path.join(folder, "final.pt"))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with open(os.path.join(folder, "losses.json"), "w") as file:
        json.dump(losses, file)
