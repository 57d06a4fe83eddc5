"""The tab that asks where a detector looked and whether its map can be believed, for one photo or a real-fake pair.

The pair: explain the real photo, and attack the fake where its maps point (Gowrisankar and Thing 2023).
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
from backend.explain.explanation import ExplainSettings, Explanation, MapFinished, compare_methods
from backend.explain.pairs import PairComparisonSettings, PairSettings, compare_pair
from backend.explain.photo import expected_comparison_seconds, expected_seconds, explain_photo
from backend.explain.sufficiency import sufficiency_settings
from backend.faces import FACE_PARTS
from backend.progress import Running, Step
from tabs import explain_result as words
from tabs import models
from tabs.components import Updates, enlarge_face, maps_grid, photo_input, progress_bar
from tabs.events import QUICK, after_job, run_in_turn, with_shown_errors
from tabs.explain_result import ExplainResult
from tabs.photo import ChosenPhoto, PhotoStep, chosen_face, open_photo
from tabs.visitors import session_folder

ABOUT_PAIR = (
    "A fake often has a real twin: the photo it was made from. A good map of the *real* photo names the places that "
    "make the detector say “real”; attacking the *fake* at the same places should then turn its verdict. The photo in "
    "step 1 is the fake; put the real one here. Both must show the same face in nearly the same pose. Every method is "
    "tried, with its usual fill and few samples, and the fake is attacked with the detector's gradients (PGD)."
)

PAIR_STOPPED = "Stopped. The maps so far are below."

PAIR_DRAWS = 1  # random rankings a method; the table shows their mean over all methods


class PairStep:
    """Layout and handlers of the pair."""

    def __init__(self) -> None:
        gr.Markdown(ABOUT_PAIR)
        with gr.Row():
            with gr.Column(min_width=240):
                self.photo = photo_input("The real photo")
            with gr.Column(min_width=240):
                self.start = gr.Button("Test all methods on the pair")
                self.stop = gr.Button("Stop", interactive=False)
                self.progress = gr.HTML()
        self.answer = gr.HTML()
        self.scales = gr.HTML(visible=False)
        self.maps = maps_grid("Maps of the real photo", show_label=False, visible=False)

    def wire(self, choice: PhotoStep, detector: Any, seed: Any) -> Dependency:
        """Wire the buttons and return the long event."""
        inputs = [self.photo, choice.chosen, choice.faces, choice.which, detector, seed]
        run = run_in_turn(
            self.start, self._test, inputs, self.outputs(), starts=[self.start], note=self.progress, stop=self.stop
        )
        after_job(run, self._idle, [self.start, self.stop])
        self.stop.click(self._stopped, None, [self.start, self.stop, self.progress], cancels=[run], **QUICK)
        # What was found belongs to the photo that stands beside it.
        gr.on([self.photo.upload, self.photo.clear], self.hide, None, self.outputs(), cancels=[run], **QUICK)
        return run

    def outputs(self) -> list[Any]:
        """Return what `hide` may update."""
        return [self.start, self.stop, self.progress, self.answer, self.scales, self.maps]

    def hide(self) -> Updates:
        """Return the updates that take an earlier result away."""
        return {
            **self._idle(),
            self.progress: "",
            self.answer: "",
            self.scales: gr.HTML(visible=False),
            self.maps: gr.Gallery(None, visible=False),
        }

    def _idle(self) -> Updates:
        return {self.start: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def _stopped(self) -> Updates:
        return {**self._idle(), self.progress: f"<p>{PAIR_STOPPED}</p>"}

    def _test(
        self,
        real_path: str | None,
        chosen: ChosenPhoto,
        faces: list[JudgedFace],
        number: int | None,
        detector: str,
        seed: float | None,
    ) -> Iterator[Updates]:
        """Explain the real photo with every method, and show how far the fake's score falls for each."""
        if real_path is None:
            raise UserError("There is no real photo yet.", "Choose it beside the button.")
        real_faces = open_photo(real_path).faces
        if not real_faces or real_faces[0].facts.problem:
            raise UserError("The real photo has no usable face.", "Use one that shows a face from the front.")
        located = real_faces[0], chosen_face(chosen, faces, number)
        yield {
            **self.hide(),
            self.start: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.progress: progress_bar(Step(0, 1, "Both faces are cut out.")),
        }
        loaded = registry.load(detector)
        real, fake = (face.aligned(loaded.card.template, loaded.card.input_size).crop for face in located)
        proof = sufficiency_settings(int(seed or 0), shortcut=True, draws=PAIR_DRAWS)
        settings = PairComparisonSettings(seed=int(seed or 0), pair=PairSettings(sufficiency=proof))
        shown: list[tuple[Any, str]] = []
        with Running(compare_pair(images.to_tensor(real), images.to_tensor(fake), loaded, settings)) as running:
            for step in running:
                updates: Updates = {self.progress: progress_bar(step)}
                if isinstance(step, MapFinished) and step.explanation is not None:
                    made: Explanation = step.explanation
                    caption = words.grid_caption(words.to_tested_map(step, made), made.explainer.title)
                    shown.append(
                        (provenance.marked_image(photo.overlay_map(enlarge_face(real), made), made.record()), caption)
                    )
                    updates |= {
                        self.maps: gr.Gallery(shown, visible=True),
                        self.scales: gr.HTML(words.grid_scales_html("real"), visible=True),
                    }
                yield updates
        yield {**self._idle(), self.progress: "", self.answer: words.pair_table(running.result)}


HEADLINE = (
    "**Where did the detector look, and why should you believe the map?** "
    "A map (a *saliency map*) marks the places that made a detector say “fake”. Different methods draw different maps, "
    "so each can be put to the test: only its strongest places are attacked, and the verdict should fall."
)

WAITING = "*First choose a photo with a face, in step 1 above.*"

STOPPED = "**Stopped.** Choose a method and start again whenever you like."

REFERENCES = [
    ("The face as an attack made the detector call it real (adversarial)", "adversarial"),
    ("The method's usual fill (original)", "original"),
]

PRESETS = [("Quick", "quick"), ("Full: as many samples as in the paper", "full"), ("As released", "as_released")]

VERDICTS = [("Fake", "fake"), ("Real", "real")]

NO_GUESS = "I do not guess"


class ExplainTab:
    """Layout and wiring of the tab."""

    def __init__(self, photo: PhotoStep) -> None:
        self.choice = photo
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
            titles = [(one.title, name) for name, one in EXPLAINERS.items()]
            self.method = gr.Dropdown(titles, value="lime", label="Which method?", filterable=False, min_width=200)
        self.about = gr.Markdown(elem_classes="note")
        self.offered = gr.State(0.0)  # when; what its change sets off does not keep the page waiting
        self.guess = gr.Radio(
            [(NO_GUESS, ""), *((part.capitalize(), part) for part in FACE_PARTS)],
            value="",
            label="Guess first: which part of the face matters most to the detector?",
        )
        with gr.Row():
            self.show = gr.Button("Show where it looked", variant="primary", scale=2, min_width=200)
            self.compare = gr.Button("Compare all methods", scale=1, min_width=160)
            self.stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
        with gr.Accordion("More options", open=False):
            self._lay_out_options()
        self.note = gr.Markdown(elem_classes=["note", "status"])
        self.progress = gr.HTML()

    def _lay_out_options(self) -> None:
        self.towards = gr.Radio(
            VERDICTS,
            value="fake",
            label="Which verdict to explain",
            info=f"{words.method_titles(hiding=False)} explain either. {words.method_titles(hiding=True)} explain only "
            "the verdict that a detector gave, and “real” with their usual fill.",
        )
        self.reference = gr.Radio(
            REFERENCES,
            value="adversarial",
            label="What a hidden part shows (reference)",
            info=f"{words.method_titles(hiding=True)} hide parts of the face. What they put there decides what they "
            "can see.",
        )
        self.preset = gr.Radio(PRESETS, value="quick", label="How many samples", info=words.QUICK_AND_FULL)
        self.proof = gr.Checkbox(
            value=True,
            label="Put the map to the test",
            info="Attacks only the 1, 2 and 3 strongest segments, and as much elsewhere, and compares the verdicts; "
            "and removes and inserts the map's pixels in order.",
        )
        self.shortcut = gr.Checkbox(
            value=True,
            label="Attack with the detector's gradients (PGD), which is faster",
            info="Without it, attacks see only the score (NES), as in the paper. The result says which was used.",
        )
        self.seed = gr.Number(0, precision=0, label="Seed", info="Recorded with the result.")

    def _wire(self) -> None:
        face = [self.choice.chosen, self.choice.faces, self.choice.which]
        options = [self.reference, self.preset, self.shortcut, self.seed, self.towards]
        asked = [*face, self.detector, self.method, *options, self.proof, self.guess]
        outputs = self._job_outputs()
        shared: dict[str, Any] = {"starts": [self.show, self.compare], "note": self.note, "stop": self.stop}
        run = run_in_turn(self.show, self._explain, asked, outputs, **shared)
        every = run_in_turn(self.compare, self._compare, [*face, self.detector, *options], outputs, **shared)
        pair = self.pair.wire(self.choice, self.detector, self.seed)
        self.running = [run, every, pair]
        for job in (run, every):
            after_job(job, self._idle, [self.show, self.compare, self.stop])
        self.stop.click(
            self._stopped,
            None,
            [self.show, self.compare, self.stop, self.note],
            cancels=[run, every],
            **QUICK,
        )
        told: list[Any] = [self.detector, self.method, self.reference, self.preset, self.shortcut, self.proof]
        for changed in (self.offered, *told):
            changed.change(with_shown_errors(self._about), told, self.about, **QUICK)
        self.result.wire()

    def _job_outputs(self) -> list[Any]:
        return [self.show, self.compare, self.stop, self.note, self.progress, *self.result.outputs()]

    def outputs(self) -> list[Any]:
        """Return what the methods below may update."""
        return [
            self.waiting,
            self.ask,
            self.offered,
            self.pairing,
            self.detector,
            *self._job_outputs(),
            *self.pair.outputs(),
        ]

    def offer(self, face: JudgedFace | None) -> Updates:
        """Return the updates for another face, or for none."""
        updates = {
            self.waiting: gr.Markdown(visible=face is None),
            self.ask: gr.Column(visible=face is not None),
            self.pairing: gr.Accordion(visible=face is not None),
            **self._idle(),
            self.note: "",
            self.progress: "",
            **self.result.hide(),
            **self.pair.hide(),
        }
        if face is not None:
            updates[self.detector] = gr.Dropdown(models.detector_choices(), value=suggest_detector(face.p_fake))
            updates[self.offered] = time.monotonic()
        return updates

    def show_example(self, example: Example, request: gr.Request) -> Updates:
        """Return no update: explanations of examples are made when they are asked for, in seconds."""
        del example, request
        return {}

    def _idle(self) -> Updates:
        return {
            self.show: gr.Button(interactive=True),
            self.compare: gr.Button(interactive=True),
            self.stop: gr.Button(interactive=False),
        }

    def _busy(self) -> Updates:
        return {
            self.show: gr.Button(interactive=False),
            self.compare: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.note: "",
            self.progress: progress_bar(Step(0, 1, "Cutting out the face.")),
            **self.result.hide(),
        }

    def _stopped(self) -> Updates:
        return {**self._idle(), self.note: STOPPED}

    def _about(self, detector: str, method: str, reference: Any, preset: Any, shortcut: Any, proof: Any) -> str:
        """Say what the chosen method does and about how long it takes."""
        settings = ExplainSettings(method=method, reference=reference, preset=preset, shortcut=shortcut)
        test = sufficiency_settings(0, shortcut=shortcut) if proof else None
        try:
            one = expected_seconds(detector, settings, test)
            every = expected_comparison_seconds(detector, settings, words.quick_test_settings(0))
        except (RuntimeError, AssertionError):  # where a GPU is lent only for seconds, it is not here now
            return words.method_in_words(method, None, None)
        return words.method_in_words(method, one, every)

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
        proof: Any,
        guess: str,
        request: gr.Request,
    ) -> Iterator[Updates]:
        """Draw one map and put it to the test."""
        located = chosen_face(chosen, faces, number)
        settings = ExplainSettings(
            method=method,
            reference=reference if towards == "fake" else "original",
            preset=preset,
            seed=int(seed or 0),
            towards=towards,
            shortcut=shortcut,
        )
        yield self._busy()
        test = sufficiency_settings(int(seed or 0), shortcut=shortcut) if proof else None
        with Running(explain_photo(located, detector, settings, test)) as running:
            for step in running:
                yield {self.progress: progress_bar(step)}
        yield {**self._idle(), self.progress: "", **self.result.show(running.result, guess, session_folder(request))}

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
        yield self._busy()
        loaded = registry.load(detector)
        crop = located.aligned(loaded.card.template, loaded.card.input_size).crop
        with Running(words.compare_with_tests(compare_methods, images.to_tensor(crop), loaded, settings)) as running:
            done: list[words.MapWithTest] = []
            for step in running:
                updates: Updates = {self.progress: progress_bar(step)}
                if isinstance(step, MapFinished) and step.explanation is not None:
                    done.append(words.to_tested_map(step, step.explanation))
                    updates |= self.result.show_grid(crop, done)
                yield updates
        folder = session_folder(request)
        yield {**self._idle(), self.progress: "", **self.result.finish_grid(crop, running.result, done, folder)}
