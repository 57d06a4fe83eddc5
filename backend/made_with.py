"""Which model files and packages a result was made with."""

from collections.abc import Iterable, Mapping
from importlib import metadata

import torch

from backend import weights
from backend.settings import SETTINGS

PACKAGES = ("timm", "face-forgery-explained")


def hashes(names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of those models that the registry knows, by name.

    Of a model of the Hub it is that of the file that was fetched, which may be one's own; empty where none was.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    known = weights.entries()
    return {name: _hash(known[name]) for name in names if name in known}


def _hash(entry: weights.Entry) -> str:
    if entry.profile != "hub":
        return entry.sha256
    receipt = entry.receipt()
    return str(receipt.get("source_sha256") or receipt.get("sha256") or entry.sha256)


def changed(used: Mapping[str, str]) -> list[str]:
    """Return those models, of SHA-256 by name, whose files are not what the registry names now.

    Models that others publish are not asked about: they lie on some machines only.
    """
    now = hashes(used)
    known = weights.entries() if now else {}
    own = [name for name in used if name not in known or known[name].profile == "embedded"]
    return [name for name in own if used[name] != now.get(name)]


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter, by name."""
    return {"torch": torch.__version__} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "run from its source folder"
