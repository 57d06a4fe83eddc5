"""Steps 1 and 2 of a tab: choose a photo, and see what the detectors say about it."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import gradio as gr
import numpy as np

from backend.errors import UserError
from backend.examples import Example
from backend.verdicts import JudgedFace
from tabs import words
from tabs.common import SHOWN_SIDE, photo_input, shown

Updates = dict[Any, Any]
BLUE = "#1d4ed8"
MAX_LISTED = 12  # faces that can be picked

RULES = (
    "Use a photo of yourself, or of someone who agreed. For teaching and research, not for commercial use. "
    "What you upload is deleted within about an hour, and no history is kept."
)


class PhotoStep:
    """The components of steps 1 and 2.

    Args:
        examples: Pictures that a visitor can start from.
    """

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples
        gr.Markdown("## 1 Choose a photo")
        with gr.Row():
            with gr.Column(min_width=280):
                self.photo = photo_input("Your photo, with a face seen from the front")
                gr.Markdown(RULES, elem_classes="note")
            with gr.Column(min_width=280, visible=bool(examples)):
                gr.Markdown("**Or start from an example.** Its result is stored, so there is nothing to wait for.")
                self.gallery = self._gallery()
        with gr.Column(visible=False) as self.answer:
            gr.Markdown("## 2 What the detectors say")
            self.said = gr.Markdown()
            with gr.Row():
                self.found = gr.AnnotatedImage(
                    label="Faces found", format="png", height=240, buttons=[], show_legend=False, scale=3, min_width=180
                )
                self.crop = gr.Image(
                    label="What the detectors see",
                    format="png",
                    buttons=["fullscreen"],
                    elem_classes="face",
                    interactive=False,
                    scale=2,
                    min_width=140,
                    alt_text="The face, cut out and turned upright, as the detectors see it",
                )
            self.which = gr.Radio(label="Which face?", info="Numbered from the largest.", visible=False)
            self.verdicts = gr.HTML()

    def _gallery(self) -> gr.Gallery:
        return gr.Gallery(
            [(str(example.photo_path), example.label) for example in self.examples],
            label="Examples",
            show_label=False,
            format="png",
            columns=4,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_classes="examples",
        )

    def show(self, photo: np.ndarray, faces: Sequence[JudgedFace], number: int = 1) -> Updates:
        """Return the updates of step 2 for one of the faces, from 1."""
        boxes: list[tuple[np.ndarray | tuple[int, int, int, int], str]] = [
            (_box(photo, face), f"Face {face.number}") for face in faces
        ]
        numbers = [(str(face.number), face.number) for face in faces[:MAX_LISTED]]
        return {
            self.answer: gr.Column(visible=True),
            self.found: gr.AnnotatedImage(
                (shown(photo), boxes), visible=True, color_map=dict.fromkeys(map(itemgetter(1), boxes), BLUE)
            ),
            self.which: gr.Radio(numbers, value=number, visible=len(faces) > 1),
            **self.pick(faces, number),
        }

    def pick(self, faces: Sequence[JudgedFace], number: int) -> Updates:
        """Return the updates for another face of the same photo."""
        crop = faces[number - 1].aligned.crop if faces else None
        return {
            self.crop: gr.Image(crop, visible=crop is not None),
            self.said: words.which_face(faces, number),
            self.verdicts: words.answer(faces, number),
        }

    def refuse(self, error: UserError) -> Updates:
        """Return the updates that say why a photo cannot be used."""
        return {
            self.answer: gr.Column(visible=True),
            self.found: gr.AnnotatedImage(None, visible=False),
            self.crop: gr.Image(None, visible=False),
            self.which: gr.Radio(visible=False),
            self.said: "",
            self.verdicts: words.refusal(error),
        }

    def hide(self) -> Updates:
        """Return the updates that take step 2 away."""
        return {self.answer: gr.Column(visible=False), self.verdicts: "", self.said: ""}

    def outputs(self) -> list[Any]:
        """Return what the methods above may update."""
        return [self.answer, self.found, self.crop, self.which, self.said, self.verdicts]


def _box(photo: np.ndarray, face: JudgedFace) -> tuple[int, int, int, int]:
    """Return the box of a face in the shown photo, cut at its edges."""
    factor = min(1.0, SHOWN_SIDE / max(photo.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in photo.shape[:2])
    x0, y0, x1, y1 = (round(value * factor) for value in face.aligned.face.box)
    return max(0, x0), max(0, y0), min(width, x1), min(height, y1)
