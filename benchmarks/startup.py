"""
How long it takes to start, and to be told of a wrong argument: CPU seconds of new processes, as ratios within one run.

    python benchmarks/startup.py --before /path/to/an/older/checkout -o benchmarks/results/startup.json

Every command is run in turns with the others, so that a busy machine slows all of them alike; figures are medians.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
LIBRARY = "import torch, transformers"
AUTO = "from transformers import AutoModel, AutoProcessor"
IMPORTS = {
    "click": "import click",
    "torch, transformers": LIBRARY,
    "torch, transformers, Auto classes": f"{LIBRARY}; {AUTO}",
    "package": "import itemized_clip_hf",
    "torch, transformers, package": f"{LIBRARY}; import itemized_clip_hf",
    "torch, transformers, package, Auto classes": f"{LIBRARY}; import itemized_clip_hf; {AUTO}",
}
MISTAKES = {
    "info": "info",
    "unknown recipe": "train --recipe brain-mrt -i {list} -o {new}",
    "unknown setting": "train --recipe brain-mri -i {list} -o {new} --set max_stpes=5",
    "prepared for other settings": "train --recipe brain-mri -i {prepared} -o {new} --tokenizer {list}",
    "missing model folder": "predict -i {list} -m {folder}/modle -p mass",
    "missing study": "predict -i {folder}/lost -m {folder} -p mass",
    "unknown protocol": "evaluate --protocol ct-rat -i {list} -m {folder} -o {new}.json",
}


def cpu_seconds(arguments: list[str], checkout: Path, folder: str) -> tuple[float, float]:
    """CPU and wall seconds of a new process."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - start


def write_places(folder: Path) -> dict[str, str]:
    """Inputs of the mistakes: a list, a prepared data set of other settings, the shape of a model folder."""
    (folder / "list.jsonl").write_text('{"id": "1", "images": "1.nii.gz", "items": ["a mass"]}\n')
    (folder / "config.json").write_text("{}")
    (folder / "prepared").mkdir()
    (folder / "prepared" / "metadata.jsonl").write_text((folder / "list.jsonl").read_text())
    stated = {"domain": "brain-mri", "fit": "slices", "depth": 48, "in_plane_size": 64}
    (folder / "prepared" / "prepare.json").write_text(json.dumps({"image": stated}))
    places = {name: str(folder / name) for name in ("prepared", "new")}
    return {**places, "list": str(folder / "list.jsonl"), "folder": str(folder)}


def measure(checkouts: dict[str, Path], repeats: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        places = write_places(Path(name))
        commands = {
            **{label: ["-c", code] for label, code in IMPORTS.items()},
            **{
                label: ["-m", "itemized_clip_cli", *(word.format(**places) for word in line.split())]
                for label, line in MISTAKES.items()
            },
        }
        runs: dict[str, list] = {f"{which}: {label}": [] for which in checkouts for label in commands}
        for _ in range(repeats):
            for label, arguments in commands.items():
                for which, checkout in checkouts.items():
                    runs[f"{which}: {label}"].append(cpu_seconds(arguments, checkout, name))
    return {
        label: {"cpu_s": statistics.median(cpu for cpu, _ in own), "wall_s": statistics.median(wall for _, wall in own)}
        for label, own in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    checkouts = {"now": HERE} | ({"before": options.before.resolve()} if options.before else {})
    found = measure(checkouts, options.repeats)
    base = {which: found[f"{which}: torch, transformers"]["cpu_s"] for which in checkouts}
    for label, row in found.items():
        row["of_torch_and_transformers"] = row["cpu_s"] / base[label.partition(":")[0]]
    print(f"{'':<52}{'CPU s':>8}{'wall s':>8}{'ratio':>8}")
    for label, row in found.items():
        print(f"{label:<52}{row['cpu_s']:>8.2f}{row['wall_s']:>8.2f}{row['of_torch_and_transformers']:>8.2f}")
    if options.output:
        facts = {"repeats": options.repeats, "ratio": "CPU seconds over those of `import torch, transformers`"}
        options.output.write_text(
            json.dumps({**facts, "python": sys.version.split()[0], "found": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
