"""Real-fake pairs: explain the real photo, and attack the fake where its map points (Gowrisankar and Thing 2023)."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.events import Dependency

from backend import images, provenance, verdicts
from backend.detectors import registry
from backend.errors import UserError
from backend.progress import Job, Step
from backend.verdicts import JudgedFace
from tabs import explain_words as words
from tabs.common import MODEL, answered, photo_from, photo_input
from tabs.photo import PhotoStep

Updates = dict[Any, Any]
ABOUT = (
    "A fake often has a real twin: the photo it was made from. A good map of the *real* photo names the places that "
    "make the detector say “real”; attacking the *fake* at the same places should then turn its verdict. The photo in "
    "step 1 is the fake; put the real one here. Both must show the same face in nearly the same pose."
)


class PairStep:
    """Layout and handlers of the pair."""

    def __init__(self) -> None:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(min_width=240):
                self.photo = photo_input("The real photo")
                self.start = gr.Button("Test the map of the real photo on the fake")
            with gr.Column(min_width=240):
                self.progress = gr.HTML()
                self.map = gr.Image(
                    label="Map of the real photo",
                    format="png",
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_classes="face",
                    visible=False,
                    alt_text="Where the detector looked in the real photo; the table below tests it",
                )
        self.answer = gr.HTML()

    def wire(self, choice: PhotoStep, detector: Any, method: Any, seed: Any) -> Dependency:
        """Wire the button and return its event."""
        asked = [self.photo, choice.faces, choice.which, detector, method, seed]
        return self.start.click(
            answered(self._test), asked, self._outputs(), show_progress="hidden", api_visibility="private", **MODEL
        )

    def _outputs(self) -> list[Any]:
        return [self.start, self.progress, self.map, self.answer]

    def outputs(self) -> list[Any]:
        """Return what `hide` may update."""
        return self._outputs()

    def hide(self) -> Updates:
        """Return the updates that take an earlier result away."""
        return {self.progress: "", self.map: gr.Image(None, visible=False), self.answer: ""}

    def _test(
        self,
        path: str | None,
        faces: list[JudgedFace],
        number: int | None,
        detector: str,
        method: str,
        seed: float | None,
    ) -> Iterator[Updates]:
        from backend.explain import ExplainSettings, pictures
        from backend.explain.explaining import explain
        from backend.explain.pairs import PairSettings, prove_pair

        if not faces:
            raise UserError("There is no fake yet.", "Choose it in step 1.")
        fake = images.to_tensor(faces[(number or 1) - 1].aligned.crop)
        judged = verdicts.judge(photo_from(path), [detector])
        if not judged or judged[0].problem:
            raise UserError(
                "The real photo has no usable face.",
                "Use one in which the face is upright, well lit and from the front.",
            )
        crop = judged[0].aligned.crop
        real, loaded = images.to_tensor(crop), registry.load(detector)
        settings = ExplainSettings(method=method, reference="original", towards="real", seed=int(seed or 0))
        yield {**self.hide(), self.start: gr.Button(interactive=False)}
        made = yield from self._watched(explain(real, loaded, settings))
        if made.degenerate:
            yield {
                self.start: gr.Button(interactive=True),
                self.progress: "",
                self.answer: f"<p>{made.reason}</p>",
            }
            return
        proof = words.proof_settings(int(seed or 0), shortcut=True)
        pair = replace(PairSettings(), proof=proof)
        found = yield from self._watched(prove_pair(real, fake, loaded, made.saliency, pair))
        yield {
            self.start: gr.Button(interactive=True),
            self.progress: "",
            self.map: gr.Image(provenance.mark(pictures.overlay(crop, made)), visible=True),
            self.answer: f"<p>{found.summary}</p>{words.proof_table(found.proof)}",
        }

    def _watched(self, job: Job[Any]) -> Generator[Updates, None, Any]:
        with closing(job):
            while True:
                try:
                    step: Step = next(job)
                except StopIteration as end:
                    return end.value
                yield {self.progress: words.progress(step)}
