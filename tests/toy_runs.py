"""Runs of the toy protocol, what they must give, and workers without processes."""

import pickle

from backend.evaluate import engines, runs
from backend.evaluate import store as evaluate_store
from backend.evaluate.store import Store
from backend.progress import finish
from tests.toy_protocol import ToyConfig, ToyProtocol, toy_data

# By hand: real 10, 20, 30; swap 100, 110, 120; drawn 200, 205, 210.
EXPECTED = {
    ("drawn", "x1"): 205.0,
    ("drawn", "x2"): 410.0,
    ("real", "x1"): 20.0,
    ("real", "x2"): 40.0,
    ("swap", "x1"): 110.0,
    ("swap", "x2"): 220.0,
}


def evaluated(protocol, data, out, **options):
    return finish(runs.run_protocol(protocol, data, out, **options))


def stored(out):
    store = Store(out)
    try:
        return [evaluate_store.without_timings(row) for row in store.rows()]
    finally:
        store.close()


def levels(evaluation):
    return {key: record["level"] for key, record in evaluation.tables[0].keyed().items()}


def uninterrupted(folder):
    """Return the data, the whole run's folder and its evaluation."""
    data = toy_data(folder / "data")
    out = folder / "whole"
    return data, out, evaluated(ToyProtocol(ToyConfig()), data, out)


class FakePool(engines.Pool):
    """Workers without processes, one of which dies at given items, `times` times in all."""

    name = "fake"

    def __init__(self, workers, deadly, times):
        self.workers, self.deadly, self.left = workers, deadly, times
        self.jobs, self.started, self.running, self.places = {}, 0, set(), []

    def start(self, packed, number):
        self.started += 1
        self.running.add(self.started)
        self.places.append(number)
        self.work = pickle.loads(packed)
        return self.started

    def send(self, worker, item):
        self.jobs[worker] = item

    def wait(self, busy):
        worker = busy[-1]  # the last one first: completion in another order
        item = self.jobs[worker]
        if item.key in self.deadly and self.left > 0:
            self.left -= 1
            return [(worker, None)]
        return [(worker, finish(engines.perform_item(*self.work, item, f"fake {worker}")))]

    def stop(self, worker):
        self.running.remove(worker)
