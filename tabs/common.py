"""What all tabs share: how errors are said, how events queue, and how a photo comes in."""

import contextlib
import functools
import hashlib
import inspect
import logging
import os
import secrets
import shutil
import threading
import time
from abc import ABCMeta
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData
from gradio.events import Dependency
from gradio.themes.utils import fonts
from PIL import Image

from backend import images, verdicts, visitors_files
from backend.errors import UserError
from backend.generators import inversion

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("app")

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
# Long jobs wait for each other, and verdicts wait for each other, but no verdict waits for a long job: between the
# steps of a job the models are free. Events that run no model never wait.
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
VERDICT: dict[str, Any] = {"concurrency_id": "verdict", "concurrency_limit": 1}
FETCH: dict[str, Any] = {"concurrency_id": "fetch", "concurrency_limit": 1}  # it runs no model, and takes minutes
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_importing = threading.Lock()
WAITS = "Waiting for the others who use this page …"
SHOWN_SIDE = 900  # longest side in pixels at which a whole photo is shown
KEPT_SECONDS, SWEPT_SECONDS = 3600, 300  # of a visitor's files since the last event; how often is looked


def theme() -> gr.themes.Base:
    """Return colours whose contrast is at least 4.5 to 1; those of the default theme are paler."""
    # The library's semi-bold face, which it would take, has 55 characters, of Latin letters A and B.
    letters = fonts.LocalFont("Source Sans Pro", weights=(400, 700))
    font = (letters, "ui-sans-serif", "system-ui", "sans-serif")
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


def live_face() -> gr.Image:
    """Return the picture of the face while a search is under way."""
    return gr.Image(
        label="The face now",
        format="png",
        buttons=[],
        interactive=False,
        elem_classes="face",
        alt_text="The face as the search has changed it so far",
    )


def _path_of(_: gr.Image, payload: ImageData | None) -> str | None:
    return None if payload is None else payload.path


# An image component that hands over the path of the uploaded file itself. It is a class, because every visit builds
# components of its own from theirs, and it is made without the library's metaclass, which writes a stub file beside
# the source of every component class.
_PhotoImage = ABCMeta.__new__(
    type(gr.Image), "_PhotoImage", (gr.Image,), {"__module__": __name__, "is_template": True, "preprocess": _path_of}
)


def photo_input(label: str) -> gr.Image:
    """Return an image component that hands over the path of the uploaded file itself, readable or not.

    On its own, the component opens the file with its own decoder first, and a file that this cannot open never
    reaches our code and its sentences.
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


def answered(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a handler, or a generator of updates, so that every error is one sentence for the visitor."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            try:
                import_packages()
                yield from function(*args, **kwargs)
            except Exception as error:
                raise as_shown(error) from error

        return cast("Callable[P, R]", stream)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import_packages()
            return function(*args, **kwargs)
        except Exception as error:
            raise as_shown(error) from error

    return call


def in_turn(
    button: gr.Button,
    function: Callable[..., Iterator[Any]],
    inputs: list[Any],
    outputs: list[Any],
    *,
    starts: list[gr.Button],
    note: Any,
    progress: Any = None,
    stop: gr.Button | None = None,
) -> Dependency:
    """Run a long job on a click when its turn comes; until then the page says that it waits.

    Args:
        button: What is clicked.
        function: A generator of updates, with or without errors.
        inputs: Its inputs.
        outputs: What it may update, `note` among it.
        starts: Buttons that begin a job, which are blocked.
        note: The line that says it; the job finds it empty. An error stays in it when its box has gone.
        progress: Where the job says how far it is, which an error clears.
        stop: What ends the job, also while it waits.

    Returns:
        The event of the job.
    """
    private: dict[str, Any] = {"api_visibility": "private"}
    handler = answered(function)

    def wait() -> dict[Any, Any]:
        blocked = dict.fromkeys(starts, gr.Button(interactive=False))
        return blocked | ({} if stop is None else {stop: gr.Button(interactive=True)}) | {note: WAITS}

    @functools.wraps(handler)
    def begun(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield {note: ""}
        try:
            yield from handler(*args, **kwargs)
        except gr.Error as error:
            yield ({} if progress is None else {progress: ""}) | {note: f"<p>{error.message}</p>"}
            raise

    touched = [*starts, *([] if stop is None else [stop]), note]
    run = button.click(wait, None, touched, **QUICK, **private).then(
        begun, inputs, outputs, show_progress="hidden", **MODEL, **private
    )
    # Where it was refused before it began.
    run.failure(lambda said: "" if said == WAITS else said, note, note, **QUICK, **private)
    return run


def at_the_end(job: Any, handler: Callable[[], Any], outputs: list[Any]) -> None:
    """Call a handler without inputs when a job of events has ended, well or with an error."""
    for ended in (job.then, job.failure):  # of the two, an error reaches only the second
        ended(handler, None, outputs, **QUICK, api_visibility="private")


def as_shown(error: Exception) -> gr.Error:
    """Turn an error into what the visitor reads; the details of an unexpected one go to the log only."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, UserError):
        return gr.Error(escape(str(error), quote=False), title="This did not work", print_exception=False)
    code = secrets.token_hex(4)
    logger.error("Error %s", code, exc_info=error)
    sentence = f"Something went wrong on our side. Try it again; if it stays, report the code {code}."
    return gr.Error(sentence, title="Our mistake", print_exception=False)


def photo_from(path: str | None) -> np.ndarray:
    """Return the pixels of the visitor's photo.

    Raises:
        UserError: None was chosen, or it cannot be read.
    """
    if path is None:
        raise UserError("There is no photo yet.", "Choose one in step 1.")
    return images.read(Path(path))


def shown(photo: np.ndarray, side: int = SHOWN_SIDE) -> np.ndarray:
    """Return a photo (H, W, 3) no larger than it is shown, `side` pixels."""
    factor = side / max(photo.shape[:2])
    if factor >= 1:
        return photo
    size = max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def session_folder(request: gr.Request | None) -> Path:
    """Return a folder for one visitor's files, which are deleted when an hour has passed without another call."""
    folder = _folder_of(request)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    return folder


def _folder_of(request: gr.Request | None) -> Path:
    # Visitors choose what they are called by: as a hash it is one name of its own, whatever stands in it.
    called = getattr(request, "session_hash", None) or "api"
    return _downloads() / hashlib.sha256(called.encode(errors="replace")).hexdigest()


def sweep(root: Path) -> None:
    """Delete the folders of visitors of whom nothing was heard for an hour."""
    for folder in root.glob("*"):
        with contextlib.suppress(OSError):  # its visitor has left in this moment
            if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _downloads() -> Path:
    """Return this process's own folder for downloads, closed to other users; it goes when the process ends."""
    folder = visitors_files.private_folder()
    threading.Thread(target=_keep_sweeping, args=(folder,), name="sweep", daemon=True).start()
    return folder


def _keep_sweeping(root: Path) -> None:
    while True:
        time.sleep(SWEPT_SECONDS)
        sweep(root)


def forget(request: gr.Request) -> None:
    """Delete one visitor's downloads; called when the page is closed."""
    shutil.rmtree(_folder_of(request), ignore_errors=True)


def import_packages() -> None:
    """Import what handlers need, which takes seconds; the page is shown without it.

    One thread does it while the others wait: two that import the same packages at once may each see half of them.
    """
    with _importing:
        import facenet_pytorch  # noqa: F401
        import timm  # noqa: F401

        from backend.counterfactual import story  # noqa: F401


def warm_up() -> None:
    """Load every model and run it once, so that the first visitor does not wait for it."""
    try:
        import_packages()
        blank = np.full((256, 256, 3), 128, np.uint8)
        verdicts.judge(blank)
        verdicts.p_fake(images.to_tensor(blank))
        inversion.load()
    except Exception:
        logger.exception("The models could not be loaded in advance")
