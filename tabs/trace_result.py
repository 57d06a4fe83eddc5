"""Step 4 of the trace-removal tab: pictures, verdicts, the four views, and what saving again does."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image

from backend import provenance
from tabs import trace_words as words
from tabs.common import QUICK, shown

if TYPE_CHECKING:
    from backend.trace_removal.bundle import Bundle
    from backend.trace_removal.comparison import Comparison

Updates = dict[Any, Any]
SHOWN = 384  # side in pixels of shown faces, so that the mark covers little
VIEWS = ("spectrum", "power", "noise", "attention")


class TraceResult:
    """The components of step 4."""

    def __init__(self) -> None:
        with gr.Column(visible=False) as self.all:
            gr.Markdown("## 4 What is left of the verdicts")
            self.summary = gr.Markdown(elem_classes="status")
            with gr.Column(visible=False) as self.one:
                self._lay_out_removal()
            with gr.Column(visible=False) as self.many:
                self.attacks = gr.Gallery(
                    label="The face after every attack",
                    format="png",
                    columns=3,
                    height="auto",
                    object_fit="contain",
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_classes="maps",
                )
                self.comparison = gr.HTML()
            gr.Markdown(words.DOUBTS)
            self.settings = gr.Markdown(elem_classes="note")
            self.download = gr.DownloadButton("Download the pictures and numbers (zip)", value=None, visible=False)

    def _lay_out_removal(self) -> None:
        with gr.Row():
            with gr.Column(min_width=280):
                self.slider = gr.ImageSlider(
                    label="Left: before. Right: without traces",
                    format="png",
                    buttons=["fullscreen"],
                    interactive=False,
                    max_height=400,
                )
                self.position = gr.Slider(0, 100, 50, step=1, label="Where before ends and after begins, in percent")
            with gr.Column(min_width=280):
                self.difference = gr.Image(
                    label="What was changed, amplified",
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes="face",
                    alt_text="The signed difference of the two faces; the text below gives its gain",
                )
                self.gain = gr.Markdown(elem_classes="note")
        gr.Markdown("### What every detector says")
        self.verdicts = gr.HTML()
        gr.Markdown("### The traces, before and after")
        self.missing = gr.Markdown(visible=False)
        self.views: dict[str, tuple[gr.Image, gr.Markdown]] = {}
        with gr.Row(elem_classes="views"):
            for name in VIEWS:
                with gr.Column(min_width=320):
                    picture = gr.Image(
                        label=name.capitalize(),
                        format="png",
                        interactive=False,
                        buttons=["download", "fullscreen"],
                        elem_classes="whole",
                        alt_text=f"{name.capitalize()} before and after; the sentence below says what to see",
                    )
                    self.views[name] = picture, gr.Markdown(elem_classes="note")
        gr.Markdown("### What saving again does")
        self.resaves = gr.HTML()
        gr.Markdown("### Put back into the photo")
        self.photo = gr.Image(
            label="The whole photo",
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_classes="whole",
            alt_text="The whole photo with the changed face; the summary above says what the detectors say of it",
        )

    def wire(self) -> None:
        """Let the plain slider, which works from the keyboard, move the one in the picture."""
        self.position.input(
            _slide, self.position, self.slider, trigger_mode="always_last", api_visibility="private", **QUICK
        )

    def show(self, bundle: "Bundle", folder: Path) -> Updates:
        """Return the updates that show a removal, and write its download to `folder`."""
        record, drawn = bundle.record, bundle.pictures()
        file = folder / "trace-removal.zip"
        file.write_bytes(bundle.zip())
        sentences = {one["name"]: one for one in record["views"]}
        updates: Updates = {
            self.all: gr.Column(visible=True),
            self.one: gr.Column(visible=True),
            self.many: gr.Column(visible=False),
            self.summary: record["summary"],
            self.slider: gr.ImageSlider(
                (_enlarged(drawn["crop"]), provenance.marked(_enlarged(drawn["removed"]), record)), slider_position=50
            ),
            self.position: 50,
            self.difference: provenance.marked(_enlarged(drawn["difference"]), record),
            self.gain: bundle.difference().caption,
            self.verdicts: words.verdict_table(record),
            self.missing: gr.Markdown(record["views_note"], visible=bool(record["views_note"])),
            self.resaves: words.resave_table(record),
            self.photo: provenance.marked(shown(drawn["photo"]), record),
            self.settings: words.settings_line(record),
            self.download: gr.DownloadButton(value=str(file), visible=True),
        }
        for name, (picture, sentence) in self.views.items():
            there = name in sentences
            value = provenance.marked(drawn[name], record) if there else None
            label = sentences[name]["title"] if there else name.capitalize()
            updates[picture] = gr.Image(value, label=label, visible=there)
            updates[sentence] = sentences[name]["sentence"] if there else ""
        return updates

    def show_comparison(self, made: "Comparison") -> Updates:
        """Return the updates that show all attacks side by side."""
        faces: list[tuple[Any, str]] = [(_enlarged(made.original), "The face itself")]
        faces += [(provenance.marked(_enlarged(one.picture), one.record()), one.title) for one in made.attacks]
        return {
            self.all: gr.Column(visible=True),
            self.one: gr.Column(visible=False),
            self.many: gr.Column(visible=True),
            self.summary: "The same face after every attack. Look at the faces, then read what the detectors say.",
            self.attacks: faces,
            self.comparison: words.comparison_table(made),
            self.settings: "Defaults of every attack, seed 0; TR-Net at the strength of the slider.",
            self.download: gr.DownloadButton(visible=False),
        }

    def hide(self) -> Updates:
        """Return the updates that take the result away."""
        return {self.all: gr.Column(visible=False)}

    def outputs(self) -> list[Any]:
        """Return what the methods above may update."""
        one = [self.slider, self.position, self.difference, self.gain, self.verdicts, self.missing, self.resaves]
        views = [component for pair in self.views.values() for component in pair]
        many = [self.many, self.attacks, self.comparison]
        return [self.all, self.one, self.summary, *one, *views, self.photo, *many, self.settings, self.download]


def _enlarged(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS))


def _slide(position: float) -> Any:
    return gr.ImageSlider(slider_position=position)
