"""What an output folder holds already. Nothing heavy is imported here, so that it is told at once."""

import os
from pathlib import Path

CHECKPOINT, STATE = "checkpoint", "trainer_state.json"
"""The library's names of a checkpoint's folder and of its last file."""
MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", STATE)


def checkpoint_folders(folder: str | os.PathLike[str]) -> list[Path]:
    """All checkpoints of a run, also those that were not written to their end, by their step."""
    found = []
    for path in Path(folder).glob(f"{CHECKPOINT}-*"):
        step = path.name.removeprefix(f"{CHECKPOINT}-")
        if path.is_dir() and step.isdigit():
            found.append((int(step), path))
    return [path for _, path in sorted(found)]


def require_unused(output: str | os.PathLike[str]) -> None:
    """
    Looks at an output folder before a new run.

    Raises:
        ValueError: it holds an earlier run or a model.
    """
    steps = [path.name.rpartition("-")[2] for path in checkpoint_folders(output)]
    files = [name for name in MODEL_FILES if (Path(output) / name).exists()]
    if steps or files:
        held = f"checkpoints of an earlier run, up to step {steps[-1]}" if steps else f"a model already ({files[0]})"
        raise ValueError(
            f"{output} holds {held}: pass --resume (resume=True) to go on with that run, or choose another output folder. "
            "Nothing was changed."
        )
