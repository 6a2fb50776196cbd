"""Reading the authors' checkpoints, and a state dict whose every key must be used exactly once."""

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..data.files import open_bounded

_PREFIXES = ("module.", "_orig_mod.")
_ZIP = b"PK\x03\x04"


def _allowed() -> list:
    """
    What training dictionaries hold besides tensors: arguments of the script and numpy's numbers. All of it is data; older
    files name numpy's function by the path it had before version 2.
    """
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    return [argparse.Namespace, np.dtype, *kinds, scalar, (scalar, "numpy.core.multiarray.scalar")]


def read_checkpoint(path: str | Path) -> dict:
    """
    What a checkpoint file holds. Pickled files are read with `weights_only=True`: tensors, plain containers, numpy's numbers
    and `argparse.Namespace`; anything else is refused by name, nothing is executed. Tensors of files in torch's present
    format stay on the disk until they are used.

    Raises:
        FileNotFoundError, ValueError: there is none, it is damaged, or it holds more or less than a dictionary of weights.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a checkpoint file (.pt, .safetensors).")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            mapped = file.read(len(_ZIP)) == _ZIP
        with torch.serialization.safe_globals(_allowed()):
            if mapped:
                content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            else:
                with open_bounded(path) as file:
                    content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged stream raises whatever the instruction that it ends in raises
        raise ValueError(
            f"{path} cannot be read as a checkpoint: {_reason(error)}. Only weights are read, nothing in a file is executed."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dictionary of weights.")
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)|got <class '([^']+)'", str(error))
        if named:
            return f"it holds an object of {next(filter(None, named.groups())).rstrip('.')}"
    if isinstance(error, (SafetensorError, RuntimeError)) and "central directory" not in str(error):
        return str(error).splitlines()[0].rstrip(".")
    return "it is truncated, damaged, or no checkpoint at all"


def read_state_dict(source: Any) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint: a state dict, a training dictionary that holds one, or the path of either."""
    if isinstance(source, (str, Path)):
        source = read_checkpoint(source)
    if "state_dict" in source:
        source = source["state_dict"]
    if not isinstance(source, dict):
        raise ValueError(f"this is not a state dict: it is a {type(source).__name__}.")
    state = dict(source)
    odd = [name for name in state if not isinstance(name, str)]
    if odd:
        raise ValueError(f"this is not a state dict: {len(odd)} of its keys are no names, e.g. {odd[0]!r}.")
    for prefix in _PREFIXES * 2:
        if state and all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    strangers = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if not state or strangers:
        raise ValueError(f"this is not a state dict: {len(state)} entries, not tensors: {strangers[:5]}.")
    for name, tensor in state.items():
        _check_tensor(name, tensor)
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}


def _check_tensor(name: str, tensor: torch.Tensor) -> None:
    """Weights are plain tensors of real numbers that the file holds, every one."""
    found = None
    if tensor.layout != torch.strided:
        found = f"sparse ({tensor.layout})"
    elif tensor.is_quantized:
        found = f"quantized ({tensor.dtype})"
    elif tensor.is_meta or tensor.is_complex():
        found = "without values" if tensor.is_meta else f"of complex numbers ({tensor.dtype})"
    elif tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), 1 << 28):
        found = f"of shape {tuple(tensor.shape)}, more than the file holds of it"
    if found:
        raise ValueError(f"the weight {name} is {found}, expected an ordinary tensor of real numbers.")


class Keys:
    """
    The source's tensors, handed out once each, so that what is missing and what is left over can be named.

    `table` holds source name -> name in the model, `dropped` the sources that the model has no use for.
    """

    def __init__(self, state: dict[str, torch.Tensor]):
        self.left = dict(state)
        self.missing: list[str] = []
        self.table: dict[str, str] = {}
        self.dropped: list[str] = []

    def has(self, prefix: str) -> bool:
        """Whether a name that was not taken yet starts so."""
        return any(name.startswith(prefix) for name in self.left)

    def take(self, name: str, target: str) -> torch.Tensor | None:
        """The tensor of that name, or None, and the name is reported."""
        if name not in self.left:
            self.missing.append(name)
            return None
        if target in self.table.values():
            first = next(source for source, taken in self.table.items() if taken == target)
            raise ValueError(f"{first} and {name} are the same weight in the model ({target}): which one is meant?")
        self.table[name] = target
        return self.left.pop(name)

    def sources(self) -> dict[str, str]:
        """Name in the model -> source name; a source that is split stands for each of its parts."""
        parts = [(target.replace("{q,k,v}", part), source) for source, target in self.table.items() for part in "qkv"]
        return dict(parts)

    def drop(self, name: str) -> None:
        """Takes a tensor that something else replaces."""
        if self.left.pop(name, None) is not None:
            self.dropped.append(name)

    def check(self) -> None:
        """Raises if a key was missing or is left over."""
        problems = []
        if self.missing:
            problems.append(f"missing keys: {', '.join(sorted(self.missing))}")
        if self.left:
            problems.append(f"left-over keys: {', '.join(sorted(self.left))}")
        if problems:
            raise ValueError("the checkpoint does not have the expected layout; " + "; ".join(problems))
