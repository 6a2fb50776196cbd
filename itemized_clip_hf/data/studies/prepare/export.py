"""Shards as a `datasets` folder with its summary and its quarantine."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ....version import __version__
from ...files import whole_file, write_text
from ...study import Skipped
from ...tables import write_csv
from ..storage import preset_of
from .plan import Plan
from .shard import ShardNotes, notes_file, part_file
from .study import features_of
from .summary import summarize, write_page


def finish(plan: Plan, output: Path, parts: Path, skipped_in_lists: Sequence[Skipped]) -> dict:
    """Puts the shards together; may be interrupted anywhere, too."""
    skipped = list(skipped_in_lists)
    kept: list[dict] = []
    for number in range(plan.num_shards):
        notes = ShardNotes.read(notes_file(part_file(parts, number)))
        skipped += notes.skipped
        kept += notes.kept
    if not kept:
        _write_quarantine(output, skipped)
        reasons = "; ".join(f"{entry.study}: {entry.reason}" for entry in skipped[:5])
        shutil.rmtree(parts)
        raise ValueError(
            f"none of the {len(plan.rows)} studies can be used; see {output / 'quarantine.csv'}. {reasons}"
        )
    _assemble(plan, output, parts)
    _write_quarantine(output, skipped)
    summary = summarize(plan.domain, kept, skipped)
    write_text(output / "summary.json", json.dumps(summary, indent=1))
    write_page(output / "summary.html", summary, kept, skipped)
    described = {name: value for name, value in asdict(plan).items() if name != "rows"}
    image = preset_of(plan.image_processor())
    described |= {"digest": plan.digest(), "version": __version__, "image": image}
    write_text(output / "prepare.json", json.dumps(described, indent=1))
    shutil.rmtree(parts)
    return summary


def _assemble(plan: Plan, output: Path, parts: Path) -> None:
    from datasets import DatasetInfo

    names = []
    for number in range(plan.num_shards):
        part = part_file(parts, number)
        if plan.file_format == "arrow":
            names.append(f"data-{number:05d}-of-{plan.num_shards:05d}.arrow")
            if not (output / names[-1]).exists():
                _link(part, output / names[-1])
        else:
            (output / "data").mkdir(exist_ok=True)
            _to_parquet(part, output / "data" / f"train-{number:05d}-of-{plan.num_shards:05d}.parquet")
    if plan.file_format == "parquet":
        return
    DatasetInfo(features=features_of(plan)).write_to_directory(str(output))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": plan.digest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_text(output / "state.json", json.dumps(state, indent=2, sort_keys=True))


def _link(part: Path, target: Path) -> None:
    """The part stays, so that an interrupted end can be repeated."""
    try:
        os.link(part, target)
    except OSError:  # a file system without hard links
        temporary = target.with_suffix(".tmp")
        shutil.copyfile(part, temporary)
        os.replace(temporary, target)


def _to_parquet(part: Path, target: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    temporary = target.with_suffix(".tmp")
    with pyarrow.memory_map(str(part)) as source, pyarrow.ipc.open_stream(source) as stream:
        with parquet.ParquetWriter(temporary, stream.schema, compression="zstd") as writer:
            for batch in stream:
                writer.write_batch(batch)
    os.replace(temporary, target)


def _write_quarantine(output: Path, skipped: list[Skipped]) -> None:
    rows = [(entry.study, entry.scan or "", entry.reason) for entry in skipped]
    with whole_file(output / "quarantine.csv") as temporary:
        write_csv(temporary, [("study", "file", "reason"), *rows])
