"""The output folder of a training run: one run at a time, and none over another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging

from .checkpoints import is_complete, last_complete_checkpoint, remove_incomplete_checkpoints

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

logger = logging.get_logger(__name__)

LOCK = ".training"


def checkpoint_to_resume(output: str | os.PathLike[str]) -> str | None:
    """
    The last checkpoint that was written to its end, None where a run ended before its first one.

    Raises:
        ValueError: where a whole run was saved there without checkpoints.
    """
    checkpoint = last_complete_checkpoint(output)
    if checkpoint is None and is_complete(output):
        raise ValueError(
            f"{output} holds a trained model and no checkpoint to go on from: start from it with --model and another output "
            "folder."
        )
    if checkpoint is None:
        logger.warning(f"there is no checkpoint in {output}: starting from the beginning")
    return checkpoint


@contextmanager
def held(output: str | os.PathLike[str], resume: bool, first: bool = True) -> Iterator[None]:
    """
    Keeps other runs out of the folder, which is made; the system lets go of it however this process ends.

    Args:
        resume: half-written checkpoints are removed.
        first: whether this is the first process of the run; the others do nothing.

    Raises:
        ValueError: where another run is at work there, or nothing can be written.
    """
    if not first:
        yield
        return
    path = Path(output) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    except OSError as error:
        raise ValueError(
            f"nothing can be written to {output} ({error.strerror or error}): choose another output folder, or mend this one."
        ) from error
    if file is None:
        raise ValueError(
            f"another training is at work in {output}: wait for its end, or choose another output folder. Nothing was changed."
        )
    try:
        if resume:
            remove_incomplete_checkpoints(output)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _lock(path: Path) -> int | None:
    """The descriptor of the locked file, None where another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            return file
        os.close(file)  # its owner has removed it meanwhile
