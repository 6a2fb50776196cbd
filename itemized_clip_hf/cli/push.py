"""Upload a model folder to the Hub, after its checks."""

import json

import click

from itemized_clip_cli import json_option


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.argument("name", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--dry-run", is_flag=True, help="All checks, and the list of files, but no upload.")
@click.option("--license", "license_id", metavar="ID", help="Licence of the weights, as the Hub calls it.")
@click.option("--space", is_flag=True, help="FOLDER is a Space, as `space` writes one, and ORG/NAME its name.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to.")
@json_option
def command(
    folder: str,
    name: str,
    private: bool,
    dry_run: bool,
    license_id: str | None,
    space: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    """
    Upload FOLDER as ORG/NAME, a model or (--space) a Space.

    Refused without a licence, with possible patient data in its texts, or if it does not load in a new process, with the
    package and from its own code. Only files of the model are uploaded; quarantine lists, scores and checkpoints stay.
    """
    from itemized_clip_hf.hub.push import push_folder
    from itemized_clip_hf.hub.space import push_space

    if space:
        if license_id is not None or revision is not None:
            raise click.UsageError("--license and --revision do not go with --space: README.md states the license.")
        result = push_space(folder, name, private, dry_run)
    else:
        result = push_folder(folder, name, private, dry_run, license_id, revision=revision)
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    click.echo(f"{'would upload' if dry_run else 'uploaded'}: {', '.join(result['files'])}")
    if result.get("left_out"):
        click.echo(f"left out: {', '.join(result['left_out'])}")
    if result["url"]:
        click.echo(result["url"])
