"""Where the Hub lends a GPU for seconds (ZeroGPU), ask for it around every event that runs models; elsewhere nothing.

There, the handler runs in a process of its own. What goes in and comes out is pickled, so a visitor's request becomes
the two facts that handlers read, and components become their numbers on the way back.
"""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.blocks import Block, BlockFunction

from tabs.common import MODEL, VERDICT, session_folder

VERDICT_SECONDS = 15
JOB_SECONDS = 30  # loading, faces, metrics and whatever has no number of steps
STEP_SECONDS = 0.1
MOST_SECONDS = 120  # a visitor without an account has this much in a day
PRESETS = {"quick": 1.0, "full": 3.0, "as_released": 4.0}


@dataclass(frozen=True)
class Client:
    """Where a request came from."""

    host: str


@dataclass(frozen=True)
class Visitor:
    """What handlers read of a request."""

    session_hash: str | None
    client: Client


def use(demo: gr.Blocks) -> None:
    """Ask for a GPU around every event of `demo` that runs models, where the package `spaces` is installed."""
    if importlib.util.find_spec("spaces") is None:
        return
    spaces = importlib.import_module("spaces")
    session_folder(None)  # made before the processes fork, so that all of them share it
    for event in demo.fns.values():
        if event.fn is not None and event.concurrency_id in {MODEL["concurrency_id"], VERDICT["concurrency_id"]}:
            event.fn = _lent(event, spaces.GPU)


def seconds(event: BlockFunction, *values: Any) -> int:
    """Return for how long a call needs the GPU at most, from what the visitor asked for.

    Less is better: who asks for less waits less, and is refused less often.
    """
    if event.concurrency_id == VERDICT["concurrency_id"]:
        return VERDICT_SECONDS
    assert event.fn is not None
    try:
        asked = inspect.signature(event.fn).bind(*values).arguments
    except TypeError:
        asked = {}
    steps = asked.get("steps")
    needed = JOB_SECONDS + STEP_SECONDS * (steps if isinstance(steps, int | float) else 0)
    if "video" in asked:
        return MOST_SECONDS
    return min(MOST_SECONDS, round(needed * PRESETS.get(str(asked.get("preset")), 1.0)))


def _lent(event: BlockFunction, lend: Callable[..., Any]) -> Callable[..., Any]:
    """Return the handler of an event, run where the GPU is."""
    handler = event.fn
    assert handler is not None
    shown = {block._id: block for block in event.outputs}  # noqa: SLF001 - how the library itself names them
    duration = functools.partial(seconds, _copy(event))

    if inspect.isgeneratorfunction(handler):

        def stream(*values: Any) -> Iterator[Any]:
            for update in handler(*values):
                yield _numbered(update)

        remote = lend(stream, duration=duration)

        @functools.wraps(handler)
        def streamed(*values: Any) -> Iterator[Any]:
            for update in remote(*map(_plain, values)):
                yield _named(update, shown)

        return streamed

    def call(*values: Any) -> Any:
        return _numbered(handler(*values))

    once = lend(call, duration=duration)

    @functools.wraps(handler)
    def called(*values: Any) -> Any:
        return _named(once(*map(_plain, values)), shown)

    return called


@dataclass(frozen=True)
class _Event:
    """The two facts of an event on which its duration depends."""

    fn: Callable[..., Any] | None
    concurrency_id: str | None


def _copy(event: BlockFunction) -> Any:
    return _Event(event.fn, event.concurrency_id)


def _plain(value: Any) -> Any:
    if not isinstance(value, gr.Request):
        return value
    return Visitor(value.session_hash, Client(str(getattr(value.client, "host", ""))))


def _numbered(update: Any) -> Any:
    if not isinstance(update, dict):
        return update
    return {key._id if isinstance(key, Block) else key: value for key, value in update.items()}  # noqa: SLF001


def _named(update: Any, shown: dict[int, Any]) -> Any:
    return {shown.get(key, key): value for key, value in update.items()} if isinstance(update, dict) else update
