"""The part of the counterfactual tab that searches through a short video, and the scores of its frames as HTML."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from backend import images
from backend.detectors import registry
from backend.errors import UserError
from backend.progress import Job, Running
from tabs import models
from tabs.components import (
    SCALE,
    Curve,
    JobControls,
    Updates,
    draw_curves,
    live_face,
    progress_bar,
    refusal_alert,
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
    "The same search for every frame of a video of up to 10 seconds: 5 frames a second are taken, at most 50, and the "
    "largest face is followed through them. Each second begins where the one before it ended, so the change flickers "
    "less; for a single frame a smaller change might do. Without a graphics card, count on two seconds or more for a "
    "frame. Use a video of yourself or of someone who has agreed."
)

DOUBTS = (
    "**How could this be wrong?** The scores before and after are those of the pictures as they were searched. Saving "
    "them as a video compresses them, which by itself removes and adds traces: the third column of the table is what "
    "the detector says of the saved video. Frames of a video are alike, so many of them are not more evidence than one."
)

STOPPING = "**Stopping.** What is done so far is put together."

VIDEO_STEPS = 40
FRAME_SECONDS = 0.5  # between two updates of the page
LIMIT = CallLimit(10, 3600, "Searching a video")
STOP = "stop"  # file in the visitor's folder; the search may run in another process


class VideoStep:
    """Layout and wiring."""

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
        """Wire the events."""
        inputs, outputs = [self.video, self.detector, self.steps], self._outputs()
        runs: list[Any] = self.job.wire({self.search_button: (self._search_video, inputs)}, outputs)
        # The search is asked to end, and not cut off: what it has found by then is shown.
        self.stop.click(self._ask_to_stop, None, [self.stop, self.job.note], **QUICK)
        # A new video can be chosen only after this one is cleared.
        self.video.clear(self._quiet, None, outputs, cancels=runs, **QUICK)

    def _outputs(self) -> list[Any]:
        shown = [self.result, self.summary, self.video_out, self.scores, self.table, self.others, self.settings]
        return [*self.job.outputs(), self.refusal, self.live, self.face, *shown, self.download]

    def _quiet(self) -> Updates:
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
        """Search every frame, showing the scores as they come, and show the video that is made of them."""
        if video is None:
            raise UserError("There is no video yet.", "Choose one on the left.")
        LIMIT.check(request)
        folder = session_folder(request)
        (folder / STOP).unlink(missing_ok=True)
        yield {
            **self._quiet(),
            **self.job.busy("The video is read."),
            self.live: gr.Row(visible=True),
            self.face: None,
        }
        try:
            result = yield from self._read_and_search(Path(video), detector, int(steps), folder)
        except UserError as error:
            yield {**self._quiet(), self.refusal: refusal_alert(error, "The video was not searched")}
            return
        if result is None:
            yield {**self._quiet(), self.job.note: "**Stopped** before the first frame was searched."}
            return
        yield {**self.job.clear(), self.live: gr.Row(visible=False), **self._show(result, folder)}

    def _read_and_search(self, path: Path, detector: str, steps: int, folder: Path) -> Any:
        """Read and search a video, showing both, and return what was found, or None where it was stopped too soon."""
        from backend import video  # these imports would keep the page waiting
        from backend.counterfactual.search import SearchSettings
        from backend.counterfactual.video import VideoSearch

        frames = yield from self._watched(video.read_video(path), folder, None)
        if frames is None:
            return None
        search = VideoSearch(frames, detector, SearchSettings(steps=steps))
        result = yield from self._watched(search.run(), folder, search)
        return result or search.so_far()

    def _watched(self, job: Job[Any], folder: Path, search: "VideoSearch | None") -> Any:
        """Show the steps of a job, and return its result, or None where it was asked to stop."""
        framed = 0.0
        with Running(job) as running:
            for step in running:
                os.utime(folder)  # a search is an event as long as it lasts: its files stay
                if (folder / STOP).exists():
                    return None
                if time.monotonic() - framed > FRAME_SECONDS:
                    framed = time.monotonic()
                    curve = frame_curve(search.frames()) if search else ""
                    updates: Updates = {self.job.progress: progress_bar(step, curve)}
                    if step.preview is not None:
                        updates[self.face] = images.to_array(step.preview)
                    yield updates
        return running.result

    def _show(self, result: "VideoCounterfactual", folder: Path) -> Updates:
        video, packed = folder / "counterfactual.mp4", folder / "counterfactual-frames.zip"
        if result.mp4:
            video.write_bytes(result.mp4)
        packed.write_bytes(result.zip())
        return {
            self.result: gr.Column(visible=True),
            self.summary: result.summary,
            self.video_out: gr.Video(str(video) if result.mp4 else None, visible=bool(result.mp4)),
            self.scores: frame_curve(result.frames),
            self.table: frame_table(result.frames),
            self.others: video_retest_html(result),
            self.settings: video_settings_line(result.record()),
            self.download: str(packed),
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
    return draw_curves(
        f"Scores of {len(before)} of {count} frames {SCALE}: before, {_range(before)}; "
        f"after the search, {_range(after)}",
        {"before": _pieces(before, count), "after": _pieces(after, count)},
        [LEGEND],
        marks=True,
    )


def frame_table(frames: Sequence["VideoFrame"]) -> str:
    """Return the scores of every frame as a table, folded away."""
    return render("frame_table", frames=frames, scale=SCALE, score_cell=score_cell)


def video_retest_html(result: "VideoCounterfactual") -> str:
    """Return what share of the frames each detector calls fake, before and after."""
    attacked = result.searched_against
    scores = [(attacked, " (searched against)"), *((score, "") for score in result.retested)] if result.retested else []
    rows = [
        (registry.card(score.detector).title + note, f"{score.fake_before:.0%}", f"{score.fake_after:.0%}")
        for score, note in scores
    ]
    caption = (
        f"Share of the {attacked.frames} searched frames that a detector calls fake, before they were saved as a video."
    )
    return render("retest", rows=rows, caption=caption)


def video_settings_line(record: dict) -> str:
    """Return everything that is needed to get the same result again."""
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
    pieces: list[list[tuple[float, float]]] = []
    last = 0
    for number, score in points:
        if not pieces or number != last + 1:
            pieces.append([])
        pieces[-1].append(((number - 1) / max(1, count - 1), score))
        last = number
    return [*pieces]


def _range(points: Sequence[tuple[int, float]]) -> str:
    scores = [score for _, score in points]
    return f"from {min(scores):.2f} to {max(scores):.2f}, on average {sum(scores) / len(scores):.2f}"
