"""Who uses the app: one folder, one or two studies and their results each, deleted when the session ends."""

import atexit
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import hold_output
from .limits import Limits, megabytes, stored

if TYPE_CHECKING:
    from ..explain.encoded import EncodedStudy
    from ..explain.result import StudyResult

_PREFIX = "itemized-clip-app-"


class StoppedError(ValueError):
    """A run that was cancelled, took too long, or whose session ended."""


@dataclass
class Slot:
    """
    The place of one study: `current`, or the `prior` that it is compared with.

    Args:
        opened: the study as it was read, an `OpenedStudy`.
        encoded: of the study, by name of the model and accepted codes: a run with other findings passes texts only.
        result: of the last run.
    """

    opened: Any = None
    encoded: "dict[tuple[str, frozenset[str]], EncodedStudy]" = field(default_factory=dict)
    result: "StudyResult | None" = None

    def clear(self) -> None:
        """Forgets the study and what was made of it."""
        self.opened, self.result = None, None
        self.encoded.clear()


@dataclass(frozen=True)
class ServedFile:
    """
    A file of a session that its page can fetch.

    Args:
        name: that a browser gives it.
        make: writes it where it is not there yet, and returns its path.
        media_type: as HTTP says it.
        page: whether the browser is to show it in a frame rather than to store it.
    """

    name: str
    make: Callable[[], Path]
    media_type: str
    page: bool = False


class Session:
    """
    The data of one browser tab. Its folder can be read by this user alone and has a name that cannot be guessed.

    Args:
        parent: folder that holds the folders of all sessions.
    """

    def __init__(self, parent: Path):
        self.folder = Path(tempfile.mkdtemp(prefix=f"{secrets.token_hex(16)}-", dir=parent))
        self.slots = {"current": Slot(), "prior": Slot()}
        self.files: dict[str, ServedFile] = {}
        self.bank: tuple[Any, Any] | None = None  # the texts that places were compared with last, and their embeddings
        self.stop = threading.Event()
        self.lock = threading.RLock()
        self.used = time.monotonic()
        self.closed = False
        self.running = False

    def new_folder(self, name: str) -> Path:
        """An empty folder of the session."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def serve(self, file: ServedFile) -> str:
        """Lets the page fetch a file; returns the address, from the page's own on."""
        token = secrets.token_urlsafe(32)
        self.files[token] = file
        return f"study-files/{token}/{file.name}"

    def forget_files(self) -> None:
        """What was to be fetched so far is no longer there."""
        self.files.clear()

    def check(self, deadline: float) -> None:
        """
        Args:
            deadline: of `time.monotonic`.

        Raises:
            StoppedError: the run is to end.
        """
        if self.closed or self.stop.is_set():
            raise StoppedError("the run was cancelled.")
        if time.monotonic() > deadline:
            raise StoppedError(
                "the run took too long and was stopped: ask whoever runs the app for more --max-seconds."
            )

    def close(self) -> None:
        """Ends what runs, and deletes all that there is of the session."""
        self.closed = True
        self.stop.set()
        self.files.clear()
        self.bank = None
        for slot in self.slots.values():
            slot.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """
    All sessions of one app, by the key that the browser tab has; each sees nothing but its own.

    Args:
        limits: of the app.

    Folders lie below `root`, which is deleted when the process ends; `uploads` is where files arrive.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        remove_leftovers()
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held = ExitStack()
        self._held.enter_context(hold_output(self.root))  # as long as the process lives
        self.uploads, self.folders = self.root / "uploads", self.root / "sessions"
        self.uploads.mkdir(mode=0o700)
        self.folders.mkdir(mode=0o700)
        self.known: dict[str, Session] = {}
        self.lock = threading.Lock()
        atexit.register(self.close)

    def of(self, key: str | None) -> Session:
        """
        The session of a tab, which begins with its first question.

        Raises:
            ValueError: there is no key, or too many sessions are open.
        """
        if not key:
            raise ValueError("the request belongs to no session: load the page again.")
        self.sweep()
        with self.lock:
            session = self.known.get(key)
            if session is None:
                if len(self.known) >= self.limits.sessions:
                    raise ValueError(
                        f"{len(self.known)} people use the app, which is as many as it takes: come back later."
                    )
                session = self.known[key] = Session(self.folders)
            session.used = time.monotonic()
            return session

    def end(self, key: str | None) -> None:
        """Deletes the data of a session; nothing happens where there is none."""
        with self.lock:
            session = self.known.pop(key or "", None)
        if session is not None:
            session.close()

    def sweep(self) -> None:
        """Ends the sessions that nobody has used for a while."""
        oldest = time.monotonic() - 60 * self.limits.idle_minutes
        with self.lock:
            idle = [key for key, session in self.known.items() if session.used < oldest and not session.running]
        for key in idle:
            self.end(key)

    def find(self, token: str) -> tuple[Session, ServedFile] | None:
        """The file that an address of `Session.serve` names."""
        with self.lock:
            for session in self.known.values():
                file = session.files.get(token)
                if file is not None:
                    session.used = time.monotonic()
                    return session, file
        return None

    def require_room(self) -> None:
        """
        Raises:
            ValueError: the sessions hold as much as they may.
        """
        held = stored(self.root)
        if held > self.limits.stored_mb << 20:
            raise ValueError(
                f"the app holds {megabytes(held)} of studies, which is as much as it may: come back later."
            )

    def close(self) -> None:
        """Ends all sessions and deletes every file; the app is over."""
        for key in list(self.known):
            self.end(key)
        self._held.close()
        shutil.rmtree(self.root, ignore_errors=True)


def remove_leftovers() -> None:
    """Deletes what apps left that were killed: folders that no living process holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            with hold_output(folder):
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError):  # it is in use, or somebody else's
            continue
