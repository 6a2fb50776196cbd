"""Shards in parallel: processes that may die over a damaged file, and be stopped at any time."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .plan import Plan
from .shard import part_file, prepare_shard

MAX_IDLE_DEATHS = 2
"""Times that workers may end before any of them reads a study."""


def prepare_shards(plan: Plan, parts: Path, num_workers: int, progress: bool, context: str) -> None:
    """
    Prepares what is left to do of a plan.

    Args:
        plan: saved in `parts / "plan.json"`, too.
        parts: folder of the shards.
        num_workers, progress, context: see `run.prepare`.

    Raises:
        RuntimeError: workers end before they read a study.
    """
    from tqdm.auto import tqdm

    deaths: Counter[int] = Counter()
    idle_deaths = 0
    pending = _pending(plan, parts)
    done = len(plan.rows) - sum(len(plan.shard(number)) for number in pending)
    with tqdm(total=len(plan.rows), initial=done, desc="preparing", unit="study", disable=not progress) as bar:
        while pending:
            # A worker that dies takes the others along: what any of them was reading is read again by one worker alone.
            suspects = [number for number in pending if any(index in deaths for index in plan.shard(number))]
            shards, workers = (suspects, 1) if suspects else (pending, min(num_workers, len(pending)))
            banned = frozenset(index for index, count in deaths.items() if count > 1)
            try:
                _run_pool(shards, parts, banned, workers, context, lambda number: bar.update(len(plan.shard(number))))
            except BrokenProcessPool as error:
                read_by_the_dead = _take_markers(parts)
                deaths.update(read_by_the_dead)
                idle_deaths += not read_by_the_dead
                if idle_deaths > MAX_IDLE_DEATHS:
                    raise RuntimeError(
                        "workers end before they read a study; with one worker the cause may show."
                    ) from error
            pending = _pending(plan, parts)


def remove_unfinished(parts: Path) -> None:
    """What killed processes left."""
    for stale in (*parts.glob("*.tmp"), *parts.glob(".part-*"), *parts.glob("running-*")):
        stale.unlink(missing_ok=True)


def _pending(plan: Plan, parts: Path) -> list[int]:
    return [number for number in range(plan.num_shards) if not part_file(parts, number).exists()]


def _take_markers(parts: Path) -> list[int]:
    """Numbers of the studies that were being read when processes ended."""
    numbers = []
    for marker in list(parts.glob("running-*")):
        numbers += [int(index) for index in marker.read_text().split()]
        marker.unlink()
    return numbers


def _run_pool(
    shards: list[int],
    parts: Path,
    banned: frozenset[int],
    workers: int,
    context: str,
    on_done: Callable[[int], Any],
) -> None:
    """Prepares shards; `on_done` is called with the number of each."""
    pool = ProcessPoolExecutor(
        max(workers, 1), mp_context=multiprocessing.get_context(context), initializer=_start_worker
    )
    plan_file = str(parts / "plan.json")
    try:
        with _uninterrupted():
            futures = [pool.submit(prepare_shard, number, plan_file, banned) for number in shards]
        for future in as_completed(futures):
            on_done(future.result())
    except (KeyboardInterrupt, OSError):  # what the workers have not finished is done again next time
        for worker in multiprocessing.active_children():
            worker.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        remove_unfinished(parts)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that are started in here do not hear Ctrl-C, which is for this one; it hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    _keep_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(parent: int) -> None:
    """A killed parent leaves no orphans."""
    wait([parent])
    os._exit(1)


def _keep_memory() -> None:
    """Freed volumes stay with the process: a quarter of the time would go into fetching and clearing pages anew (glibc)."""
    import pyarrow

    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        for option, size in ((mmap_threshold, 1 << 25), (trim_threshold, 1 << 30), (top_pad, 1 << 28)):
            mallopt(option, size)
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())
