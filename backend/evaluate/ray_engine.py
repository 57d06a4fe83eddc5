"""Items on a Ray cluster: one actor with loaded models a worker (Moritz et al. 2018; package ray, Ray Core)."""

import math
import os
import pickle
import sys
from collections.abc import Sequence
from typing import Any

from backend.errors import UserError
from backend.evaluate import engines
from backend.evaluate.protocols.protocol import Item
from backend.evaluate.store import Outcome
from backend.settings import ROOT

INSTALL = "Install it with: pip install -r requirements-ray.txt"
# What a remote node needs of the project is sent to it; these folders it does not need.
NOT_SENT = [".git", ".venv*", "runs", "out", "examples/results", "results", "tests", "**/__pycache__"]
STORE_BYTES = 200_000_000  # of a cluster on this machine; rows are small


class RayEngine(engines.Pool):
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
            raise UserError("The package ray is missing.", INSTALL) from None
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if self.address is None:
            own = {"num_cpus": self.workers or engines.devices(), "object_store_memory": STORE_BYTES}
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
        self._actor = ray.remote(_Worker)

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

    def send(self, worker: Any, item: Item) -> None:
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


def item_values(item: Item) -> tuple[str, str, dict[str, Any]]:
    """Return an item as plain values, which an actor can read before the project's own modules are found."""
    return item.key, item.sample, dict(item.options)


class _Worker:
    """Runs in the actor's process; it imports the project only after its path is known."""

    def __init__(self, paths: list[str], packed: bytes, name: str) -> None:
        sys.path[:0] = [path for path in paths if path not in sys.path]
        from backend.evaluate import engines as own

        own.prepare_worker(0)
        self.name = name
        self.protocol, self.data = pickle.loads(packed)  # noqa: S301 - it comes from the driver

    def perform(self, values: tuple[str, str, dict[str, Any]]) -> tuple[Any, ...]:
        """Do one item."""
        import dataclasses

        from backend.evaluate import engines as own
        from backend.evaluate.protocols.protocol import Item as OwnItem

        return dataclasses.astuple(own.perform(self.protocol, self.data, OwnItem(*values), self.name))
