"""Fetch a model: download it or take a file at hand, check it, convert it once, and put it into the cache."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from backend import weights
from backend.errors import UserError
from backend.hub import download, forms
from backend.hub.download import download_file
from backend.progress import Job, Step, counted, finish
from backend.settings import SETTINGS
from backend.weights import HubFile

DOWNLOADED = 100  # steps of a download, of all
TOTAL = 102


@dataclass(frozen=True)
class Fetched:
    """One model that is here now.

    Args:
        path: Where it lies, as safetensors.
        origin: Repository and revision, or the name of the file it was made from.
        source_sha256: Hash of what it was made from.
        sha256: Hash of what lies here.
        pinned: Whether the hash was known beforehand and agreed.
    """

    name: str
    path: Path
    origin: str
    source_sha256: str
    sha256: str
    bytes: int
    pinned: bool
    seconds: float
    summary: str


def fetch_to_cache(name: str, on_step: Callable[[Step], None] | None = None, local: Path | None = None) -> Path:
    """Fetch a model and return where it lies; see `fetch_model`."""
    return finish(fetch_model(name, local), on_step).path


def fetch_model(name: str, local: Path | None = None) -> Job[Fetched]:
    """Fetch a model: at the end its file is whole, checked and converted, or it is as it was before.

    Args:
        name: Entry of the registry. One that ships with the app comes from the repository that `WEIGHTS_REPO` names.
        local: A file to take instead of downloading one.

    Raises:
        UserError: Anything that went wrong, in words.
    """
    entry = weights.find_entry(name)
    started = time.monotonic()
    folder = entry.receipt_path.parent  # the cache, also for what ships with the app
    with _entry_lock(folder, name):
        file, origin = (local, local.name) if local is not None else (yield from _downloaded(entry, folder))
        yield Step(DOWNLOADED, TOTAL, f"{name} is checked.")
        with _room_on_disk(name):
            source_sha256 = _hash_of(file, entry, ours=local is None)
            yield Step(DOWNLOADED + 1, TOTAL, f"{name} is converted and put into place.")
            if entry.profile == "hub":
                _convert(entry, file, {"source_sha256": source_sha256, "origin": origin})
            else:
                with _temporary(entry.path) as half:
                    shutil.copyfile(file, half)
                    half.replace(entry.path)
            if local is None:
                file.unlink(missing_ok=True)
    yield Step(TOTAL, TOTAL, f"{name} is here.")
    pinned = bool(entry.sha256) and source_sha256 == entry.sha256
    size = entry.path.stat().st_size
    return Fetched(
        name=name,
        path=entry.path,
        origin=origin,
        source_sha256=source_sha256,
        sha256=weights.file_hash(entry.path),
        bytes=size,
        pinned=pinned,
        seconds=round(time.monotonic() - started, 3),
        summary=f"{name} is here ({size / 1e6:.1f} MB, from {origin}). {_trust_in_words(entry, source_sha256)}",
    )


def fetch_missing(on_step: Callable[[Step], None] | None = None) -> list[str]:
    """Fetch the missing models that ship with the app from `WEIGHTS_REPO`, where it is set; return their names.

    Raises:
        UserError: Anything that went wrong, in words.
    """
    if not SETTINGS.weights_repo:
        return []
    embedded = [entry for entry in weights.read_entries().values() if entry.profile == "embedded"]
    missing = [entry.name for entry in embedded if not entry.path.exists()]
    for name in missing:
        fetch_to_cache(name, on_step)
    return missing


def hub_files(entry: weights.Entry) -> list[HubFile]:
    """Return where an entry can be downloaded from, best first; none where it is only published elsewhere."""
    if entry.profile != "hub":
        return [HubFile(SETTINGS.weights_repo, entry.file)] if SETTINGS.weights_repo else []
    first = [HubFile(entry.repo, entry.file, entry.revision, entry.repo_type)] if entry.repo else []
    return [*first, *entry.mirrors]


def _downloaded(entry: weights.Entry, folder: Path) -> Job[tuple[Path, str]]:
    places = hub_files(entry)
    if not places and entry.profile == "hub":
        raise UserError(
            f"{entry.name} is not on the Hub.",
            f"Get it from where it is published ({entry.source}), then run: "
            f"python -m backend weights fetch {entry.name} --from PATH",
        )
    if not places:
        raise UserError(f"{entry.name} ships with the app.", "Install the app again, or set WEIGHTS_REPO.")
    errors = []
    for place in places:
        try:
            job = download_file(place, folder / "downloads" / entry.name, entry.name, entry.sha256)
            path = yield from counted(job, TOTAL)
        except UserError as error:  # noqa: PERF203 - a few places, each of which is tried
            errors.append(error)
        else:
            return path, f"{place} at {place.revision[:12]}"
    raise errors[0]


def _hash_of(file: Path, entry: weights.Entry, *, ours: bool) -> str:
    """Return the hash of a file at hand; a file that must not be used is refused."""
    if not file.is_file():
        raise UserError(f"There is no file named {file.name}.", "Give the path of a file that was downloaded.")
    sha256 = weights.file_hash(file)
    if entry.profile == "embedded" and sha256 != entry.sha256:
        raise UserError(
            f"{file.name} is not the file of {entry.name}: its hash is another one.",
            f"Expected is the SHA-256 {entry.sha256[:16]}...",
        )
    earlier = entry.receipt().get("source_sha256") if ours and not entry.sha256 else None
    if earlier not in {None, sha256} and entry.receipt().get("origin", "").startswith(entry.repo or "None"):
        raise UserError(
            f"The file of {entry.name} changed on the Hub since it was fetched first.",
            f"Delete {entry.receipt_path.name} in the cache if you trust the new one, and fetch it again.",
        )
    return sha256


def _convert(entry: weights.Entry, file: Path, facts: Mapping[str, str]) -> None:
    """Write the tensors of a published file and what they were made from; both or neither replace what was here."""
    tensors = forms.convert_published(file, entry.form)
    with _temporary(entry.path) as half, _temporary(entry.receipt_path) as note:
        save_file(_separate(tensors), half)
        record = {**facts, "sha256": weights.file_hash(half), "bytes": half.stat().st_size}
        note.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        # Between these two lines the old file has a new receipt: it is called damaged, and never loaded.
        note.replace(entry.receipt_path)
        half.replace(entry.path)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two share memory, as safetensors wants them."""
    seen: set[int] = set()
    separate = {}
    for key, value in tensors.items():
        whole = value.detach().contiguous()
        place = whole.untyped_storage().data_ptr()
        is_alone = place not in seen and whole.numel() * whole.element_size() == whole.untyped_storage().nbytes()
        seen.add(place)
        separate[key] = whole if is_alone else whole.clone()
    return separate


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Yield the path of a file beside `target` that is deleted afterwards, whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _room_on_disk(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise download.error_in_words(error, name, otherwise=download.elsewhere_hint(name)) from error
    except Exception as error:
        # safetensors hides the disk's own error in the text of its own.
        if "No space left" in str(error) or "os error 28" in str(error):
            raise download.disk_full_error(name) from error
        raise


@contextmanager
def _entry_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of an entry, so that two visitors do not fetch it at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The page runs the steps of a job in several threads, and any of them may be the last.
        lock = FileLock(folder / f".{name}.lock", timeout=0, thread_local=False)
        lock.acquire()
    except Timeout:
        raise UserError(f"{name} is being fetched already.", "Wait until it is here.") from None
    except OSError as error:
        raise download.error_in_words(error, name, otherwise=download.elsewhere_hint(name)) from error
    try:
        yield
    finally:
        lock.release()


def _trust_in_words(entry: weights.Entry, sha256: str) -> str:
    if not entry.sha256:
        return f"Its hash was not known beforehand; it is recorded now: {sha256}."
    if sha256 == entry.sha256:
        return "Its hash is the one that was expected."
    return "It fits, but it is not the published file: its hash is another one."
