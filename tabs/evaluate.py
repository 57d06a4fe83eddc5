"""The tab that measures detectors, attacks and explanations: stored results, a small run, and a quiz."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import torch

from backend import images, provenance, runtime
from backend.alignment import locate
from backend.detectors import predict
from backend.detectors import registry as detectors_registry
from backend.detectors.base import THRESHOLD
from backend.errors import UserError
from backend.evaluate import report
from backend.evaluate.archives import Limits
from backend.evaluate.dataset import Dataset, open_data
from backend.progress import Running
from backend.weights import file_hash
from tabs.components import JobControls, Updates, html_table, paragraphs, progress_bar, render, result_picture
from tabs.events import JOB, PRIVATE, QUICK, VERDICT, with_shown_errors
from tabs.visitors import session_folder

if TYPE_CHECKING:
    from backend.evaluate.protocols.base import Protocol


UNPACKING_LIMITS = Limits(files=5_000, total=500_000_000)  # of a visitor's zip: others share the disk
ZIPPED_SUFFIXES = (".csv", ".json", ".html", ".tex", ".png", ".svg")
SAMPLE_FOLDER = "sample"


def visitors_data_folder(session: Path, source: Path | None) -> Path:
    """Return the folder for everything from a visitor's zip, or from the sample set if there is none.

    Files from another zip are deleted: every visitor fills the disk with one zip at most.

    Raises:
        UserError: The zip no longer exists.
    """
    if source and not source.is_file():
        raise UserError("Your zip file was deleted after an hour.", "Choose it again.")
    name = file_hash(source)[:16] if source else SAMPLE_FOLDER
    folder = session / "evaluate" / name
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if source and other.name not in (name, SAMPLE_FOLDER):
            shutil.rmtree(other, ignore_errors=True)
    return folder


def open_visitors_data(folder: Path, source: Path | None) -> Dataset:
    """Return the pictures of a visitor's zip, or of the sample set if there is none.

    Args:
        folder: Where they are unpacked or drawn, once; see `visitors_data_folder`.
        source: The zip.

    Raises:
        UserError: The zip is refused, or has no pictures.
    """
    from backend import samples  # its packages take seconds to import

    return open_data(source or samples.draw_sample_set(folder / SAMPLE_FOLDER), folder, UNPACKING_LIMITS)


def run_folder(folder: Path, protocol: "Protocol") -> Path:
    """Return the folder of a run in `folder`, which is the same for equal protocol, settings and models."""
    models = [protocol.settings(), protocol.hashes(), protocol.measures()]  # a visitor may fetch others in between
    digest = hashlib.sha256(json.dumps(models, sort_keys=True).encode())
    return folder / "runs" / f"{protocol.name}-{digest.hexdigest()[:16]}"


def zip_reports(run: Path) -> Path:
    file = run.with_suffix(".zip")
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and path.suffix in ZIPPED_SUFFIXES]
    file.write_bytes(provenance.zip_files({path.relative_to(run).as_posix(): path.read_bytes() for path in paths}))
    return file


QUIZ_QUESTIONS = 12
ABOUT_QUIZ = (
    "Say of each face whether it is real or fake. At the end, your score is shown beside the detectors' on the same "
    "pictures. The pictures come from your zip file in the previous tab, or from the bundled sample set."
)
Crops = dict[tuple[str, int], np.ndarray]  # of one face, by template and size


@dataclass(frozen=True)
class QuizRound:
    """One quiz: the faces as they are shown, their crops for the detectors, the truth, and the answers so far."""

    faces: list[np.ndarray] = field(default_factory=list)
    crops: list[Crops] = field(default_factory=list)
    fake: list[bool] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return len(self.answers) == len(self.faces)


class Quiz:
    def __init__(self) -> None:
        self.round = gr.State(QuizRound())
        gr.Markdown(ABOUT_QUIZ)
        self.start = gr.Button("Start the quiz", variant="primary")
        with gr.Column(visible=False) as self.question:
            self.count = gr.Markdown()
            alt_text = "A face; say whether it is real or fake"
            self.face = result_picture("Real or fake?", alt_text, buttons=["fullscreen"])
            with gr.Row():
                self.real_button = gr.Button("Real")
                self.fake_button = gr.Button("Fake")
        self.score = gr.HTML()

    def wire(self, data: Any) -> None:
        """Wire the buttons; `data` holds the visitor's zip file."""
        outputs = [self.round, self.question, self.count, self.face, self.score]
        self.start.click(with_shown_errors(self._begin), data, outputs, show_progress_on=[self.start], **JOB, **PRIVATE)
        for button, answer in ((self.real_button, self._answer_real), (self.fake_button, self._answer_fake)):
            button.click(with_shown_errors(answer), self.round, outputs, **QUICK).then(
                with_shown_errors(self._judge, runtime.VERDICT), self.round, self.score, **VERDICT, **PRIVATE
            )

    def _begin(self, path: str | None, request: gr.Request) -> Updates:
        source = Path(path) if path else None
        data = open_visitors_data(visitors_data_folder(session_folder(request), source), source)
        half = QUIZ_QUESTIONS // 2
        selected = data.select(half + max(0, half - len(data.reals)), half, 0)
        forms = list(predict.group_by_crop())
        cuts = [(self._cut(data.path(sample.name), forms), sample.label == "fake") for sample in selected.samples]
        questions = [(*cut, fake) for cut, fake in cuts if cut is not None]
        if len(questions) < 2:
            raise UserError("There are too few faces for a quiz.", "Use a zip file with more pictures.")
        order = np.random.default_rng(len(questions)).permutation(len(questions))
        faces, crops, fake = map(list, zip(*(questions[place] for place in order), strict=True))
        return {self.question: gr.Column(visible=True), self.score: "", **self._ask(QuizRound(faces, crops, fake))}

    def _cut(self, path: Path, forms: list[tuple[str, int]]) -> tuple[np.ndarray, Crops] | None:
        """Return the largest face of a picture as it is shown, and its crops for the detectors."""
        try:
            face = locate(images.read(path))
        except UserError:
            return None
        return predict.embedded_crop(face).aligned.crop, {form: face.aligned(*form).crop for form in forms}

    def _answer_real(self, current: QuizRound) -> Updates:
        return self._answer(current, fake=False)

    def _answer_fake(self, current: QuizRound) -> Updates:
        return self._answer(current, fake=True)

    def _answer(self, current: QuizRound, *, fake: bool) -> Updates:
        if current.over:
            return {self.round: current}
        return self._ask(replace(current, answers=[*current.answers, fake]))

    def _ask(self, current: QuizRound) -> Updates:
        if current.over:
            return {self.round: current, self.question: gr.Column(visible=False), self.score: paragraphs("Counting…")}
        number = len(current.answers)
        return {
            self.round: current,
            self.count: f"Face {number + 1} of {len(current.faces)}",
            self.face: current.faces[number],
        }

    def _judge(self, current: QuizRound) -> Any:
        """Compare the visitor's score with the detectors', once every face has an answer."""
        if not current.faces or not current.over:
            return gr.skip()
        answers = {"You": current.answers}
        for form, names in predict.group_by_crop().items():
            if form not in current.crops[0]:  # a detector that was fetched since the quiz began
                continue
            crops = torch.cat([images.to_tensor(face_crops[form]) for face_crops in current.crops])
            for name, scores in predict.predict_p_fake(crops, names).items():
                answers[detectors_registry.card(name).title] = [score >= THRESHOLD for score in scores]
        rows = [(who, *_count_right(calls, current.fake)) for who, calls in answers.items()]
        rows[1:] = sorted(rows[1:], key=lambda row: -int(row[1].split(" ")[0]))
        head = ("Who", "Right", "Fakes found", "Real faces wrongly called fake")
        few = f"With only {len(current.faces)} faces, one answer more or less means little."
        return html_table(head, rows, f"You and the detectors on the same faces. {few}")


def _count_right(calls: list[bool], fake: list[bool]) -> tuple[str, str, str]:
    """Return the numbers of right answers, of fakes found and of false alarms; `calls` are True for fake."""
    right = sum(called == truth for called, truth in zip(calls, fake, strict=True))
    hits = sum(called and truth for called, truth in zip(calls, fake, strict=True))
    return f"{right} of {len(fake)}", f"{hits} of {sum(fake)}", f"{sum(calls) - hits} of {len(fake) - sum(fake)}"


HEADLINE = (
    "**How far can any of this be trusted?** The same questions as in the other tabs, asked of many pictures and "
    "counted: how often detectors are wrong, whether attacks also work on other detectors, and whether maps mark the "
    "right places."
)
NOTHING_STORED = f"*No results are stored here. Make them with* `{report.STORED_COMMAND}`."
ABOUT_OWN_PICTURES = (
    "A zip file with the folders `real/` and `fake/`; pictures with equal names are pairs, and subfolders of `fake/` "
    "are families. Only use pictures that you may use. The files of a run are deleted when you leave, or after an "
    "hour without activity, and your zip file itself after about an hour. On the command line (`python -m backend "
    "evaluate`), runs are kept and can be resumed."
)
ABOUT_SAMPLE = "Fakes drawn by this project's own models, and two public portraits: too few to draw conclusions from."
FIRST = ("Detectors", "detectors")  # the others are listed when the tab is opened; their imports take seconds
PRESET, SMALL = "quick", 12  # most fakes and most real pictures of that preset; some protocols take no real ones
STOPPED = "**Stopped.** Start again with the same pictures to continue where it stopped."


class EvaluateTab:
    def __init__(self) -> None:
        gr.Markdown(HEADLINE)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Stored results"):
                self._lay_out_stored()
            with gr.Tab("Your own pictures") as self.own_tab:
                self._lay_out_run()
            with gr.Tab("You against the detectors"):
                self.quiz = Quiz()
        self._wire()

    def _lay_out_stored(self) -> None:
        """Show all main findings, and the tables and plots of a chosen one."""
        results = report.stored_results()
        if results:
            gr.HTML(render("findings", results=results))
        else:
            gr.Markdown(NOTHING_STORED)
        self.which = gr.Radio(
            [(result.title, result.name) for result in results],
            value=None,
            label="Show tables and plots of",
            visible=bool(results),
        )
        self.report = gr.HTML(elem_classes="report")
        self.page = gr.DownloadButton("Download as one page (HTML)", value=None, visible=False)

    def _lay_out_run(self) -> None:
        gr.Markdown(ABOUT_OWN_PICTURES)
        with gr.Row():
            self.data = gr.File(label="Your zip file", file_types=[".zip"], type="filepath", height=140)
            with gr.Column():
                self.protocol = gr.Dropdown([FIRST], value=FIRST[1], label="Which protocol?", filterable=False)
                self.use_sample = gr.Checkbox(
                    value=False, label="Use the bundled sample set instead", info=ABOUT_SAMPLE
                )
        with gr.Row():
            self.start = gr.Button(
                f"Run it on up to {SMALL} fakes and {SMALL} real pictures", variant="primary", scale=3
            )
            stop = gr.Button("Stop", interactive=False, scale=1)
        note = gr.Markdown(elem_classes=["note", "status"])
        self.job = JobControls([self.start], note, gr.HTML(), stop, stopped=STOPPED)
        self.own_report = gr.HTML(elem_classes="report")
        self.download = gr.DownloadButton("Download tables, plots and page (zip)", value=None, visible=False)

    def _wire(self) -> None:
        self.which.change(with_shown_errors(_show_stored), self.which, [self.report, self.page], **QUICK)
        self.own_tab.select(with_shown_errors(_list_protocols), None, self.protocol, **QUICK)
        inputs = [self.data, self.protocol, self.use_sample]
        outputs = [*self.job.outputs(), self.own_report, self.download]
        runs: list[Any] = self.job.wire({self.start: (self._run, inputs)}, outputs, minutes=[self.start])
        # Other pictures take the report away.
        changes = [self.data.upload, self.data.clear, self.use_sample.input]
        gr.on(changes, self._clear, None, outputs, cancels=runs, **QUICK)
        self.quiz.wire(self.data)

    def _clear(self) -> Updates:
        return {**self.job.clear(), self.own_report: "", self.download: gr.DownloadButton(visible=False)}

    def _run(self, path: str | None, protocol: str, use_sample: Any, request: gr.Request) -> Iterator[Updates]:
        from backend.evaluate import runs
        from backend.evaluate.protocols.base import PROTOCOLS, configure_protocol

        if path is None and not use_sample:
            raise UserError("There are no pictures yet.", "Choose a zip file, or tick the bundled sample set.")
        yield {**self._clear(), **self.job.busy("Reading the pictures.")}
        source = None if use_sample else Path(str(path))
        chosen = configure_protocol(PROTOCOLS.find(protocol), PRESET, {})
        folder = visitors_data_folder(session_folder(request), source)
        out, data = run_folder(folder, chosen), open_visitors_data(folder, source)
        with Running(runs.run_protocol(chosen, data, out, resume=True)) as running:
            for step in running:
                session_folder(request)  # a long run counts as activity: its files stay
                yield {self.job.progress: progress_bar(step)}
        data_option = "--data ZIP" if source else "--sample"
        command = f"python -m backend evaluate {protocol} {data_option} --out DIR --preset {PRESET}"
        report.write_report(running.result, out, command)
        yield {
            **self.job.clear(),
            self.own_report: report.report_article(running.result, command, folded=True),
            self.download: gr.DownloadButton(value=str(zip_reports(out)), visible=True),
        }


def _list_protocols() -> Any:
    from backend.evaluate.protocols.base import PROTOCOLS

    return gr.Dropdown([(protocol.title, name) for name, protocol in PROTOCOLS.items()])


def _show_stored(name: str | None, request: gr.Request) -> tuple[str, Any]:
    if name not in {result.name for result in report.stored_results()}:
        return "", gr.DownloadButton(visible=False)
    evaluation, command = report.load_report(report.RESULTS_FOLDER / str(name))
    folder = session_folder(request) / "stored" / str(name)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / report.HTML_FILE
    page.write_text(report.report_page(evaluation, command), encoding="utf-8")
    article = report.report_article(evaluation, command, folded=True)
    if changed := report.changed_weights(evaluation):
        article = render("outdated", names=changed) + article
    return article, gr.DownloadButton(value=str(page), visible=True)
