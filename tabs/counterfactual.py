"""The tab that searches what would have to change for a detector to see no signs of forgery."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from backend import images
from backend.counterfactual import photo as counterfactual_photo
from backend.counterfactual.search import LEVEL_WORDS, QUESTIONS, Question
from backend.detectors.base import SCALE
from backend.detectors.predict import JudgedFace, suggest_detector
from backend.examples import Example
from backend.generators import inversion
from backend.generators.refinement import RefineSettings
from backend.progress import Running, Step
from tabs import api, models
from tabs.components import JobControls, Updates, live_face, progress_bar, render
from tabs.counterfactual_result import CounterfactualResult
from tabs.counterfactual_video import VideoStep
from tabs.events import QUICK
from tabs.photo import ChosenPhoto, PhotoStep, chosen_face
from tabs.visitors import session_folder

ASKED = [
    ("The smallest change", "smallest"),
    ("A change that one can see", "visible"),
    ("As in the paper", "paper"),
]
ABOUT_QUESTIONS = {
    "visible": "Several detectors that see signs must turn together, which takes a larger change. One more is kept out "
    "of the search and shows whether the change means something beyond them.",
    "smallest": "One detector must turn. So little is enough for it that people can hardly see it, and other detectors "
    "mostly do not turn.",
    "paper": "Artifact-Eraser's search: one detector, equal steps, all of them made, and the generator's own drawing.",
}
HEADLINE = (
    "**What would have to change for a detector to see no signs of forgery?** "
    "A generator redraws the face, and a search changes the drawing in small steps until the "
    "verdict turns. What changed is what the detector looked at. Such a picture is called a *counterfactual*."
)
COMPOSITES = [
    ("Add only the change to the photo (transfer)", "transfer"),
    ("Show the generator's own drawing (reconstruction)", "reconstruction"),
]
LENGTHS = [
    ("Shorter where the picture reacts more, so that less of it changes", "visible"),
    ("Equal in all rows, as in the paper", "equal"),
]
ROWS = "A fetched generator without measured rows takes equal steps; the result says so."
WAITING = "*First choose a photo with a face, in step 1 above.*"
PICTURE_SECONDS = 0.3  # between two pictures of a running search; the score is shown at every step
STOPPED = "**Stopped.** The last step of the search stays below. Choose a detector and start again whenever you like."
FIRST_QUESTION: Question = "smallest"
DEFAULTS = QUESTIONS[FIRST_QUESTION]
CLOSER = (
    f"{RefineSettings.steps} steps bring the generator's drawing closer to the photo, by 2 dB on most photographs. "
    "They take about two seconds more, and matter most where the generator's own drawing is shown."
)


class CounterfactualTab:
    def __init__(self, photo: PhotoStep) -> None:
        self.photo_step = photo
        gr.Markdown(HEADLINE)
        self.waiting = gr.Markdown(WAITING)
        with gr.Column(visible=False) as self.ask:
            self._lay_out_search()
        self.result = CounterfactualResult()
        with gr.Accordion("A short video instead of a photo", open=False):
            self.video = VideoStep()
        self._wire()

    def _lay_out_search(self) -> None:
        gr.Markdown("## 3 Search what would have to change")
        self.detector = models.detector_chooser()
        self.question = gr.Radio(ASKED, value=FIRST_QUESTION, label="What should the change be?")
        self.about = gr.Markdown(ABOUT_QUESTIONS[FIRST_QUESTION], elem_classes="note")
        with gr.Row():
            self.search_button = gr.Button("Find what would have to change", variant="primary", scale=3, min_width=220)
            stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
        with gr.Accordion("More options", open=False):
            self._lay_out_options()
        note = gr.Markdown(elem_classes=["note", "status"])
        with gr.Row(visible=False) as self.live:
            with gr.Column(min_width=280, scale=2):
                progress = gr.HTML()
            with gr.Column(min_width=160):
                self.face = live_face()
        self.job = JobControls([self.search_button], note, progress, stop, stopped=STOPPED, keeps_progress=True)

    def _lay_out_options(self) -> None:
        levels = [(f"{letter}: {word}", letter) for letter, word in LEVEL_WORDS.items()]
        self.levels = gr.CheckboxGroup(
            levels,
            value=list(DEFAULTS.levels),
            label="Style levels that may change",
            info="The generator draws a face from a list of styles (its latent code, W+), from coarse to fine.",
        )
        self.steps = gr.Slider(
            5, 300, DEFAULTS.steps, step=5, label="Steps at most", info="With more steps, larger changes are found."
        )
        self.epsilon = gr.Number(label="Length of a step (epsilon)", info="0: the length that suits the generator.")
        self.lengths = gr.Radio(LENGTHS, value=DEFAULTS.lengths, label="Steps in the rows of the code", info=ROWS)
        self.composite = gr.Radio(COMPOSITES, value=DEFAULTS.composite, label="How the changed face is put together")
        self.kappa = gr.Slider(
            0,
            0.9,
            DEFAULTS.kappa,
            step=0.05,
            label="Margin (kappa)",
            info="How far below its threshold the score must fall.",
        )
        self.generator = models.generator_chooser()
        self.closer = gr.Checkbox(DEFAULTS.refine > 0, label="Closer reconstruction first", info=CLOSER)
        self.seed = gr.Number(DEFAULTS.seed, precision=0, label="Seed", info="Recorded with the result.")

    def _wire(self) -> None:
        step = self.photo_step
        options = [self.levels, self.steps, self.epsilon, self.lengths, self.composite, self.kappa, self.closer]
        inputs = [step.chosen, step.faces, step.which, self.detector, self.question]
        inputs += [*options, self.seed, self.generator]
        presets = [self.about, self.lengths, self.composite, self.kappa]
        self.question.change(_presets, self.question, presets, **QUICK)
        self.running = self.job.wire({self.search_button: (self._search, inputs)}, self._search_outputs())
        self.video.wire()
        api.add_endpoints(step.photo, self.detector, self.levels, self.steps, self.composite)

    def _search_outputs(self) -> list[Any]:
        return [*self.job.outputs(), self.live, self.face, *self.result.outputs()]

    def outputs(self) -> list[Any]:
        return [self.waiting, self.ask, self.detector, *self._search_outputs()]

    def show_for_face(self, face: JudgedFace | None) -> Updates:
        updates = {
            self.waiting: gr.Markdown(visible=face is None),
            self.ask: gr.Column(visible=face is not None),
            **self.job.clear(),
            self.live: gr.Row(visible=False),
            **self.result.hide(),
        }
        if face is not None:
            updates[self.detector] = gr.Dropdown(models.detector_choices(), value=suggest_detector(face.p_fake))
        return updates

    def show_example(self, example: Example, request: gr.Request) -> Updates:
        return {
            self.detector: gr.Dropdown(value=example.detector),
            self.job.note: f"The stored result for “{example.label}” is below. You can also run the search yourself.",
            **self.result.show(example.bundle(), session_folder(request)),
        }

    def _search(
        self,
        chosen: ChosenPhoto,
        faces: list[JudgedFace],
        number: int | None,
        detector: str,
        question: Any,
        levels: list[str],
        steps: float,
        epsilon: float | None,
        lengths: Any,
        composite: Any,
        kappa: float,
        closer: Any,
        seed: float | None,
        generator: str,
        request: gr.Request,
    ) -> Iterator[Updates]:
        from backend.counterfactual.photo import (  # its imports would keep the page waiting
            ask_team,
            find_counterfactual,
        )

        located = chosen_face(chosen, faces, number)
        asked: Question = question
        settings = replace(
            QUESTIONS[asked],
            levels=tuple(levels),
            epsilon=epsilon or None,
            lengths=lengths,
            steps=int(steps),
            kappa=kappa,
            composite=composite,
            seed=int(seed or 0),
            refine=RefineSettings.steps if closer else 0,
        )
        yield {
            **self.job.busy("Cutting out and inverting the face: the generator redraws it."),
            self.live: gr.Row(visible=True),
            self.face: None,
            **self.result.hide(),
        }
        scores: list[float] = []
        last_picture = 0.0
        inverter = inversion.load_inverter(generator)
        team = ask_team(located, detector) if asked == "visible" else None
        with Running(find_counterfactual(located, detector, settings, team=team, inverter=inverter)) as running:
            for step in running:
                updates, last_picture = self._step_updates(step, scores, last_picture)
                yield updates
        result = running.result
        yield {
            **self.job.idle(),
            self.live: gr.Row(visible=not result.already_real),  # otherwise there is no curve to look back on
            **self.result.show(counterfactual_photo.bundle_counterfactual(result), session_folder(request)),
        }

    def _step_updates(self, step: Step, scores: list[float], last_picture: float) -> tuple[Updates, float]:
        """Return the updates of one step, and the time of the last picture."""
        if "p_fake" in step.values:
            scores.append(step.values["p_fake"])
        updates: Updates = {self.job.progress: progress_bar(step, score_curve(scores, step.total))}
        if step.preview is not None and time.monotonic() - last_picture > PICTURE_SECONDS:
            last_picture = time.monotonic()
            updates[self.face] = images.to_array(step.preview)
        return updates, last_picture


def _presets(question: Question) -> list[Any]:
    """Return what a question means, and the values of the options that it decides."""
    settings = QUESTIONS[question]
    return [ABOUT_QUESTIONS[question], settings.lengths, settings.composite, settings.kappa]


def score_curve(scores: Sequence[float], total: int) -> str:
    if not scores:
        return ""
    return render(
        "curves",
        name=f"Curve of p_fake: it began at {scores[0]:.2f} and is at {scores[-1]:.2f} {SCALE}",
        curves={"scores": [[(number / max(1, total - 1), score) for number, score in enumerate(scores)]]},
        texts=["Curve: the detector's score, step by step. The dashed line at 0.5 is where its verdict turns."],
    )
