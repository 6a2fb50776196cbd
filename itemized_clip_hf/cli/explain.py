"""Show where the model looks for an item: a picture of each, and heat maps in the space of each scan."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import (
    accept_option,
    device_option,
    input_option,
    json_option,
    layout_option,
    model_option,
    precision_option,
    prompt_option,
    say_what_stays,
    scores_option,
    tokenizer_option,
    volume_option,
    workers_option,
)
from itemized_clip_hf.cli._dicom import dicom_options

if TYPE_CHECKING:
    from itemized_clip_hf.cli._studies import Inputs, Opener
    from itemized_clip_hf.explain.dicom import DicomOutput
    from itemized_clip_hf.explain.studies import StudyToExplain


@click.command()
@input_option
@model_option
@prompt_option
@click.option("-o", "--output", default="heat-maps", show_default=True, type=click.Path(file_okay=False))
@click.option(
    "--html",
    type=click.Path(),
    help="Also write a report with table and viewer: one HTML file that works from disk; a folder for several studies.",
)
@dicom_options
@click.option(
    "--attribution",
    help="What maps show: attention (where the model looks), contribution (what each patch adds to the score), "
    "gradient-weighted or occlusion. Without it: contribution with --html, else attention.",
)
@click.option("--nearest", is_flag=True, help="Paint patches as blocks instead of interpolating between them.")
@scores_option
@workers_option
@precision_option
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
def command(
    inputs: tuple[str, ...],
    model: str,
    prompts: tuple[str, ...],
    output: str,
    html: str | None,
    dicom: DicomOutput | None,
    attribution: str | None,
    nearest: bool,
    scores: str,
    workers: int,
    precision: str,
    tokenizer: str | None,
    volume_index: int | None,
    accept: tuple[str, ...],
    layout: str | None,
    device: str,
    as_json: bool,
) -> None:
    """
    Write heat maps of items.

    Every study gets a folder with one PNG per item and, for scans with geometry, one NIfTI heat map per item and scan, which
    has the scan's own affine and shape and overlays it in any viewer. Its unit is the mean of a patch; the score is
    the one that predict prints (--scores). Scans that are not NIfTI files are written as such, too: voxels and geometry,
    nothing else of a header. maps.json in the folder says which study and items it is of: a run that was stopped goes on
    behind the folders that have one when the same command is run again.

    --html also writes the findings in a table beside a viewer of the scans as the model saw them, for a browser; --dicom
    writes them as DICOM objects that a PACS takes.
    """
    from itemized_clip_hf.cli._studies import Inputs, Opener, require_inputs
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.evaluation.encode import in_order
    from itemized_clip_hf.explain.studies import write_study
    from itemized_clip_hf.models.load import load, say_origin
    from itemized_clip_hf.models.precision import weights_dtype, working_precision
    from itemized_clip_hf.provenance import describe_for_others, hash_model, hash_processor

    require_inputs(inputs)
    shown = choose_attribution(attribution, html)
    place = hold_place(output)
    loaded, processor = load(model, device, tokenizer, dtype=weights_dtype(precision))
    processor.image_processor.accept = accept
    rule = Layout.of_processor(processor, layout)
    records = Inputs(inputs, rule)
    order = "nearest" if nearest else "linear"
    reports = place_reports(html, len(records))
    hashes = [hash_model(loaded), hash_processor(processor)]
    about = [*hashes, records.fingerprint()[1], volume_index, sorted(accept)]
    about += [order, *list_choices(layout, precision, scores, shown), *(dicom.settings() if dicom else [])]
    opener = Opener(volume_index, loaded.config.domain, accept, rule)
    studies = list_studies(records, prompts, loaded.config.domain, place, about, opener, reports, dicom)
    with working_precision(loaded, precision):
        described = describe_for_others(loaded, *hashes)
        write = partial(write_study, loaded, processor, order=order, scores=scores, about=described, attribution=shown)
        entries, failed = write_all(in_order(studies, workers), write, say_origin(model))
    print_entries(entries, scores, as_json)
    if failed:
        raise click.ClickException(f"{failed} studies could not be explained")


def hold_place(output: str) -> Path:
    """The folder of all studies, made, and kept from other processes until the verb ends."""
    from itemized_clip_hf.data.files import hold_output

    place = Path(output)
    place.mkdir(parents=True, exist_ok=True)
    click.get_current_context().with_resource(hold_output(place))
    say_what_stays(place)
    return place


def write_all(
    studies: Iterable[StudyToExplain], write: Callable[..., list[dict[str, Any]]], origin: dict[str, Any]
) -> tuple[list[dict[str, Any]], int]:
    """Writes what is not there yet and says how it goes: entries of all maps, and the number of studies that failed."""
    from itemized_clip_hf.data.files import is_about_output
    from itemized_clip_hf.explain.studies import write_maps

    entries: list[dict[str, Any]] = []
    failed = 0
    for study in studies:
        try:
            maps = study.known
            if maps is None:
                maps = write(study, on_bad_scan=partial(say_bad_scan, study.name))
                write_maps(study.folder, {**study.facts, "model": origin}, maps)
        except (OSError, ValueError) as error:
            if is_about_output(error):
                raise
            click.echo(f"{study.name}: {error}", err=True)
            failed += 1
            continue
        entries += [{"id": study.name, "path": study.path, **entry} for entry in maps]
        click.echo(f"{study.name}: {len(study.items)} items in {study.folder}", err=True)
    return entries, failed


def choose_attribution(name: str | None, html: str | None) -> str:
    """The one that is named, or what a report shows best; the maps of a run are those of its report."""
    from itemized_clip_hf.explain.attribution import ATTENTION, BEST, check_attribution

    return check_attribution(name or (BEST if html else ATTENTION))


def list_choices(layout: str | None, precision: str, scores: str, attribution: str) -> list[str]:
    """Choices that differ from what always was: the others are not named, so that folders of earlier versions go on."""
    named = [layout or "", "bf16" if precision == "bf16" else "", "" if scores == "similarity" else scores]
    named.append("" if attribution == "attention" else attribution)
    return [choice for choice in named if choice]


def list_studies(
    records: Inputs,
    prompts: tuple[str, ...],
    domain: str | None,
    place: Path,
    about: list[Any],
    opener: Opener,
    reports: Callable[[str], Path | None],
    dicom: DicomOutput | None = None,
) -> Iterator[partial[StudyToExplain]]:
    """What opens each study in its turn: with the prompts, or its own items, or the prompts of the domain."""
    from itemized_clip_hf.cli._studies import choose_prompts
    from itemized_clip_hf.data.files import file_name
    from itemized_clip_hf.explain.studies import StudyToExplain, unique
    from itemized_clip_hf.provenance import hash_json

    folders: set[str] = set()
    for number, record in enumerate(records):
        items = list(prompts) or record.get("items")
        if not items:
            items = [texts[0] for texts in choose_prompts((), None, domain).values()]
        folder = place / unique(file_name(record["id"], "study"), folders)
        made_of = hash_json([about, record["id"], items])
        objects = dicom.of_study(folder.name, number) if dicom else None
        yield partial(StudyToExplain, record, items, folder, made_of, opener, reports(folder.name), objects)


def place_reports(html: str | None, studies: int) -> Callable[[str], Path | None]:
    """
    Where the report of a study goes, by the name of its folder.

    Raises:
        ValueError: one file is named for several studies.
    """
    if html is None:
        return lambda name: None
    target = Path(html)
    if target.suffix.lower() not in (".html", ".htm"):
        return lambda name: target / f"{name}.html"
    if studies != 1:
        raise ValueError(
            f"--html {html} is one file, there are {studies} studies: name a folder, which gets a file for each."
        )
    return lambda name: target


def say_bad_scan(study: str, scan: str | None, error: Exception) -> None:
    """One line about a scan that is left out."""
    click.echo(f"{study}, scan {scan} left out: {error}", err=True)


def print_entries(entries: list[dict[str, Any]], scores: str, as_json: bool) -> None:
    """JSON, or a table with the chosen score."""
    from itemized_clip_hf.evaluation.text_table import format_table

    if as_json:
        click.echo(json.dumps(entries, indent=1))
        return
    key = "similarity" if scores == "similarity" else "score"
    rows = [[e["id"], e["item"], e.get(key, ""), e["scan"] or "", e["share"]] for e in entries]
    click.echo(format_table(["study", "item", scores, "scan", "share"], rows))
