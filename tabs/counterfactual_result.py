"""Step 4 of the counterfactual tab: the pictures, numbers and sentences of a result, live or stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from backend import provenance
from backend.counterfactual import changes
from backend.counterfactual.changes import LookChange, RegionChange
from backend.counterfactual.photo import CAM_MAPS, CounterfactualBundle
from backend.counterfactual.search import LEVEL_WORDS
from backend.detectors import registry
from backend.detectors.base import SCALE
from backend.detectors.predict import describe_p_fake
from tabs.components import (
    BeforeAfter,
    Updates,
    captioned_picture,
    fit_to_page,
    render,
    score_cell,
    settings_line,
)

# In dB. Below 20, the person is often not recognised.
QUALITIES = (
    (28.0, "a close likeness"),
    (23.0, "a fair likeness"),
    (19.0, "a rough likeness"),
    (float("-inf"), "a poor likeness, so read what follows with care"),
)
REGION_TITLES = {
    "eyes": "Eyes",
    "nose": "Nose",
    "mouth": "Mouth",
    "skin": "Rest of the face",
    "surround": "Around the face",
}
CAPTIONED = ("crop", "inversion", "counterfactual", "residual", "before", "after", "pasted")
DOUBTS = (
    "**How could this be wrong?** The search may change what the detector happens to react to and no person would "
    "notice; that shows a weakness of the detector, not a flaw of the face. Where the reconstruction is poor, the "
    "generator cannot draw this face, and the change says little. Another detector, or other levels, may give another "
    "answer. None of this proves anything about the photo itself."
)


class CounterfactualResult:
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
            # In narrow columns, only the text has the name.
            bare: dict[str, Any] = {"min_width": 90, "buttons": [], "show_label": False}
            self.crop, self.crop_text = captioned_picture("The face", **bare)
            self.inversion, self.inversion_text = captioned_picture("Reconstruction", **bare)
            self.counterfactual, self.counterfactual_text = captioned_picture("Counterfactual", **bare)
        self.trio_text = gr.Markdown()
        with gr.Row():
            with gr.Column(min_width=280):
                gr.Markdown("### Before and after")
                self.slider = BeforeAfter("Left: before. Right: after", 320)
            with gr.Column(min_width=280):
                gr.Markdown("### Where it changed")
                self.residual, self.residual_text = captioned_picture("Residual map", 200)
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
            self.before, self.before_text = captioned_picture("Map before", 140)
            self.after, self.after_text = captioned_picture("Map after", 140)
        gr.Markdown("### Put back into the photo")
        self.pasted, self.pasted_text = captioned_picture(
            "The whole photo with the changed face", 280, elem_classes="whole"
        )

    def show(self, bundle: CounterfactualBundle, folder: Path) -> Updates:
        """Return the updates that show a result, and write its download to `folder`."""
        record, file = bundle.record, folder / "counterfactual.zip"
        file.write_bytes(bundle.zip())
        updates: Updates = {
            self.all: gr.Column(visible=True),
            self.summary: record["summary"],
            self.pictures: gr.Column(visible=not record["already_real"]),
            self.doubts: gr.Markdown(visible=not record["already_real"]),
            self.settings: search_settings_line(record),
            self.download: str(file),
        }
        return updates if record["already_real"] else {**updates, **self._show_pictures(bundle)}

    def _show_pictures(self, bundle: CounterfactualBundle) -> Updates:
        pictures = bundle.pictures()
        shown = {**pictures, "photo": fit_to_page(pictures["photo"])}
        marked = {name: provenance.marked_image(picture, bundle.record) for name, picture in shown.items()}
        texts = result_texts(bundle)
        updates: Updates = {
            self.crop: pictures["crop"],
            **self.slider.show(pictures["crop"], marked["counterfactual"]),
            self.pasted: marked["photo"],
            self.changes: changes_html(bundle.record),
            self.retest: retest_html(bundle.record),
            **{getattr(self, name): marked[name] for name in ("inversion", "counterfactual", "residual")},
            **{getattr(self, f"{name}_text"): texts[name] for name in (*CAPTIONED, "trio")},
        }
        for name, component in zip(CAM_MAPS, (self.before, self.after), strict=True):
            # An empty map is not drawn: its text says so.
            updates[component] = gr.Image(marked.get(name), visible=name in marked)
        return updates

    def hide(self) -> Updates:
        return {self.all: gr.Column(visible=False)}

    def outputs(self) -> list[Any]:
        texts = [getattr(self, f"{name}_text") for name in (*CAPTIONED, "trio")]
        pictures = [*(getattr(self, name) for name in CAPTIONED), *self.slider.outputs()]
        rest = [self.changes, self.retest, self.settings, self.download, self.doubts]
        return [self.all, self.pictures, self.summary, *pictures, *texts, *rest]


def result_texts(bundle: CounterfactualBundle) -> dict[str, str]:
    record = bundle.record
    p_fake, metrics = record["p_fake"], record["metrics"]
    before, after = record["cam_empty"]["original"], record["cam_empty"]["counterfactual"]
    return {
        "crop": f"**The face**<br>{score_cell(p_fake['original'])}",
        "inversion": f"**Reconstruction**<br>{score_cell(p_fake['inversion'])}",
        "counterfactual": f"**Counterfactual**<br>{score_cell(p_fake['counterfactual'])}",
        "trio": f"Left: what the detector saw. Middle: the face as the generator draws it (its inversion): "
        f"{reconstruction_in_words(metrics)} Right: the face after the search. Numbers: p_fake {SCALE}.",
        "residual": f"{bundle.residual().caption} "
        f"{changes.looks_in_words([LookChange(**look) for look in record['looks']])} "
        f"{changes.regions_in_words([RegionChange(**region) for region in record['regions']])}",
        "before": record.get("cam_missing") or cam_text("the face", empty=before),
        "after": record.get("cam_missing") or cam_text("the counterfactual", empty=after),
        "pasted": pasted_text(record["p_pasted"]),
    }


def reconstruction_in_words(metrics: Mapping[str, float | None]) -> str:
    psnr, ssim = metrics["psnr_inversion"], metrics["ssim_inversion"]
    if psnr is None or ssim is None:
        return "it equals the face."
    word = next(word for limit, word in QUALITIES if psnr >= limit)
    return f"{word} ({psnr:.1f} dB PSNR, SSIM {ssim:.2f}; 1 = equal)."


def cam_text(what: str, *, empty: bool) -> str:
    if empty:
        return f"For {what}, the map is empty: at this layer, nothing in the picture speaks for “fake”."
    return (
        f"For {what}: yellow regions speak most for “fake”, dark blue ones least. "
        "Compare the brightness only within one map."
    )


def pasted_text(p_fake: float | None) -> str:
    """Say what the detector says of the whole photo with the changed face."""
    if p_fake is None:
        return "The face was not found again in the whole photo."
    return f"The face was found and cut out of the whole photo once more: {describe_p_fake(p_fake)}."


def changes_html(record: dict[str, Any]) -> str:
    """Return what changed in the latent code and in the face, as lists."""
    moves = record["latent_change"]["levels"]
    largest = max(moves.values()) or 1.0
    levels = [
        f"{level} ({LEVEL_WORDS[level]}): moved by {move:.3f} on average, {_amount(move / largest)}"
        if level in record["settings"]["levels"]
        else f"{level} ({LEVEL_WORDS[level]}): not changed"
        for level, move in moves.items()
    ]
    regions = [
        f"{REGION_TITLES.get(change.region, change.region)}: {change.density:.1f} times as much as an average pixel "
        f"({change.share:.0%} of the change on {change.area:.0%} of the picture)"
        for change in (RegionChange(**region) for region in record["regions"])
    ]
    return render("changes", levels=levels, regions=regions)


def _amount(share: float) -> str:
    if share > 0.999:
        return "the most of all levels"
    return "about as much" if share > 0.8 else "less" if share > 0.4 else "much less"


def retest_html(record: dict[str, Any]) -> str:
    """Return what the detectors that were not attacked say, before and after."""
    rows = [
        (registry.card(name).title, score_cell(scores["original"]), score_cell(scores["counterfactual"]))
        for name, scores in record["retest"].items()
    ]
    caption = f"The search did not look at these detectors. p_fake {SCALE}."
    return render("retest", rows=rows, caption=caption)


def search_settings_line(record: dict[str, Any]) -> str:
    settings = record["settings"]
    text = (
        f"Settings: detector {record['detector']}, generator {record['generator']}, levels {record['level']}, "
        f"{record['steps']} of at most {settings['steps']} steps, epsilon {record['epsilon']:g}{row_range(record)}, "
        f"kappa {settings['kappa']:g}, composite {record['composite']}, {settings.get('refine', 0)} steps for a closer "
        f"reconstruction, seed {settings['seed']}"
    )
    return settings_line(text, record["seconds"], record["versions"])


def row_range(record: dict[str, Any]) -> str:
    """Return the range of step lengths over the rows, where they differ."""
    lengths = record.get("lengths") or [record["epsilon"]]
    low, high = min(lengths), max(lengths)
    return f" ({low:g} to {high:g} in single rows)" if low < high else ""
