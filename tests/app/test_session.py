"""Sessions are apart, and nothing of them is left."""

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from itemized_clip_hf.app.limits import Limits
from itemized_clip_hf.app.session import ServedFile, Session, Sessions, StoppedError, remove_leftovers


@pytest.fixture
def sessions():
    made = Sessions(Limits(sessions=2, idle_minutes=1))
    yield made
    made.close()


def test_each_tab_has_its_own(sessions):
    one, two = sessions.of("one"), sessions.of("two")
    assert one is sessions.of("one") and one is not two and one.folder != two.folder
    assert one.slots["current"] is not two.slots["current"]
    for folder in (sessions.root, sessions.uploads, one.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(ValueError, match="2 people use the app"):
        sessions.of("three")
    with pytest.raises(ValueError, match="belongs to no session"):
        sessions.of(None)


def test_the_end_deletes_everything(sessions):
    one, two = sessions.of("one"), sessions.of("two")
    for session in (one, two):
        (session.new_folder("current") / "scan.nii").write_text("voxels")
        session.slots["current"].opened = object()
    token = one.serve(ServedFile("a.json", lambda: one.folder, "application/json")).split("/")[1]
    assert sessions.find(token)[0] is one and len(token) > 40
    sessions.end("one")
    assert not one.folder.exists() and one.slots["current"].opened is None and sessions.find(token) is None
    with pytest.raises(StoppedError, match="cancelled"):
        one.check(time.monotonic() + 100)
    assert two.folder.exists() and sessions.of("two") is two
    sessions.end("nobody")
    sessions.close()
    assert not sessions.root.exists()


def test_idle_sessions_end(sessions):
    one, two = sessions.of("one"), sessions.of("two")
    one.used -= 61
    two.used -= 61
    two.running = True
    sessions.sweep()
    assert not one.folder.exists() and two.folder.exists()


def test_room(sessions):
    (sessions.of("one").folder / "large").write_bytes(b"\0" * (2 << 20))
    sessions.require_room()
    full = Sessions(Limits(stored_mb=1))
    (full.uploads / "large").write_bytes(b"\0" * (2 << 20))
    with pytest.raises(ValueError, match="holds 2 MiB of studies"):
        full.require_room()
    full.close()


def test_a_run_ends_in_time(tmp_path):
    session = Session(tmp_path)
    session.check(time.monotonic() + 1)
    with pytest.raises(StoppedError, match="took too long"):
        session.check(time.monotonic() - 1)
    session.stop.set()
    with pytest.raises(StoppedError, match="cancelled"):
        session.check(time.monotonic() + 1)


def test_the_end_of_the_process_deletes_everything():
    code = (
        "from itemized_clip_hf.app.session import Sessions; from itemized_clip_hf.app.limits import Limits\n"
        "s = Sessions(Limits()); (s.of('one').folder / 'scan').write_text('x'); print(s.root)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    root = done.stdout.strip()
    assert "itemized-clip-app-" in root and subprocess.run(["test", "-e", root]).returncode == 1


def test_the_next_app_deletes_what_a_killed_one_left(sessions):
    code = (
        "from itemized_clip_hf.app.session import Sessions; from itemized_clip_hf.app.limits import Limits; import os\n"
        "s = Sessions(Limits()); (s.of('one').folder / 'scan').write_text('x'); print(s.root, flush=True); os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    root = Path(killed.stdout.strip())
    assert killed.returncode == 9 and root.is_dir()
    remove_leftovers()
    assert not root.exists() and sessions.root.is_dir(), "an app that runs keeps its own"
