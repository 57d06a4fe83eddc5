"""Runs: nothing that is finished gets lost, whoever does the work, and another run is never taken for this one."""

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from backend.errors import UserError
from backend.evaluate import engine_choice, engines, memory, ray_engine, report, rows, runs
from backend.evaluate.store import FILE, Outcome, Store
from backend.progress import finish
from backend.settings import ROOT
from tests.toy_protocol import ToyConfig, ToyProtocol, toy_data, write_picture

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
    return finish(runs.evaluate(protocol, data, out, **options))


def stored(out):
    store = Store(out)
    try:
        return [rows.without_timings(row) for row in store.rows()]
    finally:
        store.close()


def levels(evaluation):
    return {key: record["level"] for key, record in evaluation.tables[0].keyed().items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Return the data, the uninterrupted run's folder and its evaluation."""
    folder = tmp_path_factory.mktemp("toy")
    data = toy_data(folder / "data")
    out = folder / "whole"
    return data, out, evaluated(ToyProtocol(ToyConfig()), data, out)


def test_the_table_is_the_one_computed_by_hand(reference):
    _, _, found = reference
    assert levels(found) == EXPECTED
    assert found.counts == {"done": 18, "skipped": 0, "failed": 0, "rows": 18}
    assert found.tables[0].rows[0][2].count == 3
    assert found.tables[0].rows[0][2].std == pytest.approx(5.0)


def test_a_run_says_what_it_is(reference):
    _, _, found = reference
    assert found.about["settings"]["factors"] == [1, 2]
    assert found.about["data"]["fakes"] == {"drawn": 3, "swap": 3}
    assert len(found.about["data"]["hash"]) == 64
    assert {"python", "torch", "numpy"} <= set(found.sessions[0]["versions"])
    assert found.sessions[0]["engine"] == "local"


COMMAND_LINE = """
import sys
from backend import cli
from backend.evaluate.protocols import registry
from tests.toy_protocol import ToyProtocol
registry.PROTOCOLS["toy"] = ToyProtocol
sys.exit(cli.main(["evaluate", "toy", "--preset", "full", "--json", *sys.argv[1:]]))
"""


def command_line(*arguments):
    """Start the command line, which knows the toy protocol, in a process of its own."""
    command = [sys.executable, "-c", COMMAND_LINE, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def finished_items(out):
    with contextlib.suppress(sqlite3.Error):
        file = sqlite3.connect(f"file:{out / FILE}?mode=ro", uri=True)
        try:
            return dict(file.execute("SELECT key, seconds FROM items").fetchall())
        finally:
            file.close()
    return {}


def test_kill_9_loses_no_finished_item_and_the_resumed_table_is_the_uninterrupted_one(reference, tmp_path):
    data, whole, expected = reference
    usual = ("--data", data.folder, "--out", tmp_path, "--workers", 0, "--set", "pause=0.2")
    process = command_line(*usual)
    try:
        patience = time.time() + 240
        while len(finished_items(tmp_path)) < 4 and process.poll() is None and time.time() < patience:
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = finished_items(tmp_path)
    assert 4 <= len(before) < 18
    resumed = command_line(*usual, "--resume")
    said = json.loads(resumed.communicate(timeout=240)[0])
    assert resumed.returncode == 0
    after = finished_items(tmp_path)
    assert len(after) == 18
    assert {key: after[key] for key in before} == before  # what was finished was not done again
    assert said["rows"] == [{"table": "levels"} | record for record in expected.tables[0].records()]
    assert stored(tmp_path) == stored(whole)
    found, _ = report.load(tmp_path)
    assert len(found.sessions) == 2
    assert found.seconds == pytest.approx(sum(session["seconds"] for session in found.sessions))


def test_closing_the_job_keeps_what_was_done(reference, tmp_path):
    data, whole, _ = reference
    job = runs.evaluate(ToyProtocol(ToyConfig()), data, tmp_path)
    steps = [next(job) for _ in range(5)]
    job.close()
    assert [step.number for step in steps] == [0, 1, 2, 3, 4]
    assert "left" in steps[-1].message
    assert len(finished_items(tmp_path)) == 4
    evaluated(ToyProtocol(ToyConfig()), data, tmp_path, resume=True)
    assert stored(tmp_path) == stored(whole)


def test_a_folder_with_a_run_is_not_overwritten(reference):
    data, out, _ = reference
    with pytest.raises(UserError, match="holds a run already"):
        evaluated(ToyProtocol(ToyConfig()), data, out)


def test_other_settings_refuse_to_resume(reference):
    data, out, _ = reference
    with pytest.raises(UserError, match="The setting seed was 0 in this run and is 7 now"):
        evaluated(ToyProtocol(ToyConfig(seed=7)), data, out, resume=True)


def test_other_pictures_refuse_to_resume(tmp_path):
    data = toy_data(tmp_path / "data")
    evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "out")
    write_picture(tmp_path / "data/real/0.png", 11)
    with pytest.raises(UserError, match="pictures are not those"):
        evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "out", resume=True)


@pytest.mark.parametrize("about", ["weights", "measures", "protocol"])
def test_other_models_measures_or_protocols_refuse_to_resume(reference, tmp_path, monkeypatch, about):
    data, _, _ = reference
    evaluated(ToyProtocol(ToyConfig()), data, tmp_path)
    said = runs.describe(ToyProtocol(ToyConfig()), data)
    other = "another" if about == "protocol" else {"xception": "0" * 64}
    monkeypatch.setattr(runs, "describe", lambda *_: said | {about: other})
    with pytest.raises(UserError, match=r"model xception|can be measured|protocol toy"):
        evaluated(ToyProtocol(ToyConfig()), data, tmp_path, resume=True)


def test_what_lies_in_the_picture_is_skipped_and_listed(tmp_path):
    data = toy_data(tmp_path / "data", white=True)
    found = evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "out")
    assert found.counts["skipped"] == 2
    assert "only 6 fakes and 4 real pictures" in found.limits[0]
    found = evaluated(ToyProtocol(ToyConfig(reals=0)), data, tmp_path / "fakes")
    assert "only 6 fakes: enough" in found.limits[0]  # real pictures were not asked for
    found = evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "again")
    assert ("real/white.png|factor=1", "The picture is white.") in found.skipped
    assert levels(found) == EXPECTED


def test_what_failed_is_listed_and_done_again_on_resuming(tmp_path, monkeypatch):
    data = toy_data(tmp_path / "data")
    protocol = ToyProtocol(ToyConfig(broken="real/1.png"))
    found = evaluated(protocol, data, tmp_path / "out")
    assert found.counts["failed"] == 2
    assert ("real/1.png|factor=1", "Failed: ZeroDivisionError: broken") in found.skipped
    assert levels(found) == EXPECTED  # by chance: the mean of 10 and 30 is 20
    old = ToyProtocol.run_item
    monkeypatch.setattr(ToyProtocol, "run_item", lambda self, item, data: old(mended(self), item, data))
    again = evaluated(protocol, data, tmp_path / "out", resume=True)
    assert again.counts == {"done": 18, "skipped": 0, "failed": 0, "rows": 18}


def test_an_error_that_names_a_file_tells_no_folder(tmp_path, monkeypatch):
    data = toy_data(tmp_path / "data")
    monkeypatch.setattr(ToyProtocol, "run_item", lambda *_: (tmp_path / "secret" / "absent.png").read_bytes())
    with pytest.raises(UserError, match="FileNotFoundError") as caught:
        evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "out")
    assert "'absent.png'" in str(caught.value)
    assert "secret" not in str(caught.value)


def mended(protocol):
    return ToyProtocol(replace(protocol.config, broken=""))


def test_a_preset_counts_only_pictures_that_can_be_used(tmp_path):
    data = toy_data(tmp_path / "data")
    found = evaluated(ToyProtocol(ToyConfig(fakes=4, reals=1)), data, tmp_path / "out")
    assert found.about["data"]["fakes"] == {"drawn": 2, "swap": 2}
    assert all(reason == "It is number 0." for _, reason in found.skipped)
    assert not any(row["sample"].endswith("0.png") for row in stored(tmp_path / "out"))


def test_if_nothing_can_be_measured_the_first_reason_is_given(tmp_path):
    write_picture(tmp_path / "data/real/white.png", 255)
    from backend.evaluate.layouts import open_data

    with pytest.raises(UserError, match="The picture is white"):
        evaluated(ToyProtocol(ToyConfig()), open_data(tmp_path / "data", tmp_path), tmp_path / "out")


def test_two_runs_can_be_compared(reference, tmp_path):
    data, out, found = reference
    (tmp_path / "two").mkdir()
    second = evaluated(ToyProtocol(ToyConfig(factors=(1, 3))), data, tmp_path / "two")
    report.write(found, out, "first")
    settings, table = report.compare(report.load_of("toy", out), second)
    assert ("settings.factors", "[1, 2]", "[1, 3]") in settings.rows
    assert ("swap, x2", "level", 220.0, None, None) in table.rows
    assert ("swap, x3", "level", None, 330.0, None) in table.rows
    assert not any(row[0] == "swap, x1" for row in table.rows)
    assert report.compare(found, found) == []
    with pytest.raises(UserError, match="That is a run of toy"):
        report.load_of("detectors", out)


class FakePool(engines.Pool):
    """Workers without processes, of which one dies at given items, all together as often as told."""

    name = "fake"

    def __init__(self, workers, deadly, times):
        self.workers, self.deadly, self.left = workers, deadly, times
        self.jobs, self.started, self.running, self.places = {}, 0, set(), []

    def start(self, packed, number):
        import pickle

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
        return [(worker, engines.perform(*self.work, item, f"fake {worker}"))]

    def stop(self, worker):
        self.running.remove(worker)


def test_a_worker_that_dies_is_replaced_and_its_item_done_again(reference, tmp_path):
    data, out, _ = reference
    pool = FakePool(3, {"real/1.png|factor=2"}, times=2)
    evaluated(ToyProtocol(ToyConfig()), data, tmp_path, engine=pool)
    assert stored(tmp_path) == stored(out)
    assert pool.started == 5
    assert pool.places == [0, 1, 2, pool.places[3], pool.places[3]]  # the place of the one that died, and its GPU
    assert pool.places[3] < 3
    assert not pool.running


def test_an_item_that_kills_every_worker_is_given_up_alone(reference, tmp_path):
    data, _, _ = reference
    found = evaluated(ToyProtocol(ToyConfig()), data, tmp_path, engine=FakePool(2, {"real/1.png|factor=2"}, times=99))
    assert found.counts == {"done": 17, "skipped": 0, "failed": 1, "rows": 17}
    assert ("real/1.png|factor=2", "Failed: Its worker died 3 times.") in found.skipped


def test_two_such_items_in_a_row_do_not_end_a_run_and_three_do(reference, tmp_path):
    data, _, _ = reference
    keys = [item.key for item in ToyProtocol(ToyConfig()).items(data)]
    found = evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "two", engine=FakePool(1, set(keys[3:5]), times=99))
    assert found.counts["failed"] == 2 and found.counts["done"] == 16
    with pytest.raises(UserError, match="keep dying"):
        evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "three", engine=FakePool(1, set(keys[3:6]), times=99))


def test_stopping_ends_all_workers(reference, tmp_path):
    data, _, _ = reference
    pool = FakePool(3, (), times=0)
    job = runs.evaluate(ToyProtocol(ToyConfig()), data, tmp_path, engine=pool)
    for _ in range(4):
        next(job)
    assert pool.running
    job.close()
    assert not pool.running


def test_processes_give_the_same_rows_and_survive_a_death(reference, tmp_path):
    data, out, _ = reference
    protocol = ToyProtocol(ToyConfig(deadly="fake/swap/1.png", survived=str(tmp_path / "survived")))
    found = evaluated(protocol, data, tmp_path / "out", engine=engine_choice.engine("local", 2))
    assert (tmp_path / "survived").exists()  # a worker did die
    assert stored(tmp_path / "out") == stored(out)
    assert levels(found) == EXPECTED
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_ray_gives_the_same_rows_and_survives_a_death(reference, tmp_path):
    pytest.importorskip("ray", reason="ray is optional (requirements-ray.txt)")
    data, out, _ = reference
    protocol = ToyProtocol(ToyConfig(deadly="fake/swap/1.png", survived=str(tmp_path / "survived")))
    found = evaluated(protocol, data, tmp_path / "out", engine=engine_choice.engine("ray", 1))
    assert (tmp_path / "survived").exists()
    assert stored(tmp_path / "out") == stored(out)
    assert levels(found) == EXPECTED
    assert found.sessions[0]["engine"] == "ray"


@pytest.mark.parametrize(
    ("address", "tries", "sentence"), [(None, 2, "on this machine"), ("1.2.3.4:5", 1, "1.2.3.4:5")]
)
def test_a_ray_that_does_not_start_is_one_sentence(reference, tmp_path, monkeypatch, address, tries, sentence):
    asked, ended = [], []

    def init(**options):
        asked.append(options)
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray does

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: ended.append(1)))
    with pytest.raises(UserError, match=sentence):
        evaluated(ToyProtocol(ToyConfig()), reference[0], tmp_path, engine=engine_choice.engine("ray", 1, address))
    assert len(asked) == len(ended) == tries


@pytest.mark.parametrize(
    ("gpus", "workers", "share"), [(0, 4, 0), (1, 1, 1), (4, 2, 1), (2, 3, 1 / 2), (2, 4, 1 / 2), (1, 3, 1 / 3)]
)
def test_every_worker_finds_room_on_one_gpu(gpus, workers, share):
    assert ray_engine.gpu_share(gpus, workers) == share
    assert share == 0 or int(1 / share + 1e-9) * gpus >= workers


def test_an_engine_that_does_not_exist_is_one_sentence():
    with pytest.raises(UserError, match="no engine cloud"):
        engine_choice.engine("cloud")
    with pytest.raises(UserError, match="-1 workers"):
        engine_choice.engine("local", -1)


def test_rows_keep_arrays_and_refuse_nan():
    kept = rows.decode(rows.encode([{"curve": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int64(3)}]))
    assert kept[0]["n"] == 3
    np.testing.assert_array_equal(kept[0]["curve"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert kept[0]["curve"].dtype == np.float32
    with pytest.raises(ValueError, match="JSON"):
        rows.encode([{"psnr": float("inf")}])


def test_an_outcome_replaces_a_failed_one(tmp_path):
    store = Store(tmp_path)
    session = store.begin_session("now", "local", {})
    store.add(Outcome("a", "failed", "[]", "why", 1.0, ""), session, 1.0)
    assert store.finished() == set()
    store.add(Outcome("a", "done", '[{"x": 1}]', "", 1.0, ""), session, 2.0)
    assert store.finished() == {"a"}
    assert list(store.rows()) == [{"x": 1}]
    assert store.sessions()[0]["seconds"] == 2.0
    store._connection.execute("PRAGMA query_only = ON")  # as on a disk that is full
    with pytest.raises(UserError, match="could not be written"):
        store.add(Outcome("b", "done", "[]", "", 1.0, ""), session, 3.0)
    assert store.finished() == {"a"}
    store.close()


def test_a_setting_that_came_since_does_not_end_a_run(reference, tmp_path):
    protocol, data = ToyProtocol(ToyConfig()), reference[0]
    evaluated(protocol, data, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as kept, kept:
        (text,) = kept.execute("SELECT value FROM about WHERE key = 'settings'").fetchone()
        old = json.dumps({name: value for name, value in json.loads(text).items() if name != "pause"})
        kept.execute("UPDATE about SET value = ? WHERE key = 'settings'", (old,))
    assert finish(runs.evaluate(protocol, data, tmp_path, resume=True)).counts["done"]
    with pytest.raises(UserError, match=r"The setting pause was 0\.0"):
        finish(runs.evaluate(ToyProtocol(ToyConfig(pause=0.001)), data, tmp_path, resume=True))


def test_a_run_forgets_the_pictures_at_its_end(reference, tmp_path):
    asked = []

    @memory.remembered(4)
    def kept(name):
        asked.append(name)

    kept("one"), kept("one")
    assert asked == ["one"]
    job = runs.evaluate(ToyProtocol(ToyConfig()), reference[0], tmp_path)
    next(job)
    kept("one")
    assert asked == ["one"]
    job.close()
    kept("one")
    assert asked == ["one", "one"]
