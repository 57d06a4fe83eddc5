"""The tab that searches what would have to change for a detector to call a face real."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from backend import examples, images, verdicts
from backend.counterfactual import bundle
from backend.counterfactual.levels import WORDS
from backend.counterfactual.search import SearchSettings
from backend.detectors import registry
from backend.detectors.choice import suggested
from backend.errors import UserError
from backend.progress import Step
from backend.verdicts import JudgedFace
from tabs import api, words
from tabs.common import MODEL, QUICK, answered, photo_from, session_folder, shown
from tabs.photo import PhotoStep
from tabs.result import ResultStep

Updates = dict[Any, Any]
HEADLINE = (
    "**What would have to change for a detector to call this face real?** "
    "A generator redraws the face, and a search changes the drawing in the smallest steps until the detector's "
    "verdict turns. What changed is what the detector looked at. Such a picture is called a *counterfactual*."
)
COMPOSITES = [
    ("Add only the change to the photo (transfer)", "transfer"),
    ("Show the generator's own drawing (reconstruction)", "reconstruction"),
]
CONVERTED_SIDE = 2200  # of pictures that browsers cannot show, in pixels
FRAME_SECONDS = 0.3  # between two pictures of a running search; the score is shown at every step
STOPPED = "**Stopped.** What the search had reached stays below; choose a detector and start again whenever you like."
DEFAULTS = SearchSettings()


def build() -> gr.Blocks:
    """Return the tab."""
    with gr.Blocks(analytics_enabled=False) as tab:
        CounterfactualTab()
    return tab


class CounterfactualTab:
    """Layout and wiring of the tab."""

    def __init__(self) -> None:
        gr.Markdown(HEADLINE)
        self.examples = examples.load()
        self.faces = gr.State([])
        self.choice = PhotoStep(self.examples)
        with gr.Column(visible=False) as self.ask:
            self._lay_out_search()
        self.result = ResultStep()
        self._wire()

    def _lay_out_search(self) -> None:
        gr.Markdown("## 3 Search what would make it say “real”")
        named = [(registry.card(name).title, name) for name in registry.loadable()]
        self.detector = gr.Dropdown(
            named, value=named[0][1] if named else None, label="Which detector?", filterable=False
        )
        with gr.Row():
            self.find = gr.Button("Find what would make it say “real”", variant="primary", scale=3, min_width=220)
            self.stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
        with gr.Accordion("More options", open=False):
            self._lay_out_options()
        self.note = gr.Markdown(elem_classes="note")
        with gr.Row(visible=False) as self.live:
            with gr.Column(min_width=280, scale=2):
                self.progress = gr.HTML()
            with gr.Column(min_width=160):
                self.face = gr.Image(
                    label="The face now",
                    format="png",
                    buttons=[],
                    interactive=False,
                    elem_classes="face",
                    alt_text="The face as the search has changed it so far",
                )

    def _lay_out_options(self) -> None:
        levels = [(f"{letter}: {word}", letter) for letter, word in WORDS.items()]
        self.levels = gr.CheckboxGroup(
            levels,
            value=list(DEFAULTS.levels),
            label="Style levels that may change",
            info="The generator draws a face from a list of styles (its latent code, W+), from coarse to fine.",
        )
        self.steps = gr.Slider(
            5, 300, DEFAULTS.steps, step=5, label="Steps at most", info="More steps find larger changes."
        )
        self.epsilon = gr.Number(
            label="Length of a step (epsilon)", info="Leave it empty for the length that suits the generator."
        )
        self.composite = gr.Radio(COMPOSITES, value=DEFAULTS.composite, label="How the changed face is put together")
        self.kappa = gr.Slider(
            0, 0.9, DEFAULTS.kappa, step=0.05, label="Margin (kappa)", info="How clearly it must say “real”."
        )
        self.seed = gr.Number(DEFAULTS.seed, precision=0, label="Seed", info="Recorded with the result.")

    def _wire(self) -> None:
        photo, pick = self.choice.photo, self.choice.which
        private: dict[str, Any] = {"api_visibility": "private"}
        # The sign of waiting, and of an error, belongs in one place and not over everything that may change.
        looking: dict[str, Any] = {**MODEL, **private, "show_progress_on": [photo]}
        asked = [
            photo,
            pick,
            self.detector,
            self.levels,
            self.steps,
            self.epsilon,
            self.composite,
            self.kappa,
            self.seed,
        ]
        run = self.find.click(
            answered(self._search), asked, self._search_outputs(), show_progress="hidden", **MODEL, **private
        )
        run.then(self._idle, None, [self.find, self.stop], **QUICK, **private)
        self.stop.click(self._stopped, None, [self.find, self.stop, self.note], cancels=[run], **QUICK, **private)
        begun = [photo, self.faces, self.detector, self.ask, *self.choice.outputs(), *self._search_outputs()]
        self.choice.gallery.select(answered(self._example), None, begun, cancels=[run], **QUICK, **private).success(
            answered(self._look_where_needed), [photo, self.faces], begun, **looking
        )
        photo.upload(answered(self._look), photo, begun, cancels=[run], **looking)
        photo.clear(self._forget, None, begun, cancels=[run], **QUICK, **private)
        picked = [pick, self.detector, self.ask, *self.choice.outputs(), *self._search_outputs()]
        pick.input(answered(self._pick), [self.faces, pick], picked, cancels=[run], **QUICK, **private)
        self.choice.found.select(answered(self._click), self.faces, picked, cancels=[run], **QUICK, **private)
        self.result.wire()
        api.add(photo, self.detector, self.levels, self.steps, self.composite)

    def _search_outputs(self) -> list[Any]:
        return [self.find, self.stop, self.note, self.live, self.progress, self.face, *self.result.outputs()]

    def _look(self, path: str | None) -> Updates:
        """Show what the detectors say about a new photo, or why nothing can be said."""
        try:
            pixels = photo_from(path)
        except UserError as error:
            return {self.faces: [], self.ask: gr.Column(visible=False), **self._quiet(), **self.choice.refuse(error)}
        as_uploaded = _is_shown_by_browsers(str(path))
        if not as_uploaded:  # it is handed back as PNG, which must stay below the limit on bytes
            pixels = shown(pixels, CONVERTED_SIDE)
        faces = verdicts.judge(pixels)
        updates = {self.faces: faces, **self.choice.show(pixels, faces), **self._offer(faces, 1)}
        if not as_uploaded:
            updates[self.choice.photo] = gr.Image(pixels)
        return updates

    def _look_where_needed(self, path: str | None, faces: list[JudgedFace]) -> Updates:
        """Ask the detectors about an example whose stored result no longer fits them."""
        return {self.faces: gr.skip()} if faces else self._look(path)

    def _example(self, event: gr.SelectData, request: gr.Request) -> Updates:
        """Show an example with its stored result."""
        example = self.examples[event.index]
        pixels = images.read(example.photo_path)
        updates: Updates = {self.choice.photo: gr.Image(pixels), self.faces: []}
        if examples.stale(example):
            return {**updates, **self.choice.hide(), **self._quiet(), self.ask: gr.Column(visible=False)}
        faces = example.faces()
        return {
            **updates,
            self.faces: faces,
            **self.choice.show(pixels, faces),
            **self._offer(faces, 1),
            self.detector: gr.Dropdown(value=example.detector),
            self.note: f"The stored result for “{example.label}” stands below. You can also run the search yourself.",
            **self.result.show(example.bundle(), session_folder(request)),
        }

    def _pick(self, faces: list[JudgedFace], number: int) -> Updates:
        return {**self.choice.pick(faces, number), **self._offer(faces, number)}

    def _click(self, faces: list[JudgedFace], event: gr.SelectData) -> Updates:
        number = int(event.index) + 1
        return {self.choice.which: number, **self._pick(faces, number)}

    def _offer(self, faces: list[JudgedFace], number: int) -> Updates:
        """Return the updates of step 3 for a face, and take the result of another one away."""
        face = faces[number - 1] if faces else None
        can = face is not None and face.problem is None and bool(face.p_fake)
        updates = {self.ask: gr.Column(visible=can), **self._quiet()}
        if face is not None and can:
            updates[self.detector] = gr.Dropdown(value=suggested(face.p_fake))
        return updates

    def _quiet(self) -> Updates:
        return {**self._idle(), self.note: "", self.live: gr.Row(visible=False), **self.result.hide()}

    def _idle(self) -> Updates:
        return {self.find: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def _stopped(self) -> Updates:
        return {**self._idle(), self.note: STOPPED}

    def _forget(self) -> Updates:
        return {self.faces: [], self.ask: gr.Column(visible=False), **self.choice.hide(), **self._quiet()}

    def _search(
        self,
        path: str | None,
        number: int | None,
        detector: str,
        levels: list[str],
        steps: float,
        epsilon: float | None,
        composite: Any,
        kappa: float,
        seed: float | None,
        request: gr.Request,
    ) -> Iterator[Updates]:
        """Run a search, showing every step, and show its result."""
        from backend.counterfactual.story import explain_photo  # its imports would keep the page waiting

        photo = photo_from(path)
        settings = SearchSettings(
            levels=tuple(levels),
            epsilon=epsilon or None,
            steps=int(steps),
            kappa=kappa,
            composite=composite,
            seed=int(seed or 0),
        )
        yield {
            self.find: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.live: gr.Row(visible=True),
            self.progress: "<p>The face is cut out and inverted: the generator redraws it.</p>",
            self.face: None,
            self.note: "",
            **self.result.hide(),
        }
        scores: list[float] = []
        framed = 0.0
        with closing(explain_photo(photo, detector, settings, face_number=number)) as job:
            while True:
                try:
                    step = next(job)
                except StopIteration as end:
                    story = end.value
                    break
                updates, framed = self._shown(step, scores, framed)
                yield updates
        searched = gr.Row(visible=not story.already_real)  # otherwise there is no curve to look back on
        yield {**self._idle(), self.live: searched, **self.result.show(bundle.of(story), session_folder(request))}

    def _shown(self, step: Step, scores: list[float], framed: float) -> tuple[Updates, float]:
        """Return the updates of one step, and when a picture was shown last."""
        if "p_fake" in step.values:
            scores.append(step.values["p_fake"])
        updates: Updates = {self.progress: words.progress(step, scores)}
        if step.preview is not None and time.monotonic() - framed > FRAME_SECONDS:
            framed = time.monotonic()
            updates[self.face] = images.to_array(step.preview)
        return updates, framed


def _is_shown_by_browsers(path: str) -> bool:
    with Image.open(Path(path)) as picture:
        return picture.format in {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP"}
