"""The tab that removes the traces of forgery from a fake, and shows what is left of every detector's verdict."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from backend import images
from backend.examples import Example
from backend.progress import Job, Running, Step
from backend.trace_removal.trnet import STRONGEST, WEAKEST
from backend.verdicts import JudgedFace
from backend.views import Source
from tabs.common import at_the_end, in_turn, photo_from, session_folder
from tabs.limits import Limit
from tabs.photo import PhotoStep
from tabs.trace_result import TraceResult
from tabs.words import progress

Updates = dict[Any, Any]
HEADLINE = (
    "**How much of a verdict hangs on traces that nobody sees?** Every way of making a fake leaves traces in the "
    "pixels, in the spectrum and in the noise. A network (TR-Net) was trained to remove all three and has never seen "
    "the detectors below. If they change their minds although it is still the same face, they looked at the traces."
)
WAITING = "*First choose a photo with a face, in step 1 above. A fake is the interesting case.*"
RULES = (
    "One face at a time, and every picture that leaves this page is marked. This shows how far detectors can be "
    "trusted; it is not a tool for hiding forgeries."
)
LIMIT = Limit(30, 3600, "Removing traces")


class TraceRemovalTab:
    """Layout and wiring of the tab."""

    def __init__(self, photo: PhotoStep) -> None:
        self.choice = photo
        gr.Markdown(HEADLINE)
        self.waiting = gr.Markdown(WAITING)
        with gr.Column(visible=False) as self.ask:
            gr.Markdown("## 3 Remove the traces")
            self.remove = gr.Button("Remove the traces of this face", variant="primary")
            gr.Markdown(RULES, elem_classes="note")
            with gr.Accordion("More options", open=False):
                self.strength = gr.Slider(
                    WEAKEST,
                    STRONGEST,
                    1,
                    step=0.25,
                    label="Strength of TR-Net",
                    info="How large its change is made, for both buttons. It was trained for 1; more can be seen. "
                    "Evaluate says what each strength leaves of the verdicts.",
                )
                gr.Markdown(
                    "Other attacks on the same face, side by side: noise, three that need a detector's gradients "
                    "(FGSM, MIFGSM and PGD on Xception), GANprintR, and TR-Net."
                )
                self.compare = gr.Button("Compare all attacks")
            self.note = gr.Markdown(elem_classes=["note", "status"])
            self.progress = gr.HTML()
        self.result = TraceResult()
        self._wire()

    def _wire(self) -> None:
        asked = [self.choice.photo, self.choice.which, self.strength]
        shared: dict[str, Any] = {"starts": [self.remove, self.compare], "note": self.note, "progress": self.progress}
        run = in_turn(self.remove, self._remove, asked, self._job_outputs(), **shared)
        faces = [self.choice.photo, self.choice.faces, self.choice.which, self.strength]
        others = in_turn(self.compare, self._compare, faces, self._job_outputs(), **shared)
        self.running = [run, others]
        for job in self.running:
            at_the_end(job, self._idle, [self.remove, self.compare])
        self.result.wire()

    def _job_outputs(self) -> list[Any]:
        return [self.remove, self.compare, self.note, self.progress, *self.result.outputs()]

    def outputs(self) -> list[Any]:
        """Return what the methods below may update."""
        return [self.waiting, self.ask, *self._job_outputs()]

    def offer(self, face: JudgedFace | None) -> Updates:
        """Return the updates for another face, or for none."""
        return {
            self.waiting: gr.Markdown(visible=face is None),
            self.ask: gr.Column(visible=face is not None),
            **self._idle(),
            self.note: "",
            self.progress: "",
            **self.result.hide(),
        }

    def show_example(self, example: Example, request: gr.Request) -> Updates:
        """Return the updates that show an example's stored result."""
        bundle = example.removal()
        if bundle is None:
            return {}
        return {
            self.note: f"The stored result for “{example.label}” stands below. You can also run it yourself.",
            **self.result.show(bundle, session_folder(request)),
        }

    def _idle(self) -> Updates:
        return {self.remove: gr.Button(interactive=True), self.compare: gr.Button(interactive=True)}

    def _busy(self) -> Updates:
        return {
            self.remove: gr.Button(interactive=False),
            self.compare: gr.Button(interactive=False),
            self.note: "",
            self.progress: progress(Step(0, 1, "The face is looked for.")),
            **self.result.hide(),
        }

    def _remove(self, path: str | None, number: int | None, strength: float, request: gr.Request) -> Iterator[Updates]:
        """Remove the traces of the chosen face and show what happened."""
        from backend.trace_removal import bundle  # its imports would keep the page waiting
        from backend.trace_removal.command import require_trained

        photo = photo_from(path)
        require_trained()
        LIMIT.check(request)
        yield self._busy()
        made = yield from self._watched(bundle.make(photo, number, strength=strength))
        yield {**self._idle(), self.progress: "", **self.result.show(made, session_folder(request))}

    def _compare(
        self, path: str | None, faces: list[JudgedFace], number: int | None, strength: float, request: gr.Request
    ) -> Iterator[Updates]:
        """Run every attack on the chosen face and set the verdicts side by side."""
        from backend.trace_removal.comparison import compare

        photo = photo_from(path)
        LIMIT.check(request)
        yield self._busy()
        aligned = faces[(number or 1) - 1].aligned
        face, source = images.to_tensor(aligned.crop), Source(photo, aligned)
        made = yield from self._watched(compare(face, source, strength=strength))
        yield {**self._idle(), self.progress: "", **self.result.show_comparison(made)}

    def _watched(self, job: Job[Any]) -> Any:
        with Running(job) as running:
            for step in running:
                yield {self.progress: progress(step)}
        return running.result
