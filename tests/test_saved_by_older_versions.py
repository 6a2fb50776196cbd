"""
What older versions wrote loads and gives the same numbers.

`fixtures/d913de0` was written by that commit of this package: a tiny model and its processor for three domains, inputs, what
they gave, and a prepared folder of two generated studies.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from itemized_clip_hf.data.studies.records import read_records
from itemized_clip_hf.models.load import load

FOLDER = Path(__file__).parent / "fixtures" / "d913de0"
RECORDED = json.loads((FOLDER / "recorded.json").read_text())


def image_of(domain: str):
    inputs = np.load(FOLDER / "inputs.npz")
    if domain == "brain-mri":
        return {"AX_T2": inputs["t2"].astype(np.float32), "AX_FLAIR": inputs["flair"].astype(np.float32)}
    return inputs["chest"] if domain == "chest-ct" else inputs["picture"]


@pytest.mark.parametrize("way", ["load", "auto"])
@pytest.mark.parametrize("domain", ["brain-mri", "chest-ct", "remote-sensing"])
def test_models_give_the_same_logits(domain, way):
    folder, expected = FOLDER / domain, RECORDED[domain]
    if way == "load":
        model, processor = load(folder, device="cpu")
    else:
        model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    batch = processor(images=[image_of(domain)], text=RECORDED["items"], return_tensors="pt")
    assert list(batch["pixel_values"].shape) == expected["shape"]
    assert batch["pixel_values"].double().sum().item() == expected["pixels"]
    with torch.no_grad():
        logits = model(**batch).logits_per_image
    torch.testing.assert_close(logits.double(), torch.tensor(expected["logits"]).double(), atol=1e-5, rtol=1e-5)


def test_prepared_folders_give_the_same_pixels():
    pytest.importorskip("datasets")
    processor = load(FOLDER / "brain-mri", device="cpu")[1].image_processor
    records = list(read_records(FOLDER / "prepared"))
    assert [record["id"] for record in records] == [row["id"] for row in RECORDED["prepared"]]
    for record, expected in zip(records, RECORDED["prepared"]):
        batch = processor(images=[record["images"]], return_tensors="pt")
        assert record["items"] == expected["items"] and list(batch["pixel_values"].shape) == expected["shape"]
        assert batch["pixel_values"].double().sum().item() == expected["sum"]
        assert batch["scan_name_ids"].sum().item() == expected["names"]
