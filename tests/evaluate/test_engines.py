"""Engines: every engine gives the same rows, and the death of a worker does not end a run."""

import multiprocessing
import sys
from types import SimpleNamespace

import pytest

from backend.errors import UserError
from backend.evaluate import engines, runs
from tests.toy_protocol import ToyConfig, ToyProtocol
from tests.toy_runs import EXPECTED, FakePool, evaluated, levels, stored, uninterrupted


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return uninterrupted(tmp_path_factory.mktemp("toy"))


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
    evaluation = evaluated(
        ToyProtocol(ToyConfig()), data, tmp_path, engine=FakePool(2, {"real/1.png|factor=2"}, times=99)
    )
    assert evaluation.counts == {"done": 17, "skipped": 0, "failed": 1, "rows": 17}
    assert ("real/1.png|factor=2", "Failed: Its worker died 3 times.") in evaluation.skipped


def test_two_such_items_in_a_row_do_not_end_a_run_and_three_do(reference, tmp_path):
    data, _, _ = reference
    keys = [item.key for item in ToyProtocol(ToyConfig()).items(data)]
    evaluation = evaluated(
        ToyProtocol(ToyConfig()), data, tmp_path / "two", engine=FakePool(1, set(keys[3:5]), times=99)
    )
    assert evaluation.counts["failed"] == 2 and evaluation.counts["done"] == 16
    with pytest.raises(UserError, match="keep dying"):
        evaluated(ToyProtocol(ToyConfig()), data, tmp_path / "three", engine=FakePool(1, set(keys[3:6]), times=99))


def test_stopping_ends_all_workers(reference, tmp_path):
    data, _, _ = reference
    pool = FakePool(3, (), times=0)
    job = runs.run_protocol(ToyProtocol(ToyConfig()), data, tmp_path, engine=pool)
    for _ in range(4):
        next(job)
    assert pool.running
    job.close()
    assert not pool.running


def test_processes_give_the_same_rows_and_survive_a_death(reference, tmp_path):
    data, out, _ = reference
    protocol = ToyProtocol(ToyConfig(deadly="fake/swap/1.png", survived=str(tmp_path / "survived")))
    evaluation = evaluated(protocol, data, tmp_path / "out", engine=engines.choose_engine("local", 2))
    assert (tmp_path / "survived").exists()  # a worker did die
    assert stored(tmp_path / "out") == stored(out)
    assert levels(evaluation) == EXPECTED
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_ray_gives_the_same_rows_and_survives_a_death(reference, tmp_path):
    pytest.importorskip("ray", reason="ray is optional (requirements-ray.txt)")
    data, out, _ = reference
    protocol = ToyProtocol(ToyConfig(deadly="fake/swap/1.png", survived=str(tmp_path / "survived")))
    evaluation = evaluated(protocol, data, tmp_path / "out", engine=engines.choose_engine("ray", 1))
    assert (tmp_path / "survived").exists()
    assert stored(tmp_path / "out") == stored(out)
    assert levels(evaluation) == EXPECTED
    assert evaluation.sessions[0]["engine"] == "ray"


@pytest.mark.parametrize(
    ("address", "tries", "sentence"), [(None, 2, "on this machine"), ("1.2.3.4:5", 1, "1.2.3.4:5")]
)
def test_a_ray_that_does_not_start_gives_one_sentence(reference, tmp_path, monkeypatch, address, tries, sentence):
    calls, shutdowns = [], []

    def init(**options):
        calls.append(options)
        raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray does

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: shutdowns.append(1)))
    with pytest.raises(UserError, match=sentence):
        evaluated(ToyProtocol(ToyConfig()), reference[0], tmp_path, engine=engines.choose_engine("ray", 1, address))
    assert len(calls) == len(shutdowns) == tries


@pytest.mark.parametrize(
    ("gpus", "workers", "share"), [(0, 4, 0), (1, 1, 1), (4, 2, 1), (2, 3, 1 / 2), (2, 4, 1 / 2), (1, 3, 1 / 3)]
)
def test_every_worker_finds_room_on_one_gpu(gpus, workers, share):
    assert engines.gpu_share(gpus, workers) == share
    assert share == 0 or int(1 / share + 1e-9) * gpus >= workers


def test_an_engine_that_does_not_exist_gives_one_sentence():
    with pytest.raises(UserError, match="no engine cloud"):
        engines.choose_engine("cloud")
    with pytest.raises(UserError, match="-1 workers"):
        engines.choose_engine("local", -1)
