"""Some studies of a plan in one file: what a worker does at a time, and a killed run does again."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ....processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ...files import write_text
from ...study import Skipped
from .plan import Plan
from .study import features_of, prepare_study

NUM_THUMBNAILS = 24


def part_file(parts: Path, number: int) -> Path:
    """Where a shard lies until all are done."""
    return parts / f"part-{number:05d}.arrow"


def notes_file(part: Path) -> Path:
    """What was found on the way to a shard."""
    return part.with_name(f"{part.name}.json")


@dataclass(frozen=True)
class ShardNotes:
    """
    What was found on the way to a shard.

    Args:
        skipped: what was left out.
        kept: for each study of the shard, what the summary tells of it.
    """

    skipped: list[Skipped]
    kept: list[dict[str, Any]]

    def write(self, path: Path) -> None:
        """Saved as JSON; `lost` holds study, file, reason and stage."""
        lost = [(entry.study, entry.scan or "", entry.reason, entry.stage) for entry in self.skipped]
        write_text(path, json.dumps({"lost": lost, "found": self.kept}))

    @classmethod
    def read(cls, path: Path) -> "ShardNotes":
        """What `write` wrote; earlier versions did so without stages."""
        saved = json.loads(path.read_text())
        skipped = [
            Skipped(study, scan or None, stage[0] if stage else "read", reason)
            for study, scan, reason, *stage in saved["lost"]
        ]
        return cls(skipped, saved["found"])


@cache
def _open_plan(file: str) -> tuple[Plan, ItemizedCLIPImageProcessor, Any]:
    """A plan, its image processor and the columns of its result, once in each process."""
    plan = Plan(**json.loads(Path(file).read_text()))
    return plan, plan.image_processor(), features_of(plan)


def prepare_shard(number: int, plan_file: str, banned: frozenset[int] = frozenset()) -> int:
    """
    Writes one shard and its notes, which appear at once, complete, beside the plan.

    Args:
        number: of the shard.
        plan_file: the plan as JSON.
        banned: numbers of studies that ended their process before.

    Returns:
        the shard's number.
    """
    import pyarrow

    plan, processor, features = _open_plan(plan_file)
    parts = Path(plan_file).parent
    marker = parts / f"running-{os.getpid()}"
    target = part_file(parts, number)
    temporary = parts / f"{target.name}.{os.getpid()}.tmp"
    notes = ShardNotes([], [])
    schema = features.arrow_schema
    with pyarrow.OSFile(str(temporary), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for index in plan.shard(number):
            row = plan.rows[index]
            marker.write_text(str(index))
            if index in banned:
                notes.skipped.append(Skipped(row["id"], None, "read", "reading it ended the process, twice"))
                continue
            try:
                stored, facts = prepare_study(row, plan, processor, notes.skipped.append, index < NUM_THUMBNAILS)
            except Exception as error:  # whatever a file makes a library raise: one study never ends the run
                reason = str(error) if isinstance(error, (OSError, ValueError)) else type(error).__name__
                notes.skipped.append(Skipped(row["id"], None, "read", reason))
                continue
            writer.write_batch(pyarrow.RecordBatch.from_pylist([stored], schema))
            notes.kept.append(facts)
    notes.write(notes_file(target))
    os.replace(temporary, target)
    marker.unlink()
    return number
