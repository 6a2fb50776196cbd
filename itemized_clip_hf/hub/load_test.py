"""
Whether a model folder loads and runs: in a process with the package, and in one without it from the folder's own code, offline.

Run as a script, this file is such a process, so that it must not import the package at its top.
"""

import os
import subprocess
import sys
import tempfile
from typing import Any

SECONDS = 600


def run_load_test(folder: str | os.PathLike) -> None:
    """
    Loads model and processor through the Auto classes and scores a generated image, with the package and without; both have to
    give the same numbers.

    Raises:
        ValueError: with the last line of what the process printed.
    """
    with tempfile.TemporaryDirectory() as place:
        for mode in ("package", "folder"):
            environment = {
                **{name: value for name, value in os.environ.items() if "TOKEN" not in name},
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": place,
                "HF_MODULES_CACHE": os.path.join(place, f"modules-{mode}"),
            }
            command = [sys.executable, os.path.abspath(__file__), os.path.abspath(folder), mode, place]
            try:
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                raise ValueError(f"{folder} fails its load test: it did not end within {SECONDS} s.") from None
            if done.returncode:
                where = "with the package" if mode == "package" else "from its own code, without the package"
                last = (done.stderr.strip().splitlines() or ["the process died"])[-1]
                raise ValueError(f"{folder} fails its load test {where}: {last}")


def load_and_score(folder: str, mode: str, place: str) -> None:
    """Scores a generated image, keeps the outputs (`package`), or compares with those kept (`folder`)."""
    if mode == "folder":
        hide("itemized_clip_hf")
    else:
        import itemized_clip_hf  # noqa: F401
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoProcessor

    trust = {"trust_remote_code": True} if mode == "folder" else {}
    architectures = AutoConfig.from_pretrained(folder, **trust).architectures or []
    is_classifier = "ItemizedCLIPForImageClassification" in architectures
    auto_class = AutoModelForImageClassification if is_classifier else AutoModel
    model = auto_class.from_pretrained(folder, dtype=torch.float32, **trust).eval()
    processor = AutoProcessor.from_pretrained(folder, **trust)
    made_for = model.config.preprocessing
    if made_for is not None and processor.preprocessing() != made_for:
        raise SystemExit("its processor has other settings or words than the model was made with")
    size = processor.image_processor.scan_size
    generator = torch.Generator().manual_seed(0)
    picture = size[0] == 1
    scan = (
        torch.rand(3, size[1] + 3, size[2], generator=generator) if picture else torch.rand(*size, generator=generator)
    )
    texts = {} if is_classifier else {"text": ["a finding", "another one"]}
    inputs = processor(images=[[scan]], **texts, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    logits = outputs.logits if is_classifier else outputs.logits_per_image
    if not (logits.shape == (1, model.config.num_labels if is_classifier else 2) and logits.isfinite().all()):
        raise SystemExit(f"logits of shape {tuple(logits.shape)}, or not finite")
    found = {"logits": logits}
    if not is_classifier:
        found |= {"embeds": outputs.image_embeds, "items": outputs.item_embeds}
    first = os.path.join(place, "outputs.pt")
    if mode == "package":
        torch.save(found, first)
        return
    for name, expected in torch.load(first, weights_only=True).items():
        if not torch.allclose(found[name], expected, atol=1e-4, rtol=1e-4):
            raise SystemExit(f"{name} differ from those of the package; its code may be of another version")


def hide(package: str) -> None:
    """Makes a package look as if it were not installed."""
    import importlib.abc

    class Hidden(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None):
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"{name} is hidden for the load test")

    sys.meta_path.insert(0, Hidden())


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file
    load_and_score(*sys.argv[1:])
