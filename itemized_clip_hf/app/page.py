"""The page: what stands where, and which event asks for what."""

import os
from collections.abc import Mapping
from functools import partial
from html import escape
from typing import Any

try:
    import gradio as gr
except ImportError:
    raise ImportError("the app needs gradio: pip install 'itemized-clip-hf[app]'.") from None

from ..evaluation.quantity import MEANINGS, without_calibration
from .guard import Guard
from .handlers import SLOTS, Handlers
from .models import AppModel, Given, load_models
from .session import Sessions
from .settings import AppSettings
from .style import CHOOSE, LISTEN, STYLE
from .tables import NOTICE

QUANTITIES = [quantity for quantity in MEANINGS if quantity == without_calibration(quantity)]
TITLES = {"current": "Study", "prior": "Prior study"}


def build_app(models: Mapping[str, Given], settings: AppSettings | None = None) -> gr.Blocks:
    """
    The app, ready for `.launch()`, which listens on 127.0.0.1 unless it is told otherwise.

    Args:
        models: name in the page -> folder or Hub name, or (model, processor).
        settings: what the app offers and asks for.

    Example (the `app.py` of a Space):

        demo = build_app({"brain MRI": "org/brain-mri-model"}, AppSettings(title="Brain MRI"))
        demo.launch()

    Raises:
        OSError, ValueError: a model or folder is not there, or cannot be used.
        ImportError: gradio is not installed.
    """
    settings = settings or AppSettings()
    loaded = load_models(models, settings.device, settings.tokenizer)
    sessions = Sessions(settings.limits)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.uploads)  # where gradio lets files arrive
    page = Page(loaded, settings, Handlers(loaded, settings, sessions))
    page.blocks.queue(max_size=settings.limits.queue, default_concurrency_limit=4, api_open=False)
    page.blocks.sessions = sessions
    page.blocks.launch = partial(page.blocks.launch, **launch_settings(settings, sessions))
    return page.blocks


def launch_settings(settings: AppSettings, sessions: Sessions) -> dict[str, Any]:
    """What `launch` is called with: own fonts and style, no other way in than the page, no way out."""
    from starlette.middleware import Middleware

    bounds = {"limits": settings.limits, "password": settings.password, "hosts": settings.hosts}
    guarded: dict[str, Any] = {"sessions": sessions, **bounds}
    return {
        "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": STYLE,
        "share": False,
        "run_history": False,
        "footer_links": [],
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "show_error": True,
        "quiet": True,
        "allowed_paths": [],
        "max_file_size": settings.limits.upload_mb << 20,
        "state_session_capacity": settings.limits.sessions,
        "app_kwargs": {"middleware": [Middleware(Guard, **guarded)]},
    }


class Page:
    """
    Components of the page, and their events.

    Args:
        models, settings: of the app.
        handlers: what answers.
    """

    def __init__(self, models: Mapping[str, AppModel], settings: AppSettings, handlers: Handlers):
        self.models, self.settings, self.handlers = models, settings, handlers
        idle = 60 * settings.limits.idle_minutes
        self.inputs: dict[str, dict[str, Any]] = {slot: {} for slot in SLOTS}
        with gr.Blocks(title=settings.title, analytics_enabled=False, delete_cache=(60, idle)) as self.blocks:
            gr.HTML(f'<h1>{escape(settings.title)}</h1><p class="ic-notice">{NOTICE}</p>')
            with gr.Row():
                with gr.Column(scale=2, min_width=360):
                    self._ask()
                with gr.Column(scale=5, min_width=480):
                    self._show()
            self._listen()

    def _ask(self) -> None:
        """Left: studies, findings, buttons."""
        names = list(self.models)
        self.model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        self._study("current")
        with gr.Accordion("Prior study, to compare with", open=False):
            self._study("prior")
        self.accept = gr.CheckboxGroup(
            [], label="Use scans in spite of", visible=False, info="Codes of the checks above that refuse scans."
        )
        has_prompts = any(model.prompts for model in self.models.values())
        self.findings = gr.Textbox(
            label="Findings, one per line",
            lines=6,
            max_lines=14,
            placeholder="Leave empty for those of the model's domain." if has_prompts else "left frontal mass",
        )
        self.suggest = gr.Button("Fill in those of the domain", size="sm", visible=has_prompts)
        self.quantity = gr.Radio(
            QUANTITIES,
            value="similarity",
            label="Score (not calibrated)",
        )
        with gr.Row():
            self.run = gr.Button("Run", variant="primary")
            self.cancel = gr.Button("Cancel", interactive=False)
        self.status = gr.HTML(elem_id="status", min_height=64)
        with gr.Accordion("Texts that a place is compared with", open=False):
            self.bank = gr.Textbox(
                label="Texts, one per line",
                lines=5,
                max_lines=14,
                placeholder="Leave empty for the prompts of the model's domain." if has_prompts else "",
            )
            self.bank_file = gr.UploadButton("Read a text, JSON or YAML file", size="sm", file_count="single")
            self.bank_status = gr.HTML()

    def _study(self, slot: str) -> None:
        """How one study comes in, and its verdict."""
        own = self.inputs[slot]
        with gr.Column(elem_id=f"study-{slot}"):
            with gr.Tabs():
                with gr.Tab("Upload"):
                    own["files"] = gr.File(
                        label=f"{TITLES[slot]}: NIfTI, DICOM zip, picture",
                        file_count="multiple",
                        height=150,
                        elem_id=f"files-{slot}",
                    )
                with gr.Tab("Folder", visible=self.settings.folder is not None):
                    own["choice"] = gr.Dropdown([], label="Study on the server")
                with gr.Tab("DICOMweb", visible=self.settings.dicomweb is not None):
                    own["uid"] = gr.Textbox(label="Study instance UID")
                    own["fetch"] = gr.Button("Fetch", size="sm")
            own["verdict"] = gr.HTML(elem_id=f"verdict-{slot}")
            if slot == "prior":
                own["forget"] = gr.Button("Take the prior study away", size="sm")

    def _show(self) -> None:
        """Right: table, files, viewers, texts of a place."""
        self.table = gr.HTML(elem_id="results", js_on_load=CHOOSE)
        self.links = gr.HTML(elem_id="files")
        self.store = gr.Button("Store the results on the DICOMweb server", size="sm", visible=False)
        with gr.Row():
            self.viewers = {}
            for slot in SLOTS:
                with gr.Column(scale=3, min_width=360, visible=slot == "current") as column:
                    self.viewers[slot] = gr.HTML(elem_id=f"viewer-{slot}", js_on_load=LISTEN)
                if slot == "prior":
                    self.prior_column = column
            with gr.Column(scale=1, min_width=260):
                self.texts = gr.HTML(elem_id="texts")

    def _listen(self) -> None:
        """Which event asks for what."""
        handlers, chosen = self.handlers, [self.model, self.accept]
        found = [self.table, self.links, *self.viewers.values(), self.prior_column, self.texts, self.store]
        studies = [*(self.inputs[slot]["verdict"] for slot in SLOTS), self.accept, *found]
        for slot in SLOTS:
            own = self.inputs[slot]
            own["files"].upload(
                handlers.upload(slot),
                [own["files"], *chosen],
                [own["files"], *studies],
                concurrency_limit=2,
                api_visibility="private",
            )
            own["choice"].input(handlers.choose(slot), [own["choice"], *chosen], studies, api_visibility="private")
            gr.on(
                [own["fetch"].click, own["uid"].submit],
                handlers.fetch(slot),
                [own["uid"], *chosen],
                studies,
                api_visibility="private",
            )
            self.viewers[slot].select(
                handlers.describe(slot), [self.bank], self.texts, trigger_mode="always_last", api_visibility="private"
            )
        self.inputs["prior"]["forget"].click(handlers.forget("prior"), chosen, studies, api_visibility="private")
        choices = [self.inputs[slot]["choice"] for slot in SLOTS]
        self.blocks.load(handlers.list_studies, self.model, choices, api_visibility="private")
        self.model.input(handlers.list_studies, self.model, choices, api_visibility="private")
        gr.on([self.model.input, self.accept.input], handlers.show_studies, chosen, studies, api_visibility="private")
        self.suggest.click(handlers.suggest, self.model, self.findings, api_visibility="private")
        self.bank_file.upload(
            handlers.read_bank, self.bank_file, [self.bank, self.bank_status], api_visibility="private"
        )
        buttons = [self.status, self.run, self.cancel]
        self.run.click(handlers.begin, None, buttons, queue=False, api_visibility="private").then(
            handlers.run,
            [self.findings, self.quantity, *chosen],
            [*buttons, *found],
            show_progress_on=self.status,
            concurrency_id="model",
            concurrency_limit=1,
            api_visibility="private",
        )
        self.store.click(handlers.store, None, self.status, api_visibility="private")
        self.cancel.click(handlers.cancel, None, self.status, queue=False, api_visibility="private")
        self.blocks.unload(handlers.end)
