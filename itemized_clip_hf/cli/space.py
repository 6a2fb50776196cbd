"""Write a folder that runs as a Gradio Space of a model."""

import click


@click.command()
@click.option(
    "-m", "--model", required=True, metavar="MODEL", help="ORG/NAME on the Hub, or a model folder, which is copied."
)
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="New folder.")
@click.option("--title", metavar="TEXT", help="Heading of the page.")
@click.option("--license", "license_id", metavar="ID", help="License of the model, as the Hub calls it.")
@click.option(
    "--wheel",
    type=click.Path(exists=True, dir_okay=False),
    help="Wheel of this package to install there, in place of the released one.",
)
def command(model: str, output: str, title: str | None, license_id: str | None, wheel: str | None) -> None:
    """
    Write a folder that runs as a Gradio Space: the app, its requirements and a card.

    `push --space FOLDER ORG/NAME` uploads it. To try it here: pip install -r requirements.txt, then python app.py.
    """
    from itemized_clip_hf.hub.space import write_space

    place = write_space(output, model, title, license_id, wheel)
    click.echo(f"{place}: {', '.join(sorted(path.name for path in place.iterdir()))}")
