"""Step 4 of the explanation tab: one map with its test, or the grid of all maps, in pictures, curves and sentences."""

import base64
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image
from torch import Tensor

from backend import images, provenance
from backend.detectors.base import Detector
from backend.explain import photo, registry
from backend.explain.deletion import Curves
from backend.explain.explanation import ExplainSettings, Explanation, MapComparison, MapFinished
from backend.explain.pairs import PairComparison
from backend.explain.photo import ExplainedPhoto, explanation_files
from backend.explain.segments import places_in_words
from backend.explain.sufficiency import (
    LEAD,
    Sufficiency,
    SufficiencySettings,
    measure_sufficiency,
    sufficiency_settings,
)
from backend.progress import Job, Running, Step, within
from tabs.components import SCALE, enlarge_face, html_table
from tabs.events import QUICK

TESTED_SEGMENTS = 3  # segments of the test that a comparison shows


class MapWithTest(NamedTuple):
    """One map of a comparison.

    Args:
        explanation: The map.
        sufficiency: How far p_fake falls where it points; None for a map that was not tested.
        random: How far it falls in random places of the same size; None likewise.
    """

    explanation: Explanation
    sufficiency: float | None
    random: float | None


def to_tested_map(step: Step, explanation: Explanation) -> MapWithTest:
    """Return the map that a step of a comparison finished, with what the step's values say of its test."""
    return MapWithTest(explanation, step.values.get("sufficiency"), step.values.get("random"))


def quick_test_settings(seed: int) -> SufficiencySettings:
    """Return the one test of every map of a comparison; eleven slow ones would take minutes."""
    return sufficiency_settings(seed, shortcut=True, tops=(TESTED_SEGMENTS,), draws=1)


def compare_with_tests(
    compare: Callable[[Tensor, Detector, ExplainSettings], Job[MapComparison]],
    crop: Tensor,
    detector: Detector,
    settings: ExplainSettings,
) -> Job[MapComparison]:
    """Pass on the steps of a comparison, with the sufficiency of every finished map in the step's values."""
    test = quick_test_settings(settings.seed)
    with Running(compare(crop, detector, settings)) as running:
        for step in running:
            made = step.explanation if isinstance(step, MapFinished) else None
            if made is not None and made.settings.towards == "fake" and made.explains_verdict and not made.degenerate:
                testing = measure_sufficiency(crop, detector, made.saliency, made.labels, test)
                proof = yield from within(testing, step.number, step.total)
                values = {"sufficiency": float(proof.sufficiency[0]), "random": float(proof.random_mean[0])}
                yield replace(step, values=values)
            else:
                yield step
    return running.result


MAP_DOUBTS = (
    "**How could this be wrong?** A map shows what changes *this detector's* answer, which need not be what is fake. "
    "Another method, another fill for the hidden parts or another seed may point elsewhere; compare them. Where the "
    "test makes the score fall no further than random places do, do not believe the map."
)

PAIR_DOUBTS = (
    "<strong>How could this be wrong?</strong> This is one face and one fake, and the attack saw the detector's "
    "gradients. Where the two photos are not in the same position, the places do not match. The protocol “Maps of "
    "real photos, tested on their fakes” under Evaluate measures many pairs."
)

UNTESTED = (
    "This map was not put to the test: that was not asked for under More options, or the map explains another verdict "
    "than the detector gave."
)

QUICK_AND_FULL = (
    "Quick asks about a quarter as many pictures. On three fakes it ranked the segments nearly as the full count does: "
    "rank correlations of 0.78 (LIME) to 0.94 (RISE)."  # benchmarks/maps.py; all of them stand in the model card
)

USUAL_FILL = (
    "LIME, SHAP, SOBOL and RISE explain only the verdict that a detector gave, and “real” with their usual fill."
)


def method_in_words(method: str, seconds: float | None, every: float | None) -> str:
    """Say what a method does, and how long it and all methods take here, with their tests, where that is known."""
    one = registry.get_method(method)
    said = f"**{one.title}.** {one.about}"
    if seconds is None or every is None:
        return said
    return (
        f"{said} About {_seconds(seconds)} on this machine; a comparison of all methods takes about {_seconds(every)}."
    )


def _seconds(seconds: float) -> str:
    if seconds >= 120:
        return f"{round(seconds / 60)} minutes"
    return "1 second" if seconds < 1.5 else f"{round(seconds)} seconds"


def map_in_words(made: ExplainedPhoto) -> str:
    """Say in a few sentences where the detector looked, and whether the test supports the map."""
    explanation = made.explanation
    parts = [made.facts.summary] if made.facts.summary else []
    parts.append(f"p_fake is {explanation.p_fake:.2f} {SCALE}.")
    if explanation.degenerate:
        parts.append(explanation.reason)
        if not explanation.explains_verdict:
            parts.append("Under More options, the other verdict can be explained.")
    else:
        towards = explanation.settings.towards
        places = places_in_words(made.top, made.parts, numbered=True)
        parts.append(
            f"**By {explanation.title}, these places speak most for “{towards}”: {places}.**"
            if made.top
            else f"No place speaks for “{towards}”; the map shows what speaks against it."
        )
    if explanation.caution:
        parts.append(explanation.caution)
    if made.proof is not None and (lead := made.proof.lead) is not None:
        parts.append(f"The test below {support_in_words(lead)}.")
    return " ".join(parts)


def support_in_words(lead: float) -> str:
    """Say what a test does for its map, by how much further p_fake fell than in random places."""
    if lead <= 0:
        return "does not support the map"
    return "supports the map" if lead >= LEAD else "is too close to tell whether the map is right"


def hidden_parts_in_words(made: ExplainedPhoto) -> str:
    """Say what stood in for hidden parts, and what an attack did to the face for it."""
    explanation = made.explanation
    if not explanation.reference_words:
        return ""
    score = f" Its p_fake is {explanation.p_reference:.2f} {SCALE}." if explanation.p_reference is not None else ""
    parts = [f"Hidden parts showed {explanation.reference_words}.{score}", explanation.attack_words]
    if made.difference is not None:
        parts.append(made.difference.caption)
    return "\n\n".join(part for part in parts if part)


def guess_in_words(made: ExplainedPhoto, guess: str) -> str:
    """Compare the visitor's guess with the strongest segment."""
    if not guess or not made.top:
        return ""
    parts = [part for segment in made.top for part in made.parts[segment]]
    if guess in made.parts[made.top[0]]:
        return f"**You guessed: {guess}.** So says the map: its strongest segment lies there."
    if guess in parts:
        return f"**You guessed: {guess}.** Nearly: one of the three strongest segments lies there, not the strongest."
    return f"**You guessed: {guess}.** The map points elsewhere: {', '.join(dict.fromkeys(parts))}."


def sufficiency_table(proof: Sufficiency | None) -> str:
    """Return the test of a map as a table with its one-paragraph reading."""
    if proof is None:
        return ""
    if proof.already_real:
        return f"<p>{escape(proof.summary)}</p>"
    control = proof.random_mean.tolist() if proof.settings.draws else [float("nan")] * len(proof.settings.tops)
    rows = [
        (
            f"Strongest {top}" if top > 1 else "The strongest",
            _number(after),
            _with_sign(fall),
            _with_sign(random),
        )
        for top, after, fall, random in zip(
            proof.settings.tops, proof.p_after.tolist(), proof.sufficiency.tolist(), control, strict=True
        )
    ]
    caption = (
        f"p_fake was {proof.p_before:.2f}. Only these segments were attacked ({proof.attack}). Sufficiency is how far "
        "p_fake fell: higher is better for the map."
    )
    head = ("Segments", "p_fake after", "Sufficiency", "Random places")
    return html_table(head, rows, caption) + f"<p>{escape(proof.summary)}</p>"


def pair_table(found: PairComparison) -> str:
    """Return how far the fake's score falls for every method, the furthest first, with random places for comparison."""
    said = f"<p>{escape(found.summary)}</p>"
    if not found.done:
        return said
    tops = found.settings.pair.proof.tops
    falls = [(made.method.title, proof.proof.sufficiency.tolist()) for made, proof in found.done if proof is not None]
    falls.append(("Random places", found.random_mean.tolist()))
    falls.sort(key=lambda one: one[1][-1], reverse=True)
    rows = [(title, *map(_with_sign, own)) for title, own in falls]
    rows += [(made.method.title, *["no map"] * len(tops)) for made, proof in found.done if proof is None]
    reasons = sorted({made.reason for made, _ in found.done if made.degenerate})
    caption = (
        f"How far p_fake of the fake falls ({found.p_fake_photo:.2f} before) when only the "
        f"{', '.join(map(str, tops))} segments that speak most for “real” in the real photo are attacked in the fake. "
        "Further is better; a map below the random places is not to be believed here."
    )
    shown = html_table(("Map", *(f"Top {top}" for top in tops)), rows, caption)
    why = "".join(f"<p>{escape(reason)}</p>" for reason in reasons)
    return f'{said}<div class="wide">{shown}</div>{why}<p>{PAIR_DOUBTS}</p>'


def grid_caption(one: MapWithTest, title: str = "") -> str:
    """Name one map of a comparison, with its test; its own title where no other is given."""
    title = title or one.explanation.title
    if one.explanation.degenerate:
        return f"{title}: nothing to show"
    return title if one.sufficiency is None else f"{title} · sufficiency {one.sufficiency:.2f}"


def grid_in_words(done: Sequence[MapWithTest]) -> str:
    """Say which map of a comparison stood the test best, and why some show nothing."""
    tested = sorted(
        ((one.sufficiency, one.explanation.title) for one in done if one.sufficiency is not None), reverse=True
    )
    reasons = " ".join(sorted({one.explanation.reason for one in done if one.explanation.degenerate}))
    if not tested:
        shown = sum(not one.explanation.degenerate for one in done)
        return f"{shown} of {len(done)} maps show something; none was tested. {reasons}".strip()
    best, worst = tested[0], tested[-1]
    random = [one.random for one in done if one.random is not None]
    chance = f", and by {sum(random) / len(random):.2f} on average for random places of the same size" if random else ""
    return (
        f"**{len(tested)} maps were tested** by attacking only their {TESTED_SEGMENTS} strongest segments (PGD). "
        "p_fake fell most "
        f"for {best[1]} ({best[0]:.2f}) and least for {worst[1]} ({worst[0]:.2f}){chance}. *Sufficiency* is this fall: "
        f"higher is better for the map. {reasons}"
    ).strip()


def map_settings_line(record: dict[str, Any]) -> str:
    """Return what is needed to get the same map again."""
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    asked, precision = record["inferences"], record["precision"]
    numbers = f" {precision['dtype']} ({precision['reason'].rstrip('.')});" if precision else ""
    return (
        f"Settings: detector {record['detector']}, method {record['method']}, verdict {record['towards']}, "
        f"reference {record['reference']}, preset {record['preset']}, seed {record['seed']}; {asked['images']} "
        f"pictures in {asked['calls']} calls;{numbers} {record['seconds'] + record['attack_seconds']:.1f} seconds; "
        f"{packages}."
    )


def comparison_settings_line(whole: MapComparison) -> str:
    """Return what is needed to get the same comparison again."""
    chosen, asked = whole.settings, whole.inferences
    attack = f" One adversarial image served all maps. {whole.attacked.summary}" if whole.attacked else ""
    return (
        f"Settings: detector {whole.detector}, verdict {chosen.towards}, preset {chosen.preset}, seed {chosen.seed}; "
        f"{asked.images} pictures in {asked.calls} calls; {whole.seconds:.1f} seconds with the tests.{attack}"
    )


def _number(value: float) -> str:
    return "none" if value != value else f"{value:.2f}"  # noqa: PLR0124 - only a missing value differs from itself


def _with_sign(value: float) -> str:
    return "none" if value != value else f"{value:+.2f}"  # noqa: PLR0124 - as above


def deletion_curves(curves: Curves | None) -> str:
    """Draw the deletion and insertion curves, with their areas and the reason why they mislead."""
    if curves is None:
        return ""
    width, height, left = 320, 120, 26

    def line(values: list[float]) -> str:
        shares = zip(curves.fractions.tolist(), values, strict=True)
        return " ".join(f"{left + (width - left) * x:.1f},{height * (1 - y):.1f}" for x, y in shares)

    name = (
        f"Probability of {curves.predicted} along the map. Deletion, solid, from {float(curves.deletion[0]):.2f} to "
        f"{float(curves.deletion[-1]):.2f}; insertion, dashed, from {float(curves.insertion[0]):.2f} to "
        f"{float(curves.insertion[-1]):.2f}"
    )
    ticks = "".join(f'<text x="0" y="{height * (1 - at) + 4:.0f}">{at:g}</text>' for at in (0, 0.5, 1))
    return (
        f'<svg class="curve" role="img" aria-label="{escape(name)}" viewBox="0 -10 {width} {height + 36}">{ticks}'
        f'<polyline points="{line(curves.deletion.tolist())}"></polyline>'
        f'<polyline points="{line(curves.insertion.tolist())}" style="stroke:#b45309;stroke-dasharray:6 4"></polyline>'
        f'<text x="{left}" y="{height + 20}">0 %</text>'
        f'<text x="{width}" y="{height + 20}" text-anchor="end">100 % of the picture</text></svg>'
        f"<p>The probability of “{curves.predicted}”. Solid, blue: the map's highest pixels are taken away first. "
        f"Dashed, orange: they are put in first.</p><p>{escape(curves.summary)}</p>"
    )


def scale_html(*, signed: bool, low: str, high: str, middle: str = "") -> str:
    """Draw the scale of a map from left to right, with what its ends mean."""
    bar = base64.b64encode(images.encode_png(photo.draw_scale(signed=signed))).decode()
    ends = "".join(f"<span>{escape(end)}</span>" for end in (low, middle, high))
    return (
        f'<div style="max-width:420px"><img src="data:image/png;base64,{bar}" alt="" style="width:100%;height:12px">'
        f'<div class="note" style="display:flex;justify-content:space-between;gap:8px">{ends}</div></div>'
    )


def map_scale_html(made: Explanation) -> str:
    """Draw the scale of one map, with the numbers at its ends."""
    low, high = float(made.saliency.min()), float(made.saliency.max())
    if not made.signed:
        return scale_html(signed=False, low=f"least: {low:.2g}", high=f"largest: {high:.2g}")
    largest = max(abs(low), abs(high))
    towards = made.settings.towards
    other = "real" if towards == "fake" else "fake"
    return scale_html(
        signed=True, low=f"for {other}: -{largest:.2g}", middle="for neither: 0", high=f"for {towards}: {largest:.2g}"
    )


def grid_scales_html(towards: str) -> str:
    """Draw the two scales of a comparison."""
    other = "real" if towards == "fake" else "fake"
    signed = scale_html(signed=True, low=f"for {other}", middle="for neither", high=f"for {towards}")
    return (
        f"<p>LIME and SHAP, which know both directions:</p>{signed}"
        f"<p>All others:</p>{scale_html(signed=False, low='least', high='largest of the map')}"
    )


Updates = dict[Any, Any]

Done = Sequence[MapWithTest]

DOWNLOAD_ONE, DOWNLOAD_ALL = "Download the map, pictures and numbers (zip)", "Download all maps and numbers (zip)"


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
            self.doubts = gr.Markdown(MAP_DOUBTS)
            self.settings = gr.Markdown(elem_classes="note")
            self.download = gr.DownloadButton(DOWNLOAD_ONE, value=None)

    def _lay_out_map(self) -> None:
        with gr.Row():
            with gr.Column(min_width=220):
                self.face = _map_picture("The face")
            with gr.Column(min_width=220):
                self.map = _map_picture("The map")
                self.scale = gr.HTML()
            with gr.Column(min_width=220):
                self.overlay = _map_picture("Both, the strongest segments outlined")
                self.opacity = gr.Slider(0, 100, 60, step=5, label="How opaque the map is, in percent")
        with gr.Column(visible=False) as self.hidden:
            gr.Markdown("### What hidden parts showed")
            with gr.Row():
                with gr.Column(min_width=220):
                    self.reference = _map_picture("The reference")
                with gr.Column(min_width=220):
                    self.difference = _map_picture("What the attack changed, amplified")
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
            _redraw_overlay,
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
        file.write_bytes(_zip_map(made, record))
        shows = not explanation.degenerate
        updates: Updates = {
            self.made: made,
            self.all: gr.Column(visible=True),
            self.one: gr.Column(visible=shows),
            self.grid: gr.Gallery(visible=False),
            self.scales: gr.HTML(visible=False),
            self.summary: map_in_words(made),
            self.guessed: guess_in_words(made, guess),
            self.settings: map_settings_line(record),
            self.download: gr.DownloadButton(DOWNLOAD_ONE, value=str(file), visible=True),
        }
        if not shows:
            return updates
        drawn = made.drawings()
        shown = {name: provenance.marked_image(enlarge_face(picture), record) for name, picture in drawn.items()}
        return updates | {
            self.face: enlarge_face(made.aligned.crop),
            self.map: shown["map_picture"],
            self.overlay: shown["overlay"],
            self.opacity: 60,
            self.scale: map_scale_html(explanation),
            self.proof: sufficiency_table(made.proof) or f"<p>{UNTESTED}</p>",
            self.followed: gr.Column(visible=made.curves is not None),
            self.curves: deletion_curves(made.curves),
            self.hidden: gr.Column(visible="reference" in drawn),
            self.reference: shown.get("reference"),
            self.difference: gr.Image(shown.get("difference"), visible="difference" in drawn),
            self.attack: hidden_parts_in_words(made),
        }

    def show_grid(self, crop: np.ndarray, done: Done) -> Updates:
        """Return the updates that show the maps finished so far."""
        face = enlarge_face(crop)
        shown = [
            (
                provenance.marked_image(photo.overlay_map(face, one.explanation), one.explanation.record()),
                grid_caption(one),
            )
            for one in done
        ]
        return {
            self.all: gr.Column(visible=True),
            self.one: gr.Column(visible=False),
            self.grid: gr.Gallery(shown, visible=True),
            self.scales: gr.HTML(grid_scales_html(done[0].explanation.settings.towards), visible=True),
            self.summary: f"{len(done)} maps so far.",
            self.guessed: "",
            self.settings: "",
            self.download: gr.DownloadButton(visible=False),
        }

    def finish_grid(self, crop: np.ndarray, whole: MapComparison, done: Done, folder: Path) -> Updates:
        """Return the updates that end a comparison, and write its download to `folder`."""
        file = folder / "comparison.zip"
        file.write_bytes(_zip_grid(crop, done))
        return {
            self.made: None,
            self.summary: grid_in_words(done),
            self.settings: comparison_settings_line(whole),
            self.download: gr.DownloadButton(DOWNLOAD_ALL, value=str(file), visible=True),
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


def _map_picture(label: str) -> gr.Image:
    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_classes="face",
        alt_text=f"{label}; the text beside it describes it",
    )


def _redraw_overlay(made: ExplainedPhoto | None, opacity: float) -> Image.Image | None:
    """Return the map over the face at another opacity."""
    if made is None:
        return None
    laid = photo.overlay_map(enlarge_face(made.aligned.crop), made.explanation, opacity / 100)
    return provenance.marked_image(photo.outline_segments(laid, made.explanation.labels, made.top), made.record())


def _zip_map(made: ExplainedPhoto, record: dict[str, Any]) -> bytes:
    """Return a zip file with the map, its pictures and the record."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("record.json", json.dumps(record, indent=1))
        for name, content in explanation_files(made, record).items():
            packed.writestr(name, content)
    return buffer.getvalue()


def _zip_grid(crop: np.ndarray, done: Done) -> bytes:
    """Return a zip file with every map of a comparison, as numbers and as a marked picture."""
    buffer = io.BytesIO()
    face = enlarge_face(crop)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("crop.png", images.encode_png(crop))
        records = []
        for made, fall, random in done:
            name = made.title.lower().replace(", ", "-").replace(" ", "-")
            saved = io.BytesIO()
            np.save(saved, made.saliency.numpy())
            packed.writestr(f"{name}.npy", saved.getvalue())
            record = made.record() | {"sufficiency": fall, "random": random}
            packed.writestr(f"{name}.png", provenance.marked_png(photo.overlay_map(face, made), record))
            records.append(record)
        packed.writestr("record.json", json.dumps(records, indent=1))
    return buffer.getvalue()
