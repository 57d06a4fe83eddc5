"""What can go wrong with a download or an upload, as sentences."""

import errno

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from backend.errors import UserError

LOG_IN = "Log in with: hf auth login, or set HF_TOKEN"
# What an upload or a download can raise. The client's own HTTPError stands for every failure of the connection.
TROUBLES = (HTTPError, OSError, LocalTokenNotFoundError, OfflineModeIsEnabled)


def elsewhere(name: str) -> str:
    """Say how a model can be had without the Hub; `name` is that of its entry."""
    return f"Or get the file elsewhere and run: python -m backend weights fetch {name} --from PATH"


def said(error: Exception, what: str, *, received: int = 0, otherwise: str) -> UserError:
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
        return _answered(error, what, otherwise)
    if isinstance(error, HTTPError):
        if received:
            return UserError(
                f"The download of {what} was interrupted after {received / 1e6:.1f} MB.",
                "Run it again: it goes on where it stopped.",
            )
        return UserError(f"The Hub was not reached for {what}.", f"Check the network. {otherwise}")
    return _on_disk(error, what)


def _answered(error: HfHubHTTPError, what: str, otherwise: str) -> UserError:
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


def _on_disk(error: Exception, what: str) -> UserError:
    number = getattr(error, "errno", None)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return full(what)
    if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return UserError(
            f"{what} cannot be stored: the folder for it cannot be written to.",
            "Set WEIGHTS_CACHE to a folder that can.",
        )
    return UserError(f"{what} came incomplete.", "Run it again: it goes on where it stopped.")


def full(what: str, needed: int = 0) -> UserError:
    """Say that the disk is full."""
    amount = f" ({needed / 1e6:,.0f} MB are needed)" if needed else ""
    return UserError(
        f"There is no room on the disk for {what}{amount}.", "Free some, or set WEIGHTS_CACHE to another disk."
    )
