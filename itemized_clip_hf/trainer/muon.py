"""Muon for the matrices of the model, AdamW for everything else, as one optimizer."""

from collections import defaultdict
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from ..models.precision import multiplies_bf16

MOMENTUM = 0.95


class BatchedMuon(torch.optim.Muon):
    """
    `torch.optim.Muon`, faster: matrices of one shape are made orthogonal together, and in float32 where bf16 is slow.

    A CPU that does not multiply bf16 spends most of a small model's training on the original. Momentum, decay and steps are
    those of the original; `adjust_lr_fn` is always "match_rms_adamw", and Nesterov momentum always on.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; returns what `closure` does."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            shapes = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape, parameter.device, parameter.dtype].append(parameter)
            for parameters in shapes.values():
                self._step_alike(parameters, group)
        return loss

    def _step_alike(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Parameters of one shape, device and type."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter, gradient in zip(parameters, gradients):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch.stack(torch._foreach_lerp(gradients, buffers, group["momentum"]))
        turned = orthogonal(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(turned.to(parameters[0].dtype)), alpha=-rate)


def orthogonal(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7
) -> torch.Tensor:
    """
    Matrices with nearly the same singular vectors and singular values near 1, by the Newton-Schulz iteration of Muon.

    Args:
        matrices: (n, rows, columns).
        coefficients: of the iteration's odd polynomial of degree five.

    Returns:
        (n, rows, columns), in bf16 where the device multiplies it fast, else in float32.
    """
    fast = matrices.is_cuda or multiplies_bf16()
    turned = matrices.to(torch.bfloat16 if fast else torch.float32)
    upright = matrices.shape[1] > matrices.shape[2]
    if upright:
        turned = turned.mT
    turned = turned / turned.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    linear, cubic, quintic = coefficients
    for _ in range(steps):
        gram = turned @ turned.mT
        change = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        turned = torch.baddbmm(turned, change, turned, beta=linear)
    return turned.mT if upright else turned


class MuonWithAdamW(Optimizer):
    """
    Muon and AdamW side by side.

    Weights of linear layers are moved by Muon (`torch.optim.Muon`: momentum, made orthogonal), with steps of the size that
    AdamW's have, so that learning rates are comparable; embeddings, positions, kernels, norms, biases, scale and bias of the
    logits are moved by `adamw`.

    Args:
        adamw: the optimizer of all parameters; loses those that Muon takes.
        matrices: (rows, columns) weights, each a parameter of `adamw`.
        learning_rate, weight_decay: of the matrices.

    Both share their groups with this optimizer, so that schedulers and clipping see all of them.
    """

    def __init__(self, adamw: Optimizer, matrices: list[torch.Tensor], learning_rate: float, weight_decay: float = 0.1):
        taken = {id(matrix) for matrix in matrices}
        for group in adamw.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]
        muon = BatchedMuon(
            matrices,
            lr=learning_rate,
            weight_decay=weight_decay,
            momentum=MOMENTUM,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        )
        self.parts = {"adamw": adamw, "muon": muon}
        super().__init__(
            [{"params": [p for part in self.parts.values() for g in part.param_groups for p in g["params"]]}], {}
        )
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both; returns what `closure` does."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """States of both, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To AdamW, once both are there."""
        if not self.param_groups:
            return super().add_param_group(param_group)
        self.parts["adamw"].add_param_group(param_group)
        self._share_groups()


def linear_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """Weights of all linear layers that are trained."""
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module.weight.requires_grad
    ]
