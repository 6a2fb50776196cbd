"""A folder of studies and a file of reports -> a `datasets` folder, in parallel, resumable, with a quarantine."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...files import hold_output, write_text
from ...study import Skipped
from .export import finish
from .plan import Plan
from .pool import prepare_shards, remove_unfinished


def prepare(
    plan: Plan,
    output: str | os.PathLike,
    skipped: Sequence[Skipped] = (),
    num_workers: int = 2,
    progress: bool = True,
    context: str = "spawn",
) -> dict:
    """
    Reads, checks and standardizes every study of a plan.

    Finished shards stay when a run is killed, and the next run with the same plan goes on after them; the result does not
    depend on how often that happened, nor on the number of workers. A study that cannot be used, or that kills its worker
    twice, is listed in `quarantine.csv`.

    Args:
        plan: from `plan_studies`.
        output: folder of the result.
        skipped: from `plan_studies`.
        num_workers: processes.
        context: how they are started, see `multiprocessing`.

    Returns:
        the summary that `summary.json` holds.

    Raises:
        ValueError: the folder holds the result, or the beginning, of another plan.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; choose a folder for the result.")
    output.mkdir(parents=True, exist_ok=True)
    with hold_output(output):
        parts = output / ".parts"
        if _claim(output, plan):
            return json.loads((output / "summary.json").read_text())
        remove_unfinished(parts)
        prepare_shards(plan, parts, num_workers, progress, context)
        return finish(plan, output, parts, skipped)


def _claim(output: Path, plan: Plan) -> bool:
    """Whether the folder holds the whole result of the plan already; refuses the folder of another one."""
    parts = output / ".parts"
    for path in (output / "prepare.json", parts / "plan.json"):
        if not path.exists():
            continue
        complete = path.name == "prepare.json"
        known = json.loads(path.read_text())
        if (known["digest"] if complete else Plan(**known).digest()) != plan.digest():
            raise ValueError(
                f"{output} holds another dataset, or the beginning of one: its studies, items or settings differ. Choose "
                "another folder, or delete this one."
            )
        if complete:
            shutil.rmtree(parts, ignore_errors=True)
        return complete
    if any(entry != parts for entry in output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no prepared dataset; choose another folder.")
    parts.mkdir(parents=True, exist_ok=True)
    write_text(parts / "plan.json", json.dumps(asdict(plan)))
    return False
