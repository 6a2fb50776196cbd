"""
Damages small files of every kind that the package reads and says what came of each: a clear error, a sane result, or a fault.

    python benchmarks/fuzz.py -o fuzz.jsonl --cases 10000

Every case is a process of its own, forked from a warm parent, with 20 seconds and 2 GiB beyond what the parent takes. Results
are appended to the file; a rerun goes on where it stopped. A case is made from its number and the seed alone.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

from fuzz_inputs import FAMILIES, damage, prepare  # noqa: E402

SECONDS = 20
MEMORY = 2 << 30
FINE = ("refused", "accepted")


def address_space() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def judge(read, path: Path) -> tuple[str, str]:
    """A verdict and why: what is refused in words of ours, and what is accepted and not sane."""
    try:
        fault = read(path)
    except MemoryError:
        return "memory", "MemoryError"
    except (ValueError, OSError) as error:
        own = type(error) in (ValueError, OSError, FileNotFoundError) or type(error).__module__.startswith("itemized")
        text = str(error)
        return ("refused" if own and len(text) > 15 else "foreign"), f"{type(error).__name__}: {text[:160]}"
    except BaseException as error:
        return "foreign", f"{type(error).__name__}: {str(error)[:160]}"
    return ("insane", fault) if fault else ("accepted", "")


def run_case(family: str, number: int, seed: int, seeds: Path) -> dict:
    """Makes one case and reads it in a child."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="itemized-clip-fuzz-") as folder:
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            os.close(receive)
            _child(family, number, seed, seeds, Path(folder), send)
        os.close(send)
        verdict, why = _wait(child, receive)
        os.close(receive)
    return {
        "family": family,
        "case": number,
        "verdict": verdict,
        "why": why,
        "seconds": round(time.monotonic() - start, 2),
    }


def _child(family: str, number: int, seed: int, seeds: Path, folder: Path, send: int) -> None:
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        path, read = damage(family, random.Random(f"{seed}/{family}/{number}"), seeds, folder)
        limit = address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.write(send, json.dumps(judge(read, path)).encode())
    except BaseException as error:
        os.write(send, json.dumps(("campaign", repr(error)[:200])).encode())
    finally:
        os._exit(0)


def _wait(child: int, receive: int) -> tuple[str, str]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            told = os.read(receive, 1 << 16)
            return tuple(json.loads(told)) if told else ("death", f"status {status}")
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang", f"more than {SECONDS} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES))
    arguments = parser.parse_args()
    families = arguments.family or list(FAMILIES)
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    results = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):  # the last line of a run that was killed
            results.append(json.loads(line))
    done = {(row["family"], row["case"]) for row in results if row["seed"] == arguments.seed}
    with tempfile.TemporaryDirectory(prefix="itemized-clip-fuzz-") as seeds, arguments.output.open("a") as file:
        prepare(Path(seeds))
        for index in range(arguments.cases):
            family, number = families[index % len(families)], index // len(families)
            if (family, number) in done:
                continue
            row = {"seed": arguments.seed, **run_case(family, number, arguments.seed, Path(seeds))}
            results.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    return report(results)


def report(results: list[dict]) -> int:
    """Prints counts per family; the exit status is 1 where anything is a fault."""
    counts = Counter((row["family"], row["verdict"]) for row in results)
    verdicts = [*FINE, *sorted({row["verdict"] for row in results} - set(FINE))]
    print("family".ljust(14), *(verdict.rjust(9) for verdict in verdicts))
    for family in dict.fromkeys(row["family"] for row in results):
        print(family.ljust(14), *(str(counts[family, verdict]).rjust(9) for verdict in verdicts))
    faults = [row for row in results if row["verdict"] not in FINE]
    print(f"{len(results)} cases, {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
