"""Download one file of the Hub with its own client, and say in a sentence what went wrong with it or with an upload.

Parts are kept, progress is reported, and the file is checked at the end. `hf_hub_download` forgets what had come when
it is interrupted; of the two functions that it calls, one reads a file's metadata and the other resumes at a byte.
"""

import errno
import queue
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from backend.errors import UserError
from backend.progress import Job, Step
from backend.settings import SETTINGS
from backend.weights import HubFile, file_hash

LOG_IN = "Log in with: hf auth login, or set HF_TOKEN"
SHA256 = re.compile(r"[0-9a-f]{64}")
SPARE = 50_000_000  # bytes that a download leaves free
# What an upload or a download can raise. The client's own HTTPError stands for every failure of the connection.
HUB_ERRORS = (HTTPError, OSError, LocalTokenNotFoundError, OfflineModeIsEnabled)


def elsewhere_hint(name: str) -> str:
    """Say how a model can be had without the Hub; `name` is that of its entry."""
    return f"Or get the file elsewhere and run: python -m backend weights fetch {name} --from PATH"


def error_in_words(error: Exception, what: str, *, received: int = 0, otherwise: str) -> UserError:
    """Say what went wrong, and what to do.

    Args:
        error: What the Hub's client, or the disk, raised.
        what: What was fetched or sent, for the sentence.
        received: How many bytes had come when it happened.
        otherwise: What else can be done.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(
            f"{what} was not fetched, because HF_HUB_OFFLINE is set.", f"Unset it where there is a network. {otherwise}"
        )
    if isinstance(error, LocalTokenNotFoundError):
        return UserError("The Hub does not know who you are.", f"{LOG_IN}.")
    if isinstance(error, HfHubHTTPError):
        return _http_error_in_words(error, what, otherwise)
    if isinstance(error, HTTPError):
        if received:
            return UserError(
                f"The download of {what} was interrupted after {received / 1e6:.1f} MB.",
                "Run it again: it goes on where it stopped.",
            )
        return UserError(f"The Hub was not reached for {what}.", f"Check the network. {otherwise}")
    return _disk_error_in_words(error, what)


def _http_error_in_words(error: HfHubHTTPError, what: str, otherwise: str) -> UserError:
    code = error.response.status_code
    if isinstance(error, GatedRepoError) or code == 403:
        return UserError(
            f"{what} is gated: its owners want to know who takes it.",
            f"Accept the conditions on its page of the Hub, then log in. {LOG_IN}.",
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"The Hub no longer has the revision of {what} that is named here.", otherwise)
    if isinstance(error, EntryNotFoundError):
        return UserError(f"The repository no longer has the file of {what}.", otherwise)
    if code == 401:
        return UserError(f"The Hub asks for a login for {what}, or has no such repository.", f"{LOG_IN}. {otherwise}")
    if code == 404:
        return UserError(f"The Hub has no repository with {what}.", otherwise)
    if code == 429:
        return UserError(
            f"The Hub says that too many requests came from here ({what}).", f"Wait a few minutes, or log in. {LOG_IN}."
        )
    return UserError(f"The Hub answered with error {code} to {what}.", "Try again in a few minutes.")


def _disk_error_in_words(error: Exception, what: str) -> UserError:
    number = getattr(error, "errno", None)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return disk_full_error(what)
    if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return UserError(
            f"{what} cannot be stored: the folder for it cannot be written to.",
            "Set WEIGHTS_CACHE to a folder that can.",
        )
    return UserError(f"{what} came incomplete.", "Run it again: it goes on where it stopped.")


def disk_full_error(what: str, needed: int = 0) -> UserError:
    amount = f" ({needed / 1e6:,.0f} MB are needed)" if needed else ""
    return UserError(
        f"There is no room on the disk for {what}{amount}.", "Free some, or set WEIGHTS_CACHE to another disk."
    )


class _StoppedError(Exception):
    """Ends the thread of a download that was closed."""


def download_file(source: HubFile, folder: Path, name: str, sha256: str = "") -> Job[Path]:
    """Download a file into `folder`, going on where an earlier attempt stopped, and return where it lies.

    Closing the job stops the download and keeps what has come.

    Args:
        source: What to download.
        folder: Where to put it; parts lie in it too, under names that end in `.part`.
        name: What `weights fetch` calls it.
        sha256: Hash that the file must have; where it is empty, the one the Hub announces is checked.

    Raises:
        UserError: Anything that went wrong, in words.
    """
    what, otherwise = str(source), elsewhere_hint(name)
    try:
        # Redirects to another host must not carry the login along.
        headers = build_hf_headers(library_name="face-forgery-explained")
        url = hf_hub_url(
            source.repo, source.file, revision=source.revision, repo_type=source.kind, endpoint=SETTINGS.hub_endpoint
        )
        facts = get_hf_file_metadata(url, headers=headers, endpoint=SETTINGS.hub_endpoint)
        if urlsplit(facts.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)
        folder.mkdir(parents=True, exist_ok=True)
    except HUB_ERRORS as error:
        raise error_in_words(error, what, otherwise=otherwise) from error
    announced = facts.etag or "unnamed"
    expected = sha256 or (announced if SHA256.fullmatch(announced) else "")
    target = folder / Path(source.file).name
    if expected and target.exists() and file_hash(target) == expected:
        return target  # its conversion had failed
    part = folder / f"{re.sub(r'[^0-9A-Za-z]', '', announced)}.part"
    yield from _receive(facts, part, headers, what, otherwise)
    yield Step(100, 100, f"The hash of {what} is checked.")
    if expected and file_hash(part) != expected:
        part.unlink()
        raise UserError(
            f"{what} is not the file that was expected: its hash is another one.",
            "It was deleted. Try again; if it stays so, the file was replaced on the Hub, and should not be trusted.",
        )
    part.replace(target)
    return target


def _receive(facts: HfFileMetadata, part: Path, headers: dict[str, str], what: str, otherwise: str) -> Job[None]:
    """Fill `part` in a thread of its own, and yield its progress."""
    received = part.stat().st_size if part.exists() else 0
    if facts.size is not None and received > facts.size:
        part.unlink()
        received = 0
    needed = (facts.size or 0) - received
    # What was fetched and what it is converted into lie side by side for a moment.
    if shutil.disk_usage(part.parent).free < 2 * needed + SPARE * bool(needed):
        raise disk_full_error(what, 2 * needed)
    start = received
    news: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            with part.open("ab") as file:
                http_get(
                    facts.location,
                    file,
                    resume_size=start,
                    headers=dict(headers),
                    expected_size=facts.size,
                    displayed_filename=part.name,
                    tqdm_class=_reporting_bar(news.put, stopped),
                )
        except _StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - handed to the one who waits
            news.put(error)
        news.put(None)

    worker = threading.Thread(target=work, name="download", daemon=True)
    worker.start()
    total = max(1, facts.size or 0)
    try:
        yield _download_step(received, total, what)
        while (item := news.get()) is not None:
            if isinstance(item, Exception):
                raise _lasting_error(item, part, what, otherwise) from item
            received += item
            yield _download_step(received, total, what)
    finally:
        stopped.set()
        worker.join(timeout=10)


def _lasting_error(error: Exception, part: Path, what: str, otherwise: str) -> Exception:
    """Return the error as a sentence; a part that no server can continue goes."""
    received = part.stat().st_size if part.exists() else 0
    if isinstance(error, HfHubHTTPError) and error.response.status_code == 416:
        part.unlink(missing_ok=True)
        return UserError(f"The download of {what} could not be continued.", "Run it again: it starts anew.")
    if not isinstance(error, HUB_ERRORS):
        return error
    return error_in_words(error, what, received=received, otherwise=otherwise)


def _download_step(received: int, total: int, what: str) -> Step:
    percent = min(100, 100 * received // total)
    return Step(percent, 100, f"{what}: {received / 1e6:,.1f} of {total / 1e6:,.1f} MB")


def _reporting_bar(report: Callable[[int], None], stopped: threading.Event) -> type[tqdm]:
    """Return a progress bar, as the client wants one, that draws nothing and reports every block."""

    class Reporting(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if stopped.is_set():
                raise _StoppedError
            report(int(n or 0))
            return None

    return Reporting
