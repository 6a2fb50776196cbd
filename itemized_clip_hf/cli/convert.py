"""Turn an authors' checkpoint into a folder that the Auto classes load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from itemized_clip_cli import json_option, tokenizer_option

if TYPE_CHECKING:
    from itemized_clip_hf.modeling.configuration_itemized_clip import ItemizedCLIPConfig


@click.command()
@click.option(
    "-i",
    "--input",
    "checkpoint",
    required=True,
    metavar="PATH",
    help="Checkpoint (.pt) of ItemizedCLIP, HLIP or FLAIR; or Prima's, for --into.",
)
@click.option("--domain", metavar="NAME", help="brain-mri, head-ct, chest-ct, remote-sensing or natural-images.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False))
@tokenizer_option
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False),
    help="JSON or YAML: changes to the domain's architecture, e.g. attention_scopes of other HLIP variants.",
)
@click.option("--into", metavar="DIR", help="A model that takes the encoder of sequence names of a Prima checkpoint.")
@click.option(
    "--accept", "accepted", multiple=True, metavar="CODE", help="other-vocabulary: take a tokenizer of other words."
)
@click.option("--overwrite", is_flag=True, help="Replace what the output folder holds.")
@json_option
def command(
    checkpoint: str,
    domain: str | None,
    output: str,
    tokenizer: str | None,
    config: str | None,
    into: str | None,
    accepted: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """
    Convert a checkpoint of the reference code into a model folder.

    Only weights are read, nothing in the file is executed. Every key is mapped once or named in an error; the result is
    compared with the source on a random input, and conversion_report.json tells the figures.
    """
    from itemized_clip_hf.data.files import refuse_to_replace

    if into is None and domain is None:
        raise click.UsageError("pass --domain: shapes do not tell brain MRI from head CT, nor what pictures show.")
    refuse_to_replace(Path(output), overwrite)

    from itemized_clip_hf.conversion.folder import convert_folder, put_names

    if domain is None or into is not None:
        report = put_names(checkpoint, str(into), output, overwrite)
        summary = {"output": output, "keys": len(report["keys"]), "not used": report["not_used"]}
    else:
        architecture = read_architecture(config, domain) if config else None
        report = convert_folder(checkpoint, domain, output, tokenizer, architecture, accepted, overwrite)
        summary = {
            "output": output,
            "keys": len(report["keys"]),
            "parameters": f"{report['values']:,}",
            "largest difference of a similarity": f"{report['parity']['similarity']:.1e}",
            "scored by": report["scoring"],
        }
    click.echo(json.dumps(report, indent=1) if as_json else "\n".join(f"{k:<36}{v}" for k, v in summary.items()))


def read_architecture(path: str, domain: str) -> ItemizedCLIPConfig:
    """Arguments of `ItemizedCLIPConfig` in a file, over those of the domain."""
    from huggingface_hub.errors import StrictDataclassError

    from itemized_clip_hf import ItemizedCLIPConfig
    from itemized_clip_hf.domains import load_domain
    from itemized_clip_hf.specs import conform, merge, read_written

    changes = read_written(path)
    conform(changes, dict, path)
    try:
        return ItemizedCLIPConfig(**merge(load_domain(domain).architecture, changes))
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"{path} is no architecture: {error}") from error
