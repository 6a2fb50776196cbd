"""Show where the model looks for an item: a picture of each, and heat maps in the space of each scan."""

import json
from pathlib import Path
from typing import Any

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
    tokenizer_option,
    volume_option,
    workers_option,
)

FILES = ("file", "base")
"""Of an entry of maps.json: its heat map, and the scan that was written for it to lie on."""


@click.command()
@input_option
@model_option
@prompt_option
@click.option("-o", "--output", default="heat-maps", show_default=True, type=click.Path(file_okay=False))
@click.option("--nearest", is_flag=True, help="Paint patches as blocks instead of interpolating between them.")
@workers_option
@precision_option
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
def command(
    inputs,
    model,
    prompts,
    output,
    nearest,
    workers,
    precision,
    tokenizer,
    volume_index,
    accept,
    layout,
    device,
    as_json,
):
    """
    Write heat maps of items.

    Every study gets a folder with one PNG per item and, for scans with geometry, one NIfTI heat map per item and scan, which
    has the scan's own affine and shape and overlays it in any viewer. Its unit is the mean attention of a patch; similarity is
    the score that predict prints. Scans that are no NIfTI files are written as such, too, for the maps to lie on: voxels and
    geometry, nothing else of a header. maps.json in the folder says which study and items it is of: a run that was stopped goes
    on behind the folders that have one when the same command is run again.
    """
    from functools import partial

    from itemized_clip_hf.cli._studies import Inputs, Opener, choose_prompts, require_inputs
    from itemized_clip_hf.data.files import file_name, hold_output, is_about_output
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.evaluation.encode import in_order
    from itemized_clip_hf.evaluation.text_table import format_table
    from itemized_clip_hf.models.load import load, say_origin
    from itemized_clip_hf.models.precision import weights_dtype, working_precision
    from itemized_clip_hf.provenance import hash_json, hash_model, hash_processor

    require_inputs(inputs)
    place = Path(output)
    place.mkdir(parents=True, exist_ok=True)
    click.get_current_context().with_resource(hold_output(place))
    say_what_stays(place)
    loaded, processor = load(model, device, tokenizer, dtype=weights_dtype(precision))
    processor.image_processor.accept = accept
    rule = Layout.of_processor(processor, layout)
    records = Inputs(inputs, rule)
    open_images = Opener(volume_index, loaded.config.domain, accept, rule)
    method = "nearest" if nearest else "linear"
    about = [
        hash_model(loaded),
        hash_processor(processor),
        records.fingerprint()[1],
        volume_index,
        sorted(accept),
        method,
        *([layout] if layout else []),
    ]
    if precision == "bf16":
        about.append(precision)
    folders: set[str] = set()

    def studies():
        for record in records:
            items = list(prompts) or record.get("items")
            if not items:
                items = [texts[0] for texts in choose_prompts((), None, loaded.config.domain).values()]
            folder = place / unique(file_name(record["id"], "study"), folders)
            yield partial(ToExplain, record, items, folder, hash_json([about, record["id"], items]), open_images)

    results, failed = [], 0
    for study in in_order(studies(), workers):
        try:
            entries = study.known
            if entries is None:
                with working_precision(loaded, precision):
                    entries = explain_study(loaded, processor, study, method)
                write_maps(study.folder, {**study.facts, "model": say_origin(model)}, entries)
        except (OSError, ValueError) as error:
            if is_about_output(error):
                raise
            click.echo(f"{study.name}: {error}", err=True)
            failed += 1
            continue
        results += [{"id": study.name, "path": study.path, **entry} for entry in entries]
        click.echo(f"{study.name}: {len(study.items)} items in {study.folder}", err=True)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    else:
        rows = [[r["id"], r["item"], r.get("similarity", ""), r["scan"] or "", r["share"]] for r in results]
        click.echo(format_table(["study", "item", "similarity", "scan", "share"], rows))
    if failed:
        raise click.ClickException(f"{failed} studies could not be explained")


class ToExplain:
    """
    A study, what is asked of it, and what an earlier run wrote; where that is nothing, its images, or why they cannot be read.

    Args:
        record: with `id`, `path` and images.
        folder: of its pictures and maps.
        made_of: hash of all that these depend on.
    """

    def __init__(self, record: dict, items: list[str], folder: Path, made_of: str, open_images):
        self.name, self.path, self.items, self.folder = record["id"], record["path"], items, folder
        self.facts = {"id": self.name, "made_of": made_of}
        self.known = known_maps(folder, made_of)
        self.images: Any = None
        self.error: Exception | None = None
        if self.known is None:
            try:
                self.images = open_images(record)
            except (OSError, ValueError) as error:
                self.error = error


def explain_study(model, processor, study: ToExplain, method: str) -> list[dict[str, Any]]:
    """Pictures and maps of a study, each file whole or not there; what they show."""
    from itemized_clip_hf.data.files import file_name, whole_file
    from itemized_clip_hf.explain.maps import explain_items, write_map
    from itemized_clip_hf.explain.plots import plot_item, slug

    if study.error is not None:
        raise study.error
    name, items, folder = study.name, study.items, study.folder

    def on_bad_scan(scan, error):
        click.echo(f"{name}, scan {scan} left out: {error}", err=True)

    entries = []
    bases: dict[int, str] = {}
    for number, maps in enumerate(
        explain_items(model, processor, study.images, items, method, on_bad_scan=on_bad_scan)
    ):
        folder.mkdir(parents=True, exist_ok=True)
        if number == 0:
            bases = write_bases(folder, maps)
        with whole_file(folder / f"{number:02d}_{slug(items[number])}.png") as path:
            plot_item(maps, path)
        names: set[str] = set()
        for index, heat in enumerate(maps):
            entry: dict[str, Any] = {"id": name, "item": items[number], "scan": heat.scan_name, "share": heat.share}
            entry["similarity"] = heat.similarity
            if heat.affine is not None:
                scan = unique(file_name(heat.scan_name or f"scan-{index}", "scan"), names)
                target = folder / f"{number:02d}_{slug(items[number])}__{scan}.nii.gz"
                with whole_file(target) as path:
                    write_map(path, heat)
                entry["file"] = str(target)
                if index in bases:
                    entry["base"] = bases[index]
            entries.append(entry)
    return entries


def write_bases(folder: Path, maps: list) -> dict[int, str]:
    """Each scan that has geometry and is no NIfTI file, once: number of the map -> file that it lies on."""
    from itemized_clip_hf.data.files import file_name, whole_file
    from itemized_clip_hf.data.readers.nifti import write_nifti

    written: dict[int, str] = {}
    files: dict[int, str] = {}
    names: set[str] = set()
    for index, heat in enumerate(maps):
        if heat.affine is None or str(heat.path or "").lower().endswith((".nii", ".nii.gz")):
            continue
        source = id(heat.source)  # the windows of one series share it
        if source not in written:
            target = folder / f"scan_{unique(file_name(heat.series or f'scan-{index}', 'scan'), names)}.nii.gz"
            with whole_file(target) as path:
                write_nifti(path, heat.source, heat.affine)
            written[source] = str(target)
        files[index] = written[source]
    return files


def write_maps(folder: Path, facts: dict, entries: list[dict]) -> None:
    """maps.json, the last file of a study: id, model, and the file, item, scan and similarity of every map."""
    from itemized_clip_hf.data.files import write_text

    listed = [{**entry, **{key: Path(entry[key]).name for key in FILES if key in entry}} for entry in entries]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "maps.json", json.dumps({**facts, "maps": listed}, indent=1) + "\n")


def known_maps(folder: Path, made_of: str) -> list[dict] | None:
    """What an earlier run wrote into a folder, if it was the same; what it left there unfinished is removed."""
    from itemized_clip_hf.data.files import remove_parts

    if not folder.is_dir():
        return None
    remove_parts(folder)
    try:
        known = json.loads((folder / "maps.json").read_text(encoding="utf-8"))
        if known["made_of"] != made_of:
            return None
        entries = [
            {**entry, **{key: str(folder / entry[key]) for key in FILES if key in entry}} for entry in known["maps"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entries if all(Path(entry[key]).exists() for entry in entries for key in FILES if key in entry) else None


def unique(name: str, used: set[str]) -> str:
    """The name, numbered where an earlier one is written the same but for capitals, which some systems do not tell apart."""
    number, candidate = 2, name
    while candidate.casefold() in used:
        candidate = f"{name}-{number}"
        number += 1
    used.add(candidate.casefold())
    return candidate
