"""Where the Hub lends a GPU for seconds (ZeroGPU), ask for it around every event that runs models; elsewhere nothing.

There, the handler runs in a process of its own. What goes in and comes out is pickled, so a visitor's request becomes
the two facts that handlers read, and components become their numbers on the way back.
"""

import functools
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block, BlockFunction

from backend.detectors import predict, registry
from backend.generators.refinement import RefineSettings
from tabs.events import MODEL, VERDICT
from tabs.photo import ChosenPhoto
from tabs.visitors import session_folder

VERDICT_SECONDS = 15
JOB_SECONDS = 30  # loading, faces, metrics and whatever has no number of steps
STEP_SECONDS = 0.1
MOST_SECONDS = 120  # a visitor without an account has this much in a day
PRESETS = {"quick": 1.0, "full": 3.0, "as_released": 4.0}
EVERY_METHOD = 2.0  # all maps beside each other, in times of one
PROTOCOLS = {"detectors": 1.0}  # in times of a job; any other protocol is asked all the time that there is for
RETEST_STEPS = 2  # asking the other detectors about some frames, in steps


@dataclass(frozen=True)
class Client:
    """Where a request came from."""

    host: str


@dataclass(frozen=True)
class Visitor:
    """What handlers read of a request."""

    session_hash: str | None
    client: Client


def is_lent() -> bool:
    """Return whether the package that asks for a GPU is installed."""
    return importlib.util.find_spec("spaces") is not None


def ask_for_gpu(demo: gr.Blocks) -> None:
    """Ask for a GPU around every event of `demo` that runs models, where one is lent."""
    if not is_lent():
        return
    spaces = importlib.import_module("spaces")
    session_folder(None)  # made before the processes fork, so that all of them share it
    for event in demo.fns.values():
        if event.fn is not None and event.concurrency_id in {MODEL["concurrency_id"], VERDICT["concurrency_id"]}:
            event.fn = _run_on_gpu(event, spaces.GPU)


def needed_seconds(event: BlockFunction, *values: Any) -> int:
    """Return for how long a call needs the GPU at most, from what the visitor asked for.

    Less is better: who asks for less waits less, and is refused less often.
    """
    if event.concurrency_id == VERDICT["concurrency_id"]:
        return VERDICT_SECONDS
    assert event.fn is not None
    try:
        asked = inspect.signature(event.fn).bind_partial(*values).arguments
    except TypeError:
        asked = {}
    needed = JOB_SECONDS + STEP_SECONDS * _count_steps(asked)
    if "preset" in asked:
        needed *= PRESETS.get(str(asked["preset"]), 1.0) * (1.0 if "method" in asked else EVERY_METHOD)
    if "real_path" in asked:
        needed *= EVERY_METHOD
    if "protocol" in asked:
        needed *= PROTOCOLS.get(str(asked["protocol"]), MOST_SECONDS / JOB_SECONDS)
    return min(MOST_SECONDS, round(needed))


def _count_steps(asked: Mapping[str, Any]) -> float:
    """Return how many steps were asked for at most: of a closer reconstruction too, and in all batches of a video."""
    steps = asked.get("steps")
    count = float(steps) if isinstance(steps, int | float) else 0.0
    if asked.get("closer"):
        count += RefineSettings.steps
    return count if "video" not in asked else _count_batches(asked) * (count + RETEST_STEPS)


def _count_batches(asked: Mapping[str, Any]) -> int:
    """Return in how many batches the frames of a video are searched at most."""
    from backend import video  # these imports would keep the page waiting
    from backend.counterfactual.video import FRAME_BATCH

    if asked["video"] is None:  # it will be refused
        return 0
    frames = math.ceil(min(video.MAX_FRAMES, video.video_seconds(Path(str(asked["video"]))) * video.RATE))
    card = registry.card(str(asked["detector"])) if asked.get("detector") in registry.loadable() else None
    if card is not None and (card.template, card.input_size) != (predict.EMBEDDED_TEMPLATE, registry.EMBEDDED_SIZE):
        return frames  # every frame has a view of its own
    return 1 + math.ceil((frames - 1) / FRAME_BATCH)  # the first is searched by itself


def _run_on_gpu(event: BlockFunction, lend: Callable[..., Any]) -> Callable[..., Any]:
    """Return the handler of an event, run where the GPU is."""
    handler = event.fn
    assert handler is not None
    shown = {block._id: block for block in event.outputs}  # noqa: SLF001 - how the library itself names them
    duration = functools.partial(needed_seconds, _event_facts(event))

    if inspect.isgeneratorfunction(handler):

        def stream(*values: Any) -> Iterator[Any]:
            for update in handler(*values):
                yield _with_numbers(update)

        remote = lend(stream, duration=duration)

        @functools.wraps(handler)
        def streamed(*values: Any) -> Iterator[Any]:
            for update in remote(*map(_picklable, values)):
                yield _with_components(update, shown)

        return streamed

    def call(*values: Any) -> Any:
        return _with_numbers(handler(*values))

    once = lend(call, duration=duration)

    @functools.wraps(handler)
    def called(*values: Any) -> Any:
        chosen = [value for value in values if isinstance(value, ChosenPhoto)]
        before = [one.path for one in chosen]
        update = _with_components(once(*map(_picklable, values)), shown)
        # The other process has a copy of what was chosen, and does not see that it changed.
        return update if before == [one.path for one in chosen] else {event.outputs[0]: gr.skip()}

    return called


@dataclass(frozen=True)
class _Event:
    """The two facts of an event on which its duration depends."""

    fn: Callable[..., Any] | None
    concurrency_id: str | None


def _event_facts(event: BlockFunction) -> Any:
    return _Event(event.fn, event.concurrency_id)


def _picklable(value: Any) -> Any:
    if not isinstance(value, gr.Request):
        return value
    return Visitor(value.session_hash, Client(str(getattr(value.client, "host", ""))))


def _with_numbers(update: Any) -> Any:
    if not isinstance(update, dict):
        return update
    return {key._id if isinstance(key, Block) else key: value for key, value in update.items()}  # noqa: SLF001


def _with_components(update: Any, shown: dict[int, Any]) -> Any:
    return {shown.get(key, key): value for key, value in update.items()} if isinstance(update, dict) else update
