"""Where visitors' files lie: in folders closed to other users, which go with the process or with the next one."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "face-forgery-"


def private_folder() -> Path:
    """Make a folder that only this user can read and that is deleted when the process ends.

    What a process left behind that was killed is deleted first.
    """
    _delete_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _made.add(folder)
    return folder


_made: set[Path] = set()  # by this process


def _delete_leftovers(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        # In a container every process has the same number: a folder with ours that we did not make was another's.
        if owner.isdecimal() and folder not in _made and (int(owner) == os.getpid() or not _runs(int(owner))):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    if os.name != "posix":  # elsewhere, asking might end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
