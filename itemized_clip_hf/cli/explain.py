"""Show where the model looks for an item: a picture of each, and heat maps in the space of each scan."""

import json
from pathlib import Path

import click

from itemized_clip_cli import (
    accept_option,
    device_option,
    input_option,
    json_option,
    model_option,
    prompt_option,
    tokenizer_option,
    volume_option,
)


@click.command()
@input_option
@model_option
@prompt_option
@click.option("-o", "--output", default="heat-maps", show_default=True, type=click.Path(file_okay=False))
@click.option("--nearest", is_flag=True, help="Paint patches as blocks instead of interpolating between them.")
@tokenizer_option
@volume_option
@accept_option
@device_option
@json_option
def command(inputs, model, prompts, output, nearest, tokenizer, volume_index, accept, device, as_json):
    """
    Write heat maps of items.

    Every study gets a folder with one PNG per item and, for scans with geometry, one NIfTI heat map per item and scan, which
    has the scan's own affine and shape and overlays it in any viewer. Its unit is the mean attention of a patch.
    """
    from itemized_clip_hf.cli._studies import Inputs, Opener, choose_prompts
    from itemized_clip_hf.data.nifti import write_nifti
    from itemized_clip_hf.evaluation.text_table import format_table
    from itemized_clip_hf.explain.maps import explain_items
    from itemized_clip_hf.explain.plots import plot_item, slug
    from itemized_clip_hf.hub.load import load

    loaded, processor = load(model, device, tokenizer)
    open_images = Opener(volume_index, loaded.config.domain, accept)
    results, failed, folders = [], 0, set()
    for record in Inputs(inputs):
        name = record["id"]
        items = list(prompts) or record.get("items")
        if not items:
            items = [texts[0] for texts in choose_prompts((), None, loaded.config.domain).values()]
        try:
            study = open_images(record)
            maps_of_items = explain_items(
                loaded,
                processor,
                study,
                items,
                "nearest" if nearest else "linear",
                on_bad_scan=lambda scan, error, name=name: click.echo(
                    f"{name}, scan {scan} left out: {error}", err=True
                ),
            )
            folder = Path(output) / unique(slug(name), folders)
            for number, maps in enumerate(maps_of_items):
                folder.mkdir(parents=True, exist_ok=True)
                plot_item(maps, folder / f"{number:02d}_{slug(items[number])}.png")
                names: set[str] = set()
                for index, heat in enumerate(maps):
                    entry = {"id": name, "item": items[number], "scan": heat.scan_name, "share": heat.share}
                    if heat.affine is not None:
                        scan = unique(slug(heat.scan_name or f"scan-{index}"), names)
                        path = folder / f"{number:02d}_{slug(items[number])}__{scan}.nii.gz"
                        write_nifti(path, heat.values, heat.affine)
                        entry["file"] = str(path)
                    results.append(entry)
        except (OSError, ValueError) as error:
            click.echo(f"{name}: {error}", err=True)
            failed += 1
            continue
        click.echo(f"{name}: {len(items)} items in {folder}", err=True)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    else:
        click.echo(format_table(["item", "scan", "share"], [[r["item"], r["scan"] or "", r["share"]] for r in results]))
    if failed:
        raise click.ClickException(f"{failed} studies could not be explained")


def unique(name: str, used: set[str]) -> str:
    """The name, numbered where an earlier one is written the same."""
    number, candidate = 2, name
    while candidate in used:
        candidate = f"{name}-{number}"
        number += 1
    used.add(candidate)
    return candidate
