"""Merge LoRA adapters with their base model into an ordinary model folder."""

import click

from itemized_clip_cli import json_option


@click.command()
@click.option(
    "-m", "--model", required=True, metavar="DIR", help="Folder of adapters, as training with LoRA leaves it."
)
@click.option("--base", metavar="DIR", help="The base model, if it is no longer where the adapters name it.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False))
@json_option
def command(model: str, base: str | None, output: str, as_json: bool) -> None:
    """
    Merge LoRA adapters with their base model into an ordinary model folder.

    The card of the adapters (README.md, card.yaml) goes along, with the merge in its history.
    """
    import json

    from itemized_clip_hf.models.names import is_adapter_folder

    if not is_adapter_folder(model):
        raise click.BadParameter(f"{model} holds no adapters (adapter_config.json)", param_hint="--model")
    from itemized_clip_hf.models.merge import merge_folder

    summary = {"output": output, "parameters": merge_folder(model, output, base)}
    click.echo(json.dumps(summary) if as_json else "\n".join(f"{name:<16}{value}" for name, value in summary.items()))
