"""A training run of a head in its folder: what every task does, whatever its head."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ..from_recipe import refuse_unknown, rename_checkpointing, strategies_of_steps
from ..interrupts import Interrupts
from ..output_folder import checkpoint_to_resume, held
from ..run_record import RunRecord
from ..until_signal import train_until_signal
from ..used_folder import require_unused
from .arguments import SupervisedArguments
from .trainer import SupervisedTrainer


def supervised_arguments(
    output: str | os.PathLike[str], settings: dict[str, Any], **defaults: Any
) -> SupervisedArguments:
    """
    Training arguments as they are stated.

    Args:
        settings: of the user.
        defaults: of the task; settings win.

    Raises:
        ValueError: an argument is unknown, or could only be ignored.
    """
    merged = {
        "logging_strategy": "epoch",
        "save_strategy": "epoch",
        **defaults,
        **settings,
        **strategies_of_steps(settings),
    }
    rename_checkpointing(merged)
    refuse_unknown(merged, SupervisedArguments)
    return SupervisedArguments(output_dir=str(output), **merged)


def train_in_folder(
    build: Callable[[], SupervisedTrainer],
    output: str | os.PathLike[str],
    resume: bool = False,
    interrupts: Interrupts | None = None,
    record: RunRecord | None = None,
) -> SupervisedTrainer:
    """
    Trains, and saves model, processor and state in the output folder, which must not hold another run.

    Args:
        build: makes the Trainer, also of a run that goes on: its model as the run was begun with, which the checkpoint fills.
        resume: go on from the last checkpoint in `output` that was written to its end; from the beginning without one.
        interrupts: ends training at SIGINT and SIGTERM with a checkpoint, and a `TrainingInterruptedError`.
        record: of the options that the run was begun with; kept in `output` for the one that goes on.

    Raises:
        ValueError: the folder holds another run, is in use, or cannot be written.
        TrainingInterruptedError: a signal ended it.
    """
    checkpoint = checkpoint_to_resume(output) if resume else None
    if not resume:
        require_unused(output)
    trainer = build()
    with interrupts.listening() if interrupts is not None else nullcontext():
        is_first = trainer.args.process_index == 0
        with held(output, resume, is_first):
            if record is not None and is_first:
                record.write(output)
            train_until_signal(trainer, checkpoint, interrupts)
    return trainer
