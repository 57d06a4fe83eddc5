"""Put the project's own trained models, with their model card, into a repository of their owner on the Hub."""

import re
import time
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, HfApi

from backend import weights
from backend.errors import UserError
from backend.hub import download
from backend.progress import Job, Step
from backend.settings import REPO, SETTINGS

CARD_FRONT_MATTER = """---
license: other
license_name: non-commercial-research-and-teaching
license_link: LICENSE.md
library_name: pytorch
tags: [deepfake-detection, explainability]
---

"""


@dataclass(frozen=True)
class Published:
    """What was put on the Hub.

    Args:
        repo: OWNER/NAME.
        revision: The commit.
        bytes: Size of the models.
    """

    repo: str
    revision: str
    files: tuple[str, ...]
    bytes: int
    seconds: float
    summary: str


def publish_models(repo: str, *, private: bool = False) -> Job[Published]:
    """Upload every model that ships with the app, the registry and the model card, as one commit.

    Args:
        repo: OWNER/NAME; it is created if it does not exist.
        private: Whether a new repository is private.

    Raises:
        UserError: The name is not OWNER/NAME, a file is damaged, or the Hub refused.
    """
    if not REPO.fullmatch(repo):
        raise UserError(f"{repo!r} is not a repository.", "Give it as OWNER/NAME.")
    started = time.monotonic()
    entries = [entry for entry in weights.read_entries().values() if entry.profile == "embedded"]
    total = len(entries) + 2
    additions = []
    for number, entry in enumerate(entries):
        yield Step(number, total, f"The hash of {entry.name} is checked.")
        if entry.state() != "verified":
            raise UserError(f"{entry.name} is missing or damaged and was not published.", weights.REINSTALL)
        additions.append(CommitOperationAdd(entry.file, str(entry.path)))
    folder = SETTINGS.weights_dir
    card = re.sub(r"\A---\n.*?\n---\n+", "", (folder / "MODELCARD.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    additions += [
        CommitOperationAdd("registry.toml", (folder / "registry.toml").read_bytes()),
        CommitOperationAdd("README.md", (CARD_FRONT_MATTER + card).encode()),
        CommitOperationAdd("LICENSE.md", b"The model files are for non-commercial research and teaching.\n"),
    ]
    yield Step(len(entries), total, f"{len(entries)} models are uploaded to {repo}.")
    api = HfApi(endpoint=SETTINGS.hub_endpoint, library_name="face-forgery-explained")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, additions, commit_message="Models, registry and model card")
    except download.HUB_ERRORS as error:
        raise download.error_in_words(error, repo, otherwise="Nothing was changed there.") from error
    except (RuntimeError, ValueError) as error:  # what the client says of an upload that broke off
        raise UserError(f"The upload to {repo} broke off.", "Nothing was changed there; run it again.") from error
    yield Step(total, total, f"{repo} has them.")
    size = sum(entry.bytes for entry in entries)
    return Published(
        repo=repo,
        revision=str(commit.oid),
        files=tuple(addition.path_in_repo for addition in additions),
        bytes=size,
        seconds=round(time.monotonic() - started, 3),
        summary=f"{len(entries)} models ({size / 1e6:.1f} MB) and their card are at {repo}, revision {commit.oid}. "
        f"With WEIGHTS_REPO={repo}, an app without them fetches them from there.",
    )
