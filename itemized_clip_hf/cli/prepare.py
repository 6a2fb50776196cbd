"""Turn a folder of studies and a file of reports into a training set; resumable, bad data goes to a quarantine."""

import json
from typing import Any

import click

from itemized_clip_cli import accept_option, domain_option, json_option, layout_option, say_what_stays, volume_option


@click.command()
@click.option(
    "-i",
    "--input",
    "studies",
    required=True,
    type=click.Path(exists=True),
    help="Folder of studies, or a list of them.",
)
@click.option("--reports", type=click.Path(exists=True), help="JSONL, CSV or JSON: ids with items or report texts.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="Folder of the dataset.")
@domain_option()
@click.option("--recipe", metavar="NAME", help="Prepare for this recipe: its domain and its image settings.")
@click.option("--id-column", help="Of the reports; found by name otherwise.")
@click.option("--items-column", help="Of the reports: lists of items, or texts, which are itemized by rules.")
@accept_option
@layout_option
@volume_option
@click.option("--format", "file_format", type=click.Choice(["arrow", "parquet"]), default="arrow", show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes.")
@click.option("--shard-size", default=8, show_default=True, help="Studies of an output file.")
@json_option
def command(
    studies: str,
    reports: str | None,
    output: str,
    domain: str | None,
    recipe: str | None,
    id_column: str | None,
    items_column: str | None,
    accept: tuple[str, ...],
    layout: str | None,
    volume_index: int | None,
    file_format: str,
    workers: int,
    shard_size: int,
    as_json: bool,
) -> None:
    """
    Prepare a training set.

    The domain's fixed preprocessing is done once: volumes are stored with 8 bits (or as HU, 16 bits), compressed without loss,
    with items, labels and geometry; how much that takes is said first. Train from the folder with `itemized-clip train --data
    FOLDER`. A killed run goes on where it was. What cannot be used is listed in quarantine.csv with the reason, and
    summary.html shows what was kept.
    """
    domain, image_settings = _choose_domain(domain, recipe)

    from itemized_clip_hf.data.studies.prepare import estimate_size, plan_studies, prepare
    from itemized_clip_hf.domains import load_domain
    from itemized_clip_hf.domains.schema import check_image_settings

    check_image_settings({**load_domain(domain).image, **image_settings}, f"{recipe or domain}: image")
    plan, skipped = plan_studies(
        studies,
        domain,
        reports,
        id_column=id_column,
        items_column=items_column,
        image_settings=image_settings,
        accept=sorted(accept),
        volume_index=volume_index,
        file_format=file_format,
        shard_size=shard_size,
        layout=layout,
    )
    click.echo(f"studies: {len(plan.rows):,}, {estimate_size(plan, output)}", err=True)
    say_what_stays(output)
    summary = prepare(plan, output, skipped, num_workers=workers, progress=not as_json)
    click.echo(json.dumps(summary, indent=1) if as_json else _describe(summary, output))


def _choose_domain(domain: str | None, recipe: str | None) -> tuple[str, dict[str, Any]]:
    """The domain, and a recipe's changes to its image settings."""
    from itemized_clip_hf.domains import load_domain
    from itemized_clip_hf.recipes import read_recipe

    if recipe is not None:
        loaded = read_recipe(recipe)
        if domain is not None and load_domain(domain).name != loaded.domain:
            raise ValueError(f"recipe {recipe!r} is for the domain {loaded.domain}, not {domain}.")
        return loaded.domain, loaded.image
    if domain is None:
        raise click.UsageError("pass --domain or --recipe.")
    return domain, {}


def _describe(summary: dict[str, Any], output: str) -> str:
    items = summary["items_per_study"]
    return (
        f"{summary['studies']} studies ({summary['normal']} normal) with {summary['scans']} scans and {summary['items']} items "
        f"({items['min']} to {items['max']} a study) in {output}\n"
        f"left out: {summary['studies_left_out']} studies, {summary['files_left_out']} files or scans; see "
        f"{output}/quarantine.csv\nlook at {output}/summary.html"
    )
