"""The tab that shows how good detectors, attacks and explanations are: stored results, a small run, and a quiz."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from backend.errors import UserError
from backend.evaluate import stored
from backend.progress import Running, Step
from tabs.common import QUICK, answered, at_the_end, in_turn, session_folder
from tabs.quiz import Quiz
from tabs.words import progress

Updates = dict[Any, Any]
HEADLINE = (
    "**How far can any of this be trusted?** The same questions as in the other tabs, asked of many pictures and "
    "counted: how often detectors are wrong, whether attacks carry over to other detectors, and whether maps name the "
    "right places."
)
NOTHING_STORED = f"*No results are stored here. Make them with* `{stored.COMMAND}`."
OWN = (
    "A zip file with the folders `real/` and `fake/`; pictures with equal names are pairs, and subfolders of `fake/` "
    "are families. Only use pictures that you may use. What a run unpacks and finds is deleted when you leave, or when "
    "you have done nothing here for an hour, and your zip file itself after about an hour; on the command line "
    "(`python -m backend evaluate`) runs are kept and can be resumed."
)
SAMPLE = "Fakes drawn by this project's own models, and two public portraits: too small a set to conclude from."
FIRST = ("Detectors", "detectors")  # the others are listed when the page is seen; their imports take seconds
PRESET, SMALL = "quick", 12  # fakes and real pictures at most of that preset; some protocols take no real ones
STOPPED = "**Stopped.** Start again with the same pictures to go on where it was."


class EvaluateTab:
    """Layout and wiring of the tab."""

    running: list[Any]

    def __init__(self) -> None:
        gr.Markdown(HEADLINE)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Stored results"):
                self._lay_out_stored()
            with gr.Tab("Your own pictures") as self.own:
                self._lay_out_run()
            with gr.Tab("You against the detectors"):
                self.quiz = Quiz()
        self._wire()

    def _lay_out_stored(self) -> None:
        """Show every main finding at once, and tables and plots of the one that is chosen."""
        kept = stored.found()
        if kept:
            gr.HTML(findings(kept))
        else:
            gr.Markdown(NOTHING_STORED)
        self.which = gr.Radio(
            [(one.title, one.name) for one in kept],
            value=None,
            label="Show tables and plots of",
            visible=bool(kept),
        )
        self.report = gr.HTML(elem_classes="report")
        self.page = gr.DownloadButton("Download as one page (HTML)", value=None, visible=False)

    def _lay_out_run(self) -> None:
        gr.Markdown(OWN)
        with gr.Row():
            self.data = gr.File(label="Your zip file", file_types=[".zip"], type="filepath", height=140)
            with gr.Column():
                self.protocol = gr.Dropdown([FIRST], value=FIRST[1], label="Which protocol?", filterable=False)
                self.use_sample = gr.Checkbox(value=False, label="Use the bundled sample set instead", info=SAMPLE)
        with gr.Row():
            self.start = gr.Button(
                f"Run it on up to {SMALL} fakes and {SMALL} real pictures", variant="primary", scale=3
            )
            self.stop = gr.Button("Stop", interactive=False, scale=1)
        self.note = gr.Markdown(elem_classes=["note", "status"])
        self.progress = gr.HTML()
        self.found = gr.HTML(elem_classes="report")
        self.download = gr.DownloadButton("Download tables, plots and page (zip)", value=None, visible=False)

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        self.which.change(answered(_show_stored), self.which, [self.report, self.page], **QUICK, **private)
        self.own.select(answered(_protocols), None, self.protocol, **QUICK, **private)
        outputs = [self.start, self.stop, self.note, self.progress, self.found, self.download]
        asked = [self.data, self.protocol, self.use_sample]
        run = in_turn(self.start, self._run, asked, outputs, starts=[self.start], note=self.note, stop=self.stop)
        at_the_end(run, self._ended, [self.start, self.stop, self.progress])
        self.stop.click(self._stopped, None, [self.start, self.stop, self.note], cancels=[run], **QUICK, **private)
        # What was found belongs to the pictures that stand beside it.
        gr.on(
            [self.data.upload, self.data.clear, self.use_sample.input],
            self._forget,
            None,
            outputs,
            cancels=[run],
            **QUICK,
            **private,
        )
        self.running = [run]
        self.quiz.wire(self.data)

    def _idle(self) -> Updates:
        return {self.start: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def _ended(self) -> Updates:
        return {**self._idle(), self.progress: ""}

    def _stopped(self) -> Updates:
        return {**self._idle(), self.note: STOPPED}

    def _forget(self) -> Updates:
        """Return the updates that take away what was found."""
        return {**self._ended(), self.note: "", self.found: "", self.download: gr.DownloadButton(visible=False)}

    def _run(self, path: str | None, protocol: str, use_sample: Any, request: gr.Request) -> Iterator[Updates]:
        """Run a protocol on a few pictures and show its report."""
        from backend.evaluate import report, runs
        from backend.evaluate.page import article
        from backend.evaluate.protocols import registry
        from backend.evaluate.protocols.protocol import configured
        from tabs.evaluate_files import folder_for, pictures, run_folder, zipped

        if path is None and not use_sample:
            raise UserError("There are no pictures yet.", "Choose a zip file, or tick the bundled sample set.")
        yield {
            **self._forget(),
            self.start: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.progress: progress(Step(0, 1, "The pictures are read.")),
        }
        source = None if use_sample else Path(str(path))
        chosen = configured(registry.get(protocol), PRESET, {})
        folder = folder_for(session_folder(request), source)
        out, data = run_folder(folder, chosen), pictures(folder, source)
        with Running(runs.evaluate(chosen, data, out, resume=True)) as running:
            for step in running:
                session_folder(request)  # a run is an event as long as it lasts: its files stay
                yield {self.progress: progress(step)}
        made = running.result
        given = "--data ZIP" if source else "--sample"
        command = f"python -m backend evaluate {protocol} {given} --out DIR --preset {PRESET}"
        report.write(made, out, command)
        yield {
            **self._idle(),
            self.progress: "",
            self.found: article(made, command, folded=True),
            self.download: gr.DownloadButton(value=str(zipped(out)), visible=True),
        }


def findings(kept: list[stored.Stored]) -> str:
    """Return the main finding of each stored result, one sentence each, and from how many pictures it is."""
    said = "".join(
        f"<dt>{escape(one.title)}</dt><dd>{escape(one.finding)} <small>{escape(one.basis)}</small></dd>" for one in kept
    )
    return (
        '<div class="report findings"><p>What the stored runs found, with the models of this app:</p>'
        f"<dl>{said}</dl></div>"
    )


def _protocols() -> Any:
    """Return the update that lists every protocol."""
    from backend.evaluate.protocols.registry import PROTOCOLS

    return gr.Dropdown([(one.title, name) for name, one in PROTOCOLS.items()])


def _show_stored(name: str | None, request: gr.Request) -> tuple[str, Any]:
    """Return a stored report, and its page for download."""
    from backend.evaluate import report
    from backend.evaluate.files import HTML
    from backend.evaluate.page import article, page

    if name not in {one.name for one in stored.found()}:
        return "", gr.DownloadButton(visible=False)
    made, command = report.load(stored.FOLDER / str(name))
    folder = session_folder(request) / "stored" / str(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HTML).write_text(page(made, command), encoding="utf-8")
    return _outdated(made) + article(made, command, folded=True), gr.DownloadButton(
        value=str(folder / HTML), visible=True
    )


def _outdated(made: Any) -> str:
    """Say which models have changed since a result was stored."""
    others = stored.other_weights(made)
    if not others:
        return ""
    names = escape(", ".join(others))
    return (
        f"<p><strong>Measured with earlier weights of {names}; those of this app will give other numbers.</strong></p>"
    )
