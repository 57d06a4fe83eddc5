"""Engines, which do the items of a run: this process, worker processes, or a Ray cluster. All give the same rows.

A worker gives torch one thread, this process has as many as torch likes, and a detector that was asked often enough is
compiled: the last digits of sums may differ.
On a Ray cluster, a worker is one actor with loaded models (Moritz et al. 2018; package ray, Ray Core).
"""

import contextlib
import dataclasses
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
from backend.evaluate.protocols.base import Item, Protocol
from backend.evaluate.store import Outcome, without_folders
from backend.progress import Job, Step, finish
from backend.settings import ROOT

ATTEMPTS = 3  # at an item whose worker died
GIVEN_UP = 3  # such items in a row end the run: the machine is at fault, not the items
# What a remote node does not need of the project's folder.
NOT_SENT = [".git", ".venv*", "runs", "out", "examples/results", "results", "tests", "**/__pycache__"]
STORE_BYTES = 200_000_000  # of a cluster on this machine; rows are small
ENGINES = ("local", "ray")

# The outcome of every item as it finishes; a step of an item in between, where it is done in this process.
Outcomes = Generator[Outcome | Step, None, None]


class Engine(Interface):
    """Does items in any order."""

    name: str

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[Item]) -> Outcomes:
        """Yield the outcomes; closing the iterator stops the work and the workers."""
        ...


def count_devices() -> int:
    """Return the number of GPUs on this machine; without any, the number of cores that this process may use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def perform_item(protocol: Protocol, data: Dataset, item: Item, worker: str) -> Job[Outcome]:
    """Do one item; an error becomes its outcome."""
    started = time.perf_counter()
    state, text, reason = "done", "[]", ""
    try:
        text = store.encode_rows((yield from protocol.run_item(item, data)))
    except UserError as error:
        state, reason = "skipped", error.message
    except Exception as error:  # noqa: BLE001 - one odd picture must not end a run of thousands; it is listed
        message = without_folders(str(error)).partition("\n")[0]
        state, reason = "failed", f"{type(error).__name__}: {message}"
    return Outcome(item.key, state, text, reason, time.perf_counter() - started, worker)  # type: ignore[arg-type]


class InProcess:
    """Does one item after the other in this process, with one copy of each model."""

    name = "local"

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[Item]) -> Outcomes:
        for item in items:
            yield (yield from perform_item(protocol, data, item, "this process"))


class Pool(ABC):
    """Workers of one thread each; one that dies is replaced, and its item is done again."""

    name: str
    workers: int

    @abstractmethod
    def start(self, packed: bytes, number: int) -> Any:
        """Start a worker that unpickles protocol and data, and return a handle to it."""

    @abstractmethod
    def send(self, worker: Any, item: Item) -> None:
        """Give an item to an idle worker; `wait` notices a dead one."""

    @abstractmethod
    def wait(self, busy: Sequence[Any]) -> list[tuple[Any, Outcome | None]]:
        """Wait until a worker has finished or died, and return all such workers with their outcomes, None if dead."""

    @abstractmethod
    def stop(self, worker: Any) -> None: ...

    def open(self) -> None:  # noqa: B027 - not every pool has something to open
        """Get ready for `start`."""

    def close(self) -> None:  # noqa: B027
        """Undo `open`."""

    def run(self, protocol: Protocol, data: Dataset, items: Sequence[Item]) -> Outcomes:
        waiting, deaths, given_up = deque(items), Counter[str](), 0
        busy: dict[Any, Item] = {}
        places: dict[Any, int] = {}  # a replacement uses the same GPU
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
                        raise UserError("The workers keep dying.", "Use fewer; each needs about 1 GB of memory.")
                    if waiting:
                        replacement = self.start(packed, places[worker])
                        places[replacement] = places.pop(worker)
                        self._next(busy, replacement, waiting)
        finally:
            for worker in busy:
                self.stop(worker)
            self.close()

    def _next(self, busy: dict[Any, Item], worker: Any, waiting: deque[Item]) -> None:
        """Give a worker the next item, or end it if none is left."""
        if not waiting:
            self.stop(worker)
            return
        item = waiting.popleft()
        busy[worker] = item
        self.send(worker, item)


class Processes(Pool):
    """Processes on this machine."""

    name = "local"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pipes: dict[Any, connection.Connection] = {}

    def start(self, packed: bytes, number: int) -> Any:
        context = multiprocessing.get_context("spawn")  # a forked copy of PyTorch hangs
        here, there = context.Pipe()
        process = context.Process(target=_serve_items, args=(there, packed, f"process {number}", number), daemon=True)
        process.start()
        there.close()  # so that the death of the process ends the pipe
        self._pipes[process] = here
        return process

    def send(self, worker: Any, item: Item) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `wait` finds the pipe ended
            self._pipes[worker].send(item)

    def wait(self, busy: Sequence[Any]) -> list[tuple[Any, Outcome | None]]:
        by_pipe = {self._pipes[worker]: worker for worker in busy}
        outcomes: list[tuple[Any, Outcome | None]] = []
        for ready in connection.wait(list(by_pipe)):
            worker = by_pipe[ready]  # type: ignore[index]
            try:
                outcomes.append((worker, self._pipes[worker].recv()))
            except (EOFError, ConnectionResetError):
                outcomes.append((worker, None))
        return outcomes

    def stop(self, worker: Any) -> None:
        self._pipes.pop(worker).close()
        worker.terminate()
        worker.join(10)
        if worker.is_alive():
            worker.kill()
            worker.join()


def prepare_worker(number: int) -> None:
    """Give a worker one thread, so that sums are computed in the same order everywhere, and its own GPU."""
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
            pipe.send(finish(perform_item(protocol, data, pipe.recv(), name)))


class RayEngine(Pool):
    """Ray actors.

    Args:
        workers: How many; None starts one for each GPU of the cluster, or for each core if it has no GPU.
        address: Address of a running cluster, as `ray.init` takes it; None starts one on this machine and ends it
            afterwards. The data's folder must have the same path on all its machines.
    """

    name = "ray"

    def __init__(self, workers: int | None, address: str | None) -> None:
        self.workers = workers or 0
        self.address = address
        self._answers: dict[Any, Any] = {}

    def open(self) -> None:
        """Connect to the cluster, or start one.

        Raises:
            UserError: Ray is not installed, does not start, or there is no cluster at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # otherwise all other programs come first
        try:
            import ray
        except ModuleNotFoundError:
            hint = "Install it with: pip install -r requirements-ray.txt"
            raise UserError("The package ray is missing.", hint) from None
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if self.address is None:
            options |= {"num_cpus": self.workers or count_devices(), "object_store_memory": STORE_BYTES}
            options["include_dashboard"] = False
        else:
            options |= {"address": self.address, "runtime_env": {"working_dir": str(ROOT), "excludes": NOT_SENT}}
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
                ray.shutdown()  # ends the parts that did start
                if not last:
                    continue
                if self.address is not None:
                    raise UserError(f"There is no Ray cluster at {self.address}.", "Check --ray-address.") from error
                hint = "Try again when the machine is less busy, or use --engine local."
                raise UserError("Ray could not be started on this machine.", hint) from error
            return

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if hasattr(self, "_ray"):
            self._ray.shutdown()

    def start(self, packed: bytes, number: int) -> Any:
        paths = [path for path in sys.path if path] if self.address is None else []
        options = self._actor.options(num_cpus=1, num_gpus=self._share)
        return options.remote(paths, packed, f"actor {number}")

    def send(self, worker: Any, item: Item) -> None:
        # Plain values, which an actor can read before it finds the project's own modules.
        self._answers[worker] = worker.perform.remote((item.key, item.sample, dict(item.options)))

    def wait(self, busy: Sequence[Any]) -> list[tuple[Any, Outcome | None]]:
        by_answer = {self._answers[worker]: worker for worker in busy}
        ready, _ = self._ray.wait(list(by_answer), num_returns=1)
        outcomes: list[tuple[Any, Outcome | None]] = []
        for answer in ready:
            worker = by_answer[answer]
            try:
                outcomes.append((worker, Outcome(*self._ray.get(answer))))
            except self._ray.exceptions.RayError:  # of the actor, its node or its memory: it is replaced
                outcomes.append((worker, None))
            del self._answers[worker]
        return outcomes

    def stop(self, worker: Any) -> None:
        self._answers.pop(worker, None)
        self._ray.kill(worker, no_restart=True)


def gpu_share(gpus: float, workers: int) -> float:
    """Return the share of a GPU that each worker requests, so that all of them fit: no actor spans two GPUs."""
    return 0.0 if gpus < 1 else 1 / math.ceil(workers / int(gpus))


class _RayWorker:
    """Runs in the actor's process; it imports the project only after its path is known."""

    def __init__(self, paths: list[str], packed: bytes, name: str) -> None:
        sys.path[:0] = [path for path in paths if path not in sys.path]
        prepare_worker(0)
        self.name = name
        self.protocol, self.data = pickle.loads(packed)  # noqa: S301 - it comes from the driver

    def perform(self, values: tuple[str, str, dict[str, Any]]) -> tuple[Any, ...]:
        return dataclasses.astuple(finish(perform_item(self.protocol, self.data, Item(*values), self.name)))


def choose_engine(name: str, workers: int | None = None, address: str | None = None) -> Engine:
    """Return an engine by its name.

    Args:
        name: One of `ENGINES`.
        workers: How many; 0 does everything in this process; None starts one for each GPU, or for each core if there
            is no GPU.
        address: Address of a Ray cluster; None starts one on this machine.

    Raises:
        UserError: There is no such engine, or the number of workers is negative.
    """
    if workers is not None and workers < 0:
        raise UserError(f"There cannot be {workers} workers.", "Use 0 to work in this process, or a number from 1.")
    if name == "ray":
        return RayEngine(workers, address)
    if name != "local":
        raise UserError(f"There is no engine {name}.", f"Use one of: {', '.join(ENGINES)}.")
    return InProcess() if workers == 0 else Processes(workers or count_devices())
