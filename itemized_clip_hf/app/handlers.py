"""What happens in the page: the actions of `actions.py` with the page's values, and what it shows of them."""

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from transformers.utils import logging

from ..data.checks import Report
from ..data.files import explain_os_error
from ..specs import read_prompts
from . import actions
from .downloads import offer_files, offer_viewer
from .models import AppModel
from .session import Session, Sessions
from .settings import AppSettings
from .studies import Verdict, list_folder
from .tables import file_links, message, place_words, result_table, text_table, verdict_table, viewer_frame
from .uploads import take_files

logger = logging.get_logger(__name__)
T = TypeVar("T")
SLOTS = ("current", "prior")
HINT = "Click a place in the viewer to see which texts describe it best."


class Handlers:
    """
    Answers to the events of one app's page. Each finds the session of its tab by the request, and no other.

    Args:
        models: of `models.load_models`.
        settings, sessions: of the app.
    """

    def __init__(self, models: Mapping[str, AppModel], settings: AppSettings, sessions: Sessions):
        self.models, self.settings, self.sessions = models, settings, sessions

    def _try(self, session: Session | None, work: Callable[[], T]) -> tuple[T | None, str]:
        """What work gives, or what went wrong, in words: nothing that a study does ends the server."""
        try:
            return work(), ""
        except OSError as error:
            said = explain_os_error(error)
        except (ValueError, ImportError, NotImplementedError) as error:
            said = str(error)
        except MemoryError:
            said = "there is not enough memory for this study."
        except Exception as error:  # of a library: its message may quote the study, so the log gets places only
            frames = "; ".join(
                f"{frame.name} {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]
            )
            logger.warning(f"unexpected {type(error).__name__} in {frames}")
            said = f"it failed with an unexpected {type(error).__name__}; the server's log says where."
        for folder in (session and session.folder, self.settings.folder, self.sessions.root):
            said = said.replace(f"{folder}/", "") if folder else said
        return None, said

    def _session(self, request: gr.Request) -> Session:
        try:
            return self.sessions.of(request.session_hash)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def list_studies(self, model: str) -> Any:
        """Names of the server's studies, for the two boxes that they are chosen from."""
        folder = self.settings.folder
        if folder is None:
            return [gr.update(), gr.update()]
        found, wrong = self._try(None, lambda: list_folder(folder, self.models[model].processor))
        if wrong:
            gr.Warning(wrong)
        names = sorted(found or {})
        return [gr.update(choices=names, value=None), gr.update(choices=names, value=None)]

    def upload(self, slot: str) -> Callable[..., Any]:
        """Takes the files of a study."""

        def take(files: list[str] | None, model: str, accept: list[str], request: gr.Request) -> list[Any]:
            session = self._session(request)
            paths = [Path(file) for file in files or []]
            work = lambda: actions.take_upload(self.sessions, session, slot, paths, self.models[model])  # noqa: E731
            return [gr.update(value=None), *self._opened(session, slot, work, model, accept)]

        return take

    def choose(self, slot: str) -> Callable[..., Any]:
        """Takes a study of the server's folder."""

        def take(name: str | None, model: str, accept: list[str], request: gr.Request) -> list[Any]:
            session, folder = self._session(request), self.settings.folder
            if not name or folder is None:
                return self.show_studies(model, accept, request)
            work = lambda: actions.choose_study(session, slot, folder, name, self.models[model])  # noqa: E731
            return self._opened(session, slot, work, model, accept)

        return take

    def fetch(self, slot: str) -> Callable[..., Any]:
        """Takes a study of the DICOMweb service."""

        def take(uid: str, model: str, accept: list[str], request: gr.Request) -> list[Any]:
            session, url = self._session(request), self.settings.dicomweb or ""
            limits = self.settings.limits
            work = lambda: actions.fetch_dicomweb(session, slot, url, uid, self.models[model], limits)  # noqa: E731
            return self._opened(session, slot, work, model, accept)

        return take

    def _opened(self, session: Session, slot: str, work: Callable[[], Any], model: str, accept: list[str]) -> list[Any]:
        _, wrong = self._try(session, work)
        shown = self._studies(session, model, accept)
        if wrong:
            shown[SLOTS.index(slot)] = message(f"The study cannot be used: {wrong}")
        return shown

    def forget(self, slot: str) -> Callable[..., Any]:
        """Takes a study away."""

        def take(model: str, accept: list[str], request: gr.Request) -> list[Any]:
            session = self._session(request)
            self._try(session, lambda: actions.clear_study(session, slot))
            return self._studies(session, model, accept)

        return take

    def show_studies(self, model: str, accept: list[str], request: gr.Request) -> list[Any]:
        """Verdicts of both studies, for the chosen model and accepted codes; results of before are taken away."""
        return self._studies(self._session(request), model, accept)

    def _studies(self, session: Session, model: str, accept: Collection[str]) -> list[Any]:
        """What `STUDY_OUTPUTS` of the page show: two verdicts, codes to accept, and empty results."""
        shown, codes = [], set(accept or ())
        for slot in SLOTS:
            html, verdict = self._verdict(session, slot, model, accept or ())
            codes |= refusing_codes(verdict.reports) if verdict else set()
            shown.append(html)
        choices = sorted(codes)
        kept = [code for code in accept or () if code in codes]
        return [
            *shown,
            gr.update(choices=choices, value=kept, visible=bool(choices)),
            *nothing_found(),
        ]

    def _verdict(self, session: Session, slot: str, model: str, accept: Collection[str]) -> tuple[str, Verdict | None]:
        opened = session.slots[slot].opened
        if opened is None:
            return "", None
        verdict, wrong = self._try(session, lambda: actions.verdict_of(session, slot, self.models[model], list(accept)))
        return (verdict_table(opened, verdict) if verdict else message(wrong)), verdict

    def suggest(self, model: str) -> str:
        """The findings of the model's domain, one per line, to be changed."""
        return "\n".join(texts[0] for texts in self.models[model].prompts.values())

    def read_bank(self, file: str | None, request: gr.Request) -> tuple[Any, str]:
        """Texts of an uploaded file, one per line; and what is wrong with it."""
        session = self._session(request)

        def read() -> str:
            place = take_files(
                [Path(file or "")], session.new_folder("bank"), self.sessions.uploads, self.settings.limits
            )
            texts = [text for texts in read_prompts(place).values() for text in texts]
            return "\n".join(texts)

        text, wrong = self._try(session, read)
        return (gr.update() if text is None else text), message(wrong)

    def begin(self, request: gr.Request) -> list[Any]:
        """Before a run, which may have to wait: it can be cancelled from now on."""
        self._session(request).stop.clear()
        return [message("The run is on its way.", "note"), gr.update(interactive=False), gr.update(interactive=True)]

    def cancel(self, request: gr.Request) -> str:
        """Ends the run of the session at its next step."""
        self._session(request).stop.set()
        return message("The run is being cancelled.", "note")

    def run(
        self,
        findings: str,
        quantity: str,
        model: str,
        accept: list[str],
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how gradio wants it
    ) -> list[Any]:
        """Scores findings, and shows table, viewers and files."""
        session, chosen, limits = self._session(request), self.models[model], self.settings.limits

        def work() -> Any:
            prompts = actions.read_findings(findings or "", chosen, limits)
            question = actions.Question(prompts, quantity, frozenset(accept or ()))
            return actions.run(session, chosen, question, limits, lambda part, what: progress(part, desc=what))

        results, wrong = self._try(session, work)
        ready = [gr.update(interactive=True), gr.update(interactive=False)]
        if results is None:
            return [message(wrong), *ready, *nothing_found()]
        frames = [viewer_frame(offer_viewer(session, slot), f"viewer of the {slot} study") for slot in SLOTS]
        links = "".join(
            file_links(offer_files(session, slot), f"{slot} study:" if len(results) > 1 else "") for slot in results
        )
        done = message(f"{len(results['current'].findings)} findings scored.", "done")
        column = gr.update(visible="prior" in results)
        can_store = self.settings.dicomweb is not None and session.slots["current"].opened.from_dicom
        hint, store = message(HINT, "note"), gr.update(visible=can_store)
        return [done, *ready, result_table(results), links, *frames, column, hint, store]

    def store(self, request: gr.Request) -> str:
        """Sends the results of the current study to the DICOMweb service."""
        session, url = self._session(request), self.settings.dicomweb or ""
        count, wrong = self._try(session, lambda: actions.store_results(session, url))
        return message(wrong) if count is None else message(f"{count} DICOM objects stored on the server.", "done")

    def describe(self, slot: str) -> Callable[..., str]:
        """The texts that describe a place best, which was clicked in the viewer of a study."""

        def look_up(bank: str, event: gr.EventData, request: gr.Request) -> str:
            session = self._session(request)
            place = {key: event._data[key] for key in ("scan", "mm", "row", "column") if key in (event._data or {})}

            def work() -> str:
                ranked = actions.describe_place(session, slot, place, bank or "", self.models, self.settings.limits)
                result = session.slots[slot].result
                return text_table(ranked, place_words(result, place) if result else "")

            table, wrong = self._try(session, work)
            return message(wrong, "note") if table is None else table

        return look_up

    def end(self, request: gr.Request) -> None:
        """The tab was closed: everything of its session is deleted."""
        self.sessions.end(request.session_hash)


def refusing_codes(reports: Sequence[Report]) -> set[str]:
    """Codes for which scans are refused."""
    return {problem.code for report in reports for problem in report.problems if problem.level == "refuse"}


def nothing_found() -> list[Any]:
    """Table, files, two viewers, the column of the second, texts of a place, and the button that stores: all empty."""
    return ["", "", "", "", gr.update(visible=False), "", gr.update(visible=False)]
