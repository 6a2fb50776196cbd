"""Groups of parameters, optimizer and learning rates of a training run."""

import math
from functools import partial
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .base import TrainerBase
from .muon import MuonWithAdamW, linear_weights

MAX_LOGIT_SCALE = math.log(100)


class ClampLogitScale(TrainerCallback):
    """Keeps the logit scale in [0, ln 100] after every optimizer step."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Clamps the scale in place, on every process its own part."""
        with torch.no_grad():
            scale = model.logit_scale
            (scale.to_local() if isinstance(scale, DTensor) else scale).clamp_(0, MAX_LOGIT_SCALE)


class ScheduledTrainer(TrainerBase):
    """What is decayed, and the papers' schedule."""

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """
        Matrices and embeddings only: no decay on norms, biases, scale and the like.

        The class token of the volume towers is decayed, that of the picture towers is not, as in the released code.
        """
        config: Any = self.accelerator.unwrap_model(model).config
        volumes = config.vision_config.position_embedding_type == "sincos"
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 or volumes and name.endswith("class_embedding")
        ]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """
        Cosine to zero after a linear warm-up that starts at lr / warmup instead of 0; other types are the library's.

        The warm-up of a group of parameters is its `warmup_steps` where it has some.
        """
        if self.args.lr_scheduler_type != "cosine" or self.args.lr_scheduler_kwargs:
            scheduler: torch.optim.lr_scheduler.LRScheduler = super().create_scheduler(num_training_steps, optimizer)
            return scheduler
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            scheduled = cast(torch.optim.Optimizer, optimizer if optimizer is not None else self.optimizer)
            factors: list[Any] = [
                partial(cosine_with_warmup, warmup=group.get("warmup_steps", warmup), total=num_training_steps)
                for group in scheduled.param_groups
            ]
            self.lr_scheduler = LambdaLR(scheduled, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler


class OptimizingTrainer(ScheduledTrainer):
    """Besides, the objective's own groups, and Muon."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Parameters of the objective leave the library's groups for those that the objective asks for."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        module: Any = self.accelerator.unwrap_model(self.model)
        module = module.objective_module
        moved: set[int] = set()
        if is_new and module is not None:
            for objective_group in self.objective.parameter_groups(module):
                parameters = {id(parameter) for parameter in objective_group["params"]}
                moved |= parameters
                for group in optimizer.param_groups:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in parameters]
                optimizer.add_param_group(objective_group)
        if is_new and self.args.muon_learning_rate is not None:
            matrices = [weight for weight in linear_weights(self.model) if id(weight) not in moved]
            optimizer = self.optimizer = MuonWithAdamW(
                optimizer, matrices, self.args.muon_learning_rate, self.args.muon_weight_decay
            )
        return optimizer


def cosine_with_warmup(step: int, warmup: int, total: int) -> float:
    """
    Factor of the learning rate at a step.

    >>> [round(cosine_with_warmup(step, warmup=4, total=8), 2) for step in range(9)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
