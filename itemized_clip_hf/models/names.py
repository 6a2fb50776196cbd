"""How models are named: a folder, `ORG/NAME`, `ORG/NAME@REVISION`, `untrained:DOMAIN`. Nothing heavy is imported here."""

import re
from pathlib import Path

from ..data.files import nearest_name
from ..domains import load_domain

UNTRAINED = "untrained:"
ADAPTER_CONFIG = "adapter_config.json"
CALIBRATION = "calibration.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")


def is_adapter_folder(folder: str | Path) -> bool:
    """Whether a folder holds adapters and no whole model."""
    return (Path(folder) / ADAPTER_CONFIG).exists() and not (Path(folder) / "config.json").exists()


def split_name(entry: str) -> tuple[str, str]:
    """
    `NAME=MODEL` in its parts; a model without a name is called by the last part of its own.

    >>> split_name("brain=org/brain-mri")
    ('brain', 'org/brain-mri')
    >>> split_name("org/brain-mri@v1")
    ('brain-mri@v1', 'org/brain-mri@v1')
    """
    name, found, model = entry.partition("=")
    if not found or Path(entry).exists():
        return Path(entry).name or entry, entry
    if not name or not model:
        raise ValueError(f"{entry!r}: expected NAME=MODEL, a name and a folder or name of the Hub.")
    return name, model


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """
    `org/name@revision` in its parts; what is a folder, and `untrained:DOMAIN`, has none.

    Raises:
        ValueError: a revision of a folder, two revisions, or one without a name.

    >>> split_revision("org/model@v1.0")
    ('org/model', 'v1.0')
    >>> split_revision("untrained:head-ct")
    ('untrained:head-ct', None)
    """
    if Path(name).exists() or name.startswith(UNTRAINED):
        if revision is not None:
            raise ValueError(f"{name} is not a model of the Hub: it has no revision {revision!r}.")
        return name, None
    own, separator, stated = name.partition("@")
    if not separator:
        return name, revision
    if not own or not stated:
        raise ValueError(f"{name!r}: expected ORG/NAME@REVISION, a branch, tag or commit behind the '@'.")
    if revision not in (None, stated):
        raise ValueError(f"two revisions of {own}: {stated!r} and {revision!r}.")
    return own, stated


def say_origin(asked: str) -> dict[str, str]:
    """Name of a model, and, of one from the Hub, the revision that was asked for and the commit that it is."""
    name, revision = split_revision(asked)
    cached = None if Path(name).exists() or name.startswith(UNTRAINED) else _in_cache(name, revision)
    commit = Path(cached).parent.name if cached else None  # .../snapshots/COMMIT/config.json
    known = {"name": name, "revision": revision, "commit": commit}
    return {key: value for key, value in known.items() if value is not None}


def require_model(name: str, revision: str | None = None) -> None:
    """
    Looks whether a model can be where its name says, without reading it or asking the Hub.

    Raises:
        FileNotFoundError: there is no such folder, it holds no model, or the Hub would have to be asked and may not be.
        ValueError: an unknown domain, or a revision that makes no sense.
    """
    name, revision = split_revision(name, revision)
    path = Path(name)
    if name.startswith(UNTRAINED):
        load_domain(name.removeprefix(UNTRAINED))
    elif path.exists():
        if not any((path / file).exists() for file in ("config.json", ADAPTER_CONFIG)):
            raise FileNotFoundError(f"{name} is no model folder: it has no config.json. {_where_else(path)}")
    elif not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"there is no model folder {name}{nearest_name(name)}.")
    elif not _in_cache(name, revision):
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if revision is None and path.parent.is_dir():
            raise FileNotFoundError(
                f"there is no model folder {name}{nearest_name(name)}. Write {name}@main for a model of the Hub of that name."
            )
        if HF_HUB_OFFLINE:
            raise FileNotFoundError(
                f"{name} is neither a folder nor a model that was downloaded before, and the Hub is not to be asked "
                "(HF_HUB_OFFLINE): check the name, or unset HF_HUB_OFFLINE."
            )


def _where_else(folder: Path) -> str:
    """What to do about a folder that holds no model: a model inside of it, or a checkpoint to convert."""
    for inside in sorted(folder.glob("*/config.json")) or sorted(folder.glob(f"*/{ADAPTER_CONFIG}")):
        return f"Did you mean {inside.parent}?"
    return "Checkpoints (.pt) have to be converted first."


def _in_cache(name: str, revision: str | None) -> str | None:
    """Path of the config of a model of the Hub that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", ADAPTER_CONFIG):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return found
    return None
