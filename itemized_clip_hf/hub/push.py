"""A model folder -> a repository on the Hub, once it has a licence, names no patient and loads."""

import csv
import fnmatch
import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ..data.privacy import IDENTIFYING_FIELDS
from .adapters import is_adapter_folder
from .card import CARD, FACTS, UNKNOWN_LICENSE, CardFacts, card_text, facts_of_folder
from .load_test import run_load_test

logger = logging.get_logger(__name__)

PUBLISHED = (
    CARD,
    FACTS,
    "LICENSE*",
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "*_itemized_clip.py",
    "conversion_report.json",
    "names_report.json",
    "domain.json",
)
"""Files that are uploaded; all others stay: quarantine lists, scores, checkpoints, optimizer states, pickled arguments."""

_READ = (
    CARD,
    FACTS,
    "config.json",
    "processor_config.json",
    "conversion_report.json",
    "names_report.json",
    "domain.json",
)
_MONTHS = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_SUSPECT = {
    "a date": re.compile(
        rf"\b(?:19|20)\d\d[-/]\d\d?[-/]\d\d?\b|\b\d\d?[-/.]\d\d?[-/.](?:19|20)\d\d\b|\b(?:19|20)\d{{6}}\b"
        rf"|\b\d\d? {_MONTHS} (?:19|20)\d\d\b|\b{_MONTHS} \d\d?, (?:19|20)\d\d\b",
        re.IGNORECASE,
    ),
    "a DICOM identifier": re.compile(r"\b\d+(?:\.\d+){5,}\b"),
    "a long number": re.compile(r"(?<![\w.,])\d{7,}(?![\w.,]\d)"),
    "an e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
    "a header field of a patient": re.compile(
        rf"\b(?:{'|'.join(IDENTIFYING_FIELDS)}|MRN|patient (?:name|id)|accession(?: number)?)\b\s*[:=]\s*\S",
        re.IGNORECASE,
    ),
    "somebody's folder": re.compile(r"/home/\w+|/Users/\w+|[A-Z]:\\Users\\\w+"),
}


def find_patient_data(folder: str | os.PathLike) -> list[str]:
    """
    Where the texts of a folder may tell who a patient is: dates, numbers, addresses, header fields, ids of studies that
    lists in the folder name. Says file, line and kind, never what stands there.
    """
    folder, found = Path(folder), []
    ids = _study_ids(folder)
    for name in _READ:
        if not (folder / name).exists():
            continue
        for number, line in enumerate((folder / name).read_text(encoding="utf-8").splitlines(), 1):
            kinds = [
                kind for kind, pattern in _SUSPECT.items() if name.endswith((".md", ".yaml")) and pattern.search(line)
            ]
            if any(re.search(rf"(?<!\w){re.escape(study)}(?!\w)", line) for study in ids):
                kinds.append("the id of a study")
            found += [f"{name}, line {number}: {kind}" for kind in kinds]
    return found


def _study_ids(folder: Path) -> set[str]:
    """Ids in the lists that training and evaluation leave in a folder; short ones could be any word."""
    ids: set[str] = set()
    for path in folder.glob("quarantine*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            ids |= {row[0] for row in csv.reader(file) if row and row[0] != "study"}
    for path in folder.glob("*.scores.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        ids |= {str(entry["id"]) for entry in entries if "id" in entry}
    return {study for study in ids if len(study) >= 4}


def choose_files(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Names of the files that are uploaded, and of those that stay."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in Path(folder).iterdir())
    chosen = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in PUBLISHED)]
    return chosen, [name for name in names if name not in chosen]


def complete_card(folder: str | os.PathLike, repo_id: str, license: str | None = None) -> ModelCard:
    """The card of a folder, rendered where there is none or where nobody has edited it, with the licence that is passed."""
    path = Path(folder) / CARD
    facts = facts_of_folder(folder)
    as_rendered = path.exists() and path.read_text(encoding="utf-8") == card_text(facts)
    if license is not None or facts.name != repo_id:
        facts.name, facts.license = repo_id, license or facts.license
        facts.write(Path(folder) / FACTS)
    if as_rendered or not path.exists():
        path.write_text(card_text(facts), encoding="utf-8")
    elif license is not None:
        card = ModelCard.load(path)
        card.data["license"] = license
        card.save(path)
        logger.warning(f"{CARD} has been edited: its licence is set in the metadata, check its text.")
    return ModelCard.load(path)


def license_of(card: ModelCard) -> str | None:
    """The licence in the card's metadata, None where it is not known."""
    stated = card.data.to_dict().get("license")
    return None if stated == UNKNOWN_LICENSE else stated


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    license: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload model",
    test: bool = True,
) -> dict[str, Any]:
    """
    Args:
        repo_id: `ORG/NAME`.
        private: where the repository is made.
        dry_run: everything but the upload.
        license: of the weights, as the Hub calls it; needed where the card has none.
        test: run the load test.

    Returns:
        `repo_id`, `url` (None after a dry run), `files` and `left_out`.

    Raises:
        ValueError: for a folder that is no model, a name that is none, no licence, possible patient data, a failing load test.
    """
    folder = Path(folder)
    if is_adapter_folder(folder):
        raise ValueError(f"{folder} holds adapters: merge them with their base model first (itemized-clip merge).")
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is no model folder: it has no config.json.")
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no name of a repository: expected ORG/NAME.")
    validate_repo_id(repo_id)
    card = complete_card(folder, repo_id, license)
    if license_of(card) is None:
        raise ValueError(
            "the weights have no licence: pass --license, as the Hub calls it (e.g. cc-by-nc-4.0), or write it into "
            f"{FACTS}. It is yours to state, or the weights' authors'; weights that were trained from MAE inherit CC-BY-NC-4.0."
        )
    if license_of(card) == "other" and not card.data.get("license_name"):
        raise ValueError(f"the licence `other` needs license_name and license_link in {FACTS}.")
    problems = find_patient_data(folder)
    if problems:
        raise ValueError("there may be patient data: " + "; ".join(problems) + ". Remove it, or reword the line.")
    files, left_out = choose_files(folder)
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{folder} has no weights (model.safetensors).")
    if test:
        run_load_test(folder)
    result: dict[str, Any] = {"repo_id": repo_id, "url": None, "files": files, "left_out": left_out}
    if dry_run:
        return result
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, allow_patterns=files, commit_message=message, revision=revision
    )
    return {**result, "url": commit.repo_url.url if hasattr(commit.repo_url, "url") else str(commit.repo_url)}


def licensed(folder: str | os.PathLike, license: str | None) -> bool:
    """Whether a push of that folder would have a licence."""
    path = Path(folder) / FACTS
    stated = license or (CardFacts.read(path).license if path.exists() else None)
    return stated not in (None, UNKNOWN_LICENSE)
