"""Runs: nothing that is finished gets lost, whoever does the work, and another run is never taken for this one."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from backend import runtime
from backend.errors import UserError
from backend.evaluate import report, runs, store
from backend.evaluate.store import RUN_FILE, Outcome, Store
from backend.progress import Step, finish
from backend.settings import ROOT
from tests.toy_protocol import ToyConfig, ToyProtocol, toy_data, write_picture
from tests.toy_runs import EXPECTED, evaluated, levels, stored, uninterrupted


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return uninterrupted(tmp_path_factory.mktemp("toy"))


def test_the_table_is_the_one_computed_by_hand(reference):
    _, _, evaluation = reference
    assert levels(evaluation) == EXPECTED
    assert evaluation.counts == {"done": 18, "skipped": 0, "failed": 0, "rows": 18}
    assert evaluation.tables[0].rows[0][2].count == 3
    assert evaluation.tables[0].rows[0][2].std == pytest.approx(5.0)


def test_a_run_describes_itself(reference):
    _, _, evaluation = reference
    assert evaluation.about["settings"]["factors"] == [1, 2]
    assert evaluation.about["data"]["fakes"] == {"drawn": 3, "swap": 3}
    assert len(evaluation.about["data"]["hash"]) == 64
    assert {"python", "torch", "numpy"} <= set(evaluation.sessions[0]["versions"])
    assert evaluation.sessions[0]["engine"] == "local"


COMMAND_LINE = """
import sys
from backend.cli import main
from backend.evaluate.protocols.base import PROTOCOLS
from tests.toy_protocol import ToyProtocol
PROTOCOLS.add("toy", ToyProtocol)
sys.exit(main.main(["evaluate", "toy", "--preset", "full", "--json", *sys.argv[1:]]))
"""


def command_line(*arguments):
    """Start the command line, which knows the toy protocol, in a process of its own."""
    command = [sys.executable, "-c", COMMAND_LINE, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def finished_items(out):
    with contextlib.suppress(sqlite3.Error):
        file = sqlite3.connect(f"file:{out / RUN_FILE}?mode=ro", uri=True)
        try:
            return dict(file.execute("SELECT key, seconds FROM items").fetchall())
        finally:
            file.close()
    return {}


def test_kill_9_loses_no_finished_item_and_the_resumed_table_is_the_uninterrupted_one(reference, tmp_path):
    data, out, expected = reference
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
    answer = json.loads(resumed.communicate(timeout=240)[0])
    assert resumed.returncode == 0
    after = finished_items(tmp_path)
    assert len(after) == 18
    assert {key: after[key] for key in before} == before  # what was finished was not done again
    assert answer["rows"] == [{"table": "levels"} | record for record in expected.tables[0].records()]
    assert stored(tmp_path) == stored(out)
    evaluation, _ = report.load_report(tmp_path)
    assert len(evaluation.sessions) == 2
    assert evaluation.seconds == pytest.approx(sum(session["seconds"] for session in evaluation.sessions))


def test_closing_the_job_keeps_what_was_done(reference, tmp_path):
    data, out, _ = reference
    job = runs.run_protocol(ToyProtocol(ToyConfig()), data, tmp_path)
    steps = [next(job) for _ in range(5)]
    job.close()
    assert [step.number for step in steps] == [0, 1, 2, 3, 4]
    assert "left" in steps[-1].message
    assert len(finished_items(tmp_path)) == 4
    evaluated(ToyProtocol(ToyConfig()), data, tmp_path, resume=True)
    assert stored(tmp_path) == stored(out)


def test_a_run_can_be_stopped_within_an_item(tmp_path, monkeypatch):
    reached = []

    def work(_, item, data):
        for number in range(3):
            reached.append((item.key, number))
            yield Step(number, 3, "Half done.")
        return [{"sample": item.sample}]

    monkeypatch.setattr(ToyProtocol, "run_item", work)
    data = toy_data(tmp_path / "data")
    job = runs.run_protocol(ToyProtocol(ToyConfig()), data, tmp_path / "out")
    steps = [next(job) for _ in range(6)]
    job.close()
    assert [step.number for step in steps] == [0, 0, 0, 0, 1, 1]
    keys = list(dict(reached))
    assert reached == [(keys[0], 0), (keys[0], 1), (keys[0], 2), (keys[1], 0)]
    assert list(finished_items(tmp_path / "out")) == keys[:1]


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
    description = runs.describe_run(ToyProtocol(ToyConfig()), data)
    other = "another" if about == "protocol" else {"xception": "0" * 64}
    monkeypatch.setattr(runs, "describe_run", lambda *_: description | {about: other})
    with pytest.raises(UserError, match=r"model xception|can be measured|protocol toy"):
        evaluated(ToyProtocol(ToyConfig()), data, tmp_path, resume=True)


def test_pictures_that_cannot_be_used_are_skipped_and_listed(tmp_path):
    data = toy_data(tmp_path / "data", white=True)
    evaluation = evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "out")
    assert evaluation.counts["skipped"] == 2
    assert "only 6 fakes and 4 real pictures" in evaluation.limits[0]
    evaluation = evaluated(ToyProtocol(ToyConfig(reals=0)), data, tmp_path / "fakes")
    assert "only 6 fakes: enough" in evaluation.limits[0]  # real pictures were not asked for
    evaluation = evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "again")
    assert ("real/white.png|factor=1", "The picture is white.") in evaluation.skipped
    assert levels(evaluation) == EXPECTED


def test_what_failed_is_listed_and_done_again_on_resuming(tmp_path, monkeypatch):
    data = toy_data(tmp_path / "data")
    protocol = ToyProtocol(ToyConfig(broken="real/1.png"))
    evaluation = evaluated(protocol, data, tmp_path / "out")
    assert evaluation.counts["failed"] == 2
    assert ("real/1.png|factor=1", "Failed: ZeroDivisionError: broken") in evaluation.skipped
    assert levels(evaluation) == EXPECTED  # by chance: the mean of 10 and 30 is 20
    old = ToyProtocol.run_item
    monkeypatch.setattr(ToyProtocol, "run_item", lambda self, item, data: old(mended(self), item, data))
    again = evaluated(protocol, data, tmp_path / "out", resume=True)
    assert again.counts == {"done": 18, "skipped": 0, "failed": 0, "rows": 18}


def test_an_error_that_names_a_file_reveals_no_folder(tmp_path, monkeypatch):
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
    evaluation = evaluated(ToyProtocol(ToyConfig(fakes=4, reals=1)), data, tmp_path / "out")
    assert evaluation.about["data"]["fakes"] == {"drawn": 2, "swap": 2}
    assert all(reason == "It is number 0." for _, reason in evaluation.skipped)
    assert not any(row["sample"].endswith("0.png") for row in stored(tmp_path / "out"))


def test_if_nothing_can_be_measured_the_first_reason_is_given(tmp_path):
    write_picture(tmp_path / "data/real/white.png", 255)
    from backend.evaluate.dataset import open_data

    with pytest.raises(UserError, match="The picture is white"):
        evaluated(ToyProtocol(ToyConfig()), open_data(tmp_path / "data", tmp_path), tmp_path / "out")


def test_two_runs_can_be_compared(reference, tmp_path):
    data, out, evaluation = reference
    (tmp_path / "two").mkdir()
    second = evaluated(ToyProtocol(ToyConfig(factors=(1, 3))), data, tmp_path / "two")
    report.write_report(evaluation, out, "first")
    settings, table = report.compare_reports(report.load_report_of("toy", out), second)
    assert ("settings.factors", "[1, 2]", "[1, 3]") in settings.rows
    assert ("swap, x2", "level", 220.0, None, None) in table.rows
    assert ("swap, x3", "level", None, 330.0, None) in table.rows
    assert not any(row[0] == "swap, x1" for row in table.rows)
    assert report.compare_reports(evaluation, evaluation) == []
    with pytest.raises(UserError, match="That is a run of toy"):
        report.load_report_of("detectors", out)


def test_rows_keep_arrays_and_refuse_nan():
    rows = store.decode_rows(
        store.encode_rows([{"curve": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int64(3)}])
    )
    assert rows[0]["n"] == 3
    np.testing.assert_array_equal(rows[0]["curve"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert rows[0]["curve"].dtype == np.float32
    with pytest.raises(ValueError, match="JSON"):
        store.encode_rows([{"psnr": float("inf")}])


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


def test_a_setting_added_later_does_not_end_a_run(reference, tmp_path, monkeypatch):
    protocol, data = ToyProtocol(ToyConfig()), reference[0]
    evaluated(protocol, data, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / RUN_FILE)) as connection, connection:
        (text,) = connection.execute("SELECT value FROM about WHERE key = 'settings'").fetchone()
        old = json.dumps({name: value for name, value in json.loads(text).items() if name != "pause"})
        connection.execute("UPDATE about SET value = ? WHERE key = 'settings'", (old,))
    assert finish(runs.run_protocol(protocol, data, tmp_path, resume=True)).counts["done"]
    with pytest.raises(UserError, match=r"The setting pause was 0\.0"):
        finish(runs.run_protocol(ToyProtocol(ToyConfig(pause=0.001)), data, tmp_path, resume=True))
    monkeypatch.setattr(
        ToyProtocol, "defaults_of_old_runs", {"pause": 0.5}
    )  # what such runs did is no longer what is usual
    with pytest.raises(UserError, match=r"The setting pause was 0\.5 in this run and is 0\.0"):
        finish(runs.run_protocol(protocol, data, tmp_path, resume=True))


def test_a_run_forgets_the_pictures_at_its_end(reference, tmp_path):
    calls = []

    @runtime.remembered(4)
    def load(name):
        calls.append(name)

    load("one"), load("one")
    assert calls == ["one"]
    job = runs.run_protocol(ToyProtocol(ToyConfig()), reference[0], tmp_path)
    next(job)
    load("one")
    assert calls == ["one"]
    job.close()
    load("one")
    assert calls == ["one", "one"]
