"""Step 4 of the counterfactual tab: what the search found, live or stored."""

from pathlib import Path
from typing import Any

import gradio as gr

from backend import provenance
from backend.counterfactual.bundle import MAPS, Bundle
from tabs import words
from tabs.common import QUICK, shown

Updates = dict[Any, Any]
DOUBTS = (
    "**How could this be wrong?** The search may change what the detector happens to react to and no person would "
    "notice; that shows a weakness of the detector, not a flaw of the face. Where the reconstruction is poor, the "
    "generator cannot draw this face, and the change says little. Another detector, or other levels, may give another "
    "answer. None of this proves that a photo is real or fake."
)


class ResultStep:
    """The components of step 4."""

    def __init__(self) -> None:
        with gr.Column(visible=False) as self.all:
            gr.Markdown("## 4 What would have to change")
            self.summary = gr.Markdown(elem_classes="status")
            with gr.Column(visible=False) as self.pictures:
                self._lay_out_pictures()
            self.doubts = gr.Markdown(DOUBTS)
            self.settings = gr.Markdown(elem_classes="note")
            self.download = gr.DownloadButton("Download the pictures and numbers (zip)", value=None)

    def _lay_out_pictures(self) -> None:
        gr.Markdown("### From the photo to the counterfactual")
        with gr.Row(elem_classes="trio"):
            self.crop, self.crop_text = _picture("The face", 90, bare=True)
            self.inversion, self.inversion_text = _picture("Reconstruction", 90, bare=True)
            self.counterfactual, self.counterfactual_text = _picture("Counterfactual", 90, bare=True)
        self.trio_text = gr.Markdown()
        with gr.Row():
            with gr.Column(min_width=280):
                gr.Markdown("### Before and after")
                self.slider = gr.ImageSlider(
                    label="Left: before. Right: after",
                    format="png",
                    buttons=["fullscreen"],
                    interactive=False,
                    max_height=320,
                )
                self.position = gr.Slider(0, 100, 50, step=1, label="Where before ends and after begins, in percent")
            with gr.Column(min_width=280):
                gr.Markdown("### Where it changed")
                self.residual, self.residual_text = _picture("Residual map", 200)
        with gr.Row():
            with gr.Column(min_width=280):
                self.changes = gr.HTML()
            with gr.Column(min_width=280):
                self.retest = gr.HTML()
        gr.Markdown(
            "### Where the detector looked\nA Grad-CAM map marks the regions that speak for “fake” at one layer of the "
            "detector."
        )
        with gr.Row():
            self.before, self.before_text = _picture("Map before", 140)
            self.after, self.after_text = _picture("Map after", 140)
        gr.Markdown("### Put back into the photo")
        self.pasted, self.pasted_text = _picture("The whole photo with the changed face", 280, kind="whole")

    def wire(self) -> None:
        """Let the plain slider, which works from the keyboard, move the one in the picture."""
        self.position.input(
            _slide, self.position, self.slider, trigger_mode="always_last", api_visibility="private", **QUICK
        )

    def show(self, bundle: Bundle, folder: Path) -> Updates:
        """Return the updates that show a result, and write its download to `folder`."""
        record, file = bundle.record, folder / "counterfactual.zip"
        file.write_bytes(bundle.zip())
        updates: Updates = {
            self.all: gr.Column(visible=True),
            self.summary: record["summary"],
            self.pictures: gr.Column(visible=not record["already_real"]),
            self.doubts: gr.Markdown(visible=not record["already_real"]),
            self.settings: words.settings_line(record),
            self.download: str(file),
        }
        return updates if record["already_real"] else {**updates, **self._show_pictures(bundle)}

    def _show_pictures(self, bundle: Bundle) -> Updates:
        drawn = bundle.pictures()
        marked = {name: provenance.marked(picture, bundle.record) for name, picture in drawn.items() if name != "photo"}
        texts = words.result_texts(bundle)
        updates: Updates = {
            self.crop: drawn["crop"],
            self.slider: gr.ImageSlider((drawn["crop"], marked["counterfactual"]), slider_position=50),
            self.position: 50,
            self.pasted: provenance.marked(shown(drawn["photo"]), bundle.record),
            self.changes: words.changes(bundle.record),
            self.retest: words.retest(bundle.record),
            **{getattr(self, name): marked[name] for name in ("inversion", "counterfactual", "residual")},
            **{getattr(self, f"{name}_text"): texts[name] for name in (*PICTURES, "trio")},
        }
        for name, component in zip(MAPS, (self.before, self.after), strict=True):
            # An empty map is not drawn: its text says so.
            updates[component] = gr.Image(marked.get(name), visible=name in marked)
        return updates

    def hide(self) -> Updates:
        """Return the updates that take the result away."""
        return {self.all: gr.Column(visible=False)}

    def outputs(self) -> list[Any]:
        """Return what the methods above may update."""
        texts = [getattr(self, f"{name}_text") for name in (*PICTURES, "trio")]
        drawn = [getattr(self, name) for name in PICTURES]
        rest = [self.slider, self.position, self.changes, self.retest, self.settings, self.download, self.doubts]
        return [self.all, self.pictures, self.summary, *drawn, *texts, *rest]


PICTURES = ("crop", "inversion", "counterfactual", "residual", "before", "after", "pasted")


def _picture(label: str, min_width: int, *, bare: bool = False, kind: str = "face") -> tuple[gr.Image, gr.Markdown]:
    """Return an image with the text below it; a bare one, for narrow columns, has its name only in the text."""
    with gr.Column(min_width=min_width):
        image = gr.Image(
            label=label,
            format="png",
            interactive=False,
            buttons=[] if bare else ["download", "fullscreen"],
            show_label=not bare,
            elem_classes=kind,
            alt_text=f"{label}; the text below describes it",
        )
        return image, gr.Markdown(elem_classes="note")


def _slide(position: float) -> Any:
    return gr.ImageSlider(slider_position=position)
