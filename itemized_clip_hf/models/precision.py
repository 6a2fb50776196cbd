"""In which numbers a model works when it scores: as its weights are saved, float32, or bf16 as in training."""

from contextlib import AbstractContextManager, nullcontext

import torch

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel

PRECISIONS = ("auto", "fp32", "bf16")


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16, without which they are slower than those of float32."""
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def weights_dtype(precision: str) -> torch.dtype | str | None:
    """`dtype` of `load` for a precision: that of the saved weights for `auto`, float32 for the others."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}.")
    return "auto" if precision == "auto" else torch.float32


def working_precision(model: ItemizedCLIPModel, precision: str) -> AbstractContextManager:
    """A context for the model's forward passes: bf16 products with float32 weights, as training does, for `bf16`."""
    return torch.autocast(model.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def describe_precision(model: ItemizedCLIPModel, precision: str) -> str:
    """`float32`, or `bf16 (weights float32)`."""
    dtype = str(model.dtype).removeprefix("torch.")
    return f"bf16 (weights {dtype})" if precision == "bf16" else dtype
