"""Recorded numbers of the reference code: the small cases are in `tests/golden`, all of them beside the checkout."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FOLDERS = [
    Path(__file__).parents[1] / "golden",
    Path(os.environ.get("ITEMIZED_CLIP_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")),
]


def case(name: str) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Sidecar, tensors and state dict (empty for cases without a model); skips where the case is not at hand."""
    for folder in FOLDERS:
        if (folder / f"{name}.json").exists():
            plain, state, io = (folder / f"{name}{part}.safetensors" for part in ("", "_state", "_io"))
            if plain.exists():
                return json.loads((folder / f"{name}.json").read_text()), load_file(plain), {}
            if state.exists() and io.exists():
                return json.loads((folder / f"{name}.json").read_text()), load_file(io), load_file(state)
    pytest.skip(f"the golden case {name} is not in {FOLDERS[0]} and {FOLDERS[1]} is absent")


def names(pattern: str) -> list[str]:
    """Names of the cases in `tests/golden` that match."""
    return sorted(path.stem for path in FOLDERS[0].glob(f"{pattern}.json"))


def assert_close(actual, expected, what: str = "", tolerance: float = 1e-4):
    """Within tolerance * max(1, largest expected value), the agreement that the recordings allow."""
    actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).double()
    actual = actual.reshape(expected.shape)
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=tolerance, msg=lambda m: f"{what}: {m}")
