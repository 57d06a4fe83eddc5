"""What the environment may set, read once, settings given as NAME=VALUE, and the check of every settings class."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from backend.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("embedded", "hub")
REPO = re.compile(r"[\w.-]+/[\w.-]+")
FETCH = ("auto", "on", "off")
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?|mps")

# In order: what pydantic says, and the usual words.
PLAIN_WORDING = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid tuple": "a list",
    " after validation": "",
}


@dataclass(frozen=True)
class Settings:
    """Settings of one process; the environment variable that sets each stands beside it."""

    profile: str = "embedded"  # PROFILE: embedded, hub
    device: str = "auto"  # DEVICE: auto, cpu, cuda, cuda:N, mps
    host: str = "127.0.0.1"  # GRADIO_SERVER_NAME
    port: int = 7860  # GRADIO_SERVER_PORT
    max_bytes: int = 20_000_000  # MAX_UPLOAD_BYTES
    max_pixels: int = 50_000_000  # MAX_UPLOAD_PIXELS
    queue_size: int = 64  # QUEUE_SIZE
    visitors_per_address: int = 20  # VISITORS_PER_ADDRESS: as many share an address behind one connection or proxy
    weights_dir: Path = ROOT / "weights"
    cache_dir: Path = Path.home() / ".cache" / "face-forgery-explained"  # WEIGHTS_CACHE: files fetched from the Hub
    weights_repo: str = ""  # WEIGHTS_REPO: OWNER/NAME on the Hub, where missing files of `weights_dir` come from
    hub_endpoint: str = "https://huggingface.co"  # HF_ENDPOINT
    max_video_bytes: int = 60_000_000  # MAX_VIDEO_BYTES
    fetch: bool = True  # FETCH (auto, on, off): whether visitors may fetch models; auto says no in a Space of the Hub


def read_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; a variable that is absent or empty leaves its default.

    Raises:
        UserError: A variable has a value that it cannot have.
    """
    usual = Settings()
    profile = environment.get("PROFILE") or usual.profile
    if profile not in PROFILES:
        raise UserError(f"PROFILE cannot be {profile!r}.", f"Set it to one of: {', '.join(PROFILES)}.")
    device = environment.get("DEVICE") or usual.device
    if not DEVICES.fullmatch(device):
        raise UserError(f"DEVICE cannot be {device!r}.", "Set it to auto, cpu, cuda, cuda:0, cuda:1, ... or mps.")
    repo = environment.get("WEIGHTS_REPO") or usual.weights_repo
    if repo and not REPO.fullmatch(repo):
        raise UserError(f"WEIGHTS_REPO cannot be {repo!r}.", "Set it to OWNER/NAME of a repository on the Hub.")
    fetch = environment.get("FETCH") or "auto"
    if fetch not in FETCH:
        raise UserError(f"FETCH cannot be {fetch!r}.", f"Set it to one of: {', '.join(FETCH)}.")
    return Settings(
        profile=profile,
        device=device,
        host=environment.get("GRADIO_SERVER_NAME") or usual.host,
        port=_integer(environment, "GRADIO_SERVER_PORT", usual.port, least=1, most=65535),
        max_bytes=_integer(environment, "MAX_UPLOAD_BYTES", usual.max_bytes),
        max_pixels=_integer(environment, "MAX_UPLOAD_PIXELS", usual.max_pixels),
        queue_size=_integer(environment, "QUEUE_SIZE", usual.queue_size),
        visitors_per_address=_integer(environment, "VISITORS_PER_ADDRESS", usual.visitors_per_address),
        cache_dir=Path(environment.get("WEIGHTS_CACHE") or usual.cache_dir).expanduser(),
        weights_repo=repo,
        hub_endpoint=(environment.get("HF_ENDPOINT") or usual.hub_endpoint).rstrip("/"),
        max_video_bytes=_integer(environment, "MAX_VIDEO_BYTES", usual.max_video_bytes),
        fetch=fetch == "on" or (fetch == "auto" and not environment.get("SPACE_ID")),
    )


def _integer(environment: Mapping[str, str], name: str, usual: int, *, least: int = 1, most: int | None = None) -> int:
    given = environment.get(name)
    if not given:
        return usual
    limits = f"from {least}" if most is None else f"from {least} to {most}"
    if not re.fullmatch(r"\d{1,18}", given) or int(given) < least or (most is not None and int(given) > most):
        raise UserError(f"{name} cannot be {given!r}.", f"Set it to a whole number {limits}, for example {usual}.")
    return int(given)


def _usable() -> Settings:
    """Return what `read` says; where it refuses, app and command line say so before they do anything."""
    try:
        return read_environment()
    except UserError:
        return Settings()


SETTINGS = _usable()


def parse_setting_changes(given: Sequence[str] | None) -> dict[str, Any]:
    """Read settings that were given as NAME=VALUE; a value that is no JSON is taken as text.

    Raises:
        UserError: One has no value.
    """
    read: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"The setting {text} has no value.", "Write for example --set steps=50.")
        try:
            read[name] = json.loads(value)
        except ValueError:
            read[name] = value
    return read


Validated = TypeVar("Validated", bound=type)


def validated(settings: Validated) -> Validated:
    """Check the values of a frozen dataclass with pydantic whenever one is made, by `replace` too.

    Put it above `@dataclass(frozen=True)`. Ranges are annotated: `Annotated[int, Field(ge=1)]`. Whatever else must
    hold is checked in `__post_init__`, which may raise UserError with a sentence of its own.

    Raises:
        UserError: From the class, when a value cannot be what was given.
    """
    config = pydantic.ConfigDict(extra="forbid")
    if hasattr(settings, "__pydantic_fields__"):  # it extends a checked class; pydantic freezes it itself
        del settings.__setattr__, settings.__delattr__
        for setting in fields(settings):  # and makes the fields again, for which a factory must stand in the class
            if setting.default_factory is not MISSING:
                setattr(settings, setting.name, field(default_factory=setting.default_factory))
    checked: Any = pydantic.dataclasses.dataclass(frozen=True, config=config)(settings)
    create = checked.__init__

    @wraps(create)
    def create_or_explain(self: Any, *values: Any, **named: Any) -> None:
        try:
            create(self, *values, **named)
        except pydantic.ValidationError as error:
            raise validation_error(error) from None

    checked.__init__ = create_or_explain
    checked.__doc__ = settings.__doc__
    return checked


def validation_error(error: pydantic.ValidationError) -> UserError:
    """Put the first mistake that pydantic found into a sentence, with what is allowed as the hint."""
    first = error.errors(include_url=False)[0]
    name, *item = (str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return UserError(f"There is no setting {name}.", "Leave it out.")
    if first["type"] in ("missing", "missing_argument"):
        return UserError(f"{name} is missing.", "Give it a value.")
    if first["type"] == "value_error":
        return UserError(str(first["ctx"]["error"]), f"Change {name}.")
    allowed = re.sub(r"^\w+ should", "must", first["msg"]).replace("'", "").partition(",")[0]
    for wording, plain in PLAIN_WORDING.items():
        allowed = allowed.replace(wording, plain)
    verb, subject = ("contain", "Each value") if item else ("be", "It")
    return UserError(f"{name} cannot {verb} {first['input']!r}.", f"{subject} {allowed}.")
