"""Where visitors' files lie, and that they are removed; who uses the models first."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backend import runtime


@pytest.mark.skipif(os.name != "posix", reason="process numbers are asked for in the way of POSIX")
def test_a_private_folder_goes_with_its_process_or_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    killed = tmp_path / f"{runtime.FOLDER_PREFIX}{process.pid}-x"  # its process is no more
    before = tmp_path / f"{runtime.FOLDER_PREFIX}{os.getpid()}-x"  # our number, of a process before us
    other = tmp_path / f"{runtime.FOLDER_PREFIX}{os.getppid()}-x"  # its process runs
    strange = tmp_path / f"{runtime.FOLDER_PREFIX}notes-x"
    for folder in (killed, before, other, strange):
        folder.mkdir()
        (folder / "photo.png").write_bytes(b"x")
    first, second = runtime.private_folder(), runtime.private_folder()
    assert first.stat().st_mode & 0o777 == 0o700
    assert first.exists() and second.exists() and other.exists() and strange.exists()
    assert not killed.exists() and not before.exists()


def test_waiting_threads_get_the_models_by_priority_and_then_in_order():
    lock, order, waiting = runtime.TurnLock(), [], []

    def ask(name: str, level: int) -> None:
        with runtime.priority(level), lock:
            order.append(name)

    with lock:
        jobs = (("long 1", runtime.LONG_JOB), ("job", runtime.JOB), ("long 2", runtime.LONG_JOB))
        for name, level in (*jobs, ("verdict", runtime.VERDICT)):
            waiting.append(threading.Thread(target=ask, args=(name, level)))
            waiting[-1].start()
            while len(lock._waiting) < len(waiting):
                time.sleep(0.001)
    for thread in waiting:
        thread.join()
    assert order == ["verdict", "job", "long 1", "long 2"]


def test_a_thread_that_releases_the_models_does_not_get_them_before_one_that_waits():
    lock, order = runtime.TurnLock(), []

    def verdict() -> None:
        with lock:
            order.append("verdict")

    thread = threading.Thread(target=verdict)
    with lock:
        thread.start()
        while not lock._waiting:
            time.sleep(0.001)
    for number in range(3):
        with lock:
            order.append(f"step {number}")
    thread.join()
    assert order[0] == "verdict"


def test_a_lock_is_reentrant_and_free_after_an_error():
    lock = runtime.TurnLock()
    with pytest.raises(KeyError), lock, lock:
        raise KeyError
    taken = []
    thread = threading.Thread(target=lambda: taken.append(lock.__enter__()))
    thread.start()
    thread.join(5)
    assert taken == [None]
