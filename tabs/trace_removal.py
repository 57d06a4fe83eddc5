"""The tab that removes the traces of forgery from a fake, and shows what is left of the detectors' verdicts."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from backend import provenance
from backend.detectors import registry
from backend.detectors.base import SCALE
from backend.detectors.predict import JudgedFace
from backend.detectors.rates import describe_rates
from backend.examples import Example
from backend.trace_removal.removal import STRONGEST_STRENGTH, WEAKEST_STRENGTH
from tabs.components import (
    SIGN_KEY,
    BeforeAfter,
    JobControls,
    Jobs,
    Updates,
    captioned_picture,
    enlarge_face,
    fit_to_page,
    html_table,
    maps_grid,
    result_picture,
    score_cell,
    settings_line,
)
from tabs.photo import ChosenPhoto, PhotoStep, chosen_face
from tabs.visitors import CallLimit, session_folder

if TYPE_CHECKING:
    from backend.trace_removal.comparison import AttackComparison
    from backend.trace_removal.removal import RemovalBundle


REMOVAL_DOUBTS = (
    "**How could this be wrong?** TR-Net is small and was trained on a few thousand pairs; a larger one may turn more "
    "verdicts. A detector that keeps its verdict may rely on the content of the picture, or on a trace that TR-Net "
    "does not know. Saving the picture again brings some traces back and destroys others. A turned verdict says that "
    "the detector is fragile, and nothing about the photo itself."
)
VIEWS = ("spectrum", "power", "noise", "attention")


class TraceRemovalResult:
    def __init__(self) -> None:
        with gr.Column(visible=False) as self.all:
            gr.Markdown("## 4 What is left of the verdicts")
            self.summary = gr.Markdown(elem_classes="status")
            with gr.Column(visible=False) as self.removal_column:
                self._lay_out_removal()
            with gr.Column(visible=False) as self.comparison_column:
                self.attacks = maps_grid("The face after every attack")
                self.comparison = gr.HTML()
            gr.Markdown(REMOVAL_DOUBTS)
            self.settings = gr.Markdown(elem_classes="note")
            self.download = gr.DownloadButton("Download the pictures and numbers (zip)", value=None, visible=False)

    def _lay_out_removal(self) -> None:
        with gr.Row():
            with gr.Column(min_width=280):
                self.slider = BeforeAfter("Left: before. Right: without traces", 400)
            self.difference, self.gain = captioned_picture(
                "What was changed, amplified",
                280,
                "The signed difference of the two faces; the text below says how far it is amplified",
            )
        gr.Markdown("### What every detector says")
        self.verdicts = gr.HTML()
        gr.Markdown("### The traces, before and after")
        self.missing = gr.Markdown(visible=False)
        self.views: dict[str, tuple[gr.Image, gr.Markdown]] = {}
        with gr.Row(elem_classes="views"):
            for name in VIEWS:
                alt_text = f"{name.capitalize()} before and after; the sentence below says what to look for"
                self.views[name] = captioned_picture(name.capitalize(), 320, alt_text, elem_classes="whole")
        gr.Markdown("### What saving again does")
        self.resaves = gr.HTML()
        gr.Markdown("### Put back into the photo")
        self.photo = result_picture(
            "The whole photo",
            "The whole photo with the changed face; the summary above says what the detectors say of it",
            elem_classes="whole",
        )

    def show(self, bundle: "RemovalBundle", folder: Path) -> Updates:
        """Return the updates that show a removal, and write its download to `folder`."""
        record, pictures = bundle.record, bundle.pictures()
        file = folder / "trace-removal.zip"
        file.write_bytes(bundle.zip())
        views = {view["name"]: view for view in record["views"]}
        updates: Updates = {
            self.all: gr.Column(visible=True),
            self.removal_column: gr.Column(visible=True),
            self.comparison_column: gr.Column(visible=False),
            self.summary: record["summary"],
            **self.slider.show(
                enlarge_face(pictures["crop"]), provenance.marked_image(enlarge_face(pictures["removed"]), record)
            ),
            self.difference: provenance.marked_image(enlarge_face(pictures["difference"]), record),
            self.gain: bundle.difference().caption,
            self.verdicts: verdict_table(record),
            self.missing: gr.Markdown(record["views_note"], visible=bool(record["views_note"])),
            self.resaves: resave_table(record),
            self.photo: provenance.marked_image(fit_to_page(pictures["photo"]), record),
            self.settings: removal_settings_line(record),
            self.download: gr.DownloadButton(value=str(file), visible=True),
        }
        for name, (picture, sentence) in self.views.items():
            if name in views:
                value = provenance.marked_image(pictures[name], record)
                updates[picture] = gr.Image(value, label=views[name]["title"], visible=True)
                updates[sentence] = views[name]["sentence"]
            else:
                updates |= {picture: gr.Image(None, visible=False), sentence: ""}
        return updates

    def show_comparison(self, comparison: "AttackComparison") -> Updates:
        faces: list[tuple[Any, str]] = [(enlarge_face(comparison.original), "The face itself")]
        faces += [
            (provenance.marked_image(enlarge_face(attacked.picture), attacked.record()), attacked.title)
            for attacked in comparison.attacks
        ]
        return {
            self.all: gr.Column(visible=True),
            self.removal_column: gr.Column(visible=False),
            self.comparison_column: gr.Column(visible=True),
            self.summary: "The same face after every attack. Look at the faces, then read what the detectors say.",
            self.attacks: faces,
            self.comparison: attacks_table(comparison),
            self.settings: "Defaults of every attack, seed 0; TR-Net at the strength of the slider.",
            self.download: gr.DownloadButton(visible=False),
        }

    def hide(self) -> Updates:
        return {self.all: gr.Column(visible=False)}

    def outputs(self) -> list[Any]:
        removal = [*self.slider.outputs(), self.difference, self.gain, self.verdicts, self.missing, self.resaves]
        views = [component for pair in self.views.values() for component in pair]
        comparison = [self.comparison_column, self.attacks, self.comparison]
        rest = [self.photo, self.settings, self.download]
        return [self.all, self.removal_column, self.summary, *removal, *views, *comparison, *rest]


HEADLINE = (
    "**How much of a verdict hangs on traces that nobody sees?** Every way of making a fake leaves traces in the "
    "pixels, in the spectrum and in the noise. A network (TR-Net) was trained to remove all three and has never seen "
    "the detectors below. If they change their minds although the face is the same, they looked at the traces."
)
WAITING = "*First choose a photo with a face, in step 1 above. A fake is the interesting case.*"
RULES = (
    "One face at a time, and every picture that leaves this page is marked. This shows how far detectors can be "
    "trusted; it is not a tool for hiding forgeries."
)
LIMIT = CallLimit(30, 3600, "Removing traces")


class TraceRemovalTab:
    def __init__(self, photo: PhotoStep) -> None:
        self.photo_step = photo
        gr.Markdown(HEADLINE)
        self.waiting = gr.Markdown(WAITING)
        with gr.Column(visible=False) as self.ask:
            gr.Markdown("## 3 Remove the traces")
            self.remove_button = gr.Button("Remove the traces of this face", variant="primary")
            gr.Markdown(RULES, elem_classes="note")
            with gr.Accordion("More options", open=False):
                self.strength = gr.Slider(
                    WEAKEST_STRENGTH,
                    STRONGEST_STRENGTH,
                    1,
                    step=0.25,
                    label="Strength of TR-Net",
                    info="How large its change is, for both buttons. It was trained for 1; larger changes are visible. "
                    "Evaluate says what each strength leaves of the verdicts.",
                )
                gr.Markdown(
                    "Other attacks on the same face, side by side: noise, three that need a detector's gradients "
                    "(FGSM, MIFGSM and PGD on Xception), GANprintR, and TR-Net."
                )
                self.compare_button = gr.Button("Compare all attacks")
            note = gr.Markdown(elem_classes=["note", "status"])
            self.job = JobControls([self.remove_button, self.compare_button], note, gr.HTML())
        self.result = TraceRemovalResult()
        self._wire()

    def _wire(self) -> None:
        step = self.photo_step
        inputs = [step.chosen, step.faces, step.which, self.strength]
        jobs: Jobs = {self.remove_button: (self._remove, inputs), self.compare_button: (self._compare, inputs)}
        self.running = self.job.wire(jobs, self._job_outputs())

    def _job_outputs(self) -> list[Any]:
        return [*self.job.outputs(), *self.result.outputs()]

    def outputs(self) -> list[Any]:
        return [self.waiting, self.ask, *self._job_outputs()]

    def show_for_face(self, face: JudgedFace | None) -> Updates:
        return {
            self.waiting: gr.Markdown(visible=face is None),
            self.ask: gr.Column(visible=face is not None),
            **self.job.clear(),
            **self.result.hide(),
        }

    def show_example(self, example: Example, request: gr.Request) -> Updates:
        bundle = example.removal()
        if bundle is None:
            return {}
        return {
            self.job.note: f"The stored result for “{example.label}” is below. You can also run it yourself.",
            **self.result.show(bundle, session_folder(request)),
        }

    def _remove(
        self, chosen: ChosenPhoto, faces: list[JudgedFace], number: int | None, strength: float, request: gr.Request
    ) -> Iterator[Updates]:
        from backend.trace_removal import removal  # its imports would keep the page waiting

        located = chosen_face(chosen, faces, number)
        removal.require_trnet()
        LIMIT.check(request)
        yield {**self.job.busy("Cutting out the face."), **self.result.hide()}
        bundle = yield from self.job.watch(removal.run_removal(located, strength=strength))
        yield {**self.job.clear(), **self.result.show(bundle, session_folder(request))}

    def _compare(
        self, chosen: ChosenPhoto, faces: list[JudgedFace], number: int | None, strength: float, request: gr.Request
    ) -> Iterator[Updates]:
        from backend.trace_removal.comparison import compare_attacks

        located = chosen_face(chosen, faces, number)
        LIMIT.check(request)
        yield {**self.job.busy("Cutting out the face."), **self.result.hide()}
        comparison = yield from self.job.watch(compare_attacks(located, strength=strength))
        yield {**self.job.clear(), **self.result.show_comparison(comparison)}


def verdict_table(record: dict[str, Any]) -> str:
    """Return what every detector says before and after, and how often it is wrong."""
    rows = [
        (card.title, score_cell(scores["original"]), score_cell(scores["removed"]), describe_rates(card.name))
        for card, scores in ((registry.card(name), scores) for name, scores in record["p_fake"].items())
    ]
    caption = f"None of these detectors took part in training TR-Net. p_fake {SCALE}."
    return html_table(("Detector", "Before", "After", "How often it is wrong"), rows, caption, scroll="wide stacked")


def resave_table(record: dict[str, Any]) -> str:
    """Return what the detectors say of the changed face after it is saved again."""
    from backend.trace_removal.removal import RESAVE_KINDS

    resaves = record["resaves"]
    rows = []
    for name, scores in record["p_fake"].items():
        resaved = (_short_cell(resave[name]["removed"]) for resave in resaves.values())
        rows.append((registry.card(name).title, _short_cell(scores["removed"]), *resaved))
    head = ("Detector", "Not saved again", *(RESAVE_KINDS[kind][0] for kind in resaves))
    caption = f"p_fake of the face without traces, saved again. {SIGN_KEY}"
    return html_table(head, rows, caption, scroll="wide", below=[record["resaves_summary"]])


def removal_settings_line(record: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
    return settings_line(f"Settings of TR-Net: {settings}", record["seconds"], record["versions"])


def attacks_table(comparison: "AttackComparison") -> str:
    """Return every attack, with the likeness and the verdicts after it."""
    names = list(comparison.p_fake)
    rows = [("The face itself", "", *(_short_cell(comparison.p_fake[name]) for name in names))]
    for attacked in comparison.attacks:
        scores = (_short_cell(attacked.p_fake[name]) for name in names)
        rows.append((attacked.title, _likeness(attacked.psnr, attacked.ssim), *scores))
    head = ("Attack", "Likeness", *(registry.card(name).title for name in names))
    caption = (
        f"p_fake after every attack. {SIGN_KEY} Likeness: PSNR and SSIM (1 = the same). FGSM, MIFGSM and PGD know "
        "Xception's gradients; the others know no detector."
    )
    below = [f"Not installed, so not run: {', '.join(comparison.missing)}."] if comparison.missing else []
    return html_table(head, rows, caption, scroll="wide", below=below)


def _likeness(psnr: float | None, ssim: float | None) -> str:
    return "equal" if psnr is None or ssim is None else f"{psnr:.1f} dB, {ssim:.3f}"


def _short_cell(score: float) -> str:
    return score_cell(score, word=False)
