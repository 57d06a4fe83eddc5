"""Put a trained file into `weights/` and its facts into `weights/registry.toml`."""

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import tomli_w

from backend import weights
from backend.generators import inversion, visibility
from backend.settings import SETTINGS
from backend.training import modelcard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger(__name__)
LICENCE = "non-commercial research and teaching"
SOURCES = {
    "generator": "python -m backend train generator",
    "encoder": "python -m backend train encoder",
    "ganprintr": "python -m backend train ganprintr",
    "trnet": "python -m backend train trnet",
    "traces": "python -m backend train references",
}
DETECTOR_FACTS: dict[str, Any] = {
    "known_failures": "Photographs that were sharpened, filtered or scaled strongly; fakes by methods it never saw "
    "(diffusion models, video deepfakes); faces that are small, turned away or covered.",
}
FACTS: dict[str, dict[str, Any]] = {
    "generator": {"epsilon": 0.002},
    "encoder": {},
    "ganprintr": {},
    "trnet": {},
    "traces": {},
}
HEADER = "# One entry a model file; written by `python -m backend train ... --install`, read by backend/weights.py.\n\n"


def install(name: str, file: Path, options: dict[str, Any], trained_on: str) -> weights.Entry:
    """Copy `file` to `weights/NAME.safetensors`, write its registry entry and return it.

    What the entry said before stays where `options` does not name it anew. `trained_on` describes the photographs.
    """
    target = SETTINGS.weights_dir / f"{name}.safetensors"
    if file.resolve() != target.resolve():
        shutil.copyfile(file, target)
    path = SETTINGS.weights_dir / "registry.toml"
    registry = _read(path)
    before = registry.get(name, {})
    facts = {
        "profile": "embedded",
        "file": target.name,
        "sha256": weights.file_hash(target),
        "bytes": target.stat().st_size,
        "licence": LICENCE,
        "source": SOURCES.get(name, f"python -m backend train detector {name}") + f", on {trained_on}",
    }
    registry[name] = before | FACTS.get(name, DETECTOR_FACTS) | facts | options
    _write(path, registry)
    return weights.entry(name)


def measure_rows() -> None:
    """Note with the encoder how visible the rows of codes are, which generator and encoder decide together.

    To be called once both are in place. Without one of them, or where they do not fit each other, nothing is noted, and
    a search takes equal steps.
    """
    path = SETTINGS.weights_dir / "registry.toml"
    registry = _read(path)
    if not {"generator", "encoder"} <= set(registry):
        return
    registry["encoder"].pop("visibility", None)
    drawing, encoding = (
        weights.read_checkpoint(SETTINGS.weights_dir / registry[name]["file"]) for name in ("generator", "encoder")
    )
    try:
        inverter = inversion.from_tensors(drawing, encoding, registry["generator"], registry["encoder"], "generator")
    except RuntimeError:  # networks of different sizes, until the other is trained too
        logger.warning("Generator and encoder do not fit each other: train the other one too.")
    else:
        registry["encoder"]["visibility"] = list(visibility.measure(inverter))
    _write(path, registry)


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, registry: dict[str, Any]) -> None:
    path.write_text(HEADER + tomli_w.dumps(dict(sorted(registry.items()))), encoding="utf-8")
    weights.entries.cache_clear()
    modelcard.update()
