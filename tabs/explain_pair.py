"""Real-fake pairs: explain the real photo, and attack the fake where its maps point (Gowrisankar and Thing 2023)."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import Dependency

from backend import faces, images, provenance
from backend.detectors import registry
from backend.errors import UserError
from backend.explain import pictures
from backend.explain.comparing import Finished
from backend.explain.comparing_pairs import PairComparisonSettings, compare_pair
from backend.explain.explanation import Explanation
from backend.explain.pairs import PairSettings
from backend.explain.photo import cut_face
from backend.explain.proof import proof_settings
from backend.progress import Running, Step
from tabs import explain_figures as figures
from tabs import explain_tests as tests
from tabs import explain_words as words
from tabs.common import QUICK, at_the_end, in_turn, photo_from, photo_input
from tabs.explain_result import enlarged, maps_grid
from tabs.photo import PhotoStep
from tabs.words import progress

Updates = dict[Any, Any]
ABOUT = (
    "A fake often has a real twin: the photo it was made from. A good map of the *real* photo names the places that "
    "make the detector say “real”; attacking the *fake* at the same places should then turn its verdict. The photo in "
    "step 1 is the fake; put the real one here. Both must show the same face in nearly the same pose. Every method is "
    "tried, with its usual fill and few samples, and the fake is attacked with the detector's gradients (PGD)."
)
STOPPED = "Stopped. The maps so far are below."
DRAWS = 1  # random rankings a method; the table shows their mean over all methods


class PairStep:
    """Layout and handlers of the pair."""

    def __init__(self) -> None:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(min_width=240):
                self.photo = photo_input("The real photo")
            with gr.Column(min_width=240):
                self.start = gr.Button("Test all methods on the pair")
                self.stop = gr.Button("Stop", interactive=False)
                self.progress = gr.HTML()
        self.answer = gr.HTML()
        self.scales = gr.HTML(visible=False)
        self.maps = maps_grid("Maps of the real photo")

    def wire(self, choice: PhotoStep, detector: Any, seed: Any) -> Dependency:
        """Wire the buttons and return the long event."""
        private: dict[str, Any] = {"api_visibility": "private"}
        asked = [self.photo, choice.photo, choice.which, detector, seed]
        run = in_turn(
            self.start, self._test, asked, self.outputs(), starts=[self.start], note=self.progress, stop=self.stop
        )
        at_the_end(run, self._idle, [self.start, self.stop])
        self.stop.click(self._stopped, None, [self.start, self.stop, self.progress], cancels=[run], **QUICK, **private)
        # What was found belongs to the photo that stands beside it.
        gr.on([self.photo.upload, self.photo.clear], self.hide, None, self.outputs(), cancels=[run], **QUICK, **private)
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
        return {**self._idle(), self.progress: f"<p>{STOPPED}</p>"}

    def _test(
        self, path: str | None, fake_path: str | None, number: int | None, detector: str, seed: float | None
    ) -> Iterator[Updates]:
        """Explain the real photo with every method, and show how far the fake's score falls for each."""
        if path is None:
            raise UserError("There is no real photo yet.", "Choose it beside the button.")
        photos = photo_from(path), photo_from(fake_path)
        found = faces.find(photos[0])
        if not found or faces.problem(found[0], photos[0].shape):
            raise UserError("The real photo has no usable face.", "Use one that shows a face from the front.")
        yield {
            **self.hide(),
            self.start: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.progress: progress(Step(0, 1, "Both faces are cut out.")),
        }
        loaded = registry.load(detector)
        real, fake = (
            cut_face(photo, loaded.card, which)[0].crop for photo, which in zip(photos, (None, number), strict=True)
        )
        proof = proof_settings(int(seed or 0), shortcut=True, draws=DRAWS)
        settings = PairComparisonSettings(seed=int(seed or 0), pair=PairSettings(proof=proof))
        shown: list[tuple[Any, str]] = []
        with Running(compare_pair(images.to_tensor(real), images.to_tensor(fake), loaded, settings)) as running:
            for step in running:
                updates: Updates = {self.progress: progress(step)}
                if isinstance(step, Finished) and step.explanation is not None:
                    made: Explanation = step.explanation
                    caption = words.grid_caption(tests.tested(step, made), made.method.title)
                    shown.append((provenance.marked(pictures.overlay(enlarged(real), made), made.record()), caption))
                    updates |= {
                        self.maps: gr.Gallery(shown, visible=True),
                        self.scales: gr.HTML(figures.grid_scales("real"), visible=True),
                    }
                yield updates
        yield {**self._idle(), self.progress: "", self.answer: words.pair_table(running.result)}
