"""Open an app in the browser: upload a study, read what was found in it, and turn through it with the heat maps."""

import os
from pathlib import Path

import click

from itemized_clip_cli import device_option, tokenizer_option

PASSWORD = "ITEMIZED_CLIP_APP_PASSWORD"


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="[NAME=]MODEL",
    help="Folder or Hub name of a model, with the name that the page calls it by; repeat for several to choose from.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Studies on this machine that everybody who sees the page may choose from.",
)
@click.option("--dicomweb", metavar="URL", help="A DICOMweb service to fetch studies from, and store results on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all of them.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--title", default="ItemizedCLIP", show_default=True, help="Heading of the page.")
@click.option(
    "--password",
    metavar="TEXT",
    help=f"What the browser asks for, with any user name. The variable {PASSWORD} or --password-file keep it out of the "
    "list of processes.",
)
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File whose first line is the password.",
)
@click.option("--max-upload-mb", type=click.IntRange(min=1), default=2048, show_default=True, help="MiB of a study.")
@click.option(
    "--max-unpacked-mb", type=click.IntRange(min=1), default=8192, show_default=True, help="MiB of a zip's files."
)
@click.option(
    "--max-files", type=click.IntRange(min=1), default=10000, show_default=True, help="Files of a study or zip."
)
@click.option("--max-seconds", type=click.IntRange(min=1), default=900, show_default=True, help="Time of a run.")
@click.option("--max-queue", type=click.IntRange(min=1), default=16, show_default=True, help="Runs that wait.")
@click.option("--max-sessions", type=click.IntRange(min=1), default=32, show_default=True, help="Tabs at once.")
@click.option(
    "--idle-minutes",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="After which the data of a tab that nobody uses are deleted.",
)
@tokenizer_option
@device_option
def command(
    models: tuple[str, ...],
    folder: Path | None,
    dicomweb: str | None,
    host: str,
    port: int,
    title: str,
    password: str | None,
    password_file: Path | None,
    max_upload_mb: int,
    max_unpacked_mb: int,
    max_files: int,
    max_seconds: int,
    max_queue: int,
    max_sessions: int,
    idle_minutes: int,
    tokenizer: str | None,
    device: str,
) -> None:
    """
    Open an app in the browser.

    Upload NIfTI files, a DICOM zip or a picture, or choose a study of --folder; read the verdict of the checks, type findings,
    and run. The page shows scores and the viewer of the report; a click on a place shows the texts that describe it best. A
    prior study is compared side by side. Results can be taken away as JSON, CSV, HTML, NIfTI and DICOM.

    The app listens on this machine alone unless --host says otherwise, calls no other host, and deletes what was uploaded
    when a tab is closed and when it ends (Ctrl-C).
    """
    from itemized_clip_hf.models.names import split_name

    named = list(map(split_name, models))
    if len({name for name, _ in named}) < len(named):
        raise click.UsageError("more than one model is given the same name: write NAME=MODEL.")
    secret = read_password(password, password_file)
    from itemized_clip_hf.app.page import build_app
    from itemized_clip_hf.app.serve import LOOPBACK, serve
    from itemized_clip_hf.app.settings import AppSettings, Limits

    if secret is None and host not in LOOPBACK:
        click.echo(f"note: everybody who can reach {host} can use the app: no password is set", err=True)
    limits = Limits(
        upload_mb=max_upload_mb,
        unpacked_mb=max_unpacked_mb,
        files=max_files,
        seconds=max_seconds,
        queue=max_queue,
        sessions=max_sessions,
        idle_minutes=idle_minutes,
    )
    hosts = LOOPBACK if host in LOOPBACK else None
    settings = AppSettings(title, folder, dicomweb, secret, hosts, limits, device, tokenizer)
    app = build_app(dict(named), settings)
    serve(app, host, port, click.echo)


def read_password(password: str | None, file: Path | None) -> str | None:
    """The password of the option, the file or the environment, in this order; None where there is none."""
    if password is not None and file is not None:
        raise click.UsageError("pass --password or --password-file, not both.")
    if file is not None:
        password = (file.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
        if not password:
            raise ValueError(f"{file} holds no password in its first line.")
    return password if password is not None else os.environ.get(PASSWORD) or None
