"""Visitors' files and decoded photos, kept for an hour, and limits on their calls.

A visitor is one open page. Calls are limited for each address too, with a higher limit: a class behind one connection,
or everybody behind a proxy, shares an address.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np

from backend import runtime
from backend.alignment import LocatedFace
from backend.errors import UserError
from backend.settings import SETTINGS

KEPT_SECONDS, SWEPT_SECONDS = 3600, 300  # after a visitor's last event; between two sweeps


class CallLimit:
    """A limit of `calls` in `seconds` for every visitor; `what` names the action in the refusal."""

    def __init__(self, calls: int, seconds: float, what: str) -> None:
        self.calls, self.seconds, self.what = calls, seconds, what
        self._lock = threading.Lock()
        self._times: dict[str, deque[float]] = {}

    def check(self, request: gr.Request | None) -> None:
        """Count one call of a visitor.

        Raises:
            UserError: There were too many.
        """
        now = time.monotonic()
        with self._lock:
            for name in [name for name, times in self._times.items() if now - times[-1] > self.seconds]:
                del self._times[name]
            counted = []
            for name, calls in self._allowed(request).items():
                times = self._times.get(name, deque())
                while times and now - times[0] > self.seconds:
                    times.popleft()
                if len(times) >= calls:
                    whom = "" if calls == self.calls else " for all who share your address"
                    minutes = max(1, round((self.seconds - (now - times[0])) / 60))
                    raise UserError(
                        f"{self.what} is limited to {calls} times in {self.seconds / 60:.0f} minutes{whom}.",
                        f"Try again in about {minutes} minutes.",
                    )
                counted.append((name, times))
            for name, times in counted:
                times.append(now)
                self._times[name] = times

    def _allowed(self, request: gr.Request | None) -> dict[str, int]:
        """Return how many calls the open page and its address are allowed."""
        address = str(getattr(getattr(request, "client", None), "host", "") or "unknown")
        page = str(getattr(request, "session_hash", None) or address)
        return {f"page {page}": self.calls, f"address {address}": self.calls * SETTINGS.visitors_per_address}


@dataclass(frozen=True, eq=False)
class OpenPhoto:
    """A visitor's photo, decoded and searched for faces.

    Args:
        pixels: uint8 (H, W, 3), RGB, as the page shows it.
        faces: Its faces, the largest first.
        converted: Whether browsers cannot show the file itself.
        animated: Whether the file is an animation, of which this is the first frame.
        turn: Degrees clockwise after which a face is upright, where none is; 0 where one is, or no turn helps.
    """

    pixels: np.ndarray
    faces: list[LocatedFace]
    converted: bool = False
    animated: bool = False
    turn: int = 0


class KeptPhotos:
    """The open photos of a process by file, the least recently used first.

    Args:
        max_bytes: Limit on the pixels of all photos; a single photo stays however large it is.
    """

    def __init__(self, max_bytes: int = 256_000_000) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._photos: OrderedDict[str, tuple[float, tuple[int, int] | None, OpenPhoto]] = OrderedDict()

    def get(self, path: str) -> OpenPhoto | None:
        """Return a photo that is kept and whose file has not changed."""
        with self._lock:
            _, stamp, photo = self._photos.get(path, (0.0, None, None))
            if photo is None or stamp != _file_stamp(path):
                return None
            self._photos.move_to_end(path)
            return photo

    def put(self, path: str, photo: OpenPhoto) -> None:
        """Keep a photo, and drop the least recently used ones above the limit."""
        _downloads()  # starts the sweeping
        with self._lock:
            self._photos[path] = (time.monotonic(), _file_stamp(path), photo)
            self._photos.move_to_end(path)
            while len(self._photos) > 1 and self._size() > self.max_bytes:
                self._photos.popitem(last=False)

    def drop(self, path: str | None) -> None:
        with self._lock:
            self._photos.pop(path or "", None)

    def sweep(self) -> None:
        """Drop photos whose file is gone or changed, and those opened more than an hour ago."""
        oldest = time.monotonic() - KEPT_SECONDS
        with self._lock:
            for path, (opened, stamp, _) in list(self._photos.items()):
                if opened < oldest or stamp is None or stamp != _file_stamp(path):
                    del self._photos[path]

    def _size(self) -> int:
        return sum(photo.pixels.nbytes for _, _, photo in self._photos.values())


KEPT_PHOTOS = KeptPhotos()


def _file_stamp(path: str) -> tuple[int, int] | None:
    """Return the time and size of a file, which change with it; None for a missing file."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def session_folder(request: gr.Request | None) -> Path:
    """Return a folder for one visitor's files, which are deleted an hour after the last call."""
    folder = _folder_of(request)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    return folder


def _folder_of(request: gr.Request | None) -> Path:
    # Clients choose their session's name; its hash is a safe folder name.
    session = getattr(request, "session_hash", None) or "api"
    return _downloads() / hashlib.sha256(session.encode(errors="replace")).hexdigest()


def sweep_folders(root: Path) -> None:
    """Delete the folders of visitors who have been inactive for an hour."""
    for folder in root.glob("*"):
        with contextlib.suppress(OSError):  # the visitor may leave at this moment
            if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _downloads() -> Path:
    """Return this process's private folder for downloads, which is deleted when the process ends."""
    folder = runtime.private_folder()
    threading.Thread(target=_keep_sweeping, args=(folder,), name="sweep", daemon=True).start()
    return folder


def _keep_sweeping(root: Path) -> None:
    while True:
        time.sleep(SWEPT_SECONDS)
        sweep_folders(root)
        KEPT_PHOTOS.sweep()


def forget_visitor(request: gr.Request) -> None:
    """Delete one visitor's downloads; called when the page is closed."""
    shutil.rmtree(_folder_of(request), ignore_errors=True)
