"""The part of the counterfactual tab that searches through a short video."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from backend import images
from backend.errors import UserError
from backend.progress import Job, Running
from tabs import choosers
from tabs import video_words as words
from tabs.common import QUICK, at_the_end, in_turn, live_face, session_folder
from tabs.limits import Limit
from tabs.words import progress, refusal

if TYPE_CHECKING:
    from backend.counterfactual.film import FilmSearch
    from backend.counterfactual.film_result import Film

Updates = dict[Any, Any]
ABOUT = (
    "The same search for every frame of a video of up to 10 seconds: 5 frames a second are taken, at most 50, and the "
    "largest face is followed through them. Each second begins where the one before it ended, so the change flickers "
    "less; for a single frame a smaller change might do. Without a graphics card, count on two seconds or more for a "
    "frame. Use a video of yourself, or of someone who agreed."
)
DOUBTS = (
    "**How could this be wrong?** The scores before and after are those of the pictures as they were searched. Saving "
    "them as a video compresses them, which by itself removes and adds traces: the third column of the table is what "
    "the detector says of the saved video. Frames of a video are alike, so many of them are not more evidence than one."
)
STOPPING = "**Stopping.** What is done so far is put together."
STEPS = 40
FRAME_SECONDS = 0.5  # between two updates of the page
LIMIT = Limit(10, 3600, "Searching a video")
STOP = "stop"  # file in the visitor's folder; the search may run in another process


class VideoStep:
    """Layout and wiring."""

    def __init__(self) -> None:
        gr.Markdown(ABOUT, elem_classes="note")
        with gr.Row():
            self.video = gr.Video(
                label="Your video, with a face seen from the front",
                sources=["upload"],
                buttons=[],
                height=260,
                min_width=260,
            )
            with gr.Column(min_width=260):
                self.detector = choosers.detector()
                self.steps = gr.Slider(5, 100, STEPS, step=5, label="Steps at most, for each second")
                with gr.Row():
                    self.find = gr.Button("Search every frame", scale=2, min_width=160)
                    self.stop = gr.Button("Stop", interactive=False, scale=1, min_width=90)
        self.note = gr.Markdown(elem_classes=["note", "status"])
        self.refused = gr.HTML()
        with gr.Row(visible=False) as self.live:
            with gr.Column(min_width=260, scale=2):
                self.progress = gr.HTML()
            with gr.Column(min_width=140):
                self.face = live_face()
        with gr.Column(visible=False) as self.result:
            self.summary = gr.Markdown(elem_classes="status")
            with gr.Row():
                with gr.Column(min_width=260):
                    self.made = gr.Video(
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
        private: dict[str, Any] = {"api_visibility": "private"}
        # It cannot be stopped before it began: whoever stops it later is asked for a file that it then looks for.
        asked, outputs = [self.video, self.detector, self.steps], self._outputs()
        run = in_turn(self.find, self._search_video, asked, outputs, starts=[self.find], note=self.note)
        at_the_end(run, self._idle, [self.find, self.stop])
        # The search is asked to end, and not cut off: what it has found by then is shown.
        self.stop.click(self._ask_to_stop, None, [self.stop, self.note], **QUICK, **private)
        # Another video comes only after this one was cleared. An event of its coming could end a search begun since.
        self.video.clear(self._quiet, None, self._outputs(), cancels=[run], **QUICK, **private)

    def _outputs(self) -> list[Any]:
        return [self.find, self.stop, self.note, self.refused, self.live, self.progress, self.face, *self._shown()]

    def _shown(self) -> list[Any]:
        return [
            self.result,
            self.summary,
            self.made,
            self.scores,
            self.table,
            self.others,
            self.settings,
            self.download,
        ]

    def _idle(self) -> Updates:
        return {self.find: gr.Button(interactive=True), self.stop: gr.Button(interactive=False)}

    def _quiet(self) -> Updates:
        return {
            **self._idle(),
            self.note: "",
            self.refused: "",
            self.live: gr.Row(visible=False),
            self.result: gr.Column(visible=False),
        }

    def _ask_to_stop(self, request: gr.Request) -> Updates:
        (session_folder(request) / STOP).touch()
        return {self.stop: gr.Button(interactive=False), self.note: STOPPING}

    def _search_video(self, video: str | None, detector: str, steps: float, request: gr.Request) -> Iterator[Updates]:
        """Search every frame, showing the scores as they come, and show the video that is made of them."""
        if video is None:
            raise UserError("There is no video yet.", "Choose one on the left.")
        LIMIT.check(request)
        folder = session_folder(request)
        (folder / STOP).unlink(missing_ok=True)
        yield {
            **self._quiet(),
            self.find: gr.Button(interactive=False),
            self.stop: gr.Button(interactive=True),
            self.live: gr.Row(visible=True),
            self.progress: "<p>The video is read.</p>",
            self.face: None,
        }
        try:
            film = yield from self._found(Path(video), detector, int(steps), folder)
        except UserError as error:
            yield {**self._quiet(), self.refused: refusal(error, "Not searched")}
            return
        if film is None:
            yield {**self._quiet(), self.note: "**Stopped** before the first frame was searched."}
            return
        yield {**self._idle(), self.live: gr.Row(visible=False), **self._show(film, folder)}

    def _found(self, path: Path, detector: str, steps: int, folder: Path) -> Any:
        """Read and search a video, showing both, and return what was found, or None where it was stopped too soon."""
        from backend import video  # these imports would keep the page waiting
        from backend.counterfactual.film import FilmSearch
        from backend.counterfactual.search import SearchSettings

        clip = yield from self._watched(video.reading(path), folder, None)
        if clip is None:
            return None
        search = FilmSearch(clip, detector, SearchSettings(steps=steps))
        film = yield from self._watched(search.run(), folder, search)
        return film or search.so_far()

    def _watched(self, job: Job[Any], folder: Path, search: "FilmSearch | None") -> Any:
        """Show the steps of a job, and return its result, or None where it was asked to stop."""
        framed = 0.0
        with Running(job) as running:
            for step in running:
                os.utime(folder)  # a search is an event as long as it lasts: its files stay
                if (folder / STOP).exists():
                    return None
                if time.monotonic() - framed > FRAME_SECONDS:
                    framed = time.monotonic()
                    updates: Updates = {self.progress: progress(step, words.scores(search.frames()) if search else "")}
                    if step.preview is not None:
                        updates[self.face] = images.to_array(step.preview)
                    yield updates
        return running.result

    def _show(self, film: "Film", folder: Path) -> Updates:
        made, packed = folder / "counterfactual.mp4", folder / "counterfactual-frames.zip"
        if film.mp4:
            made.write_bytes(film.mp4)
        packed.write_bytes(film.zip())
        return {
            self.note: "",
            self.result: gr.Column(visible=True),
            self.summary: film.summary,
            self.made: gr.Video(str(made) if film.mp4 else None, visible=bool(film.mp4)),
            self.scores: words.scores(film.frames),
            self.table: words.frame_table(film.frames),
            self.others: words.retest(film),
            self.settings: words.settings_line(film.record()),
            self.download: str(packed),
        }
