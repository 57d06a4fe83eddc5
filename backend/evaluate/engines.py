"""Who does the items of a run: this process, worker processes, or a Ray cluster. All give the same rows.

A worker gives torch one thread; this process has as many as torch likes, so that the last digits of sums may differ.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Generator, Sequence
from multiprocessing import connection
from typing import Any
from typing import Protocol as Interface

from backend.errors import UserError
from backend.evaluate import rows
from backend.evaluate.data import Dataset
from backend.evaluate.files import without_folders
from backend.evaluate.protocols.protocol import Item, Protocol
from backend.evaluate.store import Outcome

ATTEMPTS = 3  # at an item during which its worker died
Outcomes = Generator[Outcome, None, None]
GIVEN_UP = 3  # items in a row that no worker outlived: then it is not the items


class Engine(Interface):
    """Does items in any order."""

    name: str

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[Item]) -> Outcomes:
        """Yield what became of every item, as it finishes; closing the iterator stops the workers."""
        ...


def devices() -> int:
    """Return the number of GPUs on this machine, or of the cores that this process may use where there is none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def perform(protocol: Protocol, data: Dataset, item: Item, worker: str) -> Outcome:
    """Do one item, whatever happens in it."""
    started = time.perf_counter()
    state, text, reason = "done", "[]", ""
    try:
        text = rows.encode(protocol.run_item(item, data))
    except UserError as error:
        state, reason = "skipped", error.message
    except Exception as error:  # noqa: BLE001 - one odd picture must not end a run of thousands; it is listed
        said = without_folders(str(error)).partition("\n")[0]
        state, reason = "failed", f"{type(error).__name__}: {said}"
    return Outcome(item.key, state, text, reason, time.perf_counter() - started, worker)  # type: ignore[arg-type]


class InProcess:
    """Does one item after the other in this process, with its one copy of each model."""

    name = "local"

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[Item]) -> Outcomes:
        """Yield what became of every item."""
        for item in items:
            yield perform(protocol, data, item, "this process")


class Pool(ABC):
    """Workers of one thread each; whoever dies is replaced, and the item is done again."""

    name: str
    workers: int

    @abstractmethod
    def start(self, packed: bytes, number: int) -> Any:
        """Start a worker that unpickles protocol and data, and return what stands for it."""

    @abstractmethod
    def send(self, worker: Any, item: Item) -> None:
        """Give an item to an idle worker; one that is dead is noticed by `wait`."""

    @abstractmethod
    def wait(self, busy: Sequence[Any]) -> list[tuple[Any, Outcome | None]]:
        """Wait until a worker has finished, and return all that have; None in place of the outcome of the dead."""

    @abstractmethod
    def stop(self, worker: Any) -> None:
        """End a worker."""

    def open(self) -> None:  # noqa: B027 - not every pool has something to open
        """Get ready for `start`."""

    def close(self) -> None:  # noqa: B027
        """Undo `open`."""

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[Item]) -> Outcomes:
        """Yield what became of every item, in the order in which they finish."""
        waiting, deaths, given_up = deque(items), Counter[str](), 0
        busy: dict[Any, Item] = {}
        places: dict[Any, int] = {}  # each has its GPU
        packed = pickle.dumps((protocol, data))
        self.open()
        try:
            for number in range(min(self.workers, len(items))):
                worker = self.start(packed, number)
                places[worker] = number
                self._next(busy, worker, waiting)
            while busy:
                for worker, outcome in self.wait(list(busy)):
                    item = busy.pop(worker)
                    if outcome is not None:
                        given_up = 0
                        self._next(busy, worker, waiting)
                        yield outcome
                        continue
                    self.stop(worker)
                    deaths[item.key] += 1
                    if deaths[item.key] < ATTEMPTS:
                        waiting.appendleft(item)
                    else:
                        given_up += 1
                        yield Outcome(item.key, "failed", "[]", f"Its worker died {ATTEMPTS} times.", 0.0, "")
                    if given_up >= GIVEN_UP:
                        raise UserError(
                            "The workers keep dying.", "Use fewer workers; each needs about 1 GB of memory."
                        )
                    if waiting:
                        replacement = self.start(packed, places[worker])
                        places[replacement] = places.pop(worker)
                        self._next(busy, replacement, waiting)
        finally:
            for worker in busy:
                self.stop(worker)
            self.close()

    def _next(self, busy: dict[Any, Item], worker: Any, waiting: deque[Item]) -> None:
        """Give a worker the next item, or end it where none is left."""
        if not waiting:
            self.stop(worker)
            return
        item = waiting.popleft()
        busy[worker] = item
        self.send(worker, item)


class Processes(Pool):
    """Processes on this machine.

    Args:
        workers: How many.
    """

    name = "local"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pipes: dict[Any, connection.Connection] = {}

    def start(self, packed: bytes, number: int) -> Any:
        """Start a process; `spawn`, because a forked copy of PyTorch hangs."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, packed, f"process {number}", number), daemon=True)
        process.start()
        there.close()  # so that the death of the process ends the pipe
        self._pipes[process] = here
        return process

    def send(self, worker: Any, item: Item) -> None:
        """Send an item."""
        try:
            self._pipes[worker].send(item)
        except (BrokenPipeError, ConnectionResetError):
            return  # `wait` finds the pipe ended

    def wait(self, busy: Sequence[Any]) -> list[tuple[Any, Outcome | None]]:
        """Wait for an answer or the end of a pipe."""
        by_pipe = {self._pipes[worker]: worker for worker in busy}
        found: list[tuple[Any, Outcome | None]] = []
        for ready in connection.wait(list(by_pipe)):
            worker = by_pipe[ready]  # type: ignore[index]
            try:
                found.append((worker, self._pipes[worker].recv()))
            except (EOFError, ConnectionResetError):
                found.append((worker, None))
        return found

    def stop(self, worker: Any) -> None:
        """End a process and wait until it is gone."""
        self._pipes.pop(worker).close()
        worker.terminate()
        worker.join(10)
        if worker.is_alive():
            worker.kill()
            worker.join()


def prepare_worker(number: int) -> None:
    """Give a worker one thread, so that the same sums are made in the same order everywhere, and its own GPU."""
    import threadpoolctl
    import torch

    threadpoolctl.threadpool_limits(1)
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _serve(pipe: connection.Connection, packed: bytes, name: str, number: int) -> None:
    """Do items until the other end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent, which ends this process
    prepare_worker(number)
    protocol, data = pickle.loads(packed)  # noqa: S301 - it comes from the parent
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(perform(protocol, data, pipe.recv(), name))
