"""The part of the counterfactual tab that searches through a short video, and the scores of its frames as HTML."""

import os
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from backend import images
from backend.detectors import registry
from backend.detectors.base import SCALE
from backend.errors import UserError
from backend.progress import Job, Running
from tabs import models
from tabs.components import (
    Curve,
    JobControls,
    Updates,
    alert_html,
    live_face,
    progress_bar,
    render,
    score_cell,
    settings_line,
)
from tabs.counterfactual_result import row_range
from tabs.events import QUICK
from tabs.visitors import CallLimit, session_folder

if TYPE_CHECKING:
    from backend.counterfactual.video import VideoCounterfactual, VideoFrame, VideoSearch

LEGEND = Markup(
    "Scores, frame by frame: <strong>○ before</strong> (dashed line) and <strong>● after</strong> (full line). The "
    "dashed line at 0.5 is where the verdict turns. A gap is a frame that was skipped."
)
ABOUT_VIDEO = (
    "The same search for every frame of a video of up to 10 seconds. It takes 5 frames a second, at most 50, and "
    "follows the largest face. Each second begins where the last one ended, so that the change flickers less; a single "
    "frame might need a smaller change. Without a graphics card, each frame takes two seconds or more. Use a video of "
    "yourself or of someone who has agreed."
)
DOUBTS = (
    "**How could this be wrong?** The scores before and after are those of the pictures as they were searched. Saving "
    "them as a video compresses them, which by itself removes and adds traces: the last column of the table is what "
    "the detector says of the saved video. Frames of one video are alike, so many are hardly more evidence than one."
)
STOPPING = "**Stopping.** The frames done so far are being put together."
VIDEO_STEPS = 40
FRAME_SECONDS = 0.5  # between two updates of the page
LIMIT = CallLimit(10, 3600, "Searching a video")
STOP = "stop"  # file in the visitor's folder; the search may run in another process


class VideoStep:
    def __init__(self) -> None:
        gr.Markdown(ABOUT_VIDEO, elem_classes="note")
        with gr.Row():
            self.video = gr.Video(
                label="Your video, with a face seen from the front",
                sources=["upload"],
                buttons=[],
                height=260,
                min_width=260,
            )
            with gr.Column(min_width=260):
                self.detector = models.detector_chooser()
                self.steps = gr.Slider(5, 100, VIDEO_STEPS, step=5, label="Steps at most, for each second")
                with gr.Row():
                    self.search_button = gr.Button("Search every frame", scale=2, min_width=160)
                    self.stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
        note = gr.Markdown(elem_classes=["note", "status"])
        self.refusal = gr.HTML()
        with gr.Row(visible=False) as self.live:
            with gr.Column(min_width=260, scale=2):
                progress = gr.HTML()
            with gr.Column(min_width=140):
                self.face = live_face()
        self.job = JobControls([self.search_button], note, progress, self.stop)
        with gr.Column(visible=False) as self.result:
            self.summary = gr.Markdown(elem_classes="status")
            with gr.Row():
                with gr.Column(min_width=260):
                    self.video_out = gr.Video(
                        label="The video with the changed face", interactive=False, buttons=["download"], height=260
                    )
                with gr.Column(min_width=260):
                    self.scores = gr.HTML()
            self.table = gr.HTML()
            self.others = gr.HTML()
            gr.Markdown(DOUBTS)
            self.settings = gr.Markdown(elem_classes="note")
            self.download = gr.DownloadButton("Download the frames and numbers (zip)", value=None)

    def wire(self) -> None:
        inputs, outputs = [self.video, self.detector, self.steps], self._outputs()
        runs: list[Any] = self.job.wire(
            {self.search_button: (self._search_video, inputs)}, outputs, minutes=[self.search_button]
        )
        # The search ends by itself and is not cancelled, so that what it has found is shown.
        self.stop.click(self._ask_to_stop, None, [self.stop, self.job.note], **QUICK)
        # A new video can be chosen only after this one is cleared.
        self.video.clear(self._clear, None, outputs, cancels=runs, **QUICK)

    def _outputs(self) -> list[Any]:
        shown = [self.result, self.summary, self.video_out, self.scores, self.table, self.others, self.settings]
        return [*self.job.outputs(), self.refusal, self.live, self.face, *shown, self.download]

    def _clear(self) -> Updates:
        return {
            **self.job.clear(),
            self.refusal: "",
            self.live: gr.Row(visible=False),
            self.result: gr.Column(visible=False),
        }

    def _ask_to_stop(self, request: gr.Request) -> Updates:
        (session_folder(request) / STOP).touch()
        return {self.stop: gr.Button(interactive=False), self.job.note: STOPPING}

    def _search_video(self, video: str | None, detector: str, steps: float, request: gr.Request) -> Iterator[Updates]:
        if video is None:
            raise UserError("There is no video yet.", "Choose one on the left.")
        LIMIT.check(request)
        folder = session_folder(request)
        (folder / STOP).unlink(missing_ok=True)
        yield {**self._clear(), **self.job.busy("Reading the video."), self.live: gr.Row(visible=True), self.face: None}
        try:
            result = yield from self._read_and_search(Path(video), detector, int(steps), folder)
        except UserError as error:
            yield {**self._clear(), self.refusal: alert_html(str(error), "The video was not searched")}
            return
        if result is None:
            yield {**self._clear(), self.job.note: "**Stopped** before the first frame was searched."}
            return
        yield {**self.job.clear(), self.live: gr.Row(visible=False), **self._show(result, folder)}

    def _read_and_search(self, path: Path, detector: str, steps: int, folder: Path) -> Any:
        """Read and search a video, showing progress; return the result, or None if stopped before the first frame."""
        from backend import video  # these imports would keep the page waiting
        from backend.counterfactual.search import SearchSettings
        from backend.counterfactual.video import VideoSearch

        frames = yield from self._watch(video.read_video(path), folder, None)
        if frames is None:
            return None
        search = VideoSearch(frames, detector, SearchSettings(steps=steps))
        result = yield from self._watch(search.run(), folder, search)
        return result or search.so_far()

    def _watch(self, job: Job[Any], folder: Path, search: "VideoSearch | None") -> Any:
        """Show the steps of a job, and return its result, or None after a stop."""
        last_update = 0.0
        with Running(job) as running:
            for step in running:
                os.utime(folder)  # a long search counts as activity: its files stay
                if (folder / STOP).exists():
                    return None
                if time.monotonic() - last_update > FRAME_SECONDS:
                    last_update = time.monotonic()
                    curve = frame_curve(search.frames()) if search else ""
                    updates: Updates = {self.job.progress: progress_bar(step, curve)}
                    if step.preview is not None:
                        updates[self.face] = images.to_array(step.preview)
                    yield updates
        return running.result

    def _show(self, result: "VideoCounterfactual", folder: Path) -> Updates:
        video, archive = folder / "counterfactual.mp4", folder / "counterfactual-frames.zip"
        if result.mp4:
            video.write_bytes(result.mp4)
        archive.write_bytes(result.zip())
        return {
            self.result: gr.Column(visible=True),
            self.summary: result.summary,
            self.video_out: gr.Video(str(video) if result.mp4 else None, visible=bool(result.mp4)),
            self.scores: frame_curve(result.frames),
            self.table: frame_table(result.frames),
            self.others: video_retest_html(result),
            self.settings: video_settings_line(result.record()),
            self.download: str(archive),
        }


def frame_curve(frames: Sequence["VideoFrame"]) -> str:
    """Draw p_fake of every frame before and after the search."""
    before, after = [], []
    for frame in frames:
        if frame.p_original is not None and frame.p_counterfactual is not None:
            before.append((frame.number, frame.p_original))
            after.append((frame.number, frame.p_counterfactual))
    if not before:
        return ""
    count = len(frames)
    ranges = f"before, {_range(before)}; after the search, {_range(after)}"
    return render(
        "curves",
        name=f"Scores of {len(before)} of {count} frames {SCALE}: {ranges}",
        curves={"before": _pieces(before, count), "after": _pieces(after, count)},
        texts=[LEGEND],
        marks=True,
    )


def frame_table(frames: Sequence["VideoFrame"]) -> str:
    return render("frame_table", frames=frames, scale=SCALE, score_cell=score_cell)


def video_retest_html(result: "VideoCounterfactual") -> str:
    """Return the share of frames that each detector calls fake, before and after."""
    attacked = result.searched_against
    scores = [(attacked, " (searched against)"), *((score, "") for score in result.retested)] if result.retested else []
    rows = [
        (registry.card(score.detector).title + note, f"{score.fake_before:.0%}", f"{score.fake_after:.0%}")
        for score, note in scores
    ]
    caption = f"Share of the {attacked.frames} searched frames that a detector calls fake, before saving as a video."
    return render("retest", rows=rows, caption=caption)


def video_settings_line(record: dict) -> str:
    settings = record["settings"]
    text = (
        f"Settings: detector {record['detector']}, generator {record['generator']}, levels "
        f"{','.join(settings['levels'])}, at most {settings['steps']} steps for {record['batch']} frames together, "
        f"epsilon {record['epsilon']:g}{row_range(record)}, kappa {settings['kappa']:g}, "
        f"composite {settings['composite']}"
    )
    return settings_line(text, record["seconds"], record["versions"])


def _pieces(points: Sequence[tuple[int, float]], count: int) -> list[Curve]:
    """Return points by frame number, from 1 to `count`, as curves that end where frames are missing."""
    # A frame's number less its place among the points stays the same until frames are missing.
    pieces = groupby(enumerate(points), key=lambda point: point[1][0] - point[0])
    return [[((number - 1) / max(1, count - 1), score) for _, (number, score) in piece] for _, piece in pieces]


def _range(points: Sequence[tuple[int, float]]) -> str:
    scores = [score for _, score in points]
    return f"from {min(scores):.2f} to {max(scores):.2f}, on average {sum(scores) / len(scores):.2f}"
