"""Step 4 of the explanation tab: one map with its test, or the grid of all maps, in pictures, curves and sentences."""

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from backend import images, provenance
from backend.detectors.base import ANSWER_WORDS, DIRECTION_WORDS, SCALE
from backend.explain import photo
from backend.explain.base import EXPLAINERS
from backend.explain.deletion import Curves
from backend.explain.explanation import Explanation, MapComparison
from backend.explain.pairs import PairComparison
from backend.explain.photo import ExplainedPhoto, explanation_files
from backend.explain.segments import places_in_words
from backend.explain.sufficiency import LEAD, TESTED_SEGMENTS, Sufficiency, TestedMap
from backend.markup import join_in_words
from tabs.components import (
    Updates,
    enlarge_face,
    html_table,
    maps_grid,
    paragraphs,
    render,
    result_picture,
    settings_line,
)
from tabs.events import QUICK, duration_in_words

MAP_DOUBTS = (
    "**How could this be wrong?** A map shows what changes *this detector's* answer, which need not be what is fake. "
    "Another method, another fill for the hidden parts or another seed may point elsewhere; compare them. Where the "
    "score falls no further in the test than in random places, do not believe the map."
)
PAIR_DOUBTS = (
    "This is one face and one fake, and the attack saw the detector's gradients. Where the two photos are not in the "
    "same position, the places do not match. The protocol “Maps of real photos, tested on their fakes” under Evaluate "
    "measures many pairs."
)
UNTESTED = (
    "This map was not tested: the test is switched off under More options, or the map explains a verdict that the "
    "detector did not give."
)
QUICK_AND_FULL = (
    "Quick asks about a quarter as many pictures. On three fakes it ranked the segments nearly as the full count does: "
    "rank correlations of 0.78 (LIME) to 0.94 (RISE)."  # benchmarks/maps.py; the model card has all of them
)


def method_titles(*, hiding: bool) -> str:
    """List the methods that hide parts of the face, or the others."""
    return join_in_words([method.title for method in EXPLAINERS.values() if bool(method.references) == hiding])


def method_in_words(method: str, seconds: float | None, every: float | None) -> str:
    """Say what a method does, and how long it and all methods take here with their tests, if that is known."""
    explainer = EXPLAINERS[method]
    about = f"**{explainer.title}.** {explainer.about}"
    if seconds is None or every is None:
        return about
    alone, together = duration_in_words(seconds), duration_in_words(every)
    return f"{about} About {alone} on this machine; a comparison of all methods takes about {together}."


def map_in_words(explained: ExplainedPhoto) -> str:
    """Say in a few sentences where the detector looked and whether the test supports the map."""
    explanation = explained.explanation
    parts = [explained.facts.summary] if explained.facts.summary else []
    parts.append(f"p_fake is {explanation.p_fake:.2f} {SCALE}.")
    if explanation.degenerate:
        parts.append(explanation.reason)
        if not explanation.explains_verdict:
            parts.append("Under More options, the other verdict can be explained.")
    else:
        towards = explanation.settings.towards
        places = places_in_words(explanation.top_segments, explained.parts, numbered=True)
        parts.append(
            f"**By {explanation.title}, these places speak most {DIRECTION_WORDS[towards]}: {places}.**"
            if explanation.top_segments
            else f"No place speaks {DIRECTION_WORDS[towards]}; the map shows what does the opposite."
        )
    if explanation.caution:
        parts.append(explanation.caution)
    if explained.sufficiency is not None and (lead := explained.sufficiency.lead) is not None:
        parts.append(f"The test below {support_in_words(lead)}.")
    return " ".join(parts)


def support_in_words(lead: float) -> str:
    """Say whether a test supports its map; `lead` is how much further p_fake fell than in random places."""
    if lead <= 0:
        return "does not support the map"
    return "supports the map" if lead >= LEAD else "is too close to tell whether the map is right"


def hidden_parts_in_words(explained: ExplainedPhoto) -> str:
    """Say what the hidden parts showed, and what an attack changed in the face for that."""
    explanation = explained.explanation
    if not explanation.reference_words:
        return ""
    score = f" Its p_fake is {explanation.p_reference:.2f} {SCALE}." if explanation.p_reference is not None else ""
    parts = [f"Hidden parts showed {explanation.reference_words}.{score}", explanation.attack_words]
    if explained.difference is not None:
        parts.append(explained.difference.caption)
    return "\n\n".join(part for part in parts if part)


def guess_in_words(explained: ExplainedPhoto, guess: str) -> str:
    top = explained.explanation.top_segments
    if not guess or not top:
        return ""
    parts = [part for segment in top for part in explained.parts[segment]]
    if guess in explained.parts[top[0]]:
        return f"**You guessed: {guess}.** The map agrees: its strongest segment lies there."
    if guess in parts:
        return f"**You guessed: {guess}.** Nearly: one of the three strongest segments lies there, not the strongest."
    return f"**You guessed: {guess}.** The map points elsewhere: {', '.join(dict.fromkeys(parts))}."


def sufficiency_table(sufficiency: Sufficiency | None) -> str:
    """Return the test of a map as a table, with its summary."""
    if sufficiency is None:
        return ""
    if sufficiency.already_real:
        return paragraphs(sufficiency.summary)
    tops = sufficiency.settings.tops
    random = sufficiency.random_mean.tolist() if sufficiency.settings.draws else [math.nan] * len(tops)
    rows = [
        (f"Strongest {top}" if top > 1 else "The strongest", _number(after), _number(fall, "+"), _number(chance, "+"))
        for top, after, fall, chance in zip(
            tops, sufficiency.p_after.tolist(), sufficiency.values.tolist(), random, strict=True
        )
    ]
    caption = (
        f"p_fake was {sufficiency.p_before:.2f}. Only these segments were attacked ({sufficiency.attack}). Sufficiency "
        "is how far p_fake fell: higher is better for the map."
    )
    head = ("Segments", "p_fake after", "Sufficiency", "Random places")
    return html_table(head, rows, caption, below=[sufficiency.summary])


def pair_table(comparison: PairComparison) -> str:
    """Return how far the fake's p_fake falls for every method and for random places, the furthest first."""
    if not comparison.done:
        return paragraphs(comparison.summary)
    tops = comparison.settings.pair.sufficiency.tops
    tested = [
        (explanation.explainer.title, test.sufficiency.values.tolist())
        for explanation, test in comparison.done
        if test is not None
    ]
    tested.append(("Random places", comparison.random_mean.tolist()))
    tested.sort(key=lambda row: row[1][-1], reverse=True)
    rows = [(title, *(_number(fall, "+") for fall in falls)) for title, falls in tested]
    rows += [
        (explanation.explainer.title, *["no map"] * len(tops)) for explanation, test in comparison.done if test is None
    ]
    caption = (
        f"How far p_fake of the fake falls ({comparison.p_fake_photo:.2f} before) when only the "
        f"{', '.join(map(str, tops))} segments that speak most against a forgery in the real photo are attacked in "
        "the fake. Further is better; a map below the random places is not to be believed here."
    )
    return render(
        "pair",
        summary=comparison.summary,
        head=("Map", *(f"Top {top}" for top in tops)),
        rows=rows,
        caption=caption,
        reasons=sorted({explanation.reason for explanation, _ in comparison.done if explanation.degenerate}),
        doubts=PAIR_DOUBTS,
    )


def grid_caption(tested: TestedMap, title: str = "") -> str:
    """Name one map of a comparison, with its test; `title` replaces its own title."""
    title = title or tested.explanation.title
    if tested.explanation.degenerate:
        return f"{title}: nothing to show"
    return title if tested.sufficiency is None else f"{title} · sufficiency {tested.sufficiency:.2f}"


def grid_in_words(done: Sequence[TestedMap]) -> str:
    """Say which map of a comparison did best in the test, and why some show nothing."""
    tested = sorted(
        ((sufficiency, explanation.title) for explanation, sufficiency, _ in done if sufficiency is not None),
        reverse=True,
    )
    reasons = " ".join(sorted({explanation.reason for explanation, _, _ in done if explanation.degenerate}))
    if not tested:
        shown = sum(not explanation.degenerate for explanation, _, _ in done)
        return f"{shown} of {len(done)} maps show something; none was tested. {reasons}".strip()
    best, worst = tested[0], tested[-1]
    random = [fall for _, _, fall in done if fall is not None]
    chance = f", and by {sum(random) / len(random):.2f} on average for random places of the same size" if random else ""
    return (
        f"**{len(tested)} maps were tested** by attacking only their {TESTED_SEGMENTS} strongest segments (PGD). "
        f"p_fake fell most for {best[1]} ({best[0]:.2f}) and least for {worst[1]} ({worst[0]:.2f}){chance}. "
        f"*Sufficiency* is this fall: higher is better for the map. {reasons}"
    ).strip()


def map_settings_line(record: dict[str, Any]) -> str:
    inferences, precision = record["inferences"], record["precision"]
    numbers = f"; {precision['dtype']} ({precision['reason'].rstrip('.')})" if precision else ""
    text = (
        f"Settings: detector {record['detector']}, method {record['method']}, explained: "
        f"{ANSWER_WORDS[record['towards']]}, reference {record['reference']}, preset {record['preset']}, seed "
        f"{record['seed']}; {inferences['images']} pictures in {inferences['calls']} calls{numbers}"
    )
    return settings_line(text, record["seconds"] + record["attack_seconds"], record["versions"])


def comparison_settings_line(comparison: MapComparison) -> str:
    settings, inferences = comparison.settings, comparison.inferences
    attack = f" One adversarial image served all maps. {comparison.attacked.summary}" if comparison.attacked else ""
    return (
        f"Settings: detector {comparison.detector}, explained: {ANSWER_WORDS[settings.towards]}, preset "
        f"{settings.preset}, seed {settings.seed}; {inferences.images} pictures in {inferences.calls} calls; "
        f"{comparison.seconds:.1f} seconds with the tests.{attack}"
    )


def _number(value: float, sign: str = "") -> str:
    return "none" if math.isnan(value) else f"{value:{sign}.2f}"


def deletion_curves(curves: Curves | None) -> str:
    """Draw the deletion and insertion curves, with the areas under them and why they mislead."""
    if curves is None:
        return ""
    shares, deletion, insertion = (part.tolist() for part in (curves.fractions, curves.deletion, curves.insertion))
    return render(
        "curves",
        name=f"Probability of {ANSWER_WORDS[curves.predicted]} along the map. Deletion, solid, from "
        f"{deletion[0]:.2f} to {deletion[-1]:.2f}; insertion, dashed, from {insertion[0]:.2f} to {insertion[-1]:.2f}",
        curves={
            "deletion": [[*zip(shares, deletion, strict=True)]],
            "insertion": [[*zip(shares, insertion, strict=True)]],
        },
        texts=[
            f"The probability of “{ANSWER_WORDS[curves.predicted]}”.",
            "Solid, blue: the map's highest pixels are removed first. Dashed, orange: they are inserted first.",
            curves.summary,
        ],
        threshold=False,
        ends=("0 %", "100 % of the picture"),
    )


def map_scale_html(explanation: Explanation) -> str:
    low, high = float(explanation.saliency.min()), float(explanation.saliency.max())
    if not explanation.signed:
        return render("map_scales", scales=[_scale(f"least: {low:.2g}", f"largest: {high:.2g}")])
    largest, towards = max(abs(low), abs(high)), explanation.settings.towards
    ends = (
        f"{DIRECTION_WORDS[OTHER[towards]]}: -{largest:.2g}",
        "for neither: 0",
        f"{DIRECTION_WORDS[towards]}: {largest:.2g}",
    )
    return render("map_scales", scales=[_scale(*ends, signed=True)])


def grid_scales_html(towards: str) -> str:
    signed = _scale(DIRECTION_WORDS[OTHER[towards]], "for neither", DIRECTION_WORDS[towards], signed=True)
    others = _scale("least", "largest of the map")
    titles = ("LIME and SHAP, which show both directions:", "All others:")
    return render(
        "map_scales", scales=[scale | {"title": title} for scale, title in zip((signed, others), titles, strict=True)]
    )


def _scale(*ends: str, signed: bool = False) -> dict[str, Any]:
    """Return the colours of a map from left to right, as PNG in base64, and what their ends mean."""
    bar = base64.b64encode(images.encode_png(photo.draw_scale(signed=signed))).decode()
    return {"title": "", "bar": bar, "ends": ends}


Done = Sequence[TestedMap]
OTHER = {"fake": "real", "real": "fake"}
DOWNLOAD_ONE, DOWNLOAD_ALL = "Download the map, pictures and numbers (zip)", "Download all maps and numbers (zip)"


class ExplainResult:
    def __init__(self) -> None:
        self.state = gr.State(None)
        with gr.Column(visible=False) as self.all:
            gr.Markdown("## 4 Where it looked")
            self.summary = gr.Markdown(elem_classes="status")
            self.guess_text = gr.Markdown()
            with gr.Column(visible=False) as self.map_column:
                self._lay_out_map()
            self.scales = gr.HTML(visible=False)
            self.grid = maps_grid("All maps", show_label=False, visible=False)
            self.doubts = gr.Markdown(MAP_DOUBTS)
            self.settings = gr.Markdown(elem_classes="note")
            self.download = gr.DownloadButton(DOWNLOAD_ONE, value=None)

    def _lay_out_map(self) -> None:
        with gr.Row():
            with gr.Column(min_width=220):
                self.face = result_picture("The face")
            with gr.Column(min_width=220):
                self.map = result_picture("The map")
                self.scale = gr.HTML()
            with gr.Column(min_width=220):
                self.overlay = result_picture("Both, the strongest segments outlined")
                self.opacity = gr.Slider(0, 100, 60, step=5, label="How opaque the map is, in percent")
        with gr.Column(visible=False) as self.reference_column:
            gr.Markdown("### What hidden parts showed")
            with gr.Row():
                with gr.Column(min_width=220):
                    self.reference = result_picture("The reference")
                with gr.Column(min_width=220):
                    self.difference = result_picture("What the attack changed, amplified")
                with gr.Column(min_width=220):
                    self.attack = gr.Markdown()
        gr.Markdown("### The test")
        with gr.Row():
            with gr.Column(min_width=320):
                self.sufficiency = gr.HTML()
            with gr.Column(min_width=320, visible=False) as self.curves_column:
                gr.Markdown("#### The usual curves, and why they mislead")
                self.curves = gr.HTML()

    def wire(self) -> None:
        self.opacity.input(
            _redraw_overlay, [self.state, self.opacity], self.overlay, trigger_mode="always_last", **QUICK
        )

    def show(self, explained: ExplainedPhoto, guess: str, folder: Path) -> Updates:
        """Return the updates that show one map, and write its download to `folder`."""
        explanation, record = explained.explanation, explained.record()
        file = folder / "explanation.zip"
        file.write_bytes(
            provenance.zip_files({"record.json": json.dumps(record, indent=1), **explanation_files(explained, record)})
        )
        shows = not explanation.degenerate
        updates: Updates = {
            self.state: explained,
            self.all: gr.Column(visible=True),
            self.map_column: gr.Column(visible=shows),
            self.grid: gr.Gallery(visible=False),
            self.scales: gr.HTML(visible=False),
            self.summary: map_in_words(explained),
            self.guess_text: guess_in_words(explained, guess),
            self.settings: map_settings_line(record),
            self.download: gr.DownloadButton(DOWNLOAD_ONE, value=str(file), visible=True),
        }
        if not shows:
            return updates
        drawings = explained.drawings()
        shown = {name: provenance.marked_image(enlarge_face(picture), record) for name, picture in drawings.items()}
        return updates | {
            self.face: enlarge_face(explained.aligned.crop),
            self.map: shown["map_picture"],
            self.overlay: shown["overlay"],
            self.opacity: 60,
            self.scale: map_scale_html(explanation),
            self.sufficiency: sufficiency_table(explained.sufficiency) or paragraphs(UNTESTED),
            self.curves_column: gr.Column(visible=explained.curves is not None),
            self.curves: deletion_curves(explained.curves),
            self.reference_column: gr.Column(visible="reference" in drawings),
            self.reference: shown.get("reference"),
            self.difference: gr.Image(shown.get("difference"), visible="difference" in drawings),
            self.attack: hidden_parts_in_words(explained),
        }

    def show_grid(self, crop: np.ndarray, done: Done) -> Updates:
        face = enlarge_face(crop)
        pictures = [
            provenance.marked_image(photo.overlay_map(face, explanation), explanation.record())
            for explanation, _, _ in done
        ]
        shown = list(zip(pictures, map(grid_caption, done), strict=True))
        return {
            self.all: gr.Column(visible=True),
            self.map_column: gr.Column(visible=False),
            self.grid: gr.Gallery(shown, visible=True),
            self.scales: gr.HTML(grid_scales_html(done[0].explanation.settings.towards), visible=True),
            self.summary: f"{len(done)} maps so far.",
            self.guess_text: "",
            self.settings: "",
            self.download: gr.DownloadButton(visible=False),
        }

    def finish_grid(self, crop: np.ndarray, comparison: MapComparison, done: Done, folder: Path) -> Updates:
        """Return the updates that end a comparison, and write its download to `folder`."""
        file = folder / "comparison.zip"
        file.write_bytes(_zip_grid(crop, done))
        return {
            self.state: None,
            self.summary: grid_in_words(done),
            self.settings: comparison_settings_line(comparison),
            self.download: gr.DownloadButton(DOWNLOAD_ALL, value=str(file), visible=True),
        }

    def hide(self) -> Updates:
        return {self.all: gr.Column(visible=False), self.state: None}

    def outputs(self) -> list[Any]:
        shown = [self.face, self.map, self.scale, self.overlay, self.opacity, self.sufficiency, self.curves]
        columns = [self.all, self.map_column, self.curves_column, self.reference_column]
        texts = [self.summary, self.guess_text, self.attack, self.scales, self.settings]
        return [self.state, *columns, *shown, *texts, self.reference, self.difference, self.grid, self.download]


def _redraw_overlay(explained: ExplainedPhoto | None, opacity: float) -> Image.Image | None:
    if explained is None:
        return None
    overlay = photo.overlay_map(enlarge_face(explained.aligned.crop), explained.explanation, opacity / 100)
    return provenance.marked_image(
        photo.outline_segments(overlay, explained.explanation.labels, explained.explanation.top_segments),
        explained.record(),
    )


def _zip_grid(crop: np.ndarray, done: Done) -> bytes:
    face = enlarge_face(crop)
    files: dict[str, bytes | str] = {"crop.png": images.encode_png(crop)}
    records = []
    for explanation, sufficiency, random in done:
        name = explanation.title.lower().replace(", ", "-").replace(" ", "-")
        saliency = io.BytesIO()
        np.save(saliency, explanation.saliency.numpy())
        record = explanation.record() | {"sufficiency": sufficiency, "random": random}
        files[f"{name}.npy"] = saliency.getvalue()
        files[f"{name}.png"] = provenance.marked_png(photo.overlay_map(face, explanation), record)
        records.append(record)
    return provenance.zip_files({**files, "record.json": json.dumps(records, indent=1)})
