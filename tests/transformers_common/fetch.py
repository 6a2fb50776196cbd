"""
Fetches the source distribution of the installed transformers, whose common tests this folder runs.

    python tests/transformers_common/fetch.py

Nothing is downloaded where it is already there. Without network it says so and exits with 0: the tests then skip.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from transformers_source import CACHE, VERSION, find_source


def download(folder: Path) -> Path:
    """The archive, downloaded by pip into `folder`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "download"]
    command = [*pip, "--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"transformers=={VERSION}"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        last_line = run.stdout.strip().rpartition("\n")[2]
        raise OSError(f"pip could not download it: {last_line}")
    return next(folder.glob("transformers-*.tar.gz"))


def unpack(archive: Path, target: Path):
    """Puts the archive's one folder at `target`, all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        shutil.rmtree(target, ignore_errors=True)
        next(Path(folder).iterdir()).rename(target)


def main():
    source = find_source()
    if source is not None:
        print(f"transformers {VERSION}: tests are at {source}")
        return
    print(f"transformers {VERSION}: fetching the source distribution, about a minute", flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            unpack(download(Path(folder)), CACHE)
    except (OSError, StopIteration, tarfile.TarError) as error:
        print(f"{error}\nThe tests in {Path(__file__).parent} will be skipped.")
        return
    print(f"transformers {VERSION}: tests are at {CACHE}")


if __name__ == "__main__":
    main()
