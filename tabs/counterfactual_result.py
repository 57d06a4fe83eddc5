"""Step 4 of the counterfactual tab: the pictures, numbers and sentences of a result, live or stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from backend import provenance
from backend.counterfactual import changes
from backend.counterfactual.changes import RegionChange
from backend.counterfactual.photo import CAM_MAPS, CounterfactualBundle
from backend.counterfactual.search import LEVEL_WORDS
from backend.detectors import registry
from backend.detectors.base import verdict
from backend.detectors.predict import describe_p_fake, format_p_fake
from tabs.components import fit_to_page, html_list, html_table
from tabs.events import QUICK

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

Updates = dict[Any, Any]

DOUBTS = (
    "**How could this be wrong?** The search may change what the detector happens to react to and no person would "
    "notice; that shows a weakness of the detector, not a flaw of the face. Where the reconstruction is poor, the "
    "generator cannot draw this face, and the change says little. Another detector, or other levels, may give another "
    "answer. None of this proves that a photo is real or fake."
)


class CounterfactualResult:
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
            self.crop, self.crop_text = _captioned_picture("The face", 90, bare=True)
            self.inversion, self.inversion_text = _captioned_picture("Reconstruction", 90, bare=True)
            self.counterfactual, self.counterfactual_text = _captioned_picture("Counterfactual", 90, bare=True)
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
                self.residual, self.residual_text = _captioned_picture("Residual map", 200)
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
            self.before, self.before_text = _captioned_picture("Map before", 140)
            self.after, self.after_text = _captioned_picture("Map after", 140)
        gr.Markdown("### Put back into the photo")
        self.pasted, self.pasted_text = _captioned_picture("The whole photo with the changed face", 280, kind="whole")

    def wire(self) -> None:
        """Let the plain slider, which works from the keyboard, move the one in the picture."""
        self.position.input(
            _move_slider, self.position, self.slider, trigger_mode="always_last", api_visibility="private", **QUICK
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
        drawn = bundle.pictures()
        marked = {
            name: provenance.marked_image(picture, bundle.record) for name, picture in drawn.items() if name != "photo"
        }
        texts = result_texts(bundle)
        updates: Updates = {
            self.crop: drawn["crop"],
            self.slider: gr.ImageSlider((drawn["crop"], marked["counterfactual"]), slider_position=50),
            self.position: 50,
            self.pasted: provenance.marked_image(fit_to_page(drawn["photo"]), bundle.record),
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
        """Return the updates that take the result away."""
        return {self.all: gr.Column(visible=False)}

    def outputs(self) -> list[Any]:
        """Return what the methods above may update."""
        texts = [getattr(self, f"{name}_text") for name in (*CAPTIONED, "trio")]
        drawn = [getattr(self, name) for name in CAPTIONED]
        rest = [self.slider, self.position, self.changes, self.retest, self.settings, self.download, self.doubts]
        return [self.all, self.pictures, self.summary, *drawn, *texts, *rest]


CAPTIONED = ("crop", "inversion", "counterfactual", "residual", "before", "after", "pasted")


def _captioned_picture(
    label: str, min_width: int, *, bare: bool = False, kind: str = "face"
) -> tuple[gr.Image, gr.Markdown]:
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


def _move_slider(position: float) -> Any:
    return gr.ImageSlider(slider_position=position)


def result_texts(bundle: CounterfactualBundle) -> dict[str, str]:
    """Return the text below every picture of a result."""
    record = bundle.record
    p_fake, metrics = record["p_fake"], record["metrics"]
    before, after = record["cam_empty"]["original"], record["cam_empty"]["counterfactual"]
    return {
        "crop": f"**The face**<br>{_short_verdict(p_fake['original'])}",
        "inversion": f"**Reconstruction**<br>{_short_verdict(p_fake['inversion'])}",
        "counterfactual": f"**Counterfactual**<br>{_short_verdict(p_fake['counterfactual'])}",
        "trio": f"Left, what the detector saw. In the middle, what the generator makes of it (its inversion): "
        f"{reconstruction_in_words(metrics)} Right, the face after the search. All numbers: 0 = real, 1 = fake.",
        "residual": f"{bundle.residual().caption} "
        f"{changes.regions_in_words([RegionChange(**one) for one in record['regions']])}",
        "before": record.get("cam_missing") or cam_text("the face", empty=before),
        "after": record.get("cam_missing") or cam_text("the counterfactual", empty=after),
        "pasted": pasted_text(record["p_pasted"]),
    }


def reconstruction_in_words(metrics: Mapping[str, float | None]) -> str:
    """Put the quality of a reconstruction into words."""
    psnr, ssim = metrics["psnr_inversion"], metrics["ssim_inversion"]
    if psnr is None or ssim is None:
        return "it equals the face."
    word = next(word for limit, word in QUALITIES if psnr >= limit)
    return f"{word} ({psnr:.1f} dB PSNR, SSIM {ssim:.2f}; 1 = equal)."


def cam_text(what: str, *, empty: bool) -> str:
    """Say what a Grad-CAM map of `what` shows."""
    if empty:
        return f"For {what}, the map is empty: at this layer, nothing in the picture speaks for “fake”."
    return (
        f"For {what}: yellow regions speak most for “fake”, dark blue ones least. Brightness compares within one map."
    )


def pasted_text(p_fake: float | None) -> str:
    """Say what the detector makes of the whole photo with the changed face."""
    if p_fake is None:
        return "In the whole photo, the face is not found again."
    return f"Found and cut out of the whole photo anew: {describe_p_fake(p_fake)}."


def changes_html(record: dict[str, Any]) -> str:
    """Return what changed in the codes and in the face, as lists."""
    moved = record["latent_change"]["levels"]
    most = max(moved.values()) or 1.0
    opened = record["settings"]["levels"]
    codes = [
        f"{level} ({LEVEL_WORDS[level]}): moved by {value:.3f} on average, {_amount(value / most)}"
        if level in opened
        else f"{level} ({LEVEL_WORDS[level]}): kept closed"
        for level, value in moved.items()
    ]
    parts = [
        f"{REGION_TITLES.get(one['region'], one['region'])}: {one['share']:.0%} of the change "
        f"on {one['area']:.0%} of the picture"
        for one in record["regions"]
    ]
    return (
        "<h3>What changed in the latent code</h3><p>The latent code (W+) is the list of styles that the generator "
        f"draws from.</p>{html_list(codes)}<h3>What changed in the face</h3>{html_list(parts)}"
    )


def _amount(share: float) -> str:
    if share > 0.999:
        return "the most of the three"
    return "about as much" if share > 0.8 else "less" if share > 0.4 else "much less"


def retest_html(record: dict[str, Any]) -> str:
    """Return what the detectors say that were not attacked, before and after."""
    title = "<h3>What the other detectors say</h3>"
    if not record["retest"]:
        return f"{title}<p>There is no other detector to ask.</p>"
    rows = [
        (registry.card(name).title, _verdict_cell(one["original"]), _verdict_cell(one["counterfactual"]))
        for name, one in record["retest"].items()
    ]
    caption = "The search did not look at these detectors. p_fake: 0 = real, 1 = fake."
    return title + html_table(("Detector", "Before", "After"), rows, caption)


def _short_verdict(score: float) -> str:
    return describe_p_fake(score).split(" (")[0]


def _verdict_cell(score: float) -> str:
    return f"{format_p_fake(score)} {verdict(score)}"


def search_settings_line(record: dict[str, Any]) -> str:
    """Return everything that is needed to get the same result again."""
    settings, versions = record["settings"], record["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Settings: detector {record['detector']}, generator {record['generator']}, levels {record['level']}, "
        f"{record['steps']} of at most {settings['steps']} steps, epsilon {record['epsilon']:g}{row_range(record)}, "
        f"kappa {settings['kappa']:g}, composite {record['composite']}, {settings.get('refine', 0)} steps for a closer "
        f"reconstruction, seed {settings['seed']}; "
        f"{record['seconds']:.1f} seconds; {packages}."
    )


def row_range(record: dict[str, Any]) -> str:
    """Say that steps differed between rows, where they did."""
    lengths = record.get("lengths") or [record["epsilon"]]
    low, high = min(lengths), max(lengths)
    return f" ({low:g} to {high:g} in single rows)" if low < high else ""
