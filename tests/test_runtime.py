"""Where visitors' files lie, and that they are removed."""

import os
import subprocess
import sys
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
