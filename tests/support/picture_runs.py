"""Training on pictures of natural strength, which stay in memory or do not."""

import numpy as np
import torch
from PIL import Image
from tiny_models import ITEMS, TRAINING, tiny_config

from itemized_clip_hf import (
    ItemizedCLIPModel,
    ItemizedCLIPProcessor,
    ItemizedCLIPTrainer,
    ItemizedCLIPTrainingArguments,
)


def pictures(count: int = 24, side: int = 40) -> list[dict]:
    """Gradients of natural strength: small noise pictures, enlarged."""
    generator = np.random.default_rng(0)
    small = generator.integers(60, 200, (count, 5, 5, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.LANCZOS)) for one in small]
    return [{"id": f"p{i}", "images": one, "items": ITEMS[: 1 + i % 4]} for i, one in enumerate(large)]


def processor_of(tokenizer, **settings):
    settings = {"scan_size": [1, 32, 32], "train_crop_scale": [0.3, 1.0], "train_rot90_flip": True, **settings}
    return ItemizedCLIPProcessor.from_domain("remote-sensing", tokenizer, **settings)


def trainer_of(tokenizer, folder, resident: bool, **changes):
    torch.manual_seed(0)
    config = tiny_config(num_channels=3, image_size=[1, 32, 32], patch_size=[1, 8, 8])
    config.domain = "remote-sensing"
    settings = {**TRAINING, "max_steps": 6, "per_device_train_batch_size": 8, "resident_pictures": resident, **changes}
    arguments = ItemizedCLIPTrainingArguments(str(folder), **settings)
    return ItemizedCLIPTrainer(
        ItemizedCLIPModel(config), arguments, train_dataset=pictures(), processing_class=processor_of(tokenizer)
    )
