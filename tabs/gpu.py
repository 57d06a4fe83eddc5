"""Ask for a GPU around every event that runs models, where the Hub lends one for seconds (ZeroGPU).

There, the handler runs in a process of its own. Its inputs and outputs are pickled, so a request is reduced to the two
facts that handlers read, and components are replaced by their ids on the way back.
"""

import copy
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
from tabs.events import USES_MODELS, VERDICT
from tabs.photo import ChosenPhoto
from tabs.visitors import session_folder

VERDICT_SECONDS = 15
JOB_SECONDS = 30  # loading, finding faces, metrics and all else that has no number of steps
STEP_SECONDS = 0.1
MOST_SECONDS = 120  # a visitor without an account has this much in a day
PRESETS = {"quick": 1.0, "full": 3.0, "as_released": 4.0}
EVERY_METHOD = 2.0  # all maps, relative to one
PROTOCOLS = {"detectors": 1.0}  # relative to a job; any other protocol gets the most time
RETEST_STEPS = 2  # scoring some frames with the other detectors, in steps


@dataclass(frozen=True)
class Client:
    host: str


@dataclass(frozen=True)
class Visitor:
    session_hash: str | None
    client: Client


def is_lent() -> bool:
    return importlib.util.find_spec("spaces") is not None


def ask_for_gpu(demo: gr.Blocks) -> None:
    """Ask for a GPU around every event of `demo` that runs models, if GPUs are lent here."""
    if not is_lent():
        return
    spaces = importlib.import_module("spaces")
    session_folder(None)  # made before the processes fork, so that all of them share it
    for event in demo.fns.values():
        if event.fn is not None and event.concurrency_id in USES_MODELS:
            event.fn = _run_on_gpu(event, spaces.GPU)


def needed_seconds(event: BlockFunction, *values: Any) -> int:
    """Return how many seconds a call needs the GPU at most, from its inputs.

    Shorter calls wait less and are refused less often.
    """
    if event.concurrency_id == VERDICT["concurrency_id"]:
        return VERDICT_SECONDS
    assert event.fn is not None
    try:
        arguments = inspect.signature(event.fn).bind_partial(*values).arguments
    except TypeError:
        arguments = {}
    needed = JOB_SECONDS + STEP_SECONDS * _count_steps(arguments)
    if "preset" in arguments:
        needed *= PRESETS.get(str(arguments["preset"]), 1.0) * (1.0 if "method" in arguments else EVERY_METHOD)
    if "real_path" in arguments:
        needed *= EVERY_METHOD
    if "protocol" in arguments:
        needed *= PROTOCOLS.get(str(arguments["protocol"]), MOST_SECONDS / JOB_SECONDS)
    return min(MOST_SECONDS, round(needed))


def _count_steps(arguments: Mapping[str, Any]) -> float:
    """Return the most steps, with those of a closer reconstruction and of all batches of a video."""
    steps = arguments.get("steps")
    count = float(steps) if isinstance(steps, int | float) else 0.0
    if arguments.get("closer"):
        count += RefineSettings.steps
    return count if "video" not in arguments else _count_batches(arguments) * (count + RETEST_STEPS)


def _count_batches(arguments: Mapping[str, Any]) -> int:
    """Return the most batches in which the frames of a video are searched."""
    from backend import video  # these imports would keep the page waiting
    from backend.counterfactual.video import FRAME_BATCH

    if arguments["video"] is None:  # the handler will refuse it
        return 0
    frames = math.ceil(min(video.MAX_FRAMES, video.video_seconds(Path(str(arguments["video"]))) * video.RATE))
    card = registry.card(str(arguments["detector"])) if arguments.get("detector") in registry.loadable() else None
    if card is not None and (card.template, card.input_size) != (predict.EMBEDDED_TEMPLATE, registry.EMBEDDED_SIZE):
        return frames  # every frame is searched by itself
    return 1 + math.ceil((frames - 1) / FRAME_BATCH)  # the first is searched by itself


def _run_on_gpu(event: BlockFunction, lend: Callable[..., Any]) -> Callable[..., Any]:
    """Return the handler of an event, run where the GPU is."""
    handler = event.fn
    assert handler is not None
    outputs = {block._id: block for block in event.outputs}  # noqa: SLF001 - gradio's own ids
    duration = functools.partial(needed_seconds, copy.copy(event))  # `fn` of the event itself is replaced

    if inspect.isgeneratorfunction(handler):

        def stream(*values: Any) -> Iterator[Any]:
            for update in handler(*values):
                yield _with_ids(update)

        remote = lend(stream, duration=duration)

        @functools.wraps(handler)
        def streamed(*values: Any) -> Iterator[Any]:
            for update in remote(*map(_picklable, values)):
                yield _with_components(update, outputs)

        return streamed

    def call(*values: Any) -> Any:
        return _with_ids(handler(*values))

    once = lend(call, duration=duration)

    @functools.wraps(handler)
    def called(*values: Any) -> Any:
        chosen = [value for value in values if isinstance(value, ChosenPhoto)]
        before = [photo.path for photo in chosen]
        update = _with_components(once(*map(_picklable, values)), outputs)
        # The other process has a copy of the chosen photo, and does not see that it changed.
        return update if before == [photo.path for photo in chosen] else {event.outputs[0]: gr.skip()}

    return called


def _picklable(value: Any) -> Any:
    if not isinstance(value, gr.Request):
        return value
    return Visitor(value.session_hash, Client(str(getattr(value.client, "host", ""))))


def _with_ids(update: Any) -> Any:
    if not isinstance(update, dict):
        return update
    return {key._id if isinstance(key, Block) else key: value for key, value in update.items()}  # noqa: SLF001


def _with_components(update: Any, outputs: dict[int, Any]) -> Any:
    return {outputs.get(key, key): value for key, value in update.items()} if isinstance(update, dict) else update
