"""Files that are written whole or not at all, outputs that one process has for itself, and names for files."""

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..specs import nearest

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)
_LONGEST = 60
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """
    A place beside a file that takes its place once it is written: who reads the file finds it whole, or as it was.

    The place keeps the file's suffixes. After an error nothing is left of it.
    """
    path = Path(path)
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """The whole file or none, in UTF-8; half characters of names of files are written as escapes."""
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def remove_parts(folder: Path, name: str = "") -> None:
    """What a killed process left of the files of a folder, or of one of them, which this process holds alone."""
    for entry in folder.glob(".part-*"):
        if re.fullmatch(rf"\.part-\d+-{re.escape(name) if name else '.*'}", entry.name):
            entry.unlink(missing_ok=True)


@contextmanager
def hold_output(path: str | os.PathLike) -> Iterator[None]:
    """
    Keeps other processes of this package away from a file that is going to be written, or a folder, which is made.

    The lock ends with the process, however that ends. Where a file system has no locks, nothing is kept away.

    Raises:
        ValueError: another process writes there.
        OSError: the place cannot be written.
    """
    path = Path(path)
    folder = path.is_dir()
    place = path if folder else path.with_name(f".{path.name}.lock")
    with _locked(place, f"another process is writing {path}: wait until it has ended, or choose another output"):
        remove_parts(path if folder else path.parent, "" if folder else path.name)
        try:
            yield
        finally:
            if not folder:
                with suppress(OSError):
                    place.unlink()


@contextmanager
def _locked(place: Path, busy: str) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        handle = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                raise ValueError(f"{busy}.") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(place)):
                break
        os.close(handle)  # its holder has just removed it
    try:
        yield
    finally:
        os.close(handle)


def nearest_name(path: str | os.PathLike) -> str:
    """` (did you mean NAME?)` for a path that is not there: the entry of its folder with the nearest name, or nothing."""
    path = Path(path)
    with suppress(OSError, ValueError):
        near = nearest(path.name, sorted(entry.name for entry in path.parent.iterdir()))
        return f" (did you mean {path.parent / near}?)" if near else ""
    return ""


def require_source(path: str | os.PathLike, what: str = "file or folder") -> None:
    """Raises a FileNotFoundError where there is neither that path, nor, for a pattern, a file that matches."""
    path = Path(path)
    if path.exists():
        return
    if not any(character in str(path) for character in "*?["):
        raise FileNotFoundError(f"there is no {what} {path}{nearest_name(path)}.")
    if not any(path.parent.glob(path.name)):
        raise FileNotFoundError(f"no file matches {path}.")


def require_writable(path: str | os.PathLike) -> None:
    """
    Raises a ValueError where an output can be neither made nor replaced, since what stands above it is no folder or locked.

    Folders that are not there yet are made when the output is written.
    """
    path = Path(path)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if there != path and not there.is_dir():
        raise ValueError(f"{path} cannot be written: {there} is a file. Choose another output.")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{path} cannot be written: no leave to write to {there}. Choose another output.")


def refuse_to_replace(output: Path, overwrite: bool) -> None:
    """Raises a ValueError where a folder holds something that is not to be replaced."""
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"{output} is not empty: choose another folder, or pass --overwrite.")


def is_about_output(error: BaseException) -> bool:
    """Whether there is no room left, or no leave to write: the next study would meet it, too."""
    return isinstance(error, OSError) and error.errno in _FULL | {errno.EROFS}


def explain_os_error(error: OSError) -> str:
    """What happened to a file, in words."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in _FULL:
        return f"no room left to write{where or ' the output'} ({error.strerror}): make room and run the same command again."
    if error.errno in _FORBIDDEN and error.filename:
        return f"no leave to use{where} ({error.strerror}): choose another place, or change its permissions."
    return str(error)


def file_name(text: str, otherwise: str = "item") -> str:
    """
    A text as the name of a file or folder on any system: ASCII, short, without separators.

    What is no such name already gets a hash of the text behind it, so that two texts never have one name.
    """
    kept = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")[:_LONGEST]
    if kept and kept == text and not _RESERVED.fullmatch(text):
        return kept
    kept = f"_{kept}" if _RESERVED.fullmatch(kept) else kept
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{kept.rstrip('-.') or otherwise}-{digest}"


class _BoundedFile(io.BufferedReader):
    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


def open_bounded(path: Path) -> io.BufferedReader:
    """A file that is asked for no more than it holds: a damaged stream can name any length, and memory is taken first."""
    return _BoundedFile(path.open("rb", buffering=0))
