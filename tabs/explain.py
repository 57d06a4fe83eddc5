"""The tab that asks where a detector looked, and whether its map can be believed."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from backend import images
from backend.detectors import registry
from backend.detectors.choice import suggested
from backend.examples import Example
from backend.explain import ExplainSettings
from backend.explain.comparing import Finished, compare_all
from backend.explain.expected import expected_comparison_seconds, expected_seconds
from backend.explain.methods import METHODS
from backend.explain.photo import cut_face, explain_photo
from backend.explain.proof import proof_settings
from backend.progress import Running, Step
from backend.regions import PARTS
from backend.verdicts import JudgedFace
from tabs import choosers
from tabs import explain_tests as tests
from tabs import explain_words as words
from tabs.common import QUICK, answered, at_the_end, in_turn, photo_from, session_folder
from tabs.explain_pair import PairStep
from tabs.explain_result import ExplainResult
from tabs.photo import PhotoStep
from tabs.words import progress

Updates = dict[Any, Any]
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
            self.detector = choosers.detector(min_width=200)
            titles = [(one.title, name) for name, one in METHODS.items()]
            self.method = gr.Dropdown(titles, value="lime", label="Which method?", filterable=False, min_width=200)
        self.about = gr.Markdown(elem_classes="note")
        self.offered = gr.State(0.0)  # when; what its change sets off does not keep the page waiting
        self.guess = gr.Radio(
            [(NO_GUESS, ""), *((part.capitalize(), part) for part in PARTS)],
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
            info=f"Grad-CAM, Grad-CAM++ and XRAI explain either. {words.USUAL}",
        )
        self.reference = gr.Radio(
            REFERENCES,
            value="adversarial",
            label="What a hidden part shows (reference)",
            info="LIME, SHAP, SOBOL and RISE hide parts of the face. What they put there decides what they can see.",
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
        private: dict[str, Any] = {"api_visibility": "private"}
        face = [self.choice.photo, self.choice.which]
        options = [self.reference, self.preset, self.shortcut, self.seed, self.towards]
        asked = [*face, self.detector, self.method, *options, self.proof, self.guess]
        outputs = self._job_outputs()
        shared: dict[str, Any] = {"starts": [self.show, self.compare], "note": self.note, "stop": self.stop}
        run = in_turn(self.show, self._explain, asked, outputs, **shared)
        every = in_turn(self.compare, self._compare, [*face, self.detector, *options], outputs, **shared)
        pair = self.pair.wire(self.choice, self.detector, self.seed)
        self.running = [run, every, pair]
        for job in (run, every):
            at_the_end(job, self._idle, [self.show, self.compare, self.stop])
        self.stop.click(
            self._stopped,
            None,
            [self.show, self.compare, self.stop, self.note],
            cancels=[run, every],
            **QUICK,
            **private,
        )
        told: list[Any] = [self.detector, self.method, self.reference, self.preset, self.shortcut, self.proof]
        for changed in (self.offered, *told):
            changed.change(answered(self._about), told, self.about, **QUICK, **private)
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
            updates[self.detector] = gr.Dropdown(choosers.detectors(), value=suggested(face.p_fake))
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
            self.progress: progress(Step(0, 1, "The face is cut out.")),
            **self.result.hide(),
        }

    def _stopped(self) -> Updates:
        return {**self._idle(), self.note: STOPPED}

    def _about(self, detector: str, method: str, reference: Any, preset: Any, shortcut: Any, proof: Any) -> str:
        """Say what the chosen method does and about how long it takes."""
        settings = ExplainSettings(method=method, reference=reference, preset=preset, shortcut=shortcut)
        test = proof_settings(0, shortcut=shortcut) if proof else None
        try:
            one = expected_seconds(detector, settings, test)
            every = expected_comparison_seconds(detector, settings, tests.quick_test(0))
        except (RuntimeError, AssertionError):  # where a GPU is lent only for seconds, it is not here now
            return words.about(method, None, None)
        return words.about(method, one, every)

    def _explain(
        self,
        path: str | None,
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
        photo = photo_from(path)
        settings = ExplainSettings(
            method=method,
            reference=reference if towards == "fake" else "original",
            preset=preset,
            seed=int(seed or 0),
            towards=towards,
            shortcut=shortcut,
        )
        yield self._busy()
        test = proof_settings(int(seed or 0), shortcut=shortcut) if proof else None
        with Running(explain_photo(photo, detector, settings, number, test)) as running:
            for step in running:
                yield {self.progress: progress(step)}
        yield {**self._idle(), self.progress: "", **self.result.show(running.result, guess, session_folder(request))}

    def _compare(
        self,
        path: str | None,
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
        photo = photo_from(path)
        yield self._busy()
        loaded = registry.load(detector)
        crop = cut_face(photo, loaded.card, number)[0].crop
        with Running(tests.tested_maps(compare_all, images.to_tensor(crop), loaded, settings)) as running:
            done: list[tests.Tested] = []
            for step in running:
                updates: Updates = {self.progress: progress(step)}
                if isinstance(step, Finished) and step.explanation is not None:
                    done.append(tests.tested(step, step.explanation))
                    updates |= self.result.show_grid(crop, done)
                yield updates
        folder = session_folder(request)
        yield {**self._idle(), self.progress: "", **self.result.finish_grid(crop, running.result, done, folder)}
