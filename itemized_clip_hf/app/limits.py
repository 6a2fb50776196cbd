"""What the app takes: sizes, numbers and times, and what is said where something is beyond them."""

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """
    Bounds of one app, all of them above 0.

    Args:
        upload_mb: MiB of one upload, that is of all files of a study.
        unpacked_mb: MiB of all that a zip holds.
        stored_mb: MiB of all that the app keeps on disk, for all sessions together.
        files: of an upload, or in a zip.
        findings: of a run.
        bank: texts that a place can be compared with.
        text: characters of a finding or text.
        queue: runs that wait; the next is refused.
        seconds: of a run.
        sessions: open at once.
        idle_minutes: after which the data of a session that nobody uses are deleted.
    """

    upload_mb: int = 2048
    unpacked_mb: int = 8192
    stored_mb: int = 32768
    files: int = 10000
    findings: int = 200
    bank: int = 2000
    text: int = 500
    queue: int = 16
    seconds: int = 900
    sessions: int = 32
    idle_minutes: int = 60

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"the limit {field.name} is {value!r}, expected a whole number above 0.")


def check_files(sizes: Sequence[int], limits: Limits) -> None:
    """
    Args:
        sizes: bytes of each file of an upload.

    Raises:
        ValueError: there are too many files, or they are too large.
    """
    if len(sizes) > limits.files:
        raise ValueError(
            f"the upload has {len(sizes):,} files, expected {limits.files:,} at most: put them into a zip."
        )
    if sum(sizes) > limits.upload_mb << 20:
        raise ValueError(
            f"the upload has {megabytes(sum(sizes))}, expected {limits.upload_mb:,} MiB at most: leave series out that the "
            "model does not need, or start the app with a higher --max-upload-mb."
        )


def check_zip(path: Path, limits: Limits) -> list[zipfile.ZipInfo]:
    """
    Files of a zip, by what its directory says; `zipfile` unpacks no more than that of each.

    Raises:
        ValueError: it is damaged or encrypted, has too many files, or is too large when unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except Exception:  # a damaged directory surfaces in many ways
        raise ValueError(f"{path.name} cannot be read: it is damaged or not a zip file.") from None
    if any(info.flag_bits & 1 for info in members):
        raise ValueError(f"{path.name} is encrypted: unpack it first.")
    if len(members) > limits.files:
        raise ValueError(f"{path.name} holds {len(members):,} files, expected {limits.files:,} at most.")
    unpacked = sum(info.file_size for info in members)
    if unpacked > limits.unpacked_mb << 20:
        raise ValueError(
            f"{path.name} holds {megabytes(unpacked)} when unpacked, expected {limits.unpacked_mb:,} MiB at most."
        )
    return members


def check_texts(texts: Iterable[str], most: int, limits: Limits, what: str = "findings") -> list[str]:
    """
    Texts without blanks and repeats.

    Raises:
        ValueError: there is none, there are more than `most`, or one is too long.
    """
    kept = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
    if not kept:
        raise ValueError(f"there are no {what}: type one per line.")
    if len(kept) > most:
        raise ValueError(f"there are {len(kept):,} {what}, expected {most:,} at most.")
    longest = max(kept, key=len)
    if len(longest) > limits.text:
        raise ValueError(
            f"one of the {what} has {len(longest):,} characters, expected {limits.text:,} at most: {longest[:60]} ..."
        )
    return kept


def megabytes(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / (1 << 20):,.0f} MiB"


def stored(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:  # it was deleted just now
            continue
    return total
