"""What benchmarks share: where results go, what they ran on, runs in processes of their own, tables in pages."""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
END_MARK = "<!-- end of table -->"


def about() -> dict:
    """Revision, device and versions."""
    import torch
    import transformers

    git = shutil.which("git")
    found = git and subprocess.run([git, "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    threads = torch.get_num_threads()
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads} thread{'s' * (threads > 1)}"
    )
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    return {"revision": found.stdout.strip() if found else "", "device": device, "versions": versions}


def run_missing(jobs: dict[Path, list[str]], processes: int) -> None:
    """
    This command again, in processes of their own, for every folder that has no result yet.

    Args:
        jobs: folder of a run -> arguments that are added to the command line.
        processes: runs at a time, which share the cores.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // processes, 1))}

    def start(folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            command = [sys.executable, *sys.argv, *jobs[folder]]
            done = subprocess.run(command, stdout=log, stderr=log, env=environment)
        print(f"{folder.name}: {'done' if done.returncode == 0 else f'failed, see {folder}/log.txt'}", flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(start, [folder for folder in jobs if not (folder / "result.json").exists()]))


def put_table(path: Path, mark: str, rows: list[str]) -> None:
    """Rows of a table between its mark and the end mark of a Markdown file."""
    before, found, rest = path.read_text().partition(mark)
    if not found or END_MARK not in rest:
        raise ValueError(f"{path} has no lines {mark} and {END_MARK}.")
    path.write_text("\n".join([before + mark, *rows, END_MARK]) + rest.partition(END_MARK)[2])


def place_of(folder: Path, name: str, seed: int, rate: float | None = None) -> Path:
    """Folder of one run."""
    parts = [re.sub("[^A-Za-z0-9.]+", "-", name), str(seed), *([] if rate is None else [f"{rate:g}"])]
    return folder / "-".join(parts)
