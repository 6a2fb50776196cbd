"""Checkpoints as the authors' training code writes them, with random weights: names and shapes of the recorded manifests."""

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(os.environ.get("ITEMIZED_CLIP_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
DOMAINS = {
    "manifest_hlipsn_biomedbert": "brain-mri",
    "manifest_ctrate_hlip_cxrbert": "chest-ct",
    "manifest_vit_b16_2d": "remote-sensing",
}


def write_training_file(manifest: str, path: Path, seed: int = 0) -> int:
    """Weights, AdamW's two moments of each, epoch, loss scaler, arguments; returns the bytes of the weights."""
    shapes = json.loads((GOLDEN / f"{manifest}.json").read_text())["state_dict"]
    generator = torch.Generator().manual_seed(seed)
    state = {name: random_weights(name, entry["shape"], generator) for name, entry in shapes.items()}
    moments = {
        i: {"step": torch.tensor(10.0), "exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.zeros_like(t)}
        for i, t in enumerate(state.values())
    }
    checkpoint = {
        "epoch": 24,
        "name": "run",
        "state_dict": state,
        "optimizer": {"state": moments, "param_groups": [{"lr": np.float64(1e-4), "params": list(moments)}]},
        "scaler": {"scale": 65536.0, "growth_tracker": 3},
        "args": argparse.Namespace(lr=1e-4, best=np.float32(0.5), tag=None),
    }
    torch.save(checkpoint, path)
    return sum(tensor.numel() * 4 for tensor in state.values())


def random_weights(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """About as large as those of a network: unit gains, products that keep the size of what comes in."""
    if name.endswith("logit_scale"):
        return torch.tensor(math.log(10.0))
    noise = torch.randn(shape, generator=generator)
    if len(shape) < 2:
        gain = name.endswith("weight") and any(part in name for part in ("norm", "ln_", "LayerNorm"))
        return 1 + 0.1 * noise if gain else 0.1 * noise
    fan = math.prod(shape[1:])
    return noise / math.sqrt(fan) if "embed" not in name else 0.1 * noise
