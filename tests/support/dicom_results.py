"""Results of an untrained model, and what DICOM objects say of places, worked out from their attributes alone."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import ITEMS, tiny_config


def explain(study, prompts=ITEMS[:1], domain="brain-mri", seed=0, **settings):
    """What a tiny model of a domain finds in a study; scans that cannot be used are left out."""
    from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
    from itemized_clip_hf.explain.encoded import explain_result
    from itemized_clip_hf.models.tokenizer import train_tokenizer
    from itemized_clip_hf.provenance import describe_model, hash_model, hash_processor

    torch.manual_seed(seed)
    config = tiny_config()
    config.domain = domain
    model = ItemizedCLIPModel(config).eval()
    tokenizer = train_tokenizer(ITEMS, 120, 24)
    processor = ItemizedCLIPProcessor.from_domain(
        domain, tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16, **settings
    )
    about = describe_model(model, hash_model(model), hash_processor(processor))
    study = study if not isinstance(study, Path) else str(study)
    return explain_result(model, processor, study, prompts, about=about, on_bad_scan=lambda name, error: None)


def draw_quickly(monkeypatch) -> None:
    """Pictures of one color in place of montages, which take longer than all the rest of a study."""
    from PIL import Image

    def draw(maps, path, **settings):
        Image.new("RGB", (32, 16), "red").save(path, format="png")

    monkeypatch.setattr("itemized_clip_hf.explain.dicom.secondary_capture.plot_item", draw)
    monkeypatch.setattr("itemized_clip_hf.explain.studies.plot_item", draw)


def frames_to_ras(dataset) -> list[np.ndarray]:
    """Of each frame (4, 3): (row, column, 1) @ it is RAS mm, by PS3.3 C.7.6.2.1.1."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows, columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found = []
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        found.append(np.stack([cosines[3:] * rows, cosines[:3] * columns, position]) * [-1, -1, 1])
    return found


def assert_lies_on(dataset, values: np.ndarray, nifti) -> None:
    """Every frame lies on a slice of a NIfTI volume, within 0.1 mm at its corners, and holds what stands there (some of it)."""
    inverse = np.linalg.inv(nifti.affine)
    volume = np.asarray(nifti.dataobj)
    rows, columns = values.shape[1:]
    seen = set()
    for frame, matrix in zip(values, frames_to_ras(dataset), strict=True):
        corners = np.array([[0, 0, 1], [rows - 1, 0, 1], [0, columns - 1, 1], [rows - 1, columns - 1, 1]]) @ matrix
        voxels = corners @ inverse[:3, :3].T + inverse[:3, 3]
        nearest = np.rint(voxels)
        assert np.abs((nearest - voxels) @ nifti.affine[:3, :3].T).max() < 0.1
        slices = set(nearest[:, 2])  # the third axis of our NIfTI files runs through the slices
        assert len(slices) == 1 and not slices & seen
        seen |= slices
        chosen = [np.arange(0, size, 1 + size // 64) for size in (rows, columns)]
        indices = np.stack(np.meshgrid(*chosen, [1], indexing="ij"), -1)[:, :, 0]
        places = np.rint(indices @ matrix @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        np.testing.assert_allclose(frame[np.ix_(*chosen)], volume[tuple(np.moveaxis(places, -1, 0))], rtol=1e-6)
    assert len(seen) == volume.shape[2]


def errors_of(paths) -> list[str]:
    """What `dciodvfy` calls errors in DICOM files."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    found = []
    for path in paths:
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        found += [f"{path.name}: {line}" for line in lines if line.startswith("Error") or "abort" in line.lower()]
    return found
