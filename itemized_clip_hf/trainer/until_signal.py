"""Training to its end or to a signal, and what is saved then."""

import signal
from typing import cast

from transformers import Trainer

from .checkpoints import last_complete_checkpoint
from .interrupts import Interrupts, TrainingInterruptedError


def train_until_signal(trainer: Trainer, checkpoint: str | None, interrupts: Interrupts | None = None) -> None:
    """
    Trains, and saves model and state in the output folder.

    Args:
        checkpoint: folder to go on from.

    Raises:
        TrainingInterruptedError: a signal ended it; what is saved stands in its message.
    """
    if interrupts is None:
        train_and_save(trainer, checkpoint)
        return
    trainer.add_callback(interrupts)
    try:
        train_and_save(trainer, checkpoint, interrupts)
    except (KeyboardInterrupt, RuntimeError):
        if interrupts.number is None:
            raise
        raise interrupted(trainer, interrupts, "Training was ended within a step") from None
    if interrupts.number is not None:
        saved = f"Training was complete; the model is saved in {trainer.args.output_dir}."
        raise TrainingInterruptedError(interrupts.number, saved)


def train_and_save(trainer: Trainer, checkpoint: str | None, interrupts: Interrupts | None = None) -> None:
    """Trains to the end and saves model and state; to the step that a signal ends, and saves nothing more then."""
    trainer.train(resume_from_checkpoint=checkpoint)
    if interrupts is not None and interrupts.number is not None and trainer.state.global_step < trainer.state.max_steps:
        raise interrupted(trainer, interrupts, f"Training was ended after step {trainer.state.global_step}")
    trainer.save_model(cast(str, trainer.args.output_dir))
    trainer.save_state()


def interrupted(trainer: Trainer, interrupts: Interrupts, what: str) -> TrainingInterruptedError:
    """What happened, what is saved, and how to go on."""
    last = last_complete_checkpoint(cast(str, trainer.args.output_dir))
    saved = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
    return TrainingInterruptedError(
        interrupts.number or signal.SIGINT, f"{what}; {saved}. To go on, add --resume to the command."
    )
