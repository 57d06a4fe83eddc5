"""Device, precision, memory, one loaded copy of each model, and the process's private folder for visitors' files."""

import atexit
import ctypes
import functools
import itertools
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from backend.errors import UserError
from backend.progress import Job
from backend.settings import SETTINGS

R = TypeVar("R")
T = TypeVar("T")

FOLDER_PREFIX = "face-forgery-"
VERDICT, JOB, LONG_JOB = range(3)  # who may use the models first
_priority = ContextVar("priority", default=JOB)


@contextmanager
def priority(level: int) -> Iterator[None]:
    """Use the models before all who wait with a higher `level`: VERDICT, JOB or LONG_JOB."""
    token = _priority.set(level)
    try:
        yield
    finally:
        _priority.reset(token)


class TurnLock:
    """A reentrant lock whose waiting threads take turns, by priority and then in the order in which they came.

    A plain lock is mostly won by the thread that has just released it, so that a job of many steps would keep the
    models until its end.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: set[tuple[int, int]] = set()
        self._arrivals = itertools.count()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with self._changed:
            if self._owner != thread:
                turn = (_priority.get(), next(self._arrivals))
                self._waiting.add(turn)
                try:
                    self._changed.wait_for(lambda: self._owner is None and min(self._waiting) == turn)
                finally:
                    self._waiting.remove(turn)
                    self._changed.notify_all()
                self._owner = thread
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()


MODEL_LOCK = TurnLock()

_lock = threading.RLock()
_loaded: dict[str, object] = {}
_forgetting: list[Callable[[], None]] = []
_private_folders: set[Path] = set()  # by this process


def device() -> torch.device:
    """Return the device that the settings name; `auto` takes CUDA where it is present.

    Raises:
        UserError: The device is not there.
    """
    if SETTINGS.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = torch.device(SETTINGS.device)
    there: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": lambda: (named.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if not there[named.type]():
        raise UserError(f"The device {named} that DEVICE names is not there.", "Set DEVICE to auto or cpu.")
    return named


def device_in_words() -> str:
    here = device()
    if here.type == "cpu":
        cores = os.cpu_count() or 1
        return f"the processor of this computer (CPU, {cores} core{'' if cores == 1 else 's'})"
    if here.type == "mps":
        return "the graphics unit of this Mac (MPS)"
    try:
        facts = torch.cuda.get_device_properties(here)
    except (RuntimeError, AssertionError):  # where a GPU is lent only for seconds, it is not here now
        return f"a graphics card ({here})"
    return f"a graphics card ({facts.name}, {facts.total_memory / 2**30:.0f} GiB)"


def fast_bfloat16(target: torch.device) -> bool:
    """Return whether a device has instructions of its own for bfloat16; without them it is many times slower."""
    if target.type == "cuda":
        with torch.cuda.device(target if torch.cuda.is_available() else -1):  # the one that is asked about
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if target.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def load_once(key: str, build: Callable[[], T]) -> T:
    """Return the process's one copy of a model, built at the first call."""
    with _lock:
        if key not in _loaded:
            _loaded[key] = build()
        return _loaded[key]  # type: ignore[return-value]


def is_loaded_once(model: object) -> bool:
    """Return whether a model is one that `load_once` keeps."""
    return any(model is kept for kept in _loaded.copy().values())


def loaded_names() -> list[str]:
    """Return the names of the models that are loaded, without waiting for one that is being loaded."""
    return sorted(_loaded.copy())


def keep_freed_memory() -> None:
    """Tell the C library to reuse large blocks; without it, page faults are half the time of a CPU step.

    All threads share what was freed. Each would keep its own otherwise, several hundred megabytes under load.
    """
    if (libc := _glibc()) is not None:
        trim_threshold, mmap_threshold, arena_max = -1, -3, -8
        libc.mallopt(arena_max, 1)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Give freed memory back to the system, after work that needed much more than usual."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    known = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL("libc.so.6") if known else None


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Put modules in inference mode without parameter gradients, and restore both whatever happens."""
    training = [(module, module.training) for root in modules for module in root.modules()]
    gradients = [(weight, weight.requires_grad) for root in modules for weight in root.parameters()]
    try:  # only what differs is set, because setting takes longer than looking
        if any(mode for _, mode in training):
            for root in modules:
                root.eval()
        for weight, flag in gradients:
            if flag:
                weight.requires_grad_(False)
        yield
    finally:
        for module, mode in training:
            if module.training != mode:
                module.training = mode
        for weight, flag in gradients:
            if weight.requires_grad != flag:
                weight.requires_grad_(flag)


def private_folder() -> Path:
    """Make a folder for this user alone, deleted when the process ends; those of killed processes are deleted first."""
    _delete_leftovers(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _private_folders.add(folder)
    return folder


def _delete_leftovers(root: Path) -> None:
    for folder in root.glob(f"{FOLDER_PREFIX}*-*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).split("-")[0]
        # In a container every process has the same number: a folder with ours that we did not make was another's.
        if (
            owner.isdecimal()
            and folder not in _private_folders
            and (int(owner) == os.getpid() or not _is_running(int(owner)))
        ):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere, asking might end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def remembered(most: int) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Return a decorator that keeps the last `most` results of a function, by its arguments."""

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        kept = functools.lru_cache(maxsize=most)(function)
        _forgetting.append(kept.cache_clear)
        return kept

    return decorate


def remembered_jobs(
    most: int,
) -> Callable[[Callable[..., Job[R]]], Callable[..., Job[R]]]:
    """Return a decorator that keeps the last `most` results of a job, by its arguments; a kept one takes no steps."""

    def decorate(job: Callable[..., Job[R]]) -> Callable[..., Job[R]]:
        kept: dict[tuple[Any, ...], R] = {}
        _forgetting.append(kept.clear)

        @functools.wraps(job)
        def wrapped(*arguments: Any) -> Job[R]:
            if arguments in kept:
                return kept[arguments]
            result = yield from job(*arguments)
            while len(kept) >= most:
                kept.pop(next(iter(kept)))
            kept[arguments] = result
            return result

        return wrapped

    return decorate


def forget_remembered() -> None:
    for clear in _forgetting:
        clear()
