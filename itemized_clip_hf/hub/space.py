"""A folder that runs as a Gradio Space: the app of one model, what it needs, and a card."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from ..data.files import write_text
from ..models.load import load_model
from ..models.names import split_revision
from ..version import __version__
from .card import UNKNOWN_LICENSE, facts_of_folder
from .push import choose_files, find_patient_data

APP = "app.py"
REQUIREMENTS = "requirements.txt"
CARD = "README.md"
MODEL = "model"
"""Folder of the Space that holds the model where it is not on the Hub."""
EXTRAS = "app,dicom-compressed"


def write_space(
    folder: str | os.PathLike[str],
    model: str,
    title: str | None = None,
    license: str | None = None,
    wheel: str | os.PathLike[str] | None = None,
) -> Path:
    """
    Args:
        folder: new or empty.
        model: `ORG/NAME` or `ORG/NAME@REVISION` on the Hub, or a model folder, whose published files are copied.
        title: of the page and the card; made of the model's name if None.
        license: of the model, as the Hub calls it; its card's if None.
        wheel: of this package, copied and installed in place of the released one.

    Returns:
        the folder.

    Raises:
        ValueError: the folder holds something, or a model folder has no license and none is given.
        FileNotFoundError: there is no such model or wheel.
    """
    place = Path(folder)
    if place.exists() and any(place.iterdir()):
        raise ValueError(f"{place} is not empty: name a new folder.")
    if wheel is not None and not Path(wheel).is_file():
        raise FileNotFoundError(f"there is no wheel {wheel}: build one with `pip wheel --no-deps .`.")
    local = Path(model).is_dir()
    if not local and split_revision(model)[0].count("/") != 1:
        raise ValueError(f"{model!r} is neither a folder nor ORG/NAME: a Space runs a model that others can have.")
    license = license or (facts_of_folder(model).license if local else None)
    if license in (None, UNKNOWN_LICENSE):
        raise ValueError(
            "a Space states the license of its model: pass --license, as the Hub calls it (e.g. cc-by-nc-4.0)."
        )
    domain = load_model(model).config.domain if local else None
    name = Path(model).resolve().name if local else split_revision(model)[0].partition("/")[2]
    place.mkdir(parents=True, exist_ok=True)
    if local:
        (place / MODEL).mkdir()
        for file in choose_files(model)[0]:
            shutil.copy2(Path(model) / file, place / MODEL / file)
    requirement = f"itemized-clip-hf[{EXTRAS}]=={__version__}"
    if wheel is not None:
        shutil.copy2(wheel, place / Path(wheel).name)
        requirement = f"./{Path(wheel).name}[{EXTRAS}]"
    write_text(place / REQUIREMENTS, requirement + "\n")
    title = title or name
    source = MODEL if local else model
    write_text(place / APP, _template("space_app.txt", NAME=repr(name), MODEL=repr(source), TITLE=repr(title)))
    write_text(place / CARD, _card(title, license, domain, None if local else split_revision(model)[0]))
    return place


def _card(title: str, license: str | None, domain: str | None, hub_name: str | None) -> str:
    """Front matter as the Hub reads it, and a text for people."""
    head: dict[str, Any] = {
        "title": title,
        "emoji": "🔎",
        "colorFrom": "indigo",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": _gradio(),
        "app_file": APP,
        "pinned": False,
        "license": license,
        "tags": ["itemized-clip", *([domain] if domain else [])],
        "short_description": "Scores and heat maps for each finding",
        **({"models": [hub_name]} if hub_name else {}),
    }
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return "\n".join(["---", f"{front}---", "", _template("space.md", TITLE=title)])


def _template(name: str, **values: str) -> str:
    text = (files("itemized_clip_hf.hub") / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"{{{{{key}}}}}", value)
    return text


def _gradio() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        raise ImportError("a Space names the gradio that it runs: pip install 'itemized-clip-hf[app]'.") from None


def push_space(
    folder: str | os.PathLike[str],
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    message: str = "Upload Space",
) -> dict[str, Any]:
    """
    Uploads a folder of `write_space`.

    Args:
        repo_id: `ORG/NAME` of the Space.
        private: where the Space is made.
        dry_run: everything but the upload.

    Returns:
        `repo_id`, `url` (None after a dry run) and `files`.

    Raises:
        ValueError: the folder is not a Space, the name is not one, or its texts may hold patient data.
    """
    place = Path(folder)
    if missing := [name for name in (APP, REQUIREMENTS, CARD) if not (place / name).is_file()]:
        raise ValueError(
            f"{place} is not a Space: it has no {', '.join(missing)} (itemized-clip space -m MODEL -o FOLDER)."
        )
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} does not name a Space: expected ORG/NAME.")
    validate_repo_id(repo_id)
    wheels = sorted(path.name for path in place.glob("*.whl"))
    model = [f"{MODEL}/{name}" for name in choose_files(place / MODEL)[0]] if (place / MODEL).is_dir() else []
    names = [APP, REQUIREMENTS, CARD, *wheels, *model]
    texts = {
        name: (place / name).read_text(encoding="utf-8") for name in names if name.endswith((".md", ".py", ".yaml"))
    }
    if problems := find_patient_data(texts, (), repo_id):
        raise ValueError("there may be patient data: " + "; ".join(problems) + ". Remove it, or reword the line.")
    result: dict[str, Any] = {"repo_id": repo_id, "url": None, "files": names}
    if dry_run:
        return result
    api = HfApi(token=token)
    api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id, repo_type="space", folder_path=place, allow_patterns=names, commit_message=message
    )
    return {**result, "url": f"{api.endpoint}/spaces/{repo_id}"}
