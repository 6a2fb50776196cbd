"""Reading the authors' checkpoints, and a state dict whose every key must be used exactly once."""

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

_PREFIXES = ("module.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> dict:
    """
    What a checkpoint file holds. Pickled files are read with `weights_only=True`; nothing else in them is executed.

    Raises:
        FileNotFoundError, ValueError: there is none, it is damaged, or it holds more or less than a dictionary of weights.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        strange = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds an object of {strange[1]}" if strange else str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as a checkpoint: {reason}. Only weights are read, nothing in a file is executed."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of weights.")
    return content


def read_state_dict(source) -> dict[str, torch.Tensor]:
    """
    Weights of a checkpoint: a state dict, a training dictionary that holds one, or the path of either (`read_checkpoint`).
    """
    if isinstance(source, (str, Path)):
        source = read_checkpoint(source)
    if "state_dict" in source:
        source = source["state_dict"]
    state = dict(source)
    for prefix in _PREFIXES * 2:
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    strangers = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if not state or strangers:
        raise ValueError(f"this is not a state dict: {len(state)} entries, not tensors: {strangers[:5]}.")
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}


class Keys:
    """The source's tensors, handed out once each, so that what is missing and what is left over can be named."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.left = dict(state)
        self.missing: list[str] = []

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.left)

    def take(self, name: str, target: str) -> torch.Tensor | None:
        """The tensor of that name, or None, and the name is reported."""
        if name not in self.left:
            self.missing.append(name)
            return None
        return self.left.pop(name)

    def check(self):
        """Raises if a key was missing or is left over."""
        problems = []
        if self.missing:
            problems.append(f"missing keys: {', '.join(sorted(self.missing))}")
        if self.left:
            problems.append(f"left-over keys: {', '.join(sorted(self.left))}")
        if problems:
            raise ValueError("the checkpoint does not have the expected layout; " + "; ".join(problems))
