"""A folder of studies and a file of reports -> a `datasets` folder, in parallel, resumable, with a quarantine."""

import base64
import contextlib
import ctypes
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ....domains import load_domain
from ....processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ....processing.pictures_itemized_clip import PICTURE_SUFFIXES, open_picture
from ....provenance import hash_json
from ....version import __version__
from ...cells import as_items, as_labels, holds_list, is_nothing
from ...checks import check_study
from ...files import hold_output, whole_file, write_text
from ...layout import Layout, only_picture, require_one_scan
from ...open import known_codes
from ...readers.read import read_study
from ...study import Skipped, Study
from ...tables import read_table, write_csv
from ..labels import NEVER_LABELS, as_numbers, labels_of
from ..records import Records, read_records, refuse_repeats
from ..storage import preset_of, scan_features, store_scan

logger = logging.get_logger(__name__)

NUM_THUMBNAILS = 24


@dataclass
class Plan:
    """
    What a run does, the same in every process.

    Args:
        domain: name of the domain.
        rows: studies in their order, each with `id`, `images` (paths), `items`, `labels` and `label` (None if it has none).
        labels: all names in the rows' `labels`.
        image_settings: changes to the domain's image preset.
        accept: codes of `checks` that are no reason to refuse a scan.
        volume_index: of 4-D files.
        shard_size: studies of one output file, and of one piece of work that a killed run does again.
        file_format: `"arrow"`, for `load_from_disk`, mapped into memory; `"parquet"`, for `load_dataset`, compressed.
        layout: what the files of a folder are where it cannot be told, see `layout.Layout`.
    """

    domain: str
    rows: list[dict]
    labels: list[str] = field(default_factory=list)
    image_settings: dict = field(default_factory=dict)
    accept: list[str] = field(default_factory=list)
    volume_index: int | None = None
    shard_size: int = 8
    file_format: str = "arrow"
    layout: str | None = None

    def __post_init__(self):
        if self.file_format not in ("arrow", "parquet"):
            raise ValueError(f"file_format is {self.file_format!r}, expected 'arrow' or 'parquet'.")
        if self.shard_size < 1:
            raise ValueError(f"shard_size is {self.shard_size}, expected at least 1.")

    @property
    def num_shards(self) -> int:
        return -(-len(self.rows) // self.shard_size)

    @property
    def rule(self) -> Layout:
        """What a study is."""
        return Layout.of_domain(self.domain, self.layout)

    @property
    def pictures(self) -> bool:
        return load_domain(self.domain).image["scan_size"][0] == 1

    def shard(self, number: int) -> range:
        return range(number * self.shard_size, min((number + 1) * self.shard_size, len(self.rows)))

    def digest(self) -> str:
        """Of everything that the result depends on, files' contents aside."""
        facts = asdict(self)
        if self.layout is None:  # so that what was begun before there was a choice goes on
            del facts["layout"]
        return hash_json([__version__, facts], sort_keys=True)


def plan_studies(
    studies: str | os.PathLike,
    domain: str,
    reports: str | os.PathLike | None = None,
    id_column: str | None = None,
    items_column: str | None = None,
    **settings,
) -> tuple[Plan, list[Skipped]]:
    """
    Studies joined with their reports by id.

    Args:
        studies: as in `read_records`; or the folder that image paths of the reports start from.
        domain: name of the domain.
        reports: table with ids and either items (lists) or texts of reports, which are itemised by rules; also label columns
            (one for each finding), `labels` (name -> 0 or 1), `label` (a class) and `images`, if it has them. None: the
            studies' own list has the items. Other columns are named in a warning.
        id_column, items_column: of the reports, where their names are not the usual ones.
        settings: other fields of [`Plan`].

    Returns:
        the plan, and what it leaves out: reports without images, studies without a report or an item.

    Raises:
        ValueError: an id stands twice, a column is missing, or no study has both images and items.
    """
    known_codes(settings.get("accept", ()))
    found = _join(studies, reports, id_column, items_column, Layout.of_domain(domain, settings.get("layout")))
    facts = load_domain(domain)
    domain = facts.name
    rows: list[dict] = []
    skipped: list[Skipped] = []
    for name, images, report, items_name in found:
        if report is None:
            skipped.append(Skipped(name, None, "list", "there is no report of this id"))
            continue
        if images is None:
            skipped.append(Skipped(name, None, "list", "there are no images of this id"))
            continue
        try:
            items = _items_of(report.get(items_name), facts)
        except ValueError as error:
            skipped.append(Skipped(name, None, "list", f"its items: {error}"))
            continue
        if not items:
            skipped.append(Skipped(name, None, "list", "its report has no item"))
            continue
        labels = as_numbers(as_labels(report.get("labels"), name))
        rows.append({"id": name, "images": images, "items": items, "labels": labels, "label": report.get("label")})
    if not rows:
        tried = ", ".join(f"{study.study!r} ({study.reason})" for study in skipped[:3])
        raise ValueError(
            f"no study of {studies} has both images and items; e.g. {tried}. Ids are the names of the study folders, or "
            "the names of the files without suffix."
        )
    names = sorted({label for row in rows for label in row["labels"]})
    return Plan(domain, rows, names, **settings), skipped


def _join(studies, reports, id_column, items_column, layout: Layout) -> Iterator[tuple[str, Any, dict | None, str]]:
    """(id, images or None, report or None, name of its items column) of every id on either side."""
    if reports is None:
        source = read_records(studies, items_column=items_column, id_column=id_column, layout=layout)
        if source.items_column is None:
            raise ValueError(f"{studies} has no items: pass a table of reports (columns found: {source.columns}).")
        names = [source.id_of(number) for number in range(len(source))]
        refuse_repeats(names, str(studies))
        _warn_of_columns(source, str(studies))
        for number, name in enumerate(names):
            yield name, source.paths_of(number), _with_labels(source, number), source.items_column
        return
    table = Records(read_table(reports), Path(studies), items_column, None, id_column)
    for column, what in ((table.id_column, "ids"), (table.items_column, "items or report texts")):
        if column is None:
            raise ValueError(f"{Path(reports).name}: no column of {what} among {table.columns}; name it.")
    names = [table.id_of(number) for number in range(len(table))]
    refuse_repeats(names, Path(reports).name)
    _warn_of_columns(table, Path(reports).name)
    items_name = str(table.items_column)
    if table.images_column is not None and table.images_column != table.id_column:
        for number, name in enumerate(names):
            yield name, table.paths_of(number), _with_labels(table, number), items_name
        return
    source = read_records(studies, layout=replace(layout, ids=frozenset(names)))
    found = [source.id_of(number) for number in range(len(source))]
    refuse_repeats(found, str(studies))
    places = {name: number for number, name in enumerate(found)}
    for number, name in enumerate(names):
        yield name, source.paths_of(places[name]) if name in places else None, _with_labels(table, number), items_name
    for name in sorted(set(places) - set(names)):
        yield name, source.paths_of(places[name]), None, items_name


def _with_labels(table: Records, number: int) -> dict:
    """A row whose `labels` hold its label columns, too."""
    row = table.rows[number]
    return {**row, "labels": labels_of(row, table.label_columns, table.id_of(number))}


def _warn_of_columns(table: Records, name: str) -> None:
    """What is not taken into the prepared set, and is none of what it is made of."""
    used = {table.id_column, table.images_column, table.items_column, *table.label_columns}
    used |= NEVER_LABELS - {"split", "mask", "text"}
    left = [f"{column!r}{_count_strange(table, column)}" for column in table.columns if column not in used]
    if left:
        logger.warning(f"{name}: columns that the prepared set does not hold: {', '.join(left)}")


def _count_strange(table: Records, column: str) -> str:
    count = table.nearly_labels.get(column)
    return f" (no labels: {count} of {len(table)} cells are no truth values)" if count else ""


def _items_of(value, facts) -> list[str]:
    if isinstance(value, str) and not holds_list(value):
        from ...reports.itemize import itemize_report

        return [] if is_nothing(value) else itemize_report(value, facts.name).items
    return [] if value is None else as_items(value)


def _image_processor(plan: Plan) -> ItemizedCLIPImageProcessor:
    return ItemizedCLIPImageProcessor.from_domain(plan.domain, **plan.image_settings)


def features_of(plan: Plan):
    """Columns of the result."""
    from datasets import Features, Image, List, Value

    columns: dict[str, Any] = {"id": Value("string")}
    columns |= {"image": Image()} if plan.pictures else {"scans": scan_features()}
    columns |= {"items": List(Value("string")), "is_normal": Value("bool")}
    if plan.labels:
        columns["labels"] = {label: Value("int8") for label in plan.labels}
    if any(row["label"] is not None for row in plan.rows):
        columns["label"] = Value("string")
    return Features(columns)


def prepare(
    plan: Plan,
    output: str | os.PathLike,
    skipped: Sequence[Skipped] = (),
    num_workers: int = 2,
    progress: bool = True,
    context: str = "spawn",
) -> dict:
    """
    Reads, checks and standardises every study of a plan.

    Finished shards stay when a run is killed, and the next run with the same plan goes on behind them; the result does not
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
        return _prepare_all(plan, output, skipped, num_workers, progress, context)


def _prepare_all(
    plan: Plan, output: Path, skipped: Sequence[Skipped], num_workers: int, progress: bool, context: str
) -> dict:
    parts = output / ".parts"
    if _claim(output, plan):
        return json.loads((output / "summary.json").read_text())
    _remove_unfinished(parts)
    from tqdm.auto import tqdm

    pending = [number for number in range(plan.num_shards) if not _part(parts, number).exists()]
    left = sum(len(plan.shard(number)) for number in pending)
    deaths: Counter[int] = Counter()
    idle_deaths = 0
    with tqdm(
        total=len(plan.rows), initial=len(plan.rows) - left, desc="preparing", unit="study", disable=not progress
    ) as bar:
        while pending:
            # A worker that dies takes the others along: what any of them was reading is read again by one worker alone.
            suspects = [number for number in pending if any(index in deaths for index in plan.shard(number))]
            shards, workers = (suspects, 1) if suspects else (pending, min(num_workers, len(pending)))
            banned = [index for index, count in deaths.items() if count > 1]
            pool = ProcessPoolExecutor(
                max(workers, 1),
                mp_context=multiprocessing.get_context(context),
                initializer=_start_worker,
                initargs=(str(parts / "plan.json"), str(parts), banned),
            )
            try:
                with _uninterrupted():
                    futures = [pool.submit(_prepare_shard, number) for number in shards]
                for future in as_completed(futures):
                    bar.update(len(plan.shard(future.result())))
            except (KeyboardInterrupt, OSError):  # what the workers have not finished is done again next time
                for worker in multiprocessing.active_children():
                    worker.terminate()
                pool.shutdown(wait=True, cancel_futures=True)
                _remove_unfinished(parts)
                raise
            except BrokenProcessPool as error:
                markers = list(parts.glob("running-*"))
                idle_deaths += not markers
                if idle_deaths > 2:
                    raise RuntimeError(
                        "workers end before they read a study; with one worker the cause may show."
                    ) from error
                for marker in markers:
                    deaths.update(int(index) for index in marker.read_text().split())
                    marker.unlink()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
            pending = [number for number in pending if not _part(parts, number).exists()]
    return _finish(plan, output, parts, skipped)


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


def _remove_unfinished(parts: Path) -> None:
    for stale in (*parts.glob("*.tmp"), *parts.glob(".part-*"), *parts.glob("running-*")):
        stale.unlink(missing_ok=True)


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


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:05d}.arrow"


_worker: dict[str, Any] = {}


def _start_worker(plan_file: str, parts: str, banned: list[int]) -> None:
    import torch

    torch.set_num_threads(1)
    _keep_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent leaves no orphans

        def follow():
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    plan = Plan(**json.loads(Path(plan_file).read_text()))
    _worker.update(
        plan=plan,
        parts=Path(parts),
        banned=set(banned),
        processor=_image_processor(plan),
        features=features_of(plan),
    )


def _keep_memory() -> None:
    """Freed volumes stay with the process: a quarter of the time would go into fetching and clearing pages anew (glibc)."""
    import pyarrow

    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        for option, size in ((mmap_threshold, 1 << 25), (trim_threshold, 1 << 30), (top_pad, 1 << 28)):
            mallopt(option, size)
        pyarrow.set_memory_pool(pyarrow.system_memory_pool())


def _prepare_shard(number: int) -> int:
    """Writes one shard and, beside it, what was found on the way; both appear at once, complete. Returns its number."""
    import pyarrow

    plan, parts = _worker["plan"], _worker["parts"]
    marker = parts / f"running-{os.getpid()}"
    target = _part(parts, number)
    temporary = parts / f"{target.name}.{os.getpid()}.tmp"
    skipped: list[Skipped] = []
    found: list[dict] = []
    schema = _worker["features"].arrow_schema
    with pyarrow.OSFile(str(temporary), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for index in plan.shard(number):
            row = plan.rows[index]
            marker.write_text(str(index))
            if index in _worker["banned"]:
                skipped.append(Skipped(row["id"], None, "read", "reading it ended the process, twice"))
                continue
            try:
                stored, facts = prepare_study(row, plan, _worker["processor"], skipped.append, index < NUM_THUMBNAILS)
            except Exception as error:  # one study never ends the run
                reason = str(error) if isinstance(error, (OSError, ValueError)) else type(error).__name__
                skipped.append(Skipped(row["id"], None, "read", reason))
                continue
            writer.write_batch(pyarrow.RecordBatch.from_pylist([stored], schema))
            found.append(facts)
    write_text(
        parts / f"{target.name}.json",
        json.dumps({"lost": [(*_quarantine_row(entry), entry.stage) for entry in skipped], "found": found}),
    )
    os.replace(temporary, target)
    marker.unlink()
    return number


def prepare_study(
    row: dict,
    plan: Plan,
    processor: ItemizedCLIPImageProcessor,
    on_skipped: Callable[[Skipped], Any],
    thumbnail: bool = False,
) -> tuple[dict, dict]:
    """
    One study of a plan as a row of the result, and what the summary tells of it.

    Args:
        on_skipped: called with what is left out of the study.

    Raises:
        OSError, ValueError: nothing of it can be used.
    """
    stored: dict[str, Any] = {
        "id": row["id"],
        "items": row["items"],
        "is_normal": load_domain(plan.domain).is_normal(row["items"]),
    }
    if plan.labels:
        stored["labels"] = {label: row["labels"].get(label) for label in plan.labels}
    if row["label"] is not None:
        stored["label"] = str(row["label"])
    facts: dict[str, Any] = {
        "id": row["id"],
        "items": len(row["items"]),
        "is_normal": stored["is_normal"],
        "warnings": [],
    }
    if plan.pictures:
        stored["image"], facts["thumbnail"] = _prepare_picture(row["images"], thumbnail, plan.rule)
        return stored, facts
    study = _read_study(row, plan, on_skipped)
    for report in check_study(study, plan.domain, plan.accept):
        facts["warnings"] += [problem.code for problem in report.problems if problem.level == "warn"]
        if report.verdict == "refuse" and report.scan is not None:
            on_skipped(Skipped(row["id"], report.scan, "check", report.reason()))
            del study.scans[report.scan]
    scans: list[dict] = []
    for scan in study.scans.values():
        try:
            for standard in processor.standardize_scan(scan):
                name = standard.name or "scan"
                scans.append(store_scan(scan, standard, name))
                if thumbnail and "thumbnail" not in facts:
                    facts["thumbnail"] = _draw_slice(standard.pixel_values.numpy())
        except ValueError as error:
            on_skipped(Skipped(row["id"], str(scan.name), "process", str(error)))
    if not scans:
        raise ValueError("none of its scans can be used")
    stored["scans"] = scans
    facts["scans"] = [scan["name"] for scan in scans]
    return stored, facts


def _read_study(row: dict, plan: Plan, on_skipped: Callable[[Skipped], Any]) -> Study:
    """All scans of a row; what cannot be read is listed."""
    study = read_study(row["images"], row["id"], plan.volume_index, skip_unreadable=True, layout=plan.rule)
    for skipped in study.skipped:
        on_skipped(skipped)
    if not study.scans:
        raise ValueError("none of its files can be read")
    return study


def _prepare_picture(path, thumbnail: bool, layout: Layout) -> tuple[dict, str | None]:
    """The file's own bytes, once they are known to decode."""
    require_one_scan(path, layout)
    if isinstance(path, str):
        path = str(only_picture(Path(path), layout) or path)
    if not isinstance(path, str) or not path.lower().endswith(PICTURE_SUFFIXES):
        raise ValueError(f"expected a picture file ({', '.join(PICTURE_SUFFIXES)})")
    data = Path(path).read_bytes()
    picture = open_picture(io.BytesIO(data))
    shown = picture.convert("RGB") if thumbnail else None
    return {"bytes": data, "path": Path(path).name}, None if shown is None else _encode(shown)


def _draw_slice(volume: np.ndarray) -> str:
    """The middle slice as a small picture."""
    from PIL import Image

    plane = volume[len(volume) // 2].astype(np.float32)
    low, high = (0, 255) if volume.dtype == np.uint8 else (-1150, 350)
    return _encode(Image.fromarray((np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8)))


def _encode(picture) -> str:
    picture.thumbnail((112, 112))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _finish(plan: Plan, output: Path, parts: Path, skipped_in_lists: Sequence[Skipped]) -> dict:
    """Puts the shards together; may be interrupted anywhere, too."""
    skipped = list(skipped_in_lists)
    found: list[dict] = []
    for number in range(plan.num_shards):
        sidecar = json.loads((parts / f"{_part(parts, number).name}.json").read_text())
        for study, scan, reason, *stage in sidecar["lost"]:
            skipped.append(Skipped(study, scan or None, stage[0] if stage else "read", reason))
        found += sidecar["found"]
    if not found:
        _write_quarantine(output, skipped)
        reasons = "; ".join(f"{entry.study}: {entry.reason}" for entry in skipped[:5])
        shutil.rmtree(parts)
        raise ValueError(
            f"none of the {len(plan.rows)} studies can be used; see {output / 'quarantine.csv'}. {reasons}"
        )
    _assemble(plan, output, parts)
    _write_quarantine(output, skipped)
    summary = summarize(plan, found, skipped)
    write_text(output / "summary.json", json.dumps(summary, indent=1))
    from .summary import write_page

    write_page(output / "summary.html", summary, found, skipped)
    described = {name: value for name, value in asdict(plan).items() if name != "rows"}
    image = preset_of(_image_processor(plan))
    described |= {"digest": plan.digest(), "version": __version__, "image": image}
    write_text(output / "prepare.json", json.dumps(described, indent=1))
    shutil.rmtree(parts)
    return summary


def _assemble(plan: Plan, output: Path, parts: Path) -> None:
    from datasets import DatasetInfo

    names = []
    for number in range(plan.num_shards):
        part = _part(parts, number)
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


def _quarantine_row(skipped: Skipped) -> tuple[str, str, str]:
    return str(skipped.study), skipped.scan or "", skipped.reason


def _write_quarantine(output: Path, skipped: list[Skipped]) -> None:
    with whole_file(output / "quarantine.csv") as temporary:
        write_csv(temporary, [("study", "file", "reason"), *map(_quarantine_row, skipped)])


def summarize(plan: Plan, found: list[dict], skipped: list[Skipped]) -> dict:
    """Counts of what was kept and what was not, without anything of a single study."""
    kept = {facts["id"] for facts in found}
    series = Counter(name for facts in found for name in facts.get("scans", ()))
    items = sorted(facts["items"] for facts in found)
    return {
        "domain": plan.domain,
        "studies": len(found),
        "studies_left_out": len({entry.study for entry in skipped} - kept),
        "files_left_out": sum(1 for entry in skipped if entry.scan),
        "normal": sum(facts["is_normal"] for facts in found),
        "scans": sum(series.values()),
        "items": sum(items),
        "items_per_study": {"min": items[0], "median": items[len(items) // 2], "max": items[-1]},
        "series": dict(series.most_common(30)),
        "warnings": dict(Counter(code for facts in found for code in facts["warnings"]).most_common()),
    }
