"""Model files: where they come from, their hashes and licences, safe loading, and the versions behind a result.

`weights/registry.toml` names the files that ship with the app, `weights/hub.toml` those that others publish.
"""

import dataclasses
import hashlib
import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backend import __version__, engine
from backend.errors import UserError
from backend.settings import SETTINGS, validated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REINSTALL = "Install the app again, or run: python -m backend weights verify"
REGISTRIES = ("registry.toml", "hub.toml")


@validated
@dataclass(frozen=True)
class HubFile:
    """A file on the Hub; `revision` is a commit, or a branch where none is known."""

    repo: str
    file: str
    revision: str = "main"
    kind: Literal["model", "space", "dataset"] = "model"

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}"


@validated
@dataclass(frozen=True)
class Entry:
    """One model file of the registry.

    Args:
        profile: `embedded` (ships with the app) or `hub` (fetched on demand, then converted).
        file: File name, in `weights/` or in the Hub repository.
        sha256: Hash of the file as published, empty where it is not known; files with another are not loaded.
        bytes: Size of the file as published, 0 where it is not known.
        source: What it was trained on and by which command, or where it is published.
        form: Layout in which others publish it, see `hub/forms.py`; empty for what ships with the app.
        repo: Repository on the Hub, empty where it is only published elsewhere.
        revision: Commit or branch of that repository.
        mirrors: Other places on the Hub.
        about_bytes: Rough size, where `bytes` is not known.
        use: `evaluate` for what only the Evaluate tab and its commands load.
        options: Everything else the entry says: architecture options, card values, calibration.
    """

    name: str
    profile: Literal["embedded", "hub"]
    file: str
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    bytes: Annotated[int, Field(ge=0)]
    licence: str
    source: str
    form: str = ""
    repo: str = ""
    repo_type: Literal["model", "space", "dataset"] = "model"
    revision: str = "main"
    mirrors: tuple[HubFile, ...] = ()
    about_bytes: Annotated[int, Field(ge=0)] = 0
    use: Literal["app", "evaluate"] = "app"
    note: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where the file lies on this machine; one from the Hub lies converted in the cache."""
        if self.profile == "hub":
            return SETTINGS.cache_dir / f"{self.name}.safetensors"
        return SETTINGS.weights_dir / self.file

    @property
    def receipt_path(self) -> Path:
        """The file that says what was fetched, for an entry of the Hub."""
        return SETTINGS.cache_dir / f"{self.name}.json"

    def receipt(self) -> dict[str, Any]:
        """Return what was fetched and what it was converted into, or nothing where that is not known."""
        try:
            receipt = json.loads(self.receipt_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return receipt if isinstance(receipt, dict) else {}

    def state(self) -> str:
        """Return `verified`, `absent` or `damaged`."""
        if not self.path.exists():
            return "absent"
        expected = self.receipt().get("sha256") if self.profile == "hub" else self.sha256
        return "verified" if file_hash(self.path) == expected else "damaged"


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def read_entries() -> dict[str, Entry]:
    """Read both registries.

    Raises:
        UserError: They are missing, or an entry is wrong.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        raise UserError(
            f"There are no models in {SETTINGS.weights_dir}.",
            "Clone the repository, and install it from there with: pip install -e .",
        )
    raw: dict[str, dict[str, Any]] = {}
    for path in (SETTINGS.weights_dir / file for file in REGISTRIES):
        if path.exists():
            raw |= read_toml(path)
    return {name: _read_entry(name, values) for name, values in raw.items()}


def _read_entry(name: str, values: Mapping[str, Any]) -> Entry:
    fields = {field.name for field in dataclasses.fields(Entry)} - {"name", "options"}
    known = {key: value for key, value in values.items() if key in fields}
    options = {key: value for key, value in values.items() if key not in fields}
    try:
        return Entry(name=name, options=options, **known)
    except UserError as error:
        raise UserError(f"The registry's entry {name} is wrong: {error.message}", error.hint) from None


def find_entry(name: str) -> Entry:
    try:
        return read_entries()[name]
    except KeyError:
        known = ", ".join(sorted(read_entries()))
        raise UserError(f"There is no model named {name}.", f"Choose one of: {known}.") from None


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_entry(name: str) -> dict[str, Tensor]:
    """Return the tensors of an entry as float32, after its hash was verified."""
    entry = find_entry(name)
    state = entry.state()
    hint = f"Run: python -m backend weights fetch {name}" if entry.profile == "hub" else REINSTALL
    if state == "absent":
        raise UserError(f"The model file of {name} is missing.", hint)
    if state == "damaged":
        raise UserError(f"The model file of {name} is damaged.", hint)
    tensors = load_file(entry.path)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load_into(module: nn.Module, name: str) -> nn.Module:
    """Load an entry into a module, every key matched, and return it in inference mode without gradients.

    Raises:
        UserError: The file is missing, damaged or of another network.
    """
    tensors = load_entry(name)
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError:
        raise UserError(f"The model file of {name} belongs to another version of the app.", REINSTALL) from None
    return module.eval().requires_grad_(False)


def rounded_to_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in float32 as they will be read again after `save_half`."""
    return {key: value.half().float() if value.is_floating_point() else value for key, value in tensors.items()}


def save_half(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, floating-point ones in float16.

    Batch norm's step counters are left out: no result depends on them, and torch begins them anew.
    """
    kept = {key: value for key, value in tensors.items() if not key.endswith(".num_batches_tracked")}
    halved = {key: (value.half() if value.is_floating_point() else value) for key, value in kept.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in halved.items()}, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a published checkpoint: safetensors, or a pickle of tensors and plain values.

    Raises:
        UserError: The file is missing, damaged, of another kind, or a pickle that carries code.
    """
    hint = "Use a file from the project that published the model, or its safetensors form."
    if not path.is_file():
        raise UserError(f"There is no file named {path.name}.", hint)
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError, struct.error, json.JSONDecodeError):
            raise UserError(f"{path.name} is not a readable safetensors file.", hint) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path.name} was refused: it carries more than tensors and plain values.", hint) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise UserError(f"{path.name} is damaged or not a checkpoint.", hint) from None
    if not isinstance(content, dict) or not _is_plain(content):
        raise UserError(f"{path.name} was refused: it carries more than tensors and plain values.", hint)
    return content


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (Tensor, str, bool, int, float))


def match_checkpoint(
    state: Mapping[str, Tensor],
    build: Callable[[], nn.Module],
    title: str,
    *,
    prefix: str = "",
    unused: Sequence[str] = (),
    rename: Callable[[str], str] = str,
) -> dict[str, Tensor]:
    """Turn a published checkpoint into a state that `build()` loads with every key matched.

    Args:
        state: Published keys to tensors.
        build: Builds the network that is to take them; only its shapes are looked at.
        title: What the network is called in errors.
        prefix: Starts every key of the checkpoint, and none of ours.
        unused: Starts of keys, after the prefix, that the checkpoint saves and its network never runs.
        rename: Turns a published key without the prefix into ours.

    Raises:
        UserError: Keys are unknown or missing, or tensors have other shapes.
    """
    with torch.device("meta"):
        expected = build().state_dict()
    hint = f"Use a checkpoint of {title}, unchanged."
    matched: dict[str, Tensor] = {}
    for key, value in state.items():
        bare = key.removeprefix(prefix)
        if key.startswith(prefix) and bare.startswith(tuple(unused)):
            continue
        name = rename(bare)
        if not key.startswith(prefix) or name not in expected:
            raise UserError(f"The checkpoint has a tensor that {title} does not have: {key}.", hint)
        if value.shape != expected[name].shape:
            raise UserError(f"The checkpoint's tensor {key} has shape {tuple(value.shape)}, not {title}'s.", hint)
        matched[name] = value
    # Batch norm's step counter was not saved by old versions of torch, and no result depends on it.
    missing = [name for name in expected if name not in matched and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"The checkpoint lacks {len(missing)} tensors of {title}, first {missing[0]}.", hint)
    return {name: matched.get(name, torch.tensor(0)) for name in expected}


def model_hashes(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of those models that the registry knows, by name.

    That of a model of the Hub is the fetched file's, which may be the user's own; empty if none was fetched.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    known = read_entries()
    return {name: _entry_hash(known[name]) for name in names if name in known}


def _entry_hash(entry: Entry) -> str:
    if entry.profile != "hub":
        return entry.sha256
    receipt = entry.receipt()
    return str(receipt.get("source_sha256") or receipt.get("sha256") or entry.sha256)


def changed_models(used: Mapping[str, str]) -> list[str]:
    """Return the models, given as SHA-256 by name, that the registry now names another file for.

    Models that others publish are left out: only some machines have them.
    """
    now = model_hashes(used)
    known = read_entries() if now else {}
    ours = [name for name in used if name not in known or known[name].profile == "embedded"]
    return [name for name in ours if used[name] != now.get(name)]


def package_versions() -> dict[str, str]:
    """Return the versions that decide a result, with OpenVINO's where it may answer."""
    versions = {"torch": torch.__version__, "timm": metadata.version("timm"), "face-forgery-explained": __version__}
    return versions | ({"openvino": metadata.version("openvino")} if engine.is_available() else {})
