"""Full-size training files, written from the recorded manifests: every key, another process, time and memory."""

import json
import os
import subprocess
import sys

import pytest
from training_files import DOMAINS, GOLDEN, write_training_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (GOLDEN / "manifest_vit_b16_2d.json").exists(), reason=f"no manifests at {GOLDEN}"),
]

MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""
LOAD = """
import sys
import itemized_clip_hf, torch
from transformers import AutoModel, AutoProcessor
model, processor = AutoModel.from_pretrained(sys.argv[1]).eval(), AutoProcessor.from_pretrained(sys.argv[1])
vision = model.config.vision_config
study = [torch.randn(vision.image_size[0] + 3, 90, 80)] if vision.image_size[0] > 1 else [torch.rand(3, 90, 80)]
inputs = processor(images=[study], text=["left frontal mass", "airport"], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits_per_image
assert logits.shape == (1, 2) and logits.isfinite().all()
print(sum(p.numel() for p in model.parameters()))
"""


@pytest.mark.parametrize("manifest", DOMAINS)
def test_full_size(tmp_path, data_folder, manifest):
    domain = DOMAINS[manifest]
    shapes = json.loads((GOLDEN / f"{manifest}.json").read_text())["state_dict"]
    weights = write_training_file(manifest, tmp_path / "c.pt")
    vocabulary = "bpe_simple_vocab_16e6.txt.gz" if domain == "remote-sensing" else "bert_base_uncased_vocab.txt"
    command = [sys.executable, "-m", "itemized_clip_cli", "convert"]
    command += f"-i c.pt --domain {domain} -o model --json --accept other-vocabulary".split()
    command += ["--tokenizer", str(data_folder / "tokenizers" / vocabulary)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    measured = [sys.executable, "-c", MEASURE, *command]
    done = subprocess.run(measured, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    peak = 1024 * int(done.stderr.split()[-1])
    report = json.loads(done.stdout)
    assert {f"module.{name}" for name in report["keys"]} == set(shapes) and not report["replaced"]
    assert report["parity"]["clean"] and report["initial_values"] == []
    assert peak < 2 * weights, f"{peak / 2**20:.0f} MiB for {weights / 2**20:.0f} MiB of weights"
    (tmp_path / "c.pt").unlink()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "model"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    frozen = sum(n.endswith("spatial_posemb") for n in shapes)  # a buffer
    assert int(done.stdout) <= weights // 4 and frozen <= 1
