"""Where the app runs: device, models that are here, and models that can be fetched from the Hub."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from backend.errors import UserError
from backend.generators import choice
from backend.hub import catalogue, fetching
from backend.progress import Running, Step
from backend.settings import SETTINGS
from tabs import where_words as words
from tabs.choosers import Choosers
from tabs.common import FETCH, QUICK, answered, at_the_end
from tabs.words import progress, refusal

Updates = dict[Any, Any]
FRAME_SECONDS = 0.25  # between two messages of a download, which reports every block
STOPPED = "**Stopped.** What has come is kept: fetched again, it goes on from there."


class WherePanel:
    """The closed panel at the foot of the page.

    Args:
        choosers: What offers a fetched model, at once and without a restart.
    """

    def __init__(self, choosers: Choosers) -> None:
        self.choosers = choosers
        with gr.Accordion("Where it runs, and which models are here", open=SETTINGS.profile == "hub"):
            self.place = gr.HTML()
            with gr.Row(visible=SETTINGS.fetch) as self.asking:
                self.model = gr.Dropdown([], label="Model to fetch", filterable=False, scale=3, min_width=220)
                self.fetch = gr.Button("Fetch it", scale=1, min_width=100)
                self.stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
            self.note = gr.Markdown("" if SETTINGS.fetch else words.NOT_ALLOWED, elem_classes="note")
            self.progress = gr.HTML()
            self.fetchable = gr.HTML()
            self.present = gr.HTML()

    def wire(self, page: gr.Blocks) -> None:
        """Wire the events; every page begins with what is here by then."""
        private: dict[str, Any] = {"api_visibility": "private"}
        # Not `answered`, which waits for the models' packages: they take long, and this needs none of them.
        page.load(self._begin_page, None, self._lists(), **QUICK, **private)
        run = self.fetch.click(
            answered(self._fetch), self.model, self._outputs(), show_progress="hidden", **FETCH, **private
        )
        at_the_end(run, self._idle, [self.fetch, self.stop])
        self.stop.click(
            self._stopped, None, [self.fetch, self.stop, self.note, self.progress], cancels=[run], **QUICK, **private
        )

    def _lists(self) -> list[Any]:
        return [self.place, self.present, self.fetchable, self.model, self.asking, *self.choosers.outputs()]

    def _outputs(self) -> list[Any]:
        return [self.fetch, self.stop, self.note, self.progress, *self._lists()]

    def _begin_page(self) -> Updates:
        return {**self._look(), **self.choosers.updates(value=choice.usual())}

    def _look(self) -> Updates:
        """Show what is here and what is not, and offer it in every chooser."""
        models = catalogue.models()
        choices = words.choices(models)
        return {
            self.place: words.place(models),
            self.present: words.present(models),
            self.fetchable: words.fetchable(models),
            self.model: gr.Dropdown(choices=choices, value=choices[0][1] if choices else None),
            self.asking: gr.Row(visible=SETTINGS.fetch and bool(choices)),
            **self.choosers.updates(),
        }

    def _idle(self) -> Updates:
        return {self.fetch: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def _stopped(self) -> Updates:
        return {**self._idle(), self.note: STOPPED, self.progress: ""}

    def _fetch(self, name: str | None) -> Iterator[Updates]:
        """Fetch one model, showing how far it is; what goes wrong is said where it was asked for."""
        if not SETTINGS.fetch:
            raise UserError(words.NOT_ALLOWED)
        if not name:
            raise UserError("No model is chosen.", "Choose one that can be fetched.")
        yield {
            self.fetch: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.note: "",
            self.progress: progress(Step(0, 1, "The Hub is asked.")),
        }
        framed = 0.0
        try:
            with Running(fetching.fetching(name)) as running:
                for step in running:
                    if time.monotonic() - framed > FRAME_SECONDS:
                        framed = time.monotonic()
                        yield {self.progress: progress(step)}
        except UserError as error:
            yield {**self._idle(), self.progress: refusal(error, "Not fetched")}
            return
        said = f"**Fetched.** {running.result.summary}"
        yield {**self._look(), **self._idle(), self.progress: "", self.note: said}
