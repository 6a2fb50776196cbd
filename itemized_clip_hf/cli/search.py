"""Search a cohort: studies like one, studies for a text or a region, near-duplicates, leaks between training and test."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import (
    accept_option,
    device_option,
    json_option,
    layout_option,
    tokenizer_option,
    volume_option,
)

if TYPE_CHECKING:
    from itemized_clip_hf.cli._studies import Inputs, Opener
    from itemized_clip_hf.cohort.file import Cohort, StudyTokens
    from itemized_clip_hf.cohort.index import CohortIndex
    from itemized_clip_hf.cohort.search import Duplicates, Found

MOST_PAIRS = 50
"""Printed; `--json` prints all."""
SHOWN_FROM = 1000
"""Studies of a cohort that make a progress bar worth while."""


@click.command()
@click.argument("cohort", type=click.Path())
@click.option("--text", metavar="TEXT", help="Look for studies that a text describes; needs -m.")
@click.option(
    "--study", metavar="ID", help="Look for studies like one of the cohort; or like a file or folder, with -m."
)
@click.option(
    "--region",
    metavar="BOX",
    help="Of --study: look for studies with a place like it. [SCAN:]D0-D1,H0-H1,W0-W1 in voxels, ends left out; "
    "H0-H1,W0-W1 of a picture.",
)
@click.option("--duplicates", is_flag=True, help="List pairs of studies that are nearly the same.")
@click.option("--against", metavar="COHORT", help="List studies that are nearly the same as one of another cohort.")
@click.option("--threshold", default=0.999, show_default=True, help="Cosine from which studies are near-duplicates.")
@click.option("-m", "--model", metavar="MODEL", help="That the cohort was embedded by.")
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=1), help="Studies to list.")
@click.option(
    "--candidates",
    default=400,
    show_default=True,
    type=click.IntRange(min=1),
    help="For a text: studies that the first stage leaves to the second.",
)
@click.option("--exhaustive", is_flag=True, help="For a text: all studies are candidates.")
@click.option(
    "--index",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Search approximately, by a FAISS index, which is made and kept in FILE at first (extra `search`).",
)
@click.option(
    "--sheet",
    metavar="PNG",
    type=click.Path(dir_okay=False),
    help="Draw what was found, with -m and -i, heat maps of a text.",
)
@click.option("-i", "--input", "inputs", multiple=True, metavar="PATH", help="The studies, for --sheet; repeat.")
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
def command(cohort: str, as_json: bool, **options: Any) -> None:
    """
    Search a cohort of `itemized-clip embed`.

    A text is looked for in two stages: candidates by what is kept of each study as a whole, then the text-conditioned
    similarity of `predict` on kept tokens (`embed --tokens`). Studies and near-duplicates are compared by the cosine of their
    global embeddings; what counts as near depends on the model, so the cosines of nearest neighbors are told. --against lists
    test studies that a training cohort holds, too. Cosines are compared exactly unless --index is named.
    """
    check_options(options)

    from itemized_clip_hf.cohort.file import Cohort

    opened = Cohort(cohort)
    progress = len(opened) > SHOWN_FROM and not as_json
    if options["duplicates"] or options["against"]:
        from itemized_clip_hf.cohort.search import find_duplicates

        other = Cohort(options["against"]) if options["against"] else None
        print_duplicates(find_duplicates(opened, options["threshold"], other, progress), as_json)
        return
    search = Search(opened, options, progress)
    found = search.run()
    if options["sheet"]:
        search.draw(found, Path(options["sheet"]))
    print_found(found, as_json)


def check_options(options: dict[str, Any]) -> None:
    """
    Raises:
        click.UsageError: nothing, or several things, are looked for, or options do not go together.
    """
    asked = [name for name in ("text", "study", "duplicates", "against") if options[name]]
    if len(asked) != 1:
        raise click.UsageError("pass one of --text, --study, --duplicates and --against.")
    if options["region"] and asked != ["study"]:
        raise click.UsageError("--region is of a study: pass --study.")
    if options["region"] and options["index"]:
        raise click.UsageError("--region looks at the tokens of all studies: leave out --index.")
    if asked[0] in ("duplicates", "against") and (options["index"] or options["sheet"]):
        raise click.UsageError("near-duplicates are found exactly and have no sheet: leave out --index and --sheet.")
    if options["text"] and not options["model"]:
        raise click.UsageError("--text needs the model that the cohort was embedded by: pass -m.")
    if options["sheet"] and not (options["model"] and options["inputs"]):
        raise click.UsageError("--sheet opens the studies: pass -m and -i.")


def parse_region(text: str) -> dict[str | None, list[tuple[int, int]]]:
    """`SCAN:0-4,8-16,8-16` -> name of the scan, or None, -> (start, stop) of each axis."""
    name, _, box = text.rpartition(":")
    ranges = re.fullmatch(r"(\d+)-(\d+),(\d+)-(\d+)(?:,(\d+)-(\d+))?", box.replace(" ", ""))
    if ranges is None:
        raise click.BadParameter(
            f"{text!r} is no box: expected [SCAN:]D0-D1,H0-H1,W0-W1, or H0-H1,W0-W1 of a picture.",
            param_hint="--region",
        )
    numbers = [int(number) for number in ranges.groups() if number is not None]
    return {name or None: list(zip(numbers[::2], numbers[1::2]))}


class Search:
    """
    One search of the command line; model and studies are loaded where they are needed.

    Args:
        options: of the command.
        progress: show a bar.
    """

    def __init__(self, cohort: Cohort, options: dict[str, Any], progress: bool):
        self.cohort, self.options, self.progress = cohort, options, progress
        self.model: Any = None
        self.processor: Any = None
        self.region = parse_region(options["region"]) if options["region"] else None
        if self.region:
            cohort.require_tokens()
        if options["model"]:
            self._load()

    def _load(self) -> None:
        from itemized_clip_hf.cohort.search import require_model
        from itemized_clip_hf.models.load import load
        from itemized_clip_hf.models.precision import weights_dtype

        options = self.options
        dtype = weights_dtype(self.cohort.facts.precision)
        self.model, self.processor = load(options["model"], options["device"], options["tokenizer"], dtype=dtype)
        self.processor.image_processor.accept = options["accept"]
        require_model(self.cohort.facts, self.model, self.processor)

    def run(self) -> Found:
        """What was found."""
        from itemized_clip_hf.cohort.search import describe_region, search_region, search_study, search_text

        options, top = self.options, self.options["top"]
        if options["text"]:
            count = None if options["exhaustive"] else options["candidates"]
            return search_text(
                self.cohort, self.model, self.processor, options["text"], top, count, self._index(), self.progress
            )
        query, embedding, tokens = self._study(options["study"])
        itself = query if query in self.cohort.places else None
        if self.region is None:
            return search_study(self.cohort, embedding, f"studies like {query}", top, self._index(), itself)
        assert tokens is not None
        region = describe_region(tokens, self.region)
        return search_region(self.cohort, region, f"{options['region']} of {query}", top, itself, self.progress)

    def _index(self) -> CohortIndex | None:
        from itemized_clip_hf.cohort.index import CohortIndex

        return CohortIndex(self.cohort, self.options["index"]) if self.options["index"] else None

    def _study(self, name: str) -> tuple[str, Any, StudyTokens | None]:
        """Name, embedding and, for a region, tokens of a study of the cohort, or of one that is embedded now."""
        from itemized_clip_hf.cohort.file import StudyTokens

        place = self.cohort.places.get(name)
        if place is not None:
            tokens = dict(self.cohort.tokens_of([place]))[place] if self.region else None
            return name, self.cohort.embeddings[place], tokens
        if not Path(name).exists():
            raise ValueError(f"{self.cohort.path.name} has no study {name!r}, and there is no such file or folder.")
        if self.model is None:
            raise click.UsageError(f"{name} has to be embedded: pass -m.")
        from itemized_clip_hf.cohort.search import embed_study

        records, opener = self._records((name,))
        record = next(iter(records))
        row = embed_study(self.model, self.processor, opener(record), self.cohort.facts, tokens=bool(self.region))
        return name, row["embedding"], StudyTokens.of_row(row) if self.region else None

    def _records(self, inputs: tuple[str, ...]) -> tuple[Inputs, Opener]:
        from itemized_clip_hf.cli._studies import Inputs, Opener
        from itemized_clip_hf.data.layout import Layout

        options = self.options
        rule = Layout.of_processor(self.processor, options["layout"])
        opener = Opener(options["volume_index"], self.model.config.domain, options["accept"], rule)
        return Inputs(inputs, rule), opener

    def draw(self, found: Found, path: Path) -> None:
        """The contact sheet; what cannot be opened is said on its tile."""
        from itemized_clip_hf.cohort.sheet import draw_sheet, missing_tile, tile_of
        from itemized_clip_hf.data.files import whole_file

        records, opener = self._records(self.options["inputs"])
        wanted = {hit.id for hit in found.hits}
        known = {record["id"]: record for record in records if record["id"] in wanted}
        tiles = []
        for rank, hit in enumerate(found.hits, 1):
            try:
                if hit.id not in known:
                    raise ValueError("not among -i")
                images = opener(known[hit.id])
                tiles.append(tile_of(self.model, self.processor, images, hit, rank, self.options["text"]))
            except (OSError, ValueError) as error:
                click.echo(f"{hit.id}: {error}", err=True)
                tiles.append(missing_tile(hit, rank, str(error)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            draw_sheet(tiles, f"{found.query} ({found.quantity})", temporary)
        click.echo(f"sheet: {path}", err=True)


def print_found(found: Found, as_json: bool) -> None:
    """JSON, or a table."""
    from itemized_clip_hf.evaluation.text_table import format_table

    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
        return
    header, rows = ["rank", "study", "score"], [[n, hit.id, f"{hit.score:.4f}"] for n, hit in enumerate(found.hits, 1)]
    if any(hit.first_stage is not None for hit in found.hits):
        header, rows = (
            [*header, "first stage"],
            [[*row, f"{hit.first_stage:.4f}"] for row, hit in zip(rows, found.hits)],
        )
    if any(hit.voxel is not None for hit in found.hits):
        header = [*header, "scan", "voxel"]
        rows = [[*row, hit.scan or "", ",".join(map(str, hit.voxel or ()))] for row, hit in zip(rows, found.hits)]
    click.echo(format_table(header, rows))
    click.echo(f"{found.query}: {found.quantity}; {found.candidates} of {found.studies} studies scored")


def print_duplicates(found: Duplicates, as_json: bool) -> None:
    """JSON, or a table of the most similar pairs."""
    from itemized_clip_hf.evaluation.text_table import format_table

    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
        return
    header = ["study", "study" if found.others is None else "in the other cohort", "cosine"]
    rows = [[pair.first, pair.second, f"{pair.cosine:.6f}"] for pair in found.pairs[:MOST_PAIRS]]
    if rows:
        click.echo(format_table(header, rows))
    if len(found.pairs) > MOST_PAIRS:
        click.echo(f"... and {len(found.pairs) - MOST_PAIRS} pairs more (--json lists all)")
    where = "" if found.others is None else f" among {found.others} of the other cohort"
    click.echo(
        f"{len(found.found)} of {found.studies} studies have a near-duplicate{where} (cosine {found.threshold} or more)"
    )
    quantiles = ", ".join(f"{float(q):.0%} {value:.4f}" for q, value in found.nearest.items())
    click.echo(f"cosine of a study and its nearest one, quantiles: {quantiles}")
