"""A saved model loads where the package cannot be imported, saves again and loads that."""

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
print("ok")
"""


def test_round_trip_without_the_package(tmp_path, tokenizer):
    from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor

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
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("ok"), done.stderr[-3000:]
