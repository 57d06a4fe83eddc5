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
from tabs.components import JobControls, Updates, paragraphs, progress_bar, refusal_alert, render
from tabs.events import FETCH, PRIVATE, QUICK, after_job, with_shown_errors

Choices = list[tuple[str, str]]


def detector_choices() -> Choices:
    """Return title and name of every detector that is here."""
    return [(registry.card(name).title, name) for name in registry.loadable()]


def detector_chooser(**options: Any) -> gr.Dropdown:
    """Return a chooser of a detector."""
    named = detector_choices()
    return gr.Dropdown(
        named, value=named[0][1] if named else None, label="Which detector?", filterable=False, **options
    )


def generator_choices() -> Choices:
    """Return title and name of every generator that is here."""
    return [(title, name) for name, title in inversion.available_generators().items()]


def generator_chooser() -> gr.Dropdown:
    """Return a chooser of a generator, which is in sight only where there is a choice."""
    named = generator_choices()
    return gr.Dropdown(
        named,
        value=inversion.default_generator(),
        label="Which generator draws the face?",
        info="A large one draws better and takes longer: without a graphics card, minutes.",
        filterable=False,
        visible=len(named) > 1,
    )


class Choosers:
    """All choosers of a page, to be brought up to date together.

    Args:
        detectors: Choosers of a detector.
        generators: Choosers of a generator.
    """

    def __init__(self, detectors: list[gr.Dropdown], generators: list[gr.Dropdown]) -> None:
        self.detectors, self.generators = detectors, generators

    def outputs(self) -> list[gr.Dropdown]:
        """Return what `updates` may update."""
        return [*self.detectors, *self.generators]

    def updates(self, **begin: Any) -> dict[Any, Any]:
        """Return the updates that offer what is here now, for this page; programs, which have none, get it too.

        Args:
            begin: `value`, which generator a page begins with.
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
    "embedded": "It uses the models that ship with it, and needs no network (profile “embedded”).",
    "hub": "Larger models of the Hub are preferred where they were fetched (profile “hub”).",
}

STATES = {"loaded": "loaded", "here": "loaded when needed", "absent": "missing"}
FRAME_SECONDS = 0.25  # between two messages of a download, which reports every block
STOPPED = "**Stopped.** The part that arrived is kept. Fetch it again to continue."
NOT_ALLOWED = (
    "Visitors cannot fetch models here: whoever runs this app has switched it off. In an app of your own, it works."
)


def place_html(models: Sequence[Model]) -> str:
    """Say on what the models run, and in the Hub profile what is missing."""
    text = f"The models run on {runtime.device_in_words()}. {PROFILES[SETTINGS.profile]}"
    fetchable = [model.title for model in models if _can_be_fetched(model)]
    if SETTINGS.profile == "hub" and fetchable:
        text += f" Not fetched yet: {', '.join(fetchable)}. Everything works with the models that ship with the app."
    missing = [model.title for model in models if model.embedded and model.state == "absent"]
    if missing:
        text += f" Missing, though they ship with the app: {', '.join(missing)}."
    return paragraphs(text)


def present_table(models: Sequence[Model]) -> str:
    """List what is here, with sizes and licences."""
    present = [model for model in models if model.state != "absent"]
    caption = f"What is here: {len(present)} models, {sum(model.bytes for model in present) / 1e6:.0f} MB."
    licences = {model.licence for model in present if model.embedded}
    if len(licences) == 1:  # named once, and not with each of them
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
    head, caption = ("Model", "Size", "Licence"), "What can be fetched from the Hub"
    return render("fetchable", head=head, rows=rows, caption=caption, files=files)


def fetchable_choices(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Return what can be fetched, as title with size, and name."""
    return [
        (f"{model.title}, {size_in_words(model)}" if model.bytes else model.title, model.name)
        for model in models
        if _can_be_fetched(model)
    ]


def size_in_words(model: Model) -> str:
    """Return the size of a file in words."""
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
    """The closed panel at the foot of the page.

    Args:
        choosers: What offers a fetched model, at once and without a restart.
    """

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
        """Wire the events; every page begins with what is here by then."""
        # Not `with_shown_errors`, which waits for the models' packages: they take long, and this needs none of them.
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
        return {**self._look(), **self.choosers.updates(value=inversion.default_generator())}

    def _look(self) -> Updates:
        """Show what is here and what is not, and offer it in every chooser."""
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
        """Fetch one model, showing how far it is; what goes wrong is said where it was asked for."""
        if not SETTINGS.fetch:
            raise UserError(NOT_ALLOWED)
        if not name:
            raise UserError("No model is chosen.", "Choose one that can be fetched.")
        yield self.job.busy("The Hub is asked.")
        framed = 0.0
        try:
            with Running(fetching.fetch_model(name)) as running:
                for step in running:
                    if time.monotonic() - framed > FRAME_SECONDS:
                        framed = time.monotonic()
                        yield {self.job.progress: progress_bar(step)}
        except UserError as error:
            yield {**self.job.idle(), self.job.progress: refusal_alert(error, "Not fetched")}
            return
        yield {**self._look(), **self.job.clear(), self.job.note: f"**Fetched.** {running.result.summary}"}
