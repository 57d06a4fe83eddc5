"""Step 4 of the explanation tab: one map with its test, or the grid of all maps."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from backend import images, provenance
from backend.explain import pictures
from backend.explain.bundle import contents
from backend.explain.comparing import Comparison
from backend.explain.photo import ExplainedPhoto
from tabs import explain_figures as figures
from tabs import explain_words as words
from tabs.common import QUICK
from tabs.explain_tests import Tested

Updates = dict[Any, Any]
Done = Sequence[Tested]
ONE, ALL = "Download the map, pictures and numbers (zip)", "Download all maps and numbers (zip)"
SHOWN = 384  # side in pixels of shown maps, so that the mark covers little


class ExplainResult:
    """The components of step 4."""

    def __init__(self) -> None:
        self.made = gr.State(None)
        with gr.Column(visible=False) as self.all:
            gr.Markdown("## 4 Where it looked")
            self.summary = gr.Markdown(elem_classes="status")
            self.guessed = gr.Markdown()
            with gr.Column(visible=False) as self.one:
                self._lay_out_map()
            self.scales = gr.HTML(visible=False)
            self.grid = maps_grid("All maps")
            self.doubts = gr.Markdown(words.DOUBTS)
            self.settings = gr.Markdown(elem_classes="note")
            self.download = gr.DownloadButton(ONE, value=None)

    def _lay_out_map(self) -> None:
        with gr.Row():
            with gr.Column(min_width=220):
                self.face = _picture("The face")
            with gr.Column(min_width=220):
                self.map = _picture("The map")
                self.scale = gr.HTML()
            with gr.Column(min_width=220):
                self.overlay = _picture("Both, the strongest segments outlined")
                self.opacity = gr.Slider(0, 100, 60, step=5, label="How opaque the map is, in percent")
        with gr.Column(visible=False) as self.hidden:
            gr.Markdown("### What hidden parts showed")
            with gr.Row():
                with gr.Column(min_width=220):
                    self.reference = _picture("The reference")
                with gr.Column(min_width=220):
                    self.difference = _picture("What the attack changed, amplified")
                with gr.Column(min_width=220):
                    self.attack = gr.Markdown()
        gr.Markdown("### The test")
        with gr.Row():
            with gr.Column(min_width=320):
                self.proof = gr.HTML()
            with gr.Column(min_width=320, visible=False) as self.followed:
                gr.Markdown("#### The usual curves, and why they mislead")
                self.curves = gr.HTML()

    def wire(self) -> None:
        """Let the slider draw the map anew."""
        self.opacity.input(
            _redraw,
            [self.made, self.opacity],
            self.overlay,
            trigger_mode="always_last",
            api_visibility="private",
            **QUICK,
        )

    def show(self, made: ExplainedPhoto, guess: str, folder: Path) -> Updates:
        """Return the updates that show one map, and write its download to `folder`."""
        explanation, record = made.explanation, made.record()
        file = folder / "explanation.zip"
        file.write_bytes(_zip(made, record))
        shows = not explanation.degenerate
        updates: Updates = {
            self.made: made,
            self.all: gr.Column(visible=True),
            self.one: gr.Column(visible=shows),
            self.grid: gr.Gallery(visible=False),
            self.scales: gr.HTML(visible=False),
            self.summary: words.found(made),
            self.guessed: words.guess_answer(made, guess),
            self.settings: words.settings_line(record),
            self.download: gr.DownloadButton(ONE, value=str(file), visible=True),
        }
        if not shows:
            return updates
        drawn = made.drawings()
        shown = {name: provenance.marked(enlarged(picture), record) for name, picture in drawn.items()}
        return updates | {
            self.face: enlarged(made.aligned.crop),
            self.map: shown["map_picture"],
            self.overlay: shown["overlay"],
            self.opacity: 60,
            self.scale: figures.scale_of(explanation),
            self.proof: words.proof_table(made.proof) or f"<p>{words.UNTESTED}</p>",
            self.followed: gr.Column(visible=made.curves is not None),
            self.curves: figures.curves_figure(made.curves),
            self.hidden: gr.Column(visible="reference" in drawn),
            self.reference: shown.get("reference"),
            self.difference: gr.Image(shown.get("difference"), visible="difference" in drawn),
            self.attack: words.hidden_parts(made),
        }

    def show_grid(self, crop: np.ndarray, done: Done) -> Updates:
        """Return the updates that show the maps finished so far."""
        face = enlarged(crop)
        shown = [
            (
                provenance.marked(pictures.overlay(face, one.explanation), one.explanation.record()),
                words.grid_caption(one),
            )
            for one in done
        ]
        return {
            self.all: gr.Column(visible=True),
            self.one: gr.Column(visible=False),
            self.grid: gr.Gallery(shown, visible=True),
            self.scales: gr.HTML(figures.grid_scales(done[0].explanation.settings.towards), visible=True),
            self.summary: f"{len(done)} maps so far.",
            self.guessed: "",
            self.settings: "",
            self.download: gr.DownloadButton(visible=False),
        }

    def finish_grid(self, crop: np.ndarray, whole: Comparison, done: Done, folder: Path) -> Updates:
        """Return the updates that end a comparison, and write its download to `folder`."""
        file = folder / "comparison.zip"
        file.write_bytes(_grid_zip(crop, done))
        return {
            self.made: None,
            self.summary: words.grid_summary(done),
            self.settings: words.comparison_line(whole),
            self.download: gr.DownloadButton(ALL, value=str(file), visible=True),
        }

    def hide(self) -> Updates:
        """Return the updates that take the result away."""
        return {self.all: gr.Column(visible=False), self.made: None}

    def outputs(self) -> list[Any]:
        """Return what the methods above may update."""
        one = [self.face, self.map, self.scale, self.overlay, self.opacity, self.proof, self.followed, self.curves]
        rest = [self.hidden, self.reference, self.difference, self.attack, self.scales, self.settings, self.download]
        return [self.made, self.all, self.one, self.grid, self.summary, self.guessed, *one, *rest]


def maps_grid(label: str) -> gr.Gallery:
    """Return a grid of captioned maps, which has one column where the window is narrow."""
    return gr.Gallery(
        label=label,
        show_label=False,
        format="png",
        columns=4,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen"],
        elem_classes="maps",
        visible=False,
    )


def _picture(label: str) -> gr.Image:
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="face",
        alt_text=f"{label}; the text beside it describes it",
    )


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Return a square picture at the size at which it is shown."""
    return np.asarray(Image.fromarray(picture).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS))


def _redraw(made: ExplainedPhoto | None, opacity: float) -> Image.Image | None:
    """Return the map over the face at another opacity."""
    if made is None:
        return None
    laid = pictures.overlay(enlarged(made.aligned.crop), made.explanation, opacity / 100)
    return provenance.marked(pictures.outlined(laid, made.explanation.labels, made.top), made.record())


def _zip(made: ExplainedPhoto, record: dict[str, Any]) -> bytes:
    """Return a zip file with the map, its pictures and the record."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("record.json", json.dumps(record, indent=1))
        for name, content in contents(made, record).items():
            packed.writestr(name, content)
    return buffer.getvalue()


def _grid_zip(crop: np.ndarray, done: Done) -> bytes:
    """Return a zip file with every map of a comparison, as numbers and as a marked picture."""
    buffer = io.BytesIO()
    face = enlarged(crop)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("crop.png", images.encode_png(crop))
        records = []
        for made, fall, random in done:
            name = made.title.lower().replace(", ", "-").replace(" ", "-")
            saved = io.BytesIO()
            np.save(saved, made.saliency.numpy())
            packed.writestr(f"{name}.npy", saved.getvalue())
            record = made.record() | {"sufficiency": fall, "random": random}
            packed.writestr(f"{name}.png", provenance.marked_png(pictures.overlay(face, made), record))
            records.append(record)
        packed.writestr("record.json", json.dumps(records, indent=1))
    return buffer.getvalue()
