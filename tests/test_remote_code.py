"""Saved models load where the package cannot be imported, save again and load that."""

import os
import subprocess
import sys

import torch
from tiny_models import ITEMS, tiny_config

SCRIPT = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "itemized_clip_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModel, AutoProcessor
folder = sys.argv[1]
scans, items, expected = torch.load(folder + "/expected.pt")
for source in (folder, folder + "/again"):
    model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    inputs = processor(images=scans, text=items, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits_per_image, expected)
    try:
        model(**inputs, return_loss=True)
    except ImportError as error:
        assert "pip install" in str(error)
    else:
        raise AssertionError("the loss needs the package")
    try:
        processor(images="scan.nii.gz")
    except ImportError as error:
        assert "pip install" in str(error)
    else:
        raise AssertionError("reading files needs the package")
    model.save_pretrained(folder + "/again")
    processor.save_pretrained(folder + "/again")
from transformers import AutoModelForImageClassification
for source in (folder + "/classifier", folder + "/classifier/again"):
    classifier = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True).eval()
    with torch.no_grad():
        found = classifier(**processor(images=scans, return_tensors="pt"), labels=torch.tensor([[1.0, float("nan")]]))
    torch.testing.assert_close((found.loss, found.logits), torch.load(folder + "/classifier/expected.pt"))
    assert classifier.label_names == ["mass", "bleed"]
    classifier.save_pretrained(folder + "/classifier/again")
print("ok")
"""


def test_round_trip_without_the_package(tmp_path, tokenizer):
    from itemized_clip_hf import ItemizedCLIPForImageClassification, ItemizedCLIPModel, ItemizedCLIPProcessor

    torch.manual_seed(0)
    model = ItemizedCLIPModel(tiny_config(use_scan_name_encoder=True, scan_name_hidden_size=32)).eval()
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    scans = {"AX_T1": torch.randn(6, 20, 18), "AX_T2": torch.randn(6, 20, 18)}
    inputs = processor(images=scans, text=[ITEMS], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save((scans, [ITEMS], expected), tmp_path / "expected.pt")
    classifier = ItemizedCLIPForImageClassification.from_prompts(
        model, processor, {"mass": ITEMS[0], "bleed": ITEMS[1:3]}
    )
    classifier.save_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        found = classifier(**processor(images=scans, return_tensors="pt"), labels=torch.tensor([[1.0, float("nan")]]))
    torch.save((found.loss, found.logits), tmp_path / "classifier" / "expected.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("ok"), done.stderr[-3000:]
