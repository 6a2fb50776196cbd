"""Reading the authors' checkpoints, and a state dict whose every key must be used exactly once."""

from pathlib import Path

import torch

_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(source) -> dict[str, torch.Tensor]:
    """
    Weights of a checkpoint: a state dict, a training dictionary that holds one, or the path of either.

    Pickled files are read with `weights_only=True`; nothing else in them is executed.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"there is no checkpoint {path}.")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            source = load_file(path)
        else:
            source = torch.load(path, map_location="cpu", weights_only=True)
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
