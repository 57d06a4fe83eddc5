"""The tab that shows where a detector looked and whether the map can be believed, for one photo or a real-fake pair.

For a pair, the real photo is explained, and the fake is attacked where the maps point (Gowrisankar and Thing 2023).
"""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import Dependency

from backend import images, provenance
from backend.detectors import registry
from backend.detectors.predict import JudgedFace, suggest_detector
from backend.errors import UserError
from backend.examples import Example
from backend.explain import photo
from backend.explain.base import EXPLAINERS
from backend.explain.explanation import ExplainSettings, Explanation, MapFinished
from backend.explain.pairs import PairComparisonSettings, PairSettings, compare_pair
from backend.explain.photo import expected_comparison_seconds, expected_seconds, explain_photo
from backend.explain.sufficiency import TestedMap, compare_with_tests, quick_test_settings, sufficiency_settings
from backend.faces import FACE_PARTS
from backend.progress import Running
from tabs import explain_result as words
from tabs import models
from tabs.components import JobControls, Jobs, Updates, enlarge_face, maps_grid, photo_input, progress_bar
from tabs.events import QUICK, with_shown_errors
from tabs.explain_result import ExplainResult
from tabs.photo import ChosenPhoto, PhotoStep, chosen_face, open_photo
from tabs.visitors import session_folder

ABOUT_PAIR = (
    "A fake often has a real twin: the photo it was made from. A good map of the *real* photo names the places that "
    "keep the detector from calling it fake; attacking the *fake* at the same places should then turn its verdict. "
    "The photo in step 1 is the fake; put the real one here. Both must show the same face in nearly the same pose. "
    "Every method is tried, with its usual fill and few samples, and the fake is attacked with the detector's "
    "gradients (PGD)."
)
PAIR_STOPPED = "<p>Stopped. The maps so far are below.</p>"
PAIR_DRAWS = 1  # random rankings for each method; the table shows their mean over all methods


class PairStep:
    def __init__(self) -> None:
        gr.Markdown(ABOUT_PAIR)
        with gr.Row():
            with gr.Column(min_width=240):
                self.photo = photo_input("The real photo")
            with gr.Column(min_width=240):
                self.start = gr.Button("Test all methods on the pair")
                stop = gr.Button("Stop", interactive=False)
                progress = gr.HTML()
                self.job = JobControls([self.start], progress, progress, stop, stopped=PAIR_STOPPED)
        self.answer = gr.HTML()
        self.scales = gr.HTML(visible=False)
        self.maps = maps_grid("Maps of the real photo", show_label=False, visible=False)

    def wire(self, step: PhotoStep, detector: Any, seed: Any) -> list[Dependency]:
        """Wire the buttons and return the long events."""
        inputs = [self.photo, step.chosen, step.faces, step.which, detector, seed]
        running: list[Any] = self.job.wire({self.start: (self._test, inputs)}, self.outputs(), minutes=[self.start])
        # Another real photo takes the earlier one's result away.
        gr.on([self.photo.upload, self.photo.clear], self.hide, None, self.outputs(), cancels=running, **QUICK)
        return running

    def outputs(self) -> list[Any]:
        return [*self.job.outputs(), self.answer, self.scales, self.maps]

    def hide(self) -> Updates:
        return {
            **self.job.clear(),
            self.answer: "",
            self.scales: gr.HTML(visible=False),
            self.maps: gr.Gallery(None, visible=False),
        }

    def _test(
        self,
        real_path: str | None,
        chosen: ChosenPhoto,
        faces: list[JudgedFace],
        number: int | None,
        detector: str,
        seed: float | None,
    ) -> Iterator[Updates]:
        """Explain the real photo with every method, and show how far the fake's p_fake falls for each."""
        if real_path is None:
            raise UserError("There is no real photo yet.", "Choose it beside the button.")
        real_faces = open_photo(real_path).faces
        if not real_faces or real_faces[0].facts.problem:
            raise UserError("The real photo has no usable face.", "Use one that shows a face from the front.")
        located = real_faces[0], chosen_face(chosen, faces, number)
        yield {**self.hide(), **self.job.busy("Cutting out both faces.")}
        loaded = registry.load(detector)
        real, fake = (face.aligned(loaded.card.template, loaded.card.input_size).crop for face in located)
        test = sufficiency_settings(int(seed or 0), shortcut=True, draws=PAIR_DRAWS)
        settings = PairComparisonSettings(seed=int(seed or 0), pair=PairSettings(sufficiency=test))
        shown: list[tuple[Any, str]] = []
        with Running(compare_pair(images.to_tensor(real), images.to_tensor(fake), loaded, settings)) as running:
            for step in running:
                updates: Updates = {self.job.progress: progress_bar(step)}
                if isinstance(step, MapFinished) and step.explanation is not None:
                    explanation: Explanation = step.explanation
                    caption = words.grid_caption(TestedMap.from_step(step, explanation), explanation.explainer.title)
                    overlay = photo.overlay_map(enlarge_face(real), explanation)
                    shown.append((provenance.marked_image(overlay, explanation.record()), caption))
                    updates |= {
                        self.maps: gr.Gallery(shown, visible=True),
                        self.scales: gr.HTML(words.grid_scales_html("real"), visible=True),
                    }
                yield updates
        yield {**self.job.clear(), self.answer: words.pair_table(running.result)}


HEADLINE = (
    "**Where did the detector look, and why should you believe the map?** "
    "A map (a *saliency map*) marks the places that made a detector say “fake”. Different methods draw different maps, "
    "so each can be put to the test: only its strongest places are attacked, and the verdict should fall."
)
WAITING = "*First choose a photo with a face, in step 1 above.*"
STOPPED = "**Stopped.** Choose a method and start again whenever you like."
REFERENCES = [
    ("The face after an attack on the detector (adversarial)", "adversarial"),
    ("The method's usual fill (original)", "original"),
]
PRESETS = [("Quick", "quick"), ("Full: as many samples as in the paper", "full"), ("As released", "as_released")]
VERDICTS = [("Signs of forgery", "fake"), ("No signs", "real")]
NO_GUESS = "I do not guess"


class ExplainTab:
    def __init__(self, photo: PhotoStep) -> None:
        self.photo_step = photo
        gr.Markdown(HEADLINE)
        self.waiting = gr.Markdown(WAITING)
        with gr.Column(visible=False) as self.ask:
            self._lay_out_question()
        self.result = ExplainResult()
        with gr.Accordion("You also have the real photo of this fake?", open=False, visible=False) as self.pairing:
            self.pair = PairStep()
        self._wire()

    def _lay_out_question(self) -> None:
        gr.Markdown("## 3 Ask where it looked")
        with gr.Row():
            self.detector = models.detector_chooser(min_width=200)
            titles = [(explainer.title, name) for name, explainer in EXPLAINERS.items()]
            self.method = gr.Dropdown(titles, value="lime", label="Which method?", filterable=False, min_width=200)
        self.about = gr.Markdown(elem_classes="note")
        # The time of the last change, whose event updates `about` later, so that a new face is not delayed.
        self.face_changed = gr.State(0.0)
        self.guess = gr.Radio(
            [(NO_GUESS, ""), *((part.capitalize(), part) for part in FACE_PARTS)],
            value="",
            label="Guess first: which part of the face matters most to the detector?",
        )
        with gr.Row():
            self.show_button = gr.Button("Show where it looked", variant="primary", scale=2, min_width=200)
            self.compare_button = gr.Button("Compare all methods", scale=1, min_width=160)
            stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
        with gr.Accordion("More options", open=False):
            self._lay_out_options()
        note = gr.Markdown(elem_classes=["note", "status"])
        self.job = JobControls([self.show_button, self.compare_button], note, gr.HTML(), stop, stopped=STOPPED)

    def _lay_out_options(self) -> None:
        self.towards = gr.Radio(
            VERDICTS,
            value="fake",
            label="Which verdict to explain",
            info=f"{words.method_titles(hiding=False)} explain either. {words.method_titles(hiding=True)} explain only "
            "the verdict that a detector gave, and “no signs” with their usual fill.",
        )
        self.reference = gr.Radio(
            REFERENCES,
            value="adversarial",
            label="What a hidden part shows (reference)",
            info=f"{words.method_titles(hiding=True)} hide parts of the face. What they put there decides what they "
            "can see.",
        )
        self.preset = gr.Radio(PRESETS, value="quick", label="How many samples", info=words.QUICK_AND_FULL)
        self.sufficiency = gr.Checkbox(
            value=True,
            label="Put the map to the test",
            info="Attacks only the 1, 2 and 3 strongest segments, and random places of the same size, and compares "
            "the scores; also removes and inserts pixels in the map's order.",
        )
        self.use_gradients = gr.Checkbox(
            value=True,
            label="Attack with the detector's gradients (PGD), which is faster",
            info="Without it, attacks see only the score (NES), as in the paper. The result says which was used.",
        )
        self.seed = gr.Number(0, precision=0, label="Seed", info="Recorded with the result.")

    def _wire(self) -> None:
        face = [self.photo_step.chosen, self.photo_step.faces, self.photo_step.which]
        options = [self.reference, self.preset, self.use_gradients, self.seed, self.towards]
        inputs = [*face, self.detector, self.method, *options, self.sufficiency, self.guess]
        jobs: Jobs = {
            self.show_button: (self._explain, inputs),
            self.compare_button: (self._compare, [*face, self.detector, *options]),
        }
        self.running = [
            *self.job.wire(jobs, self._job_outputs(), minutes=[self.compare_button]),
            *self.pair.wire(self.photo_step, self.detector, self.seed),
        ]
        choices: list[Any] = [self.detector, self.method, self.reference, self.preset, self.use_gradients]
        for component in (self.face_changed, *choices, self.sufficiency):
            component.change(with_shown_errors(self._about), [*choices, self.sufficiency], self.about, **QUICK)
        self.result.wire()

    def _job_outputs(self) -> list[Any]:
        return [*self.job.outputs(), *self.result.outputs()]

    def outputs(self) -> list[Any]:
        shown = [self.waiting, self.ask, self.face_changed, self.pairing, self.detector]
        return [*shown, *self._job_outputs(), *self.pair.outputs()]

    def show_for_face(self, face: JudgedFace | None) -> Updates:
        updates = {
            self.waiting: gr.Markdown(visible=face is None),
            self.ask: gr.Column(visible=face is not None),
            self.pairing: gr.Accordion(visible=face is not None),
            **self.job.clear(),
            **self.result.hide(),
            **self.pair.hide(),
        }
        if face is not None:
            updates[self.detector] = gr.Dropdown(models.detector_choices(), value=suggest_detector(face.p_fake))
            updates[self.face_changed] = time.monotonic()
        return updates

    def show_example(self, example: Example, request: gr.Request) -> Updates:
        """Return no update: no explanations of examples are stored, as each takes only seconds."""
        del example, request
        return {}

    def _about(self, detector: str, method: str, reference: Any, preset: Any, shortcut: Any, tested: Any) -> str:
        settings = ExplainSettings(method=method, reference=reference, preset=preset, shortcut=shortcut)
        test = sufficiency_settings(0, shortcut=shortcut) if tested else None
        try:
            seconds = expected_seconds(detector, settings, test)
            all_seconds = expected_comparison_seconds(detector, settings, quick_test_settings(0))
        except (RuntimeError, AssertionError):  # where a GPU is lent only for seconds, there is none now
            return words.method_in_words(method, None, None)
        return words.method_in_words(method, seconds, all_seconds)

    def _explain(
        self,
        chosen: ChosenPhoto,
        faces: list[JudgedFace],
        number: int | None,
        detector: str,
        method: str,
        reference: Any,
        preset: Any,
        shortcut: Any,
        seed: float | None,
        towards: Any,
        tested: Any,
        guess: str,
        request: gr.Request,
    ) -> Iterator[Updates]:
        located = chosen_face(chosen, faces, number)
        settings = ExplainSettings(
            method=method,
            reference=reference if towards == "fake" else "original",
            preset=preset,
            seed=int(seed or 0),
            towards=towards,
            shortcut=shortcut,
        )
        yield {**self.job.busy("Cutting out the face."), **self.result.hide()}
        test = sufficiency_settings(int(seed or 0), shortcut=shortcut) if tested else None
        explained = yield from self.job.watch(explain_photo(located, detector, settings, test))
        yield {**self.job.clear(), **self.result.show(explained, guess, session_folder(request))}

    def _compare(
        self,
        chosen: ChosenPhoto,
        faces: list[JudgedFace],
        number: int | None,
        detector: str,
        reference: Any,
        preset: Any,
        shortcut: Any,
        seed: float | None,
        towards: Any,
        request: gr.Request,
    ) -> Iterator[Updates]:
        """Draw the maps of all methods, each as soon as it is finished, and put each to the test."""
        settings = ExplainSettings(
            reference=reference, preset=preset, seed=int(seed or 0), towards=towards, shortcut=shortcut
        )
        located = chosen_face(chosen, faces, number)
        yield {**self.job.busy("Cutting out the face."), **self.result.hide()}
        loaded = registry.load(detector)
        crop = located.aligned(loaded.card.template, loaded.card.input_size).crop
        done: list[TestedMap] = []
        with Running(compare_with_tests(images.to_tensor(crop), loaded, settings)) as running:
            for step in running:
                updates: Updates = {self.job.progress: progress_bar(step)}
                if isinstance(step, MapFinished) and step.explanation is not None:
                    done.append(TestedMap.from_step(step, step.explanation))
                    updates |= self.result.show_grid(crop, done)
                yield updates
        folder = session_folder(request)
        yield {**self.job.clear(), **self.result.finish_grid(crop, running.result, done, folder)}
