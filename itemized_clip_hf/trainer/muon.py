"""Muon for the matrices of the model, AdamW for everything else, as one optimizer."""

from typing import Any

import torch
from torch.optim.optimizer import Optimizer

MOMENTUM = 0.95


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
        muon = torch.optim.Muon(
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
