"""Run a package's blocking loop as a generator: it asks, and whoever drives the generator answers."""

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


class _Stopped(BaseException):
    """Unwinds the package's loop; not an Exception, so that no package swallows it."""


def take_turns(run: Callable[[Callable[[Asked], Answer]], Result], seed: int) -> Generator[Asked, Answer, Result]:
    """Run `run(ask)` in a thread of its own that works only while this generator waits for it.

    Closing the generator ends the thread at its next question, and before this returns. Numpy's global random
    numbers, which packages draw from, begin at `seed` for the thread and are as before for everybody else.

    Args:
        run: The package's loop; what it asks with `ask(question)` is yielded, and what is sent is its answer.
        seed: Seed of Numpy's global random numbers.

    Returns:
        What `run` returned.

    Raises:
        Exception: Whatever `run` raised.
    """
    said: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    heard: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def ask(question: Asked) -> Answer:
        said.put(("asked", question))
        kind, answer = heard.get()
        if kind == "stop":
            raise _Stopped
        return answer

    def work() -> None:
        try:
            said.put(("done", run(ask)))
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the generator runs
            said.put(("failed", error))

    thread = threading.Thread(target=work, daemon=True)
    randomness = np.random.RandomState(seed).get_state()
    started = False
    try:
        while True:
            outside = np.random.get_state()  # noqa: NPY002
            np.random.set_state(randomness)  # noqa: NPY002
            try:
                if not started:
                    thread.start()
                    started = True
                kind, value = said.get()
                randomness = np.random.get_state()  # noqa: NPY002
            finally:
                np.random.set_state(outside)  # noqa: NPY002
            if kind == "done":
                return value
            if kind == "failed":
                raise value
            heard.put(("answer", (yield value)))
    finally:
        heard.put(("stop", None))
        thread.join()
