"""What the environment may set, read once, settings given as NAME=VALUE, and the check of every settings class."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.fields import FieldInfo

from backend.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
REPO = re.compile(r"[\w.-]+/[\w.-]+")

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


def _refuse_other_numbers(value: Any) -> Any:
    """Refuse texts such as 1e6 and 7860.0, which pydantic takes for whole numbers."""
    if isinstance(value, str) and not re.fullmatch(r"\d{1,18}", value):
        raise ValueError
    return value


Count = Annotated[int, BeforeValidator(_refuse_other_numbers), Field(ge=1)]
OptionalFile = Annotated[Path, AfterValidator(Path.expanduser)] | None


@pydantic.dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one process: each field's title is the environment variable, its description what that may be."""

    profile: Annotated[Literal["embedded", "hub"], Field(title="PROFILE", description="one of: embedded, hub")] = (
        "embedded"
    )
    device: Annotated[
        str,
        Field(
            title="DEVICE",
            pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$",
            description="auto, cpu, cuda, cuda:0, cuda:1, ... or mps",
        ),
    ] = "auto"
    host: Annotated[str, Field(title="GRADIO_SERVER_NAME")] = "127.0.0.1"
    port: Annotated[
        Count, Field(title="GRADIO_SERVER_PORT", le=65535, description="a whole number from 1 to 65535")
    ] = 7860
    max_bytes: Annotated[Count, Field(title="MAX_UPLOAD_BYTES")] = 20_000_000
    max_pixels: Annotated[Count, Field(title="MAX_UPLOAD_PIXELS")] = 50_000_000
    queue_size: Annotated[Count, Field(title="QUEUE_SIZE")] = 64
    visitors_per_address: Annotated[Count, Field(title="VISITORS_PER_ADDRESS")] = 20  # one address may be a whole class
    weights_dir: Path = ROOT / "weights"
    cache_dir: Annotated[Path, AfterValidator(Path.expanduser), Field(title="WEIGHTS_CACHE")] = (
        Path.home() / ".cache" / "face-forgery-explained"
    )  # files fetched from the Hub
    weights_repo: Annotated[
        str,
        Field(
            title="WEIGHTS_REPO", pattern=f"^({REPO.pattern})?$", description="OWNER/NAME of a repository on the Hub"
        ),
    ] = ""  # where missing files of `weights_dir` come from
    hub_endpoint: Annotated[str, AfterValidator(lambda url: url.rstrip("/")), Field(title="HF_ENDPOINT")] = (
        "https://huggingface.co"
    )
    max_video_bytes: Annotated[Count, Field(title="MAX_VIDEO_BYTES")] = 60_000_000
    # Whether visitors may fetch models; auto says no in a Space of the Hub.
    fetch: Annotated[bool, Field(title="FETCH", strict=True, description="one of: auto, on, off")] = True
    # Whether `detect` fetches https addresses; never on in a Space of the Hub.
    allow_addresses: Annotated[bool, Field(title="ALLOW_ADDRESSES", strict=True, description="one of: on, off")] = False
    # What answers on a CPU where no gradient is needed: OpenVINO where it is installed, or always PyTorch.
    engine: Annotated[Literal["auto", "torch"], Field(title="ENGINE", description="one of: auto, torch")] = "auto"
    # PEM files: the chain and the key that sign what the app makes, and the signers that count as known.
    c2pa_certificate: Annotated[OptionalFile, Field(title="C2PA_CERTIFICATE", description="a PEM file")] = None
    c2pa_key: Annotated[OptionalFile, Field(title="C2PA_KEY", description="a PEM file")] = None
    c2pa_trust_list: Annotated[OptionalFile, Field(title="C2PA_TRUST_LIST", description="a PEM file")] = None


def read_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; a variable that is absent or empty leaves its default.

    Raises:
        UserError: A variable has a value that it cannot have.
    """
    known: dict[str, FieldInfo] = vars(Settings)["__pydantic_fields__"]
    values: dict[str, Any] = {
        name: environment[info.title] for name, info in known.items() if info.title and environment.get(info.title)
    }
    fetch = values.get("fetch", "auto")
    values["fetch"] = {"on": True, "off": False, "auto": not environment.get("SPACE_ID")}.get(fetch, fetch)
    addresses = values.get("allow_addresses", "off")
    allowed = {"on": not environment.get("SPACE_ID"), "off": False}
    values["allow_addresses"] = allowed.get(addresses, addresses)
    try:
        return Settings(**values)
    except pydantic.ValidationError as error:
        info = known[str(error.errors()[0]["loc"][0])]
        hint = info.description or f"a whole number from 1, for example {info.default}"
        raise UserError(f"{info.title} cannot be {environment[str(info.title)]!r}.", f"Set it to {hint}.") from None


def _usable() -> Settings:
    """Return the defaults where a variable is wrong: app and command line refuse it when they start."""
    try:
        return read_environment()
    except UserError:
        return Settings()


SETTINGS = _usable()


def parse_setting_changes(given: Sequence[str] | None) -> dict[str, Any]:
    """Read settings that were given as NAME=VALUE; a value that is not JSON is taken as text.

    Raises:
        UserError: One has no value.
    """
    changes: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"The setting {text} has no value.", "Write for example --set steps=50.")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return changes


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
    allowed = re.sub(r"^\w+ should", "must", first["msg"]).replace("'", "")
    if first["type"] != "literal_error":
        allowed = allowed.partition(",")[0]
    for wording, plain in PLAIN_WORDING.items():
        allowed = allowed.replace(wording, plain)
    verb, subject = ("contain", "Each value") if item else ("be", "It")
    return UserError(f"{name} cannot {verb} {first['input']!r}.", f"{subject} {allowed}.")
