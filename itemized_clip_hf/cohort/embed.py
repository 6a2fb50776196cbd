"""Studies -> a cohort: global embeddings, scores of prompts and local tokens, in a run that may be stopped."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from ..data.files import hold_output, whole_file
from ..data.studies.records import Records, read_records, refuse_repeats
from ..data.tables import write_csv
from ..evaluation.encode import Closed, encode_studies, texts_by_label
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.precision import working_precision
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..provenance import describe_for_others, hash_json, hash_model, hash_processor
from .file import FORMAT, CohortFacts, import_parquet
from .rows import Row, RowMaker, check_row, labels_of
from .shards import Shards

SHARD_SIZE = 16
"""Studies at most that a killed run embeds again."""
SHARD_SECONDS = 30.0
"""After which studies are written, however few there are."""


@dataclass(frozen=True)
class Embedded:
    """
    What came of a run.

    Args:
        path: of the cohort.
        studies: that are in it.
        errors: id of a study that is not -> why.
    """

    path: Path
    studies: int
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EmbedOptions:
    """
    How a cohort is made.

    Args:
        prompts: label -> text or texts, whose embeddings are averaged; or texts. Each adds a score and what the item pooler
            gathers for it.
        tokens: keep local tokens, which the second stage of a search for texts needs: scans * D * H * W * P * 2 bytes a study.
        precision: of the forward passes, see `models.precision`.
        batch_size: studies of one pass.
        num_workers: threads that read ahead.
        overwrite: replace a cohort of something else.
    """

    prompts: Mapping[str, str | Sequence[str]] | Sequence[str] = ()
    tokens: bool = False
    precision: str = "auto"
    batch_size: int = 8
    num_workers: int = 0
    overwrite: bool = False

    @property
    def prompt_texts(self) -> dict[str, list[str]]:
        """Label -> texts."""
        return {str(label): texts for label, texts in texts_by_label(self.prompts).items()}


def embed_cohort(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    studies: str | os.PathLike[str] | Records | Iterable[Mapping[str, Any]],
    output: str | os.PathLike[str],
    options: EmbedOptions | None = None,
    *,
    open_images: Callable[[dict[str, Any]], Any] | None = None,
    opened_with: Any = None,
    progress: bool = False,
    on_error: Callable[[str, Exception], Any] | None = None,
    on_bad_scan: Callable[[str, str | None, Exception], Any] | None = None,
) -> Embedded:
    """
    Embeds studies; a run that was stopped goes on when it is called again in the same way.

    A study that cannot be used is left out and listed in `OUTPUT.quarantine.csv`; the next call tries it again. Until all is
    done, rows are in the folder `OUTPUT.parts`.

    Args:
        studies: a list of studies or its file or folder, see `read_records`; or dictionaries with `id`, `images` (anything the
            processor takes as one study), and `labels` or `label` where there are any.
        output: parquet file, see `cohort.file`.
        open_images: makes of such a dictionary what the processor takes; `images` as they are if None.
        opened_with: whatever else the rows depend on, as JSON.
        on_error: called with the id of a study that is left out, and why.
        on_bad_scan: called with the id of a study, the name of a scan that is left out of it, and why.

    Raises:
        ValueError: the output is a cohort of something else, no study could be embedded, or ids repeat.
    """
    import_parquet()
    options = options or EmbedOptions()
    if isinstance(studies, (str, os.PathLike)):
        studies = read_records(studies)
    if not hasattr(studies, "ids") and not isinstance(studies, Records):
        studies = list(studies)  # looked through twice
    ids = ids_of(studies)
    refuse_repeats(ids, "the studies")
    prompts, about = options.prompt_texts, describe_for_others(model, hash_model(model), hash_processor(processor))
    made_of = [about["model"]["sha256"], about["processor"]["sha256"], list(prompts.items()), options.tokens]
    facts = CohortFacts(
        **about,
        width=model.config.projection_dim,
        prompts=prompts,
        tokens=options.tokens,
        precision=options.precision,
        plan=hash_json([FORMAT, *made_of, options.precision, ids, opened_with]),
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with hold_output(output):
        run = _Run(Shards(output, facts, options.overwrite), studies, ids, open_images or _images_of)
        with working_precision(model, options.precision):
            run.embed(model, processor, options, progress, on_error, on_bad_scan)
        write_quarantine(output, run.errors)
        if not run.shards.done:
            raise ValueError(f"none of the {len(ids)} studies could be embedded: see {quarantine_file(output)}.")
        run.shards.finish(ids)
    return Embedded(output, len(run.shards.done), run.errors)


def ids_of(studies: Any) -> list[str]:
    """Ids of studies in their order, images left closed."""
    if isinstance(studies, Records):
        return [studies.id_of(number) for number in range(len(studies))]
    known = getattr(studies, "ids", None)
    return list(known) if known is not None else [str(record["id"]) for record in studies]


def quarantine_file(output: Path) -> Path:
    """Where the studies that are left out are listed."""
    return output.with_name(f"{output.name}.quarantine.csv")


def write_quarantine(output: Path, errors: Mapping[str, str]) -> None:
    """Lists studies and reasons beside the cohort; no file where there are none."""
    path = quarantine_file(output)
    if not errors:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as temporary:
        write_csv(temporary, [("study", "reason"), *errors.items()])


def _images_of(record: dict[str, Any]) -> Any:
    if "error" in record:
        raise ValueError(record["error"])
    if record.get("images") is None:
        raise ValueError("the study has no images.")
    return record["images"]


class _Run:
    """Embeds what is not there yet, in the order of the studies."""

    def __init__(self, shards: Shards, studies: Any, ids: list[str], open_images: Callable[[dict[str, Any]], Any]):
        self.shards, self.studies, self.ids, self.open_images = shards, studies, ids, open_images
        self.errors: dict[str, str] = {}
        self._left = [name for name in ids if name not in shards.done]
        self._opened: list[dict[str, Any]] = []
        self._lost: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._left)

    def __iter__(self) -> Iterator[Closed]:
        wanted = set(self._left)
        for record in self._records():
            if record["id"] in wanted:
                self._opened.append({name: value for name, value in record.items() if name != "images"})
                yield Closed(partial(self.open_images, record))

    def _records(self) -> Iterable[dict[str, Any]]:
        if not isinstance(self.studies, Records):
            yield from ({**record, "id": name} for record, name in zip(self.studies, self.ids))
            return
        for number, name in enumerate(self.ids):
            try:
                yield {**self.studies[number], "id": name}
            except Exception as error:  # whatever a row makes a library raise: it is that study's error
                yield {"id": name, "error": str(error)}

    def embed(
        self,
        model: ItemizedCLIPModel,
        processor: ItemizedCLIPProcessor,
        options: EmbedOptions,
        progress: bool,
        on_error: Callable[[str, Exception], Any] | None,
        on_bad_scan: Callable[[str, str | None, Exception], Any] | None,
    ) -> None:
        """Writes shards; what is wrong with a study is kept in `errors`."""
        if not self._left:
            return
        make_rows = RowMaker(model, processor, options.prompt_texts, options.tokens)

        def leave_out(number: int, error: Exception) -> None:
            name = self._opened[number]["id"]
            self.errors[name] = str(error)
            if on_error is not None:
                on_error(name, error)

        def lose_scan(number: int, scan: str | None, error: Exception) -> None:
            self._lost[number] = self._lost.get(number, 0) + 1
            if on_bad_scan is not None:
                on_bad_scan(self._opened[number]["id"], scan, error)

        bar = "embedding" if progress else None
        waiting: list[Row] = []
        written = monotonic()
        for encoded in encode_studies(
            model, processor, self, options.batch_size, bar, leave_out, lose_scan, num_workers=options.num_workers
        ):
            for number, row in zip(encoded.numbers, make_rows(encoded)):
                try:
                    waiting.append(self._complete(number, row))
                except ValueError as error:
                    leave_out(number, error)
            if len(waiting) >= SHARD_SIZE or monotonic() - written > SHARD_SECONDS:
                self.shards.add(waiting)
                waiting, written = [], monotonic()
        self.shards.add(waiting)

    def _complete(self, number: int, row: Row) -> Row:
        """The row with id and labels, checked."""
        record = self._opened[number]
        skipped = getattr(self.open_images, "skipped", {}).get(record["id"], ())
        check_row(row)
        lost = self._lost.get(number, 0) + len(skipped)
        return {"id": record["id"], **row, "scans_left_out": lost, **labels_of(record)}
