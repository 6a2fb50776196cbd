"""Tiny configurations, generated volumes, no downloads."""

import logging
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

from tiny_models import DATA, ITEMS, tiny_config


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real data, where it is at hand."""
    if not DATA.exists():
        pytest.skip(f"real data is not at {DATA}; set ITEMIZED_CLIP_DATA")
    return DATA


@pytest.fixture
def tokenizer():
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    return train_tokenizer(ITEMS, vocab_size=120, context_length=24)


@pytest.fixture
def processor(tokenizer):
    """Of tiny brain MRI studies."""
    from itemized_clip_hf import ItemizedCLIPProcessor

    return ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16)


@pytest.fixture
def messages():
    """What the package and the library log."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("itemized_clip_hf", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield found
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def make_model():
    """Builds a tiny model in evaluation mode from changes to the vision config."""
    from itemized_clip_hf import ItemizedCLIPModel

    def make(seed: int = 0, **changes):
        torch.manual_seed(seed)
        return ItemizedCLIPModel(tiny_config(**changes)).eval()

    return make


@pytest.fixture
def write_volume(tmp_path):
    """Writes a NIfTI file: seeded smooth noise unless an array is given."""
    nibabel = pytest.importorskip("nibabel")

    def write(name: str = "scan.nii.gz", array=None, shape=(20, 24, 10), affine=None, seed: int = 0) -> Path:
        if array is None:
            array = np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)
        if affine is None:
            affine = np.diag([2.0, 2.0, 6.0, 1.0])
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path

    return write


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A tiny brain MRI model with its processor."""
    from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = tiny_config()
    config.domain = "brain-mri"
    ItemizedCLIPModel(config).save_pretrained(folder)
    tokenizer = train_tokenizer(ITEMS, 120, 24)
    ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    ).save_pretrained(folder)
    return folder
