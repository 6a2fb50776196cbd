"""Ctrl-C and SIGTERM in training: the step is finished, a checkpoint is saved, and who waits is told how to go on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_PRESS = 2.0
"""Seconds in which further signals are the same one: launchers pass on what their processes have already got."""


class TrainingInterruptedError(Exception):
    """
    Training was ended by a signal.

    Args:
        number: of the signal; a shell expects the exit status 128 + number.
        message: what is saved, and how to go on.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a shell expects: 128 + number."""
        return 128 + self.number


class Interrupts(TrainerCallback):
    """
    While `listening`, the first signal ends training after the step, with a checkpoint; a later one ends it at once.

    All processes of a run stop after the same step, whichever of them got the signal.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._saved_at: int | None = None
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears SIGINT and SIGTERM inside this context; the handlers of before are put back."""
        if threading.current_thread() is not threading.main_thread():  # others cannot have handlers
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._hear_in_worker(number)
        elif self.number is None:
            self.number, self._since = number, time.monotonic()
            os.write(2, b"\nfinishing this step, then a checkpoint is saved; once more ends it at once\n")
        elif time.monotonic() - self._since > ONE_PRESS:
            raise KeyboardInterrupt

    def _hear_in_worker(self, number: int) -> None:
        """Processes that read studies get the signals of a terminal too, and are needed until the step is done."""
        if number == signal.SIGTERM and self.number is not None:
            os._exit(128 + number)
        if number == signal.SIGTERM:
            self.number = number

    def _agreed(self, args: TrainingArguments) -> int | None:
        if args.world_size > 1 and dist.is_initialized():
            flag = torch.tensor(float(self.number or 0), device=args.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            self.number = int(flag.item()) or None
        return self.number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends training and asks for a checkpoint once any process got a signal."""
        if self._agreed(args) is not None:
            args.save_only_model = False  # what is saved now has to be enough to go on
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remembers the step that was saved."""
        self._saved_at = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Within an epoch nothing is due but the checkpoint, where an evaluation has kept it from being saved."""
        if self.number is not None and state.epoch is not None and state.epoch % 1:
            control.should_evaluate = control.should_log = False
            control.should_save = self._saved_at != state.global_step
