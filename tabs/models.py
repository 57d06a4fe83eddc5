"""Which models are here and which can be fetched: the choosers of all tabs, and the panel at the foot of the page."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from backend import runtime
from backend.detectors import registry
from backend.errors import UserError
from backend.generators import inversion
from backend.hub import catalogue, fetching
from backend.hub.catalogue import Model
from backend.progress import Running
from backend.settings import SETTINGS
from tabs.components import JobControls, Updates, alert_html, paragraphs, progress_bar, render
from tabs.events import FETCH, PRIVATE, QUICK, after_job, with_shown_errors

Choices = list[tuple[str, str]]


def detector_choices() -> Choices:
    return [(registry.card(name).title, name) for name in registry.loadable()]


def detector_chooser(**options: Any) -> gr.Dropdown:
    choices = detector_choices()
    first = choices[0][1] if choices else None
    return gr.Dropdown(choices, value=first, label="Which detector?", filterable=False, **options)


def generator_choices() -> Choices:
    return [(title, name) for name, title in inversion.available_generators().items()]


def generator_chooser() -> gr.Dropdown:
    """Return a chooser of a generator, visible only if there is a choice."""
    choices = generator_choices()
    return gr.Dropdown(
        choices,
        value=inversion.default_generator(),
        label="Which generator draws the face?",
        info="A large one draws better and takes longer: without a graphics card, minutes.",
        filterable=False,
        visible=len(choices) > 1,
    )


class Choosers:
    """All choosers of a page, which are updated together."""

    def __init__(self, detectors: list[gr.Dropdown], generators: list[gr.Dropdown]) -> None:
        self.detectors, self.generators = detectors, generators

    def outputs(self) -> list[gr.Dropdown]:
        return [*self.detectors, *self.generators]

    def updates(self, **begin: Any) -> dict[Any, Any]:
        """Offer the models that are here now, on this page and to programs, which have no page.

        Args:
            begin: `value`, the generator that a page begins with.
        """
        detectors, generators = detector_choices(), generator_choices()
        for choosers, choices in ((self.detectors, detectors), (self.generators, generators)):
            for chooser in choosers:
                chooser.choices = list(choices)
        return {
            **{chooser: gr.Dropdown(choices=detectors) for chooser in self.detectors},
            **{
                chooser: gr.Dropdown(choices=generators, visible=len(generators) > 1, **begin)
                for chooser in self.generators
            },
        }


PROFILES = {
    "embedded": "The app uses the models that ship with it, and needs no network (profile “embedded”).",
    "hub": "The app prefers larger models from the Hub once they are fetched (profile “hub”).",
}
STATES = {"loaded": "loaded", "here": "loaded when needed", "absent": "missing"}
MESSAGE_SECONDS = 0.25  # between two messages of a download, which reports every block
STOPPED = "**Stopped.** The part that arrived is kept. Fetch it again to continue."
NOT_ALLOWED = "Visitors cannot fetch models here: whoever runs this app has switched it off. In your own app, it works."


def place_html(models: Sequence[Model]) -> str:
    """Say which device the models run on, and which models are missing."""
    text = f"The models run on {runtime.device_in_words()}. {PROFILES[SETTINGS.profile]}"
    fetchable = [model.title for model in models if _can_be_fetched(model)]
    if SETTINGS.profile == "hub" and fetchable:
        text += f" Not fetched yet: {', '.join(fetchable)}. Everything works with the models that ship with the app."
    missing = [model.title for model in models if model.embedded and model.state == "absent"]
    if missing:
        text += f" Missing, though they ship with the app: {', '.join(missing)}."
    return paragraphs(text)


def present_table(models: Sequence[Model]) -> str:
    present = [model for model in models if model.state != "absent"]
    caption = f"What is here: {len(present)} models, {sum(model.bytes for model in present) / 1e6:.0f} MB."
    licences = {model.licence for model in present if model.embedded}
    if len(licences) == 1:  # named once, not for each model
        caption += f" Licence of those that ship with the app: {next(iter(licences))}."
    rows = [
        _model_row(model, STATES[model.state], "" if model.embedded and len(licences) == 1 else model.licence)
        for model in present
    ]
    return render("models", head=("Model", "Size", "Now"), rows=rows, caption=caption)


def fetchable_html(models: Sequence[Model]) -> str:
    """List what can be fetched from the Hub, and what comes only from a file."""
    rows = [_model_row(model, model.licence) for model in models if _can_be_fetched(model)]
    files = [f"{model.title} ({model.name})" for model in models if _needs_a_file(model)]
    caption = "What can be fetched from the Hub"
    return render("fetchable", head=("Model", "Size", "Licence"), rows=rows, caption=caption, files=files)


def fetchable_choices(models: Sequence[Model]) -> Choices:
    """Return what can be fetched: title with size, and name."""
    return [
        (f"{model.title}, {size_in_words(model)}" if model.bytes else model.title, model.name)
        for model in models
        if _can_be_fetched(model)
    ]


def size_in_words(model: Model) -> str:
    if not model.bytes:
        return "not known"
    text = f"{model.bytes / 1e6:,.0f} MB" if model.bytes >= 1e6 else f"{model.bytes / 1e3:,.0f} kB"
    return f"about {text}" if model.about else text


def _can_be_fetched(model: Model) -> bool:
    return model.state == "absent" and bool(model.sources) and model.is_used


def _needs_a_file(model: Model) -> bool:
    return model.state == "absent" and not model.sources and not model.embedded and model.is_used


def _model_row(model: Model, last: str, licence: str = "") -> tuple[str, str, str, str]:
    about = ". ".join(text.rstrip(".") for text in (model.use, model.note, licence) if text)
    return model.title, about, size_in_words(model), last


class ModelsPanel:
    """The panel at the foot of the page; `choosers` offer a fetched model at once, without a restart."""

    def __init__(self, choosers: Choosers) -> None:
        self.choosers = choosers
        with gr.Accordion("Where it runs, and which models are here", open=SETTINGS.profile == "hub"):
            self.device = gr.HTML()
            with gr.Row(visible=SETTINGS.fetch) as self.asking:
                self.model = gr.Dropdown([], label="Model to fetch", filterable=False, scale=3, min_width=220)
                self.fetch_button = gr.Button("Fetch it", scale=1, min_width=100)
                stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
            note = gr.Markdown("" if SETTINGS.fetch else NOT_ALLOWED, elem_classes="note")
            self.job = JobControls([self.fetch_button], note, gr.HTML(), stop, stopped=STOPPED)
            self.fetchable = gr.HTML()
            self.present = gr.HTML()

    def wire(self, page: gr.Blocks) -> None:
        """Wire the events; a page that is loaded lists the models that are here then."""
        # Without `with_shown_errors`, which waits seconds for the models' packages; this needs none of them.
        page.load(self._begin_page, None, self._lists(), **QUICK)
        run = self.fetch_button.click(
            with_shown_errors(self._fetch), self.model, self._outputs(), show_progress="hidden", **FETCH, **PRIVATE
        )
        after_job(run, self.job.idle, self.job.buttons)
        self.job.wire_stop([run])

    def _lists(self) -> list[Any]:
        return [self.device, self.present, self.fetchable, self.model, self.asking, *self.choosers.outputs()]

    def _outputs(self) -> list[Any]:
        return [*self.job.outputs(), *self._lists()]

    def _begin_page(self) -> Updates:
        return {**self._updates(), **self.choosers.updates(value=inversion.default_generator())}

    def _updates(self) -> Updates:
        """Show which models are here and which are not, and offer them in every chooser."""
        models = catalogue.list_models()
        choices = fetchable_choices(models)
        return {
            self.device: place_html(models),
            self.present: present_table(models),
            self.fetchable: fetchable_html(models),
            self.model: gr.Dropdown(choices=choices, value=choices[0][1] if choices else None),
            self.asking: gr.Row(visible=SETTINGS.fetch and bool(choices)),
            **self.choosers.updates(),
        }

    def _fetch(self, name: str | None) -> Iterator[Updates]:
        """Fetch one model, showing progress; an error is shown beside the button."""
        if not SETTINGS.fetch:
            raise UserError(NOT_ALLOWED)
        if not name:
            raise UserError("No model is chosen.", "Choose one that can be fetched.")
        yield self.job.busy("Asking the Hub.")
        last_message = 0.0
        try:
            with Running(fetching.fetch_model(name)) as running:
                for step in running:
                    if time.monotonic() - last_message > MESSAGE_SECONDS:
                        last_message = time.monotonic()
                        yield {self.job.progress: progress_bar(step)}
        except UserError as error:
            yield {**self.job.idle(), self.job.progress: alert_html(str(error), "Not fetched")}
            return
        yield {**self._updates(), **self.job.clear(), self.job.note: f"**Fetched.** {running.result.summary}"}
