"""Checkpoints of a training run: written whole, and gone on from only where they are whole."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from ..bars import without_library_bars
from ..data.studies.training_ids import remember
from ..domains import save_domain
from ..models.adapters import has_adapters, load_adapter_weights, save_adapters
from .base import TrainerBase
from .distributed import own_class
from .used_folder import checkpoint_folders

logger = logging.get_logger(__name__)


def is_complete(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint was written to its end: the state of the trainer is its last file."""
    try:
        state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and "global_step" in state


def last_complete_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The last checkpoint of a run that was written to its end; a run may have been killed while it wrote another."""
    complete = [path for path in checkpoint_folders(folder) if is_complete(path)]
    return str(complete[-1]) if complete else None


def remove_incomplete_checkpoints(folder: str | os.PathLike[str]) -> None:
    """Removes the checkpoints of a run that were not written to their end, and says so."""
    for path in checkpoint_folders(folder):
        if not is_complete(path):
            logger.warning(f"{path} was not written to its end and is removed")
            shutil.rmtree(path)


def require_training_state(checkpoint: str | os.PathLike[str]) -> None:
    """
    Checks that training can go on from a checkpoint as if it had never stopped.

    Raises:
        ValueError: it cannot: files are missing or damaged.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(f"{checkpoint} is not a checkpoint: there is no such folder.")
    if not is_complete(folder):
        raise ValueError(
            f"{checkpoint} was not written to its end ({TRAINER_STATE_NAME} is missing or damaged): go on from an earlier "
            "checkpoint."
        )
    missing = [name for name in (OPTIMIZER_NAME, SCHEDULER_NAME) if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{checkpoint} has no {' and no '.join(missing)} (save_only_model leaves them out): to go on would start the "
            "optimizer and the warm-up again. Start a new run from its weights (--model, or the model argument), or save "
            "with save_only_model=False."
        )


def require_finite(model: torch.nn.Module) -> None:
    """
    Checks the weights before they are saved.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    for name, parameter in model.named_parameters():
        values = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise ValueError(
                f"the weight {name} is NaN or infinite: training has diverged and nothing is saved. Go on from an earlier "
                "checkpoint with a lower learning rate, a longer warm-up, or max_grad_norm=1."
            )


class UnwrittenError(OSError):
    """A model or a checkpoint could not be written."""


@contextmanager
def unwritten_named(folder: Path, run: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the errors of a full disk or one that cannot be written, which have many types, into one that says what to do."""
    try:
        yield
    except UnwrittenError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not re.search(
            "PytorchStreamWriter|inline_container|iostream", str(error)
        ):
            raise
        before = [path for path in checkpoint_folders(run) if path != folder and is_complete(path)]
        earlier = f"The last checkpoint is {before[-1]}" if before else "There is no earlier checkpoint"
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        raise UnwrittenError(
            f"{folder} could not be written: {error}. {shutil.disk_usage(place).free / 1e9:.1f} GB are free there. {earlier}; "
            "make room, and go on with --resume (resume_from_checkpoint=True)."
        ) from error


class CheckpointingTrainer(TrainerBase):
    """Checkpoints of sharded models and of adapters; no checkpoint is half a checkpoint."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the library's, from checkpoints that hold all that it takes to go on; see `find_checkpoint`."""
        return super().train(self.find_checkpoint(resume_from_checkpoint), *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        As the library's.

        Raises:
            ValueError: a weight is NaN or infinite. Nothing is written then.
            UnwrittenError: the folder could not be written.
        """
        require_finite(self.model)
        with unwritten_named(Path(output_dir or cast(str, self.args.output_dir)), cast(str, self.args.output_dir)):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        marker = folder / TRAINER_STATE_NAME
        if self.args.should_save and marker.exists():  # of an earlier run: not complete again before all is written
            marker.unlink()
        try:
            with unwritten_named(folder, folder.parent):
                super()._save_checkpoint(model, trial)
        except OSError:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _save_rng_state(self, output_dir: str) -> None:
        """The checkpoint counts as complete after this: no process may still be writing its part."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Of a model with adapters these and what else was trained; its base stays where it is."""
        folder = Path(cast(str, output_dir if output_dir is not None else self.args.output_dir))
        if not has_adapters(self.model):
            with own_class(self.model), without_library_bars():
                super()._save(output_dir, state_dict)
        elif self.args.should_save:
            save_adapters(self.model, folder, state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            torch.save(self.args, folder / TRAINING_ARGS_NAME)
        if self.args.should_save:
            remember(folder, *self.trained_on)
            save_domain(getattr(self.model.config, "domain", None), folder)
        if self.card is not None and self.args.should_save:
            self.card.write(folder, self.args, self.state, self.model)

    def find_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """
        The folder that training goes on from, None for none.

        Raises:
            ValueError: where there is none, or it does not hold all that it takes.
        """
        if resume_from_checkpoint is None or resume_from_checkpoint is False:
            return None
        folder = resume_from_checkpoint
        if folder is True:
            last = last_complete_checkpoint(cast(str, self.args.output_dir))
            if last is None:
                raise ValueError(f"there is no complete checkpoint in {self.args.output_dir} to go on from.")
            folder = last
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            require_training_state(str(folder))
        return str(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if not has_adapters(self.model):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_adapter_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if not has_adapters(self.model):
            return super()._load_best_model()
        load_adapter_weights(self.model, cast(str, self.state.best_model_checkpoint))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """A run that is gone on from its last step has nothing left to train."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]  # the library's
