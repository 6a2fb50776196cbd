"""Files that somebody sends: checked, named and laid into a folder as the files of one study."""

import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..data.kinds import is_zip, study_name, volume_suffixes
from ..processing.pictures_itemized_clip import PICTURE_SUFFIXES
from .limits import Limits, check_files, check_zip

_LONGEST = 120


def safe_name(name: str) -> str:
    """
    The last part of a name that somebody sent, as a visible file of a folder: no separators, no control characters.

    Letters of any script, spaces and brackets stay, since a scan is known by its name.

    >>> safe_name("../../etc/passwd")
    'passwd'
    >>> safe_name("AX <T1>.nii.gz")
    'AX _T1_.nii.gz'
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    kept = re.sub(r"[^\w .,+()\[\]-]", "_", last).lstrip(". ").rstrip()
    return kept[-_LONGEST:].lstrip(". ") or "file"


def take_files(files: Sequence[Path], folder: Path, uploads: Path, limits: Limits) -> Path:
    """
    Moves the files of an upload into a folder of the session, and unpacks zips of volumes and pictures.

    Args:
        files: as they arrived, below `uploads`.
        folder: empty, of the session.

    Returns:
        the one file, or the folder that holds all.

    Raises:
        ValueError: there are none, they lie elsewhere, or are more or larger than the limits.
    """
    if not files:
        raise ValueError("nothing was uploaded: choose the files of one study.")
    arrived = uploads.resolve()
    for file in files:
        if file.is_symlink() or not file.resolve().is_relative_to(arrived):
            raise ValueError("an upload has to come through the page.")
        if not file.is_file():
            raise ValueError("the upload is no longer there: upload it again.")
    try:
        check_files([file.stat().st_size for file in files], limits)
        names: set[str] = set()
        for file in files:
            shutil.move(file, folder / _number(safe_name(file.name), names))
    finally:
        for file in files:
            file.unlink(missing_ok=True)
            if file.parent != arrived and file.parent.is_dir() and not any(file.parent.iterdir()):
                file.parent.rmdir()
    for file in sorted(filter(is_zip, folder.iterdir())):
        _unpack(file, check_zip(file, limits))
    held = list(folder.iterdir())
    return held[0] if len(held) == 1 else folder


def _unpack(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """
    Replaces a zip of volumes or pictures by its files; one of DICOM files stays, which its reader reads as it is.

    Raises:
        ValueError: the files lie in several folders, as those of several studies do.
    """
    suffixes = tuple(suffix for suffix in (*volume_suffixes(), *PICTURE_SUFFIXES) if suffix not in (".dcm", ".zip"))
    images = [
        info
        for info in members
        if info.filename.lower().endswith(suffixes) and not PurePosixPath(info.filename).name.startswith(".")
    ]
    if not images:
        return
    folders = {str(PurePosixPath(info.filename.replace("\\", "/")).parent) for info in images}
    if len(folders) > 1:
        raise ValueError(
            f"{path.name} holds volumes or pictures in {len(folders)} folders, expected the files of one study in one folder."
        )
    target = path.parent if len(list(path.parent.iterdir())) > 1 else path.parent / safe_name(study_name(path))
    target.mkdir(exist_ok=True)
    names = {entry.name.casefold() for entry in target.iterdir()}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in images:
                with (
                    archive.open(info) as source,
                    (target / _number(safe_name(info.filename), names)).open("wb") as copy,
                ):
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError):
        raise ValueError(f"{path.name} cannot be unpacked: it is damaged, or compressed in an unknown way.") from None
    path.unlink()


def _number(name: str, used: set[str]) -> str:
    """The name, numbered in front of its suffix where it is taken."""
    stem = study_name(name)
    suffix = name[len(stem) :] if name.startswith(stem) else ""
    candidate, number = name, 2
    while candidate.casefold() in used:
        candidate = f"{stem}-{number}{suffix}"
        number += 1
    used.add(candidate.casefold())
    return candidate
