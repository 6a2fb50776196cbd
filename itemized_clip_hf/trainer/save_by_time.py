"""Checkpoints by the clock, for runs on machines that may be taken away."""

import time
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveByTime(TrainerCallback):
    """
    Asks for a checkpoint when `minutes` have passed since the last one, or since training began.

    The first process decides for all: clocks differ, and saving takes every process.
    """

    def __init__(self, minutes: float):
        if minutes <= 0:
            raise ValueError(f"save_minutes is {minutes}, expected more than 0.")
        self.seconds = 60 * minutes
        self._last = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self._last = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts the clock again."""
        self._last = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks for a checkpoint where the time is up."""
        due = time.monotonic() - self._last >= self.seconds
        if args.world_size > 1 and dist.is_initialized():
            flag = torch.tensor([float(due)], device=args.device)
            dist.broadcast(flag, 0)
            due = bool(flag.item())
        if due:
            control.should_save = True
