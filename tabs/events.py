"""How handlers run: packages are imported first, jobs take turns, verdicts come first, and errors become sentences."""

import functools
import inspect
import logging
import secrets
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from html import escape
from typing import Any, ParamSpec, TypeVar, cast

import gradio as gr
import numpy as np
from gradio.events import Dependency

from backend import images, runtime
from backend.alignment import locate_all
from backend.detectors import inference, predict, registry
from backend.errors import UserError
from backend.generators import inversion

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger("app")

# Verdicts, jobs of seconds and jobs of minutes each wait for their own kind only. Whoever needs the models between two
# steps of another gets them in this order. Events that run no model never wait.
VERDICT: dict[str, Any] = {"concurrency_id": "verdict", "concurrency_limit": 1}
JOB: dict[str, Any] = {"concurrency_id": "job", "concurrency_limit": 1}
LONG_JOB: dict[str, Any] = {"concurrency_id": "long job", "concurrency_limit": 1}
USES_MODELS = tuple(kind["concurrency_id"] for kind in (VERDICT, JOB, LONG_JOB))
FETCH: dict[str, Any] = {"concurrency_id": "fetch", "concurrency_limit": 1}  # it runs no model, and takes minutes
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
_importing = threading.Lock()
WAITS = "Waiting for others who use this page …"


class Turns:
    """The durations of the jobs of one queue, so that those who wait learn how long."""

    def __init__(self) -> None:
        self._durations: dict[str, deque[float]] = {}  # of the last jobs, by name
        self._running: tuple[str, float] | None = None

    @contextmanager
    def taken_by(self, name: str) -> Iterator[None]:
        """Time a job that reaches its end; there is one at a time."""
        started = time.monotonic()
        self._running = name, started
        try:
            yield
            self._durations.setdefault(name, deque(maxlen=5)).append(time.monotonic() - started)
        finally:
            self._running = None

    def wait_in_words(self) -> str:
        """Say that others come first, and for about how long, where jobs like the running one were timed before."""
        running = self._running
        durations = self._durations.get(running[0]) if running is not None else None
        if running is None or not durations:
            return WAITS
        seconds = max(1.0, statistics.median(durations) - (time.monotonic() - running[1]))
        return f"{WAITS} The job that runs now takes about {duration_in_words(seconds)} more."


def duration_in_words(seconds: float) -> str:
    if seconds >= 120:
        return f"{round(seconds / 60)} minutes"
    return "1 second" if seconds < 1.5 else f"{round(seconds)} seconds"


TURNS = {str(kind["concurrency_id"]): Turns() for kind in (JOB, LONG_JOB)}


def with_shown_errors(function: Callable[P, R], priority: int = runtime.JOB) -> Callable[P, R]:
    """Wrap a handler or a generator of updates so that the visitor sees every error as one sentence.

    Args:
        function: The handler.
        priority: Whether it may use the models before others: VERDICT, JOB or LONG_JOB of `runtime`.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            try:
                import_packages()
                # Every step may run in another thread, to which only values set within the step belong.
                with closing(cast("Generator[Any, None, None]", function(*args, **kwargs))) as updates:
                    while True:
                        with runtime.priority(priority):
                            try:
                                update = next(updates)
                            except StopIteration:
                                return
                        yield update
            except Exception as error:
                raise to_shown_error(error) from error

        return cast("Callable[P, R]", stream)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            import_packages()
            with runtime.priority(priority):
                return function(*args, **kwargs)
        except Exception as error:
            raise to_shown_error(error) from error

    return call


def run_in_turn(
    button: gr.Button,
    function: Callable[..., Iterator[Any]],
    inputs: list[Any],
    outputs: list[Any],
    *,
    starts: list[gr.Button],
    note: Any,
    progress: Any = None,
    stop: gr.Button | None = None,
    takes_minutes: bool = False,
) -> Dependency:
    """Run a job, a generator of updates, when its turn comes after a click, and return its event.

    Args:
        button: Starts the job.
        function: The job; it may raise any error.
        inputs: Inputs of the job.
        outputs: Components that the job may update, with `note`.
        starts: Buttons to block from the click on.
        note: Says that the job waits, and keeps the sentence of an error; empty when the job begins.
        progress: Shows the job's progress; an error clears it.
        stop: Button to enable, which can end the job while it waits too.
        takes_minutes: Whether shorter jobs should not wait for this one.
    """
    handler = with_shown_errors(function, runtime.LONG_JOB if takes_minutes else runtime.JOB)
    queue = LONG_JOB if takes_minutes else JOB
    turns = TURNS[queue["concurrency_id"]]

    def wait() -> dict[Any, Any]:
        blocked = dict.fromkeys(starts, gr.Button(interactive=False))
        return blocked | ({} if stop is None else {stop: gr.Button(interactive=True)}) | {note: turns.wait_in_words()}

    @functools.wraps(handler)
    def start(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield {note: ""}
        try:
            with turns.taken_by(handler.__name__):
                yield from handler(*args, **kwargs)
        except gr.Error as error:
            yield ({} if progress is None else {progress: ""}) | {note: f"<p>{error.message}</p>"}
            raise

    updated = [*starts, *([] if stop is None else [stop]), note]
    run = button.click(wait, None, updated, **QUICK).then(
        start, inputs, outputs, show_progress="hidden", **queue, **PRIVATE
    )
    run.failure(lambda text: "" if text.startswith(WAITS) else text, note, note, **QUICK)  # the queue refused it
    return run


def after_job(job: Dependency, handler: Callable[[], Any], outputs: list[Any]) -> None:
    """Call a handler without inputs when a job has ended, with or without an error."""
    for listener in (job.then, job.failure):  # an error triggers only the second
        listener(handler, None, outputs, **QUICK)


def to_shown_error(error: Exception) -> gr.Error:
    """Turn an error into a sentence for the visitor; details of an unexpected one go only to the log."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, UserError):
        return gr.Error(escape(str(error), quote=False), title="This did not work", print_exception=False)
    code = secrets.token_hex(4)
    logger.error("Error %s", code, exc_info=error)
    sentence = f"Something went wrong on our side. Try again; if it happens again, report the code {code}."
    return gr.Error(sentence, title="Our mistake", print_exception=False)


def import_packages() -> None:
    """Import the packages that handlers need, which takes seconds; the page is shown without them.

    Under a lock: two threads that import the same package at once may see only half of it.
    """
    with _importing:
        import facenet_pytorch  # noqa: F401
        import skimage.metrics  # noqa: F401
        import timm  # noqa: F401

        from backend.counterfactual import photo  # noqa: F401


def warm_up() -> None:
    """Load every model and run it once, then compile the detectors, so that the first visitor does not wait."""
    try:
        import_packages()
        blank = np.full((256, 256, 3), 128, np.uint8)
        predict.judge_faces(locate_all(blank))
        predict.predict_p_fake(images.to_tensor(blank))
        inversion.load_embedded_inverter()
        for name in registry.loadable():
            inference.compile_detector(registry.load(name))
    except Exception:
        logger.exception("The models could not be loaded in advance")
