"""The command in a copy of this process: its own exit status, signals and streams, without the seconds of importing torch."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MAIN = "import itemized_clip_cli; itemized_clip_cli.main()"


def run_forked(*arguments, check: bool = True, code: str = MAIN) -> subprocess.CompletedProcess:
    """
    What a process that runs this code with these arguments prints and returns.

    The copy has all that was imported and set before: what a process makes of its environment needs one of its own
    (`command.run`).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        child = os.fork()
        if child == 0:
            os._exit(_run(code, list(map(str, arguments)), out, err))
        _, status = os.waitpid(child, 0)
        done = subprocess.CompletedProcess(
            arguments, os.waitstatus_to_exitcode(status), out.read_text(), err.read_text()
        )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def _run(code: str, arguments: list[str], out: Path, err: Path) -> int:
    sys.stdout, sys.stderr = out.open("w", buffering=1), err.open("w", buffering=1)
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)
    for logger in (logging.getLogger(), logging.getLogger("transformers")):
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.stream = sys.stderr
    sys.argv = ["itemized-clip", *arguments]
    try:
        exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status
