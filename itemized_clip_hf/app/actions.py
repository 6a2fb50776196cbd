"""What the buttons of the page do, without a page: opening, checking, scoring and asking what a place shows."""

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.encode import encode_texts
from ..evaluation.quantity import DEFAULT
from ..evaluation.region_to_text import rank_texts
from ..explain.encoded import EncodedStudy, encode_study, explain_encoded
from ..explain.maps import source_array
from ..explain.packed import affine_of
from ..explain.result import StudyResult
from .limits import Limits, check_texts
from .models import AppModel, watched
from .session import Session, Sessions
from .studies import OpenedStudy, Verdict, accepting, inspect_study, list_folder, open_study, require_kind, tokens_of
from .uploads import take_files

Progress = Callable[[float, str], None]
"""Called with the part that is done, 0 to 1, and what is being done."""


def take_upload(
    sessions: Sessions, session: Session, slot: str, files: Collection[Path], model: AppModel
) -> OpenedStudy:
    """
    The study of uploaded files, in the place of the one before.

    Args:
        slot: `current` or `prior`.
        files: as they arrived in the folder of uploads, from which they are taken away.

    Raises:
        OSError, ValueError: they are too large or too many, cannot be read, or are not one study.
    """
    clear_study(session, slot)
    sessions.require_room()
    folder = session.new_folder(slot)
    place = take_files(list(files), folder, sessions.uploads, sessions.limits)
    opened = _open(session, slot, place, model)
    if place == folder:
        opened.name = "uploaded study"
    return opened


def choose_study(session: Session, slot: str, folder: Path, name: str, model: AppModel) -> OpenedStudy:
    """
    A study of the server's folder, in the place of the one before.

    Args:
        name: one of `studies.list_folder`.

    Raises:
        OSError, ValueError: the folder holds no study of that name, or it cannot be read.
    """
    clear_study(session, slot)
    known = list_folder(folder, model.processor)
    if name not in known:
        raise ValueError("the folder holds no such study: load the page again to see what it holds now.")
    opened = _open(session, slot, known[name], model)
    opened.name = name
    return opened


def fetch_dicomweb(
    session: Session, slot: str, url: str, uid: str, model: AppModel, limits: Limits, auth: str | None = None
) -> OpenedStudy:
    """
    A study of a DICOMweb server, in the place of the one before.

    Args:
        url: of the service, which the app's settings name; nobody can ask for another.
        uid: StudyInstanceUID.

    Raises:
        OSError, ValueError: the server does not answer or has no such study, or it cannot be read.
    """
    from ..data.dicomweb import fetch_study

    clear_study(session, slot)
    folder = session.new_folder(slot)
    place = fetch_study(url, uid.strip(), folder, auth, limits.files, limits.unpacked_mb << 20)
    opened = _open(session, slot, place, model)
    opened.name = uid.strip()
    return opened


def store_results(session: Session, url: str) -> int:
    """
    Sends the results of the current study, as DICOM objects, to the DICOMweb service that the app's settings name.

    Returns:
        the number of objects stored.

    Raises:
        ImportError: names the extra that is missing.
        OSError, ValueError: nothing was scored, the study is not of DICOM files, or the server refuses.
    """
    from ..data.dicomweb import send
    from ..explain.dicom import write_dicom

    result = session.slots["current"].result
    if result is None:
        raise ValueError("run the findings first: there are no results to store.")
    folder = session.new_folder("stored")
    try:
        return send(url, write_dicom(folder, result))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_study(session: Session, slot: str) -> None:
    """
    Takes a study away, and all that was found.

    Raises:
        ValueError: a run is under way.
    """
    if session.running:
        raise ValueError("a run is under way: wait until it has ended, or cancel it.")
    session.slots[slot].clear()
    session.forget_files()
    for folder in session.folder.glob(f"{slot}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _open(session: Session, slot: str, place: Path, model: AppModel) -> OpenedStudy:
    opened = open_study(place, model.processor)
    if session.closed:
        raise ValueError("the session has ended.")
    session.slots[slot].opened = opened
    return opened


def verdict_of(session: Session, slot: str, model: AppModel, accept: Collection[str] = ()) -> Verdict | None:
    """
    What the checks say of a study for a model, scan by scan; None where there is no study.

    Raises:
        ValueError: the model does not take such a study at all.
    """
    opened = session.slots[slot].opened
    if opened is None:
        return None
    require_kind(opened, model.processor)
    return inspect_study(opened, model.domain, accept)


def read_findings(text: str, model: AppModel, limits: Limits) -> dict[str, list[str]]:
    """
    Label -> texts: one finding per line, or the domain's prompts where nothing is typed.

    Raises:
        ValueError: there is neither, or there are too many, or too long ones.
    """
    if not text.strip() and model.prompts:
        return model.prompts
    return {line: [line] for line in check_texts(text.splitlines(), limits.findings, limits)}


def read_bank(text: str, model: AppModel, limits: Limits) -> list[str]:
    """
    Texts that a place is compared with: one per line, or all prompts of the domain where nothing is typed.

    Raises:
        ValueError: there is neither, or there are too many, or too long ones.
    """
    lines = text.splitlines() if text.strip() else [line for texts in model.prompts.values() for line in texts]
    return check_texts(lines, limits.bank, limits, "texts")


@dataclass(frozen=True)
class Question:
    """
    What a run is asked.

    Args:
        prompts: label -> texts.
        quantity: similarity, logit or sigmoid.
        accept: codes of checks that are no reason to refuse a scan.
    """

    prompts: Mapping[str, list[str]]
    quantity: str = DEFAULT
    accept: frozenset[str] = frozenset()


def run(
    session: Session, model: AppModel, question: Question, limits: Limits, progress: Progress | None = None
) -> dict[str, StudyResult]:
    """
    Scores the findings in each study of a session. A study that passed through the vision tower before does not again.

    Returns:
        `current`, and `prior` where there is one.

    Raises:
        StoppedError: the run was cancelled or took too long.
        OSError, ValueError: there is no study, or nothing in it can be used.
    """
    with session.lock:
        if session.running:
            raise ValueError("a run is under way: wait until it has ended, or cancel it.")
        session.running = True
    say = progress or _say_nothing
    try:
        session.forget_files()
        deadline = time.monotonic() + limits.seconds
        there = [name for name, slot in session.slots.items() if slot.opened is not None]
        if "current" not in there:
            raise ValueError("there is no study: upload or choose one first.")
        results = {}
        for number, name in enumerate(there):
            part = 1 / len(there)
            encoded = _encode(session, name, model, question.accept, deadline, _within(say, number * part, part))
            session.check(deadline)
            say((number + 0.95) * part, "scoring findings")
            with model.texts:
                results[name] = explain_encoded(
                    model.model, model.processor, encoded, question.prompts, question.quantity, model.about
                )
        session.check(deadline)
        for name, result in results.items():
            session.slots[name].result = result
        return results
    finally:
        session.running = False


def _say_nothing(part: float, what: str) -> None:
    pass


def _within(say: Progress, start: float, part: float) -> Progress:
    return lambda done, what: say(start + part * done, what)


def _encode(
    session: Session, name: str, model: AppModel, accept: frozenset[str], deadline: float, say: Progress
) -> EncodedStudy:
    """The study after the vision tower, from an earlier run where there was one."""
    slot = session.slots[name]
    key = (model.name, accept)
    if key in slot.encoded:
        return slot.encoded[key]
    require_kind(slot.opened, model.processor)
    verdict = inspect_study(slot.opened, model.domain, accept)
    if not verdict.usable:
        reasons = "; ".join(map(str, verdict.refused[:3]))
        raise ValueError(f"no scan of the {name} study can be used: {reasons}")
    say(0.0, "waiting for the model" if model.towers.locked() else f"reading the {name} study")

    def watch(done: float) -> None:
        session.check(deadline)
        say(0.1 + 0.8 * done, f"looking at the {name} study")

    with model.towers:
        session.check(deadline)
        say(0.02, f"resampling the {name} study")
        with watched(model.model, watch):
            encoded = encode_study(
                model.model, accepting(model.processor, accept), verdict.usable, slot.opened.name, _pass_over
            )
    encoded.notes += [f"{lost.scan} was left out: {lost.reason}" for lost in verdict.refused]
    encoded.notes += [f"{lost.scan} was left out: {lost.reason}" for lost in getattr(slot.opened.images, "skipped", [])]
    session.check(deadline)
    slot.encoded[key] = encoded
    return encoded


def _pass_over(name: str | None, error: Exception) -> None:
    """`encode_study` notes it in the result."""


def place_to_voxel(result: StudyResult, place: Mapping[str, Any]) -> tuple[int, tuple[int, int, int]]:
    """
    Number of the scan and the voxel (d, h, w) of its source for a place that the viewer sent.

    Args:
        place: `scan`, and `mm`, three numbers in RAS+ scanner space as the viewer has them; or `row` and `column` of a picture,
            0 to 1 from its upper left corner.

    Raises:
        ValueError: it is not such a place, or lies outside of the scan.
    """
    try:
        number = int(place["scan"])
        scan = result.scans[number]
        if number < 0:
            raise IndexError(number)
        if "mm" in place:
            x, y, z = (float(value) for value in place["mm"])
            seen = np.linalg.inv(affine_of(result, number)) @ [x, y, z, 1.0]
        else:
            height, width = scan.pixel_values.shape[-2:]
            seen = np.array([0.0, float(place["row"]) * height - 0.5, float(place["column"]) * width - 0.5, 1.0])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise ValueError("the viewer sent no place of a scan.") from None
    source = source_array(scan)
    shape = (1, *source.shape[:2]) if result.is_picture else source.shape[:3]
    assert scan.to_source is not None  # only training draws have none
    voxel = (scan.to_source @ seen)[:3]
    if not np.isfinite(voxel).all() or (voxel < -0.5).any() or (voxel > np.array(shape) - 0.5).any():
        raise ValueError("the place lies outside of the scan.")
    depth, height, width = (int(value) for value in np.clip(np.rint(voxel), 0, np.array(shape) - 1))
    return number, (depth, height, width)


def describe_place(
    session: Session,
    slot: str,
    place: Mapping[str, Any],
    bank: str,
    models: Mapping[str, AppModel],
    limits: Limits,
    top: int = 10,
) -> list[tuple[str, float]]:
    """
    The texts of a bank that describe a place best, with their similarity to the patch that it lies in, best first.

    Args:
        bank: see `read_bank`.
        models: of the app; the one that saw the study is asked.

    Raises:
        ValueError: no study was scored yet, or the place lies outside of what the model sees.
    """
    held = session.slots[slot]
    seen_by = [(key[0], one) for key, one in held.encoded.items() if held.result and one.scans is held.result.scans]
    if held.result is None or not seen_by:
        raise ValueError("run the findings first: a place is looked up in a study that the model has seen.")
    (name, encoded), result = seen_by[0], held.result
    model = models[name]
    texts = read_bank(bank, model, limits)
    number, voxel = place_to_voxel(result, place)
    box = [(index, index + 1) for index in voxel]
    region = {result.scans[number].name: box[1:] if result.is_picture else box}
    with model.texts:
        embeds = _bank_embeds(session, texts, model)
        return rank_texts(model.model, model.processor, tokens_of(encoded), texts, region, top, embeds)


def _bank_embeds(session: Session, bank: list[str], model: AppModel) -> torch.Tensor:
    """Embeddings of a bank, kept for the next place."""
    key = (model.name, tuple(bank))
    if session.bank is None or session.bank[0] != key:
        session.bank = (key, encode_texts(model.model, model.processor, bank))
    embeds: torch.Tensor = session.bank[1]
    return embeds
