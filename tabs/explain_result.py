"""Step 4 of the explanation tab: one map with its test, or the grid of all maps."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image

from backend import images, provenance
from tabs import explain_words as words
from tabs.common import QUICK

if TYPE_CHECKING:
    from backend.explain.explanation import Explanation
    from backend.explain.photo import ExplainedPhoto

Updates = dict[Any, Any]
Done = Sequence[tuple["Explanation", "float | None"]]
SHOWN = 384  # side in pixels of shown maps, so that the mark covers little


class ExplainResult:
    """The components of step 4."""

    def __init__(self) -> None:
        self.made = gr.State(None)
        with gr.Column(visible=False) as self.all:
            gr.Markdown("## 4 Where it looked")
            self.summary = gr.Markdown(elem_classes="summary")
            self.guessed = gr.Markdown()
            with gr.Column(visible=False) as self.one:
                self._lay_out_map()
            self.grid = gr.Gallery(
                label="All maps",
                format="png",
                columns=4,
                height="auto",
                object_fit="contain",
                interactive=False,
                buttons=["fullscreen"],
                elem_classes="maps",
                visible=False,
            )
            self.doubts = gr.Markdown(words.DOUBTS)
            self.settings = gr.Markdown(elem_classes="note")
            self.download = gr.DownloadButton("Download the map, pictures and numbers (zip)", value=None)

    def _lay_out_map(self) -> None:
        with gr.Row():
            with gr.Column(min_width=220):
                self.face = _picture("The face")
            with gr.Column(min_width=220):
                self.map = _picture("The map, its strongest segments outlined")
                self.opacity = gr.Slider(0, 100, 60, step=5, label="How opaque the map is, in percent")
        self.scale = gr.Markdown(elem_classes="note")
        gr.Markdown("### The test")
        self.proof = gr.HTML()
        with gr.Row(visible=False) as self.attacked:
            with gr.Column(min_width=220):
                self.reference = _picture("What hidden parts show: the adversarial image")
            with gr.Column(min_width=220):
                self.difference = _picture("What the attack changed, amplified")
        self.attack = gr.Markdown(elem_classes="note")

    def wire(self) -> None:
        """Let the slider draw the map anew."""
        self.opacity.input(
            _redraw, [self.made, self.opacity], self.map, trigger_mode="always_last", api_visibility="private", **QUICK
        )

    def show(self, made: "ExplainedPhoto", guess: str, folder: Path) -> Updates:
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
            self.summary: made.summary,
            self.guessed: words.guess_answer(made, guess),
            self.settings: words.settings_line(record),
            self.download: gr.DownloadButton(value=str(file), visible=True),
        }
        if not shows:
            return updates
        drawn = made.drawings()
        attacked = "difference" in drawn
        return updates | {
            self.face: _enlarged(made.aligned.crop),
            self.map: provenance.mark(drawn["overlay"]),
            self.opacity: 60,
            self.scale: record["scale"],
            self.proof: words.proof_table(made.proof) or "<p>The map was not put to the test; see More options.</p>",
            self.attacked: gr.Row(visible=attacked),
            self.reference: provenance.mark(_enlarged(drawn["reference"])) if attacked else None,
            self.difference: provenance.mark(_enlarged(drawn["difference"])) if attacked else None,
            self.attack: explanation.attack_words if attacked else "",
        }

    def show_grid(self, crop: np.ndarray, done: Done) -> Updates:
        """Return the updates that show the maps finished so far."""
        from backend.explain import pictures

        face = _enlarged(crop)
        shown = [(provenance.mark(pictures.overlay(face, made)), words.grid_caption(made, fall)) for made, fall in done]
        return {
            self.all: gr.Column(visible=True),
            self.one: gr.Column(visible=False),
            self.grid: gr.Gallery(shown, visible=True),
            self.summary: f"{len(done)} maps so far.",
            self.guessed: "",
            self.settings: "",
            self.download: gr.DownloadButton(visible=False),
        }

    def finish_grid(self, crop: np.ndarray, done: Done, folder: Path) -> Updates:
        """Return the updates that end a comparison, and write its download to `folder`."""
        file = folder / "comparison.zip"
        file.write_bytes(_grid_zip(crop, done))
        return {
            self.made: None,
            self.summary: words.grid_summary(done),
            self.download: gr.DownloadButton(value=str(file), visible=True),
        }

    def hide(self) -> Updates:
        """Return the updates that take the result away."""
        return {self.all: gr.Column(visible=False), self.made: None}

    def outputs(self) -> list[Any]:
        """Return what the methods above may update."""
        one = [self.face, self.map, self.opacity, self.scale, self.proof, self.attacked, self.reference]
        rest = [self.difference, self.attack, self.doubts, self.settings, self.download]
        return [self.made, self.all, self.one, self.grid, self.summary, self.guessed, *one, *rest]


def _picture(label: str) -> gr.Image:
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="face",
        alt_text=f"{label}; the text beside it describes it",
    )


def _enlarged(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS))


def _redraw(made: "ExplainedPhoto | None", opacity: float) -> np.ndarray | None:
    """Return the map over the face at another opacity."""
    if made is None:
        return None
    from backend.explain import pictures

    laid = pictures.overlay(_enlarged(made.aligned.crop), made.explanation, opacity / 100)
    outlined = pictures.outlined(laid, made.explanation.labels, made.top) if made.top else laid
    return provenance.mark(outlined)


def _zip(made: "ExplainedPhoto", record: dict[str, Any]) -> bytes:
    """Return a zip file with the map, its pictures and the record."""
    from backend.explain.bundle import contents

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("record.json", json.dumps(record, indent=1))
        for name, content in contents(made, record).items():
            packed.writestr(name, content)
    return buffer.getvalue()


def _grid_zip(crop: np.ndarray, done: Done) -> bytes:
    """Return a zip file with every map of a comparison, as numbers and as a marked picture."""
    from backend.explain import pictures

    buffer = io.BytesIO()
    face = _enlarged(crop)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("crop.png", images.encode_png(crop))
        records = []
        for made, fall in done:
            name = made.title.lower().replace(", ", "-").replace(" ", "-")
            saved = io.BytesIO()
            np.save(saved, made.saliency.numpy())
            packed.writestr(f"{name}.npy", saved.getvalue())
            record = made.record() | {"sufficiency": fall}
            packed.writestr(f"{name}.png", provenance.marked_png(pictures.overlay(face, made), record))
            records.append(record)
        packed.writestr("record.json", json.dumps(records, indent=1))
    return buffer.getvalue()
