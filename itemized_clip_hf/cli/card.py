"""Write the model card of a folder, or of a file of facts."""

import click


@click.command()
@click.option("-m", "--model", metavar="DIR", help="Model folder: its card.yaml, configs and reports are the facts.")
@click.option(
    "-i", "--input", "facts_file", metavar="FILE", help="Facts (YAML) instead of a folder's, e.g. of hub_cards/."
)
@click.option("--results", multiple=True, metavar="FILE", help="Results of `evaluate` to show; repeat for several.")
@click.option("--name", metavar="ORG/NAME", help="Name of the repository.")
@click.option(
    "--license", "license_id", metavar="ID", help="Licence of the weights, as the Hub calls it, e.g. cc-by-nc-4.0."
)
@click.option("-o", "--output", metavar="FILE", help="Where to; README.md in the folder by default.")
@click.option("--overwrite", is_flag=True, help="Replace a README.md that somebody has edited.")
def command(
    model: str | None,
    facts_file: str | None,
    results: tuple[str, ...],
    name: str | None,
    license_id: str | None,
    output: str | None,
    overwrite: bool,
) -> None:
    """
    Write a model card.

    Facts that only a person knows (licence, data, population) come from card.yaml in the folder; edit it and run this again.
    What is not stated there is said not to be stated.
    """
    from pathlib import Path

    from itemized_clip_hf.hub.card import (
        CARD,
        CardFacts,
        add_results,
        card_text,
        facts_of_folder,
        is_edited,
        write_card,
    )
    from itemized_clip_hf.models.load import load_model
    from itemized_clip_hf.provenance import hash_model

    if (model is None) == (facts_file is None):
        raise click.UsageError("pass a model folder (-m) or a file of facts (-i).")
    target = output or (str(Path(model) / CARD) if model is not None else None)
    if target is None:
        raise click.UsageError("pass -o FILE.md for the card of a file of facts.")
    if model is not None and output is None and is_edited(model) and not overwrite:
        raise ValueError(f"{target} is not what was rendered last: pass --overwrite to replace it.")
    facts = facts_of_folder(model) if model is not None else CardFacts.read(str(facts_file))
    facts.name = name or facts.name
    facts.license = license_id or facts.license
    add_results(facts, results, hash_model(load_model(model)) if results and model is not None else None)
    if model is not None and output is None:
        write_card(model, facts, overwrite=True)
    else:
        Path(target).write_text(card_text(facts), encoding="utf-8")
    click.echo(target)
    empty = [part for part in ("license", "training_data", "access", "population") if not getattr(facts, part)]
    if empty:
        click.echo(f"not stated: {', '.join(empty)}", err=True)
