"""
Throughput of `itemized-clip prepare` on the real volumes, against decoding alone with nibabel, two worker processes each.

    python benchmarks/prepare.py [--repeats 5] [--copies 6] [-o benchmarks/results/prepare.json]

Both run in pools that are up before the clock starts, in turns; medians are kept. "decompression" is the share of one
process's time that the reader spends in zlib. "share_of_size" is what the stored volumes take of their voxels' bytes,
"read_ms" the time to get one of them back, "copy_ms" that of copying its voxels.
"""

import argparse
import functools
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
import zlib
from dataclasses import asdict
from pathlib import Path

CASES = {
    "brain-mri": ["mri_tcga_fg_6692", "mri_decubitus_hfs", "mri_brats_2013_pat0005_1"],
    "head-ct": ["ct_head_ge"],
    "chest-ct": ["ct_chest_qin"],
}


def decode(path: str) -> int:
    import nibabel
    import numpy as np

    return np.asanyarray(nibabel.load(path).dataobj).size


def share_of_decompression(plan) -> float:
    """Of the time that one process spends on all studies of a plan."""
    from itemized_clip_hf.data.readers import nifti
    from itemized_clip_hf.data.studies.prepare import prepare_study

    spent = 0.0

    class Timed:
        def __init__(self, *args):
            self.inner = zlib.decompressobj(*args)

        def decompress(self, *args):
            nonlocal spent
            start = time.perf_counter()
            data = self.inner.decompress(*args)
            spent += time.perf_counter() - start
            return data

        def __getattr__(self, name):
            return getattr(self.inner, name)

    class Module:
        decompressobj, error = Timed, zlib.error

    nifti.zlib = Module
    processor = plan.image_processor()
    try:
        for row in plan.rows[:1]:
            prepare_study(row, plan, processor, print)
        spent, start = 0.0, time.perf_counter()
        for row in plan.rows:
            prepare_study(row, plan, processor, print)
        return spent / (time.perf_counter() - start)
    finally:
        nifti.zlib = zlib


def storage(folder: Path, plan) -> dict:
    """Size of the shards' volumes and the time to read them."""
    import pyarrow

    from itemized_clip_hf.data.studies.storage import load_scans

    stored, raw, times = 0, 0, {"read": [], "copy": []}
    for number in range(min(plan.num_shards, 12)):
        with pyarrow.memory_map(str(folder / f"part-{number:05d}.arrow")) as source:
            for row in pyarrow.ipc.open_stream(source).read_all().to_pylist():
                for scan in row["scans"]:
                    start = time.perf_counter()
                    (array,) = (found.array for found in load_scans([scan]).values())
                    middle = time.perf_counter()
                    array.copy()
                    times["copy"].append(1e3 * (time.perf_counter() - middle))
                    times["read"].append(1e3 * (middle - start))
                    stored, raw = stored + len(scan["voxels"]), raw + array.nbytes
    read, copy = (round(statistics.median(times[name]), 2) for name in ("read", "copy"))
    return {"share_of_size": round(stored / raw, 3), "read_ms": read, "copy_ms": copy}


def plan_of(domain: str, data: Path, copies: int):
    """The real volumes of a domain, several times, a study a shard."""
    from itemized_clip_hf.data.studies.prepare import Plan

    files = {
        case: [str(file) for file in sorted((data / case).glob("*.nii.gz")) if file.name != "seg.nii.gz"]
        for case in CASES[domain]
    }
    rows = [
        {"id": f"{case}-{copy}", "images": files[case], "items": ["an item"], "labels": {}, "label": None}
        for copy in range(copies)
        for case in CASES[domain]
    ]
    return Plan(domain, rows, accept=["not-raw"], shard_size=1)


def measure(plan, repeats: int) -> dict:
    """Both ways of reading all scans of a plan, in turns; medians."""
    from itemized_clip_hf.data.studies.prepare.shard import prepare_shard

    paths = [path for row in plan.rows for path in row["images"]]
    times: dict[str, list[float]] = {"decode": [], "prepare": []}
    with tempfile.TemporaryDirectory() as folder:
        plan_file = Path(folder) / "plan.json"
        plan_file.write_text(json.dumps(asdict(plan)))
        prepare = functools.partial(prepare_shard, plan_file=str(plan_file))
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as plain, context.Pool(2) as pool:
            plain.map(decode, paths[:4], chunksize=1)
            pool.map(prepare, range(min(4, plan.num_shards)), chunksize=1)
            for _ in range(repeats):
                start = time.perf_counter()
                plain.map(decode, paths, chunksize=1)
                middle = time.perf_counter()
                pool.map(prepare, range(plan.num_shards), chunksize=1)
                times["decode"].append(middle - start)
                times["prepare"].append(time.perf_counter() - middle)
        stored = storage(Path(folder), plan)
    decode_s, prepare_s = (statistics.median(times[name]) for name in ("decode", "prepare"))
    return {
        "studies": len(plan.rows),
        "scans": len(paths),
        "decode_s": round(decode_s, 3),
        "prepare_s": round(prepare_s, 3),
        "scans_per_s": round(len(paths) / prepare_s, 1),
        "share_of_decode_speed": round(statistics.median(d / p for d, p in zip(*times.values())), 3),
        "decompression": round(share_of_decompression(plan), 3),
        **stored,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(Path(__file__).parents[2] / "shared" / "data" / "volumes"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--copies", type=int, default=24)
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "prepare.json"))
    args = parser.parse_args()

    import numpy
    import torch

    torch.set_num_threads(1)
    results = {}
    for domain in CASES:
        results[domain] = measure(plan_of(domain, Path(args.data), args.copies), args.repeats)
        print(domain, results[domain])
    total = {name: sum(result[name] for result in results.values()) for name in ("decode_s", "prepare_s")}
    results["all"] = {"share_of_decode_speed": round(total["decode_s"] / total["prepare_s"], 3)}
    print("all", results["all"])
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps({"machine": machine, "workers": 2, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
