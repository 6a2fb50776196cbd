"""The command in a process of its own."""

import subprocess
import sys
from pathlib import Path


def run(*arguments, check=True) -> subprocess.CompletedProcess:
    script = Path(sys.executable).parent / "itemized-clip"
    command = [str(script)] if script.exists() else [sys.executable, "-m", "itemized_clip_cli"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done
