"""Who does the items of a run: this process, worker processes, or a Ray cluster. All give the same rows.

A worker gives torch one thread; this process has as many as torch likes, so that the last digits of sums may differ.
On a Ray cluster one actor with loaded models is a worker (Moritz et al. 2018; package ray, Ray Core).
"""

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Generator, Sequence
from multiprocessing import connection
from typing import Any
from typing import Protocol as Interface

from backend.errors import UserError
from backend.evaluate import store
from backend.evaluate.dataset import Dataset
from backend.evaluate.protocols.base import Item as OwnItem
from backend.evaluate.protocols.base import Protocol
from backend.evaluate.store import Outcome, without_folders
from backend.settings import ROOT

ATTEMPTS = 3  # at an item during which its worker died

Outcomes = Generator[Outcome, None, None]

GIVEN_UP = 3  # items in a row that no worker outlived: then it is not the items


class Engine(Interface):
    """Does items in any order."""

    name: str

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[OwnItem]) -> Outcomes:
        """Yield what became of every item, as it finishes; closing the iterator stops the workers."""
        ...


def count_devices() -> int:
    """Return the number of GPUs on this machine, or of the cores that this process may use where there is none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def perform_item(protocol: Protocol, data: Dataset, item: OwnItem, worker: str) -> Outcome:
    """Do one item, whatever happens in it."""
    started = time.perf_counter()
    state, text, reason = "done", "[]", ""
    try:
        text = store.encode_rows(protocol.run_item(item, data))
    except UserError as error:
        state, reason = "skipped", error.message
    except Exception as error:  # noqa: BLE001 - one odd picture must not end a run of thousands; it is listed
        said = without_folders(str(error)).partition("\n")[0]
        state, reason = "failed", f"{type(error).__name__}: {said}"
    return Outcome(item.key, state, text, reason, time.perf_counter() - started, worker)  # type: ignore[arg-type]


class InProcess:
    """Does one item after the other in this process, with its one copy of each model."""

    name = "local"

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[OwnItem]) -> Outcomes:
        """Yield what became of every item."""
        for item in items:
            yield perform_item(protocol, data, item, "this process")


class Pool(ABC):
    """Workers of one thread each; whoever dies is replaced, and the item is done again."""

    name: str
    workers: int

    @abstractmethod
    def start(self, packed: bytes, number: int) -> Any:
        """Start a worker that unpickles protocol and data, and return what stands for it."""

    @abstractmethod
    def send(self, worker: Any, item: OwnItem) -> None:
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

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[OwnItem]) -> Outcomes:
        """Yield what became of every item, in the order in which they finish."""
        waiting, deaths, given_up = deque(items), Counter[str](), 0
        busy: dict[Any, OwnItem] = {}
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

    def _next(self, busy: dict[Any, OwnItem], worker: Any, waiting: deque[OwnItem]) -> None:
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
        process = context.Process(target=_serve_items, args=(there, packed, f"process {number}", number), daemon=True)
        process.start()
        there.close()  # so that the death of the process ends the pipe
        self._pipes[process] = here
        return process

    def send(self, worker: Any, item: OwnItem) -> None:
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


def _serve_items(pipe: connection.Connection, packed: bytes, name: str, number: int) -> None:
    """Do items until the other end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the parent, which ends this process
    prepare_worker(number)
    protocol, data = pickle.loads(packed)  # noqa: S301 - it comes from the parent
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(perform_item(protocol, data, pipe.recv(), name))


INSTALL_RAY = "Install it with: pip install -r requirements-ray.txt"

# What a remote node needs of the project is sent to it; these folders it does not need.
NOT_SENT = [".git", ".venv*", "runs", "out", "examples/results", "results", "tests", "**/__pycache__"]

STORE_BYTES = 200_000_000  # of a cluster on this machine; rows are small


class RayEngine(Pool):
    """Ray actors.

    Args:
        workers: How many; None takes one for each GPU of the cluster, else for each core.
        address: Address of a running cluster, as `ray.init` takes it; None starts one on this machine and ends it
            afterwards. The data's folder must have the same path on all its machines.
    """

    name = "ray"

    def __init__(self, workers: int | None, address: str | None) -> None:
        self.workers = workers or 0
        self.address = address
        self._asked: dict[Any, Any] = {}

    def open(self) -> None:
        """Connect to the cluster, or start one.

        Raises:
            UserError: Ray is not installed, does not start, or there is no cluster at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise whatever else runs comes first
        try:
            import ray
        except ModuleNotFoundError:
            raise UserError("The package ray is missing.", INSTALL_RAY) from None
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if self.address is None:
            own = {"num_cpus": self.workers or count_devices(), "object_store_memory": STORE_BYTES}
            options |= own | {"include_dashboard": False}
        else:
            options |= {
                "address": self.address,
                "runtime_env": {"working_dir": str(ROOT), "excludes": NOT_SENT},
            }
        self._connect(ray, options)
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0)
        self.workers = self.workers or max(1, int(gpus or resources.get("CPU", 1)))
        self._share = gpu_share(gpus, self.workers)
        self._ray = ray
        self._actor = ray.remote(_RayWorker)

    def _connect(self, ray: Any, options: dict[str, Any]) -> None:
        """Call `ray.init`; a cluster on this machine gets a second chance, because Ray waits only 30 seconds for it."""
        for last in (self.address is not None, True):
            try:
                ray.init(**options)
            except Exception as error:  # a node that does not start raises a plain Exception
                ray.shutdown()  # whatever of it did start
                if not last:
                    continue
                if self.address is not None:
                    raise UserError(
                        f"No Ray cluster could be reached at {self.address}.", "Check the address after --ray-address."
                    ) from error
                raise UserError(
                    "Ray could not be started on this machine.",
                    "Try it again when the machine is less busy, or use --engine local.",
                ) from error
            return

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if hasattr(self, "_ray"):
            self._ray.shutdown()

    def start(self, packed: bytes, number: int) -> Any:
        """Start an actor."""
        paths = [path for path in sys.path if path] if self.address is None else []
        options = self._actor.options(num_cpus=1, num_gpus=self._share)
        return options.remote(paths, packed, f"actor {number}")

    def send(self, worker: Any, item: OwnItem) -> None:
        """Give an item to an actor."""
        self._asked[worker] = worker.perform.remote(item_values(item))

    def wait(self, busy: Sequence[Any]) -> list[tuple[Any, Outcome | None]]:
        """Wait for an answer or the death of an actor."""
        by_answer = {self._asked[worker]: worker for worker in busy}
        ready, _ = self._ray.wait(list(by_answer), num_returns=1)
        found: list[tuple[Any, Outcome | None]] = []
        for answer in ready:
            worker = by_answer[answer]
            try:
                found.append((worker, Outcome(*self._ray.get(answer))))
            except self._ray.exceptions.RayError:  # of the actor, its node or its memory: it is replaced
                found.append((worker, None))
            del self._asked[worker]
        return found

    def stop(self, worker: Any) -> None:
        """End an actor."""
        self._asked.pop(worker, None)
        self._ray.kill(worker, no_restart=True)


def gpu_share(gpus: float, workers: int) -> float:
    """Return how much of a GPU each worker asks for, so that all of them find room: no actor spans two GPUs."""
    return 0.0 if gpus < 1 else 1 / math.ceil(workers / int(gpus))


def item_values(item: OwnItem) -> tuple[str, str, dict[str, Any]]:
    """Return an item as plain values, which an actor can read before the project's own modules are found."""
    return item.key, item.sample, dict(item.options)


class _RayWorker:
    """Runs in the actor's process; it imports the project only after its path is known."""

    def __init__(self, paths: list[str], packed: bytes, name: str) -> None:
        sys.path[:0] = [path for path in paths if path not in sys.path]

        prepare_worker(0)
        self.name = name
        self.protocol, self.data = pickle.loads(packed)  # noqa: S301 - it comes from the driver

    def perform(self, values: tuple[str, str, dict[str, Any]]) -> tuple[Any, ...]:
        """Do one item."""
        import dataclasses

        from backend.evaluate.protocols.base import Item as OwnItem

        return dataclasses.astuple(perform_item(self.protocol, self.data, OwnItem(*values), self.name))


ENGINES = ("local", "ray")


def choose_engine(name: str, workers: int | None = None, address: str | None = None) -> Engine:
    """Return an engine by its name.

    Args:
        name: `local` or `ray`.
        workers: How many workers; 0 does everything in this process; None takes one for each GPU, else for each core.
        address: Address of a Ray cluster; None starts one on this machine.

    Raises:
        UserError: There is no such engine, or it is not installed.
    """
    if workers is not None and workers < 0:
        raise UserError(f"There cannot be {workers} workers.", "Use 0 to work in this process, or a number from 1.")
    if name == "ray":
        return RayEngine(workers, address)
    if name != "local":
        raise UserError(f"There is no engine {name}.", f"Use one of: {', '.join(ENGINES)}.")
    if workers == 0:
        return InProcess()
    return Processes(workers or count_devices())
