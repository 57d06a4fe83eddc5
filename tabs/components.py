"""Parts of the page that several tabs show: theme, pictures, tables, curves, and the buttons of long jobs."""

from abc import ABCMeta
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData
from gradio.events import Dependency
from gradio.themes.utils import fonts
from PIL import Image

from backend.detectors.base import verdict
from backend.detectors.predict import format_p_fake
from backend.markup import template_environment
from backend.progress import Job, Running, Step
from tabs.events import QUICK, after_job, run_in_turn

Updates = dict[Any, Any]  # of components, by component
Curve = Sequence[tuple[float, float]]  # (x, y), both in [0, 1]
Jobs = Mapping[gr.Button, tuple[Callable[..., Iterator[Any]], list[Any]]]  # by button: a job and its inputs
T = TypeVar("T")
STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
SHOWN_SIDE = 900  # longest side in pixels at which a whole photo is shown
SHOWN_FACE_SIDE = 384  # side in pixels of shown faces and maps, so that the mark covers little
SIGNS = {"signs": "▲", "unsure": "?", "no_known_signs": "○"}  # so that colour is never the only carrier
SIGN_WORDS = {"signs": "signs", "unsure": "unsure", "no_known_signs": "none known"}
SIGN_KEY = ", ".join(f"{SIGNS[call]} {words}" for call, words in SIGN_WORDS.items()) + "."
NO_BREAK = "\u00a0"
_templates = template_environment("tabs")


def render(template: str, **variables: Any) -> str:
    """Return the HTML of a template in `templates/`, given without its suffix; strings are escaped."""
    return _templates.get_template(f"{template}.html").render(variables)


def paragraphs(*texts: str) -> str:
    """Return plain sentences as HTML paragraphs."""
    return render("paragraphs", texts=texts)


def alert_html(reason: str, title: str = "No verdict") -> str:
    """Return a box that says why there is no answer, and that screen readers announce."""
    return render("alert", reason=reason, title=title)


def html_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, scroll: str = "", below: Iterable[str] = ()
) -> str:
    """Return a table whose first column names the rows, with sentences `below` it.

    `scroll` names CSS classes of a frame in which a wide table scrolls sideways.
    """
    return render("table", head=head, rows=rows, caption=caption, scroll=scroll, below=below)


def progress_bar(step: Step, below: str = "") -> str:
    """Return the progress of a running job, with HTML `below` the bar, such as a curve."""
    return render("progress", message=step.message, share=step.number / max(1, step.total), below=below)


def score_cell(score: float, *, word: bool = True) -> str:
    """Return a score with the sign of its verdict, and with its word."""
    call = verdict(score)
    return f"{SIGNS[call]}{NO_BREAK}{format_p_fake(score)}{f' {SIGN_WORDS[call]}' if word else ''}"


def settings_line(settings: str, seconds: float, versions: Mapping[str, str]) -> str:
    """Return what is needed to reproduce a result: its settings in words, and the versions of the packages."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{settings}; {seconds:.1f} seconds; {packages}."


def theme() -> gr.themes.Base:
    """Return colours whose contrast is at least 4.5 to 1; the default theme's are too pale."""
    # Without the default's semi-bold face: gradio ships only 55 characters of it, of Latin letters A and B.
    source_sans = fonts.LocalFont("Source Sans Pro", weights=(400, 700))
    font = (source_sans, "ui-sans-serif", "system-ui", "sans-serif")
    return gr.themes.Default(primary_hue=gr.themes.colors.blue, font=font).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        color_accent="*primary_700",
        slider_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )


def result_picture(label: str, alt_text: str = "", **options: Any) -> gr.Image:
    """Return a picture of a result, by default the size of a face; it leaves the page as PNG."""
    defaults = {"buttons": ["download", "fullscreen"], "elem_classes": "face"}
    alt_text = alt_text or f"{label}; the text beside it describes it"
    return gr.Image(label=label, alt_text=alt_text, format="png", interactive=False, **(defaults | options))


def captioned_picture(label: str, min_width: int, alt_text: str = "", **options: Any) -> tuple[gr.Image, gr.Markdown]:
    """Return a column with a picture of a result and the text below it."""
    with gr.Column(min_width=min_width):
        return result_picture(label, alt_text, **options), gr.Markdown(elem_classes="note")


def live_face() -> gr.Image:
    """Return the picture that shows the face during a search."""
    return result_picture("The face now", "The face as the search has changed it so far", buttons=[])


def maps_grid(label: str, **options: Any) -> gr.Gallery:
    """Return a grid of captioned pictures, with one column in a narrow window."""
    return gr.Gallery(
        label=label,
        format="png",
        columns=4,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["fullscreen"],
        elem_classes="maps",
        **options,
    )


class BeforeAfter:
    """Two pictures with a divider, which can be dragged, or moved with a slider from the keyboard."""

    def __init__(self, label: str, height: int) -> None:
        self.pictures = gr.ImageSlider(
            label=label, format="png", buttons=["fullscreen"], interactive=False, max_height=height
        )
        self.position = gr.Slider(0, 100, 50, step=1, label="Position of the divider, in percent")
        self.position.input(
            lambda position: gr.ImageSlider(slider_position=position),
            self.position,
            self.pictures,
            trigger_mode="always_last",
            **QUICK,
        )

    def show(self, before: Any, after: Any) -> Updates:
        """Return the updates that show two pictures."""
        return {self.pictures: gr.ImageSlider((before, after), slider_position=50), self.position: 50}

    def outputs(self) -> list[Any]:
        return [self.pictures, self.position]


class JobControls:
    """Buttons and messages of the long jobs in one part of the page; one runs at a time.

    Args:
        starts: Buttons that begin a job; all of them are blocked while one runs.
        note: The line that says how a job ended.
        progress: Shows how far a job is; may be `note`.
        stop: The button that ends a job, if there is one.
        stopped: What `note` says after a stop; empty if `stop` has an event of its own that ends the job.
        keeps_progress: Whether `progress` stays as it was after a stop.
    """

    def __init__(
        self,
        starts: list[gr.Button],
        note: Any,
        progress: Any,
        stop: gr.Button | None = None,
        *,
        stopped: str = "",
        keeps_progress: bool = False,
    ) -> None:
        self.starts, self.note, self.progress, self.stop = starts, note, progress, stop
        self.stopped, self.keeps_progress = stopped, keeps_progress
        self.buttons = [*starts, *([] if stop is None else [stop])]

    def wire(self, jobs: Jobs, outputs: list[Any], minutes: Sequence[gr.Button] = ()) -> list[Dependency]:
        """Let every button start its job, a generator of updates, and return the jobs' events.

        Args:
            jobs: By button, a job and its inputs.
            outputs: What the jobs may update.
            minutes: Buttons whose jobs take minutes.
        """
        parts: dict[str, Any] = {"starts": self.starts, "note": self.note, "progress": self.progress}
        parts["stop"] = self.stop if self.stopped else None
        runs = [
            run_in_turn(button, *job, outputs, **parts, takes_minutes=button in minutes) for button, job in jobs.items()
        ]
        for run in runs:
            after_job(run, self.idle, self.buttons)
        if parts["stop"] is not None:
            self.wire_stop(runs)
        return runs

    def wire_stop(self, runs: list[Any]) -> None:
        assert self.stop is not None
        self.stop.click(self._say_stopped, None, self.outputs(), cancels=runs, **QUICK)

    def outputs(self) -> list[Any]:
        """Return what the methods below may update."""
        return list(dict.fromkeys([*self.buttons, self.note, self.progress]))

    def idle(self) -> Updates:
        """Return the updates of the buttons when nothing runs."""
        updates: Updates = {button: gr.Button(interactive=True) for button in self.starts}
        return updates if self.stop is None else {**updates, self.stop: gr.Button(interactive=False)}

    def clear(self) -> Updates:
        return {**self.idle(), self.note: "", self.progress: ""}

    def busy(self, message: str) -> Updates:
        """Return the updates for the start of a job, whose first step `message` names."""
        updates: Updates = {button: gr.Button(interactive=button is self.stop) for button in self.buttons}
        return {**updates, self.note: "", self.progress: progress_bar(Step(0, 1, message))}

    def watch(self, job: Job[T]) -> Generator[Updates, None, T]:
        """Show the progress of a job, and return its result."""
        with Running(job) as running:
            for step in running:
                yield {self.progress: progress_bar(step)}
        return running.result

    def _say_stopped(self) -> Updates:
        updates = self.idle() if self.keeps_progress else self.clear()
        return {**updates, self.note: self.stopped}


def _path_of(_: gr.Image, payload: ImageData | None) -> str | None:
    return None if payload is None else payload.path


# A class, because gradio builds new components from their class for every visit. It is made without gradio's metaclass,
# which writes a stub file beside the source of every component class.
_PhotoImage = ABCMeta.__new__(
    type(gr.Image), "_PhotoImage", (gr.Image,), {"__module__": __name__, "is_template": True, "preprocess": _path_of}
)


def photo_input(label: str) -> gr.Image:
    """Return an image component whose value is the path of the uploaded file, readable or not.

    gradio's own component decodes the file first, and reports one that it cannot open in its own words.
    """
    component = _PhotoImage(
        label=label,
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        interactive=True,
        height=300,
    )
    return cast("gr.Image", component)


def fit_to_page(photo: np.ndarray, side: int = SHOWN_SIDE) -> np.ndarray:
    """Return a photo (H, W, 3) reduced so that its longer side has at most `side` pixels."""
    factor = side / max(photo.shape[:2])
    if factor >= 1:
        return photo
    size = max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def enlarge_face(picture: np.ndarray) -> np.ndarray:
    """Return a square picture at the size at which the page shows it."""
    return np.asarray(Image.fromarray(picture).resize((SHOWN_FACE_SIDE, SHOWN_FACE_SIDE), Image.Resampling.LANCZOS))
