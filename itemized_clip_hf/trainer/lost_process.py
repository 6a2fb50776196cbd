"""What a process says when another one of its run has ended or hangs."""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from .gather import rank, world_size

_COLLECTIVE_ERROR = re.compile(
    r"gloo|nccl|ProcessGroup|process group|Connection (closed|reset) by peer|Broken pipe|Timed out waiting", re.I
)


def limit_waiting(seconds: float) -> None:
    """Sets the time-out of the run's process group: on CPUs transformers 5.23 leaves `ddp_timeout` unused."""
    if world_size() > 1:
        _set_pg_timeout(timedelta(seconds=seconds))


class LostProcessError(RuntimeError):
    """Another process of the run ended, or did not answer in time."""


def process_addresses() -> list[tuple[str, int]]:
    """Host and process id of every rank. All ranks have to ask."""
    every: list[Any] = [None] * world_size()
    if world_size() == 1:
        return [(socket.gethostname(), os.getpid())]
    dist.all_gather_object(every, (socket.gethostname(), os.getpid()))
    return every


def has_ended(pid: int) -> bool:
    """Whether a process of this host runs no more."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def ended_ranks(addresses: list[tuple[str, int]], seconds: float = 3.0) -> list[int]:
    """Ranks of this host whose process has ended; its connections are closed before it counts as ended, so look twice."""
    here = [(r, pid) for r, (host, pid) in enumerate(addresses) if host == socket.gethostname() and r != rank()]
    last = time.monotonic() + seconds
    while not (ended := [r for r, pid in here if has_ended(pid)]) and time.monotonic() < last:
        time.sleep(0.1)
    return ended


@contextmanager
def lost_processes_named(timeout: float, addresses: list[tuple[str, int]]) -> Iterator[None]:
    """
    Turns the errors of any collective (the loss's, DDP's, FSDP's, accelerate's) into one that says what happened.

    Args:
        timeout: seconds that a process waits for another one, for the message.
        addresses: of all ranks, see `process_addresses`; may be empty, and filled while the context is entered.
    """
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or isinstance(error, LostProcessError) or not is_collective_error(error):
            raise
        ended = ended_ranks(addresses)
        known = f"rank {', '.join(map(str, ended))} has ended" if ended else "none of them is known to have ended"
        raise LostProcessError(
            f"rank {rank()} of {world_size()}: another process of the run ended or hangs ({known}). A process that ended "
            "wrote its own error, or was killed (often for memory: see dmesg); one that hangs is waited for "
            f"{timeout:.0f} s (ddp_timeout). End all processes of the run, remove the cause, and start it again from the "
            f"last checkpoint (resume_from_checkpoint=True, or --resume). What the library said: {first_line(error)}"
        ) from error


def is_collective_error(error: BaseException) -> bool:
    """Whether an error is one of processes that exchange tensors."""
    return isinstance(error, dist.DistError) or bool(_COLLECTIVE_ERROR.search(str(error)))


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]
