"""Show where the model looks for an item: a picture of each, and heat maps in the space of each scan."""

import json
import re
from pathlib import Path

import click

from itemized_clip_cli import (
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
@device_option
@json_option
def command(inputs, model, prompts, output, nearest, tokenizer, volume_index, device, as_json):
    """
    Write heat maps of items.

    Every study gets a folder with one PNG per item and, for scans with geometry, one NIfTI heat map per item and scan, which
    has the scan's own affine and shape and overlays it in any viewer. Its unit is the mean attention of a patch.
    """
    from itemized_clip_hf.cli._studies import choose_prompts, format_table, open_images, read_inputs
    from itemized_clip_hf.data.nifti import write_nifti
    from itemized_clip_hf.explain.maps import explain_study
    from itemized_clip_hf.explain.plots import plot_item
    from itemized_clip_hf.hub.load import load

    loaded, processor = load(model, device, tokenizer)
    results, failed = [], 0
    for record in read_inputs(inputs):
        items = list(prompts) or record.get("items")
        if not items:
            items = [texts[0] for texts in choose_prompts((), None, loaded.config.domain).values()]
        try:
            study = open_images(record["images"], volume_index)
            maps = explain_study(loaded, processor, study, items, "nearest" if nearest else "linear")
        except (OSError, ValueError) as error:
            click.echo(f"{record['id']}: {error}", err=True)
            failed += 1
            continue
        folder = Path(output) / slug(record["id"])
        folder.mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(items):
            of_item = maps[number * len(maps) // len(items) : (number + 1) * len(maps) // len(items)]
            plot_item(of_item, folder / f"{number:02d}_{slug(item)}.png")
            for index, heat in enumerate(of_item):
                entry = {"id": record["id"], "item": item, "scan": heat.scan_name, "share": heat.share}
                if heat.affine is not None:
                    name = f"{number:02d}_{slug(item)}__{slug(heat.scan_name or str(index))}.nii.gz"
                    write_nifti(folder / name, heat.values, heat.affine)
                    entry["file"] = str(folder / name)
                results.append(entry)
        click.echo(f"{record['id']}: {len(items)} items in {folder}", err=True)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    else:
        click.echo(format_table(["item", "scan", "share"], [[r["item"], r["scan"] or "", r["share"]] for r in results]))
    if failed:
        raise click.ClickException(f"{failed} studies could not be explained")


def slug(text: str) -> str:
    """A text as a file name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.")[:60] or "item"
