"""A model folder -> a repository on the Hub, once it has a licence, names no patient and loads."""

import csv
import fnmatch
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id

from ..data.cells import restore
from ..data.privacy import IDENTIFYING_FIELDS
from ..models.names import is_adapter_folder
from .card import CARD, FACTS, UNKNOWN_LICENSE, CardFacts, card_text, facts_of_folder, is_edited, write_card
from .load_test import run_load_test

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
    "calibration.json",
    "calibration.safetensors",
)
"""Files that are uploaded; all others stay: quarantine lists, scores, checkpoints, optimizer states, pickled arguments."""

_MONTHS = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_SUSPECT = {
    "a date": re.compile(
        rf"\b(?:19|20)\d\d[-/]\d\d?[-/]\d\d?\b|\b\d\d?[-/.]\d\d?[-/.](?:19|20)\d\d\b|\b(?:19|20)\d{{6}}\b"
        rf"|\b\d\d? {_MONTHS} (?:19|20)\d\d\b|\b{_MONTHS} \d\d?, (?:19|20)\d\d\b",
        re.IGNORECASE,
    ),
    "a DICOM identifier": re.compile(r"\b\d+(?:\.\d+){5,}\b"),
    "a long number": re.compile(r"(?<![\w.,])\d{7,}(?![\w.,]\d|\w)"),
    "an e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
    "a header field of a patient": re.compile(
        rf"\b(?:{'|'.join(IDENTIFYING_FIELDS)}|MRN|patient(?:['’]?s)? (?:name|id|number)|accession(?: number)?)\b"
        r"(?:\s*[:=]\s*\S|\s+(?-i:[A-Z]\S|\d))",
        re.IGNORECASE,
    ),
    "a patient's name": re.compile(r"\b[^\W\d_][\w'-]+\^[^\W\d_]"),
    "a patient's number": re.compile(
        r"\b(?:MRN|SSN|NHS(?: number)?)\b\W{0,3}(?:no\.?|number|is)?\W{0,3}\d{3}|\b\d{3}-\d{2}-\d{4}\b", re.IGNORECASE
    ),
    "a birthday": re.compile(
        r"\b(?:born|birth(?: ?da(?:y|te))|date of birth|d\.?o\.?b\.?|geb(?:\.|oren)|n[ée]e? le|nacid[oa])(?!\w)"
        r"\D{0,12}\d{1,4}[-/. ]",
        re.IGNORECASE,
    ),
    "a name and an age": re.compile(
        r"\b[^\W\d_a-z][^\W\d_A-Z]+(?: [A-Z]\.?)? [^\W\d_a-z][^\W\d_A-Z]+,? "
        r"\(?(?:aged? )?\d{1,3}[- ]?(?:years?\b|y/?o\b|y\.|Jahre)"
    ),
    "somebody's folder": re.compile(r"/home/\w+|/Users/\w+|[A-Z]:\\Users\\\w+"),
}
_INNOCENT = re.compile(r"https?://\S+|\b10\.\d{4,}/\S+|\b[0-9a-f]{16,64}\b")
"""Addresses, DOIs and hashes, in which dates and numbers name nobody."""


def find_patient_data(texts: Mapping[str, str], ids: Iterable[str] = (), name: str = "") -> list[str]:
    """
    Where texts may tell who a patient is: dates, numbers, addresses, header fields in the card, ids of studies in all of them.
    Says file, line and kind, never what stands there.

    Args:
        texts: file name -> content.
        ids: of studies that must not be named.
        name: of the repository, which may stand in the card.
    """
    found = []
    named = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(ids)))})(?!\w)") if ids else None
    for file, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            kinds = []
            if file in (CARD, FACTS):
                plain = _INNOCENT.sub(" ", line.replace(name, " ") if name else line)
                kinds = [kind for kind, pattern in _SUSPECT.items() if pattern.search(plain)]
            if named is not None and named.search(line):
                kinds.append("the id of a study")
            found += [f"{file}, line {number}: {kind}" for kind in kinds]
    return found


def study_ids(folder: str | os.PathLike) -> set[str]:
    """
    Ids in the lists that training and evaluation leave in a folder, as far as they could be nothing else: words of four
    characters and more, numbers of seven digits and more.
    """
    ids: set[str] = set()
    for path in Path(folder).glob("quarantine*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            ids |= {restore(row[0]).partition("/")[0] for row in csv.reader(file) if row and row[0] != "study"}
    for path in Path(folder).glob("*.scores.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        ids |= {str(entry["id"]) for entry in entries if "id" in entry}
    return {study for study in ids if len(study) >= (7 if study.isdigit() else 4)}


def choose_files(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Names of the files that are uploaded, and of those, and of the folders, that stay."""
    entries = sorted(Path(folder).iterdir())
    chosen = [e.name for e in entries if e.is_file() and any(fnmatch.fnmatch(e.name, p) for p in PUBLISHED)]
    return chosen, [e.name + ("/" if e.is_dir() else "") for e in entries if e.name not in chosen]


def compose_card(folder: str | os.PathLike, repo_id: str, license: str | None = None) -> tuple[CardFacts, str]:
    """
    Facts and text of the card as it would be uploaded; nothing is written.

    Raises:
        ValueError: no licence, or one that an edited card does not state.
    """
    facts = facts_of_folder(folder)
    facts.name, facts.license = repo_id, license or facts.license
    if facts.license in (None, UNKNOWN_LICENSE):
        raise ValueError(
            "the weights have no licence: pass --license, as the Hub calls it (e.g. cc-by-nc-4.0), or write it into "
            f"{FACTS}. It is yours to state, or the weights' authors'; weights that were trained from MAE inherit CC-BY-NC-4.0."
        )
    if facts.license == "other" and not (facts.license_name and facts.license_link):
        raise ValueError(f"the licence `other` needs license_name and license_link in {FACTS}.")
    if not is_edited(folder):
        return facts, card_text(facts)
    text = (Path(folder) / CARD).read_text(encoding="utf-8")
    stated = ModelCard(text, ignore_metadata_errors=False).data.to_dict().get("license")
    if stated != facts.license:
        raise ValueError(
            f"{CARD} has been edited and states the licence {stated!r}, not {facts.license!r}: write it there, or make the "
            "card anew (itemized-clip card --overwrite)."
        )
    return facts, text


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
    facts, text = compose_card(folder, repo_id, license)
    files, left_out = choose_files(folder)
    read = {name: (folder / name).read_text(encoding="utf-8") for name in files if _is_text(name)}
    written = yaml.safe_dump(asdict(facts), allow_unicode=True)
    problems = find_patient_data({**read, CARD: text, FACTS: written}, study_ids(folder), repo_id)
    if problems:
        raise ValueError("there may be patient data: " + "; ".join(problems) + ". Remove it, or reword the line.")
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{folder} has no weights (model.safetensors).")
    if test:
        run_load_test(folder)
    files = sorted({*files, CARD, FACTS})
    result: dict[str, Any] = {"repo_id": repo_id, "url": None, "files": files, "left_out": left_out}
    if dry_run:
        return result
    write_card(folder, facts)
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, allow_patterns=files, commit_message=message, revision=revision
    )
    return {**result, "url": commit.repo_url.url if hasattr(commit.repo_url, "url") else str(commit.repo_url)}


def _is_text(name: str) -> bool:
    return name.endswith((".json", ".txt", ".md", ".yaml")) or name.startswith("LICENSE")


def licensed(folder: str | os.PathLike, license: str | None) -> bool:
    """Whether a push of that folder would have a licence."""
    path = Path(folder) / FACTS
    stated = license or (CardFacts.read(path).license if path.exists() else None)
    return stated not in (None, UNKNOWN_LICENSE)
