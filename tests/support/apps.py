"""Apps with tiny models, and studies to give to them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from dicom_files import make_grid, make_series, save, zip_folder
from groups import free_port
from tiny_models import ITEMS, tiny_config

AFFINE = np.array([[-4.0, 0, 0, 90], [0, 4.0, 0, -100], [0, 0, 8.0, -40], [0, 0, 0, 1]])


def tiny_brain():
    """Model and processor of brain MRI studies, whose attention differs from place to place."""
    from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    torch.manual_seed(10)  # of those whose scores are above 0: every finding has a map
    config = tiny_config()
    config.domain = "brain-mri"
    settings = {"scan_size": [8, 16, 16], "in_plane_size": 16}
    processor = ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=train_tokenizer(ITEMS, 120, 24), **settings)
    return _shaken(ItemizedCLIPModel(config)), processor


def tiny_pictures():
    """Model and processor of aerial pictures."""
    from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    torch.manual_seed(16)
    config = tiny_config(num_channels=3, image_size=[1, 32, 32], patch_size=[1, 8, 8])
    config.domain = "remote-sensing"
    tokenizer = train_tokenizer(ITEMS, 120, 24)
    processor = ItemizedCLIPProcessor.from_domain("remote-sensing", tokenizer=tokenizer, scan_size=[1, 32, 32])
    return _shaken(ItemizedCLIPModel(config)), processor


def _shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def write_nifti(path: Path, seed: int = 0, shape=(44, 48, 12)) -> Path:
    """A head-like block in air, with some texture."""
    import nibabel

    values = np.random.default_rng(seed).normal(0, 20, shape)
    inner = tuple(slice(n // 6, n - n // 6) for n in shape)
    values[inner] += 300 + 150 * np.sin(np.arange(values[inner].size).reshape(values[inner].shape) / 40 + seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.abs(values).astype(np.float32), AFFINE), path)
    return path


def write_dicom_zip(path: Path, **fields) -> Path:
    """An MR series of 14 slices in a zip."""
    grid = make_grid("oblique", slices=14, size=(40, 44), distance=6.0)
    return zip_folder(save(make_series(grid, "MR", **fields), path.parent / f"{path.stem}-files"), path)


def write_picture(path: Path, seed: int = 0) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    return path


@contextmanager
def served(models, settings=None) -> Iterator[tuple[str, object]]:
    """Address of a running app, and the app."""
    from itemized_clip_hf.app.page import build_app

    app = build_app(models, settings)
    try:
        _, url, _ = app.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True)
        yield url, app
    finally:
        app.close(verbose=False)
        app.sessions.close()
