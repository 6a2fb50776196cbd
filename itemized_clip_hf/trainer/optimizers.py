"""Groups of parameters, optimizer and learning rates of a training run."""

import math
from functools import partial
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback

from .muon import MuonWithAdamW, linear_weights
from .objectives import Objective

MAX_LOGIT_SCALE = math.log(100)


class ClampLogitScale(TrainerCallback):
    """Keeps the logit scale in [0, ln 100] after every optimiser step."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            scale = model.logit_scale
            (scale.to_local() if isinstance(scale, DTensor) else scale).clamp_(0, MAX_LOGIT_SCALE)


class OptimizingTrainer(Trainer):
    """Decay, the objective's own groups, Muon, and the papers' schedule."""

    objective: Objective

    def get_decay_parameter_names(self, model) -> list[str]:
        """
        Matrices and embeddings only: no decay on norms, biases, scale and the like.

        The class token of the volume towers is decayed, that of the picture towers is not, as in the released code.
        """
        volumes = self.accelerator.unwrap_model(model).config.vision_config.position_embedding_type == "sincos"
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 or volumes and name.endswith("class_embedding")
        ]

    def create_optimizer(self, *args, **kwargs):
        """Parameters of the objective leave the library's groups for those that the objective asks for."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        module = self.accelerator.unwrap_model(self.model).objective_module
        own: set[int] = set()
        if created and module is not None:
            for chosen in self.objective.parameter_groups(module):
                moved = {id(parameter) for parameter in chosen["params"]}
                own |= moved
                for group in optimizer.param_groups:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
                optimizer.add_param_group(chosen)
        if created and self.args.muon_learning_rate is not None:
            matrices = [weight for weight in linear_weights(self.model) if id(weight) not in own]
            optimizer = self.optimizer = MuonWithAdamW(
                optimizer, matrices, self.args.muon_learning_rate, self.args.muon_weight_decay
            )
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """
        Cosine to zero after a linear warm-up that starts at lr / warmup instead of 0; other types are the library's.

        The warm-up of a group of parameters is its `warmup_steps` where it has some.
        """
        if self.args.lr_scheduler_type != "cosine" or self.args.lr_scheduler_kwargs:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)

            def factor(step: int, warmup: int) -> float:
                if step < warmup:
                    return (step + 1) / warmup
                return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, num_training_steps - warmup))))

            chosen = cast(torch.optim.Optimizer, optimizer if optimizer is not None else self.optimizer)
            factors: list[Any] = [
                partial(factor, warmup=group.get("warmup_steps", warmup)) for group in chosen.param_groups
            ]
            self.lr_scheduler = LambdaLR(chosen, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler
