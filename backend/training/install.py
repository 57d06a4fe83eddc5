"""Install a trained file in `weights/`, with its entry in `weights/registry.toml`, and update the model card."""

import hashlib
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from backend import face_packs, weights
from backend.detectors import base, registry
from backend.generators import inversion
from backend.settings import SETTINGS
from backend.training import calibration

logger = logging.getLogger(__name__)
# Hash of the names of the pictures that the shipped models were trained on.
SHIPPED_NAMES = "437521dd807fb869aeee8de8334e88737539c632ae6ec1be368f38ac3fe0002f"
SHIPPED_PHOTOGRAPHS = "CelebA, All-Age-Faces, FFHQ and official portraits, 12,453 aligned faces of 128 pixels"
GENERATOR_EPSILON = 0.002  # step of a search with the embedded generator
LICENCE = "non-commercial research and teaching"
TRAINING_COMMANDS = {
    "generator": "python -m backend train generator",
    "encoder": "python -m backend train encoder",
    "ganprintr": "python -m backend train ganprintr",
    "trnet": "python -m backend train trnet",
    "traces": "python -m backend train references",
}
KNOWN_FAILURES = (
    "Photographs that were sharpened, filtered or scaled strongly; fakes by methods it never saw "
    "(diffusion models, video deepfakes); faces that are small, turned away or covered."
)
REGISTRY_HEADER = (
    "# One entry a model file; written by `python -m backend train ... --install`, read by backend/weights.py.\n\n"
)


def describe_photographs(data: Path, given: str | None = None) -> str:
    """Describe the training photographs in a folder of pictures or packs; `given` wins.

    Raises:
        UserError: There are no photographs.
    """
    if given:
        return given
    packs = sorted(path.name for path in data.glob(f"{face_packs.TRAINING_PACKS}.tar"))
    names = face_packs.list_names(data, face_packs.TRAINING_PACKS)
    if hash_names(names) == SHIPPED_NAMES:
        return SHIPPED_PHOTOGRAPHS
    where = f" in {' and '.join(packs)}" if packs else ""
    return f"{len(names):,} aligned photographs{where}, supplied by whoever trained it"


def describe_training_data(trained_on: str, kinds: Iterable[str]) -> str:
    """Describe what a detector was trained on: the photographs in words, and the kinds of fakes."""
    fakes = [base.FAKE_KINDS.get(kind, kind) for kind in sorted(set(kinds)) if not kind.endswith("real")]
    return f"{trained_on}; and fakes: {', '.join(fakes)}"


def hash_names(names: Iterable[str]) -> str:
    """Return the SHA-256 (hexadecimal) of the sorted file names without their folders."""
    return hashlib.sha256("\n".join(sorted(map(face_packs.base_name, names))).encode()).hexdigest()


def update_model_card() -> None:
    """Write the tables of the model card anew from the registry."""
    path = SETTINGS.weights_dir / "MODELCARD.md"
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    tables = {
        "files": build_files_table(),
        "error rates": build_rates_table(),
        "same source": build_same_source_table(),
    }
    for title, table in tables.items():
        before, _, rest = text.partition(f"<!-- {title} -->")
        text = f"{before}<!-- {title} -->\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    path.write_text(text, encoding="utf-8")


def build_files_table() -> str:
    """Return a table of the embedded files: name, bytes, hash, command."""
    rows = [
        (name, f"{entry.bytes:,}", f"`{entry.sha256[:16]}`", f"`{entry.source.split(', on ')[0]}`")
        for name, entry in sorted(weights.read_entries().items())
        if entry.profile == "embedded"
    ]
    return _build_table(("model", "bytes", "sha256 (start)", "trained by"), rows)


def build_rates_table() -> str:
    """Return a table of the embedded and plain detectors: false alarms, and misses (AUC) by kind of fake."""
    cards = [registry.card(name) for name in [*registry.loadable("embedded"), *registry.loadable("plain")]]
    counts = {rate.kind: rate.count for card in cards for rate in card.errors}
    changes = {card.name: weights.find_entry(card.name).options.get("false_alarms", {}) for card in cards}
    changed = list(dict.fromkeys(change for shares in changes.values() for change in shares))
    heads = ["detector", *(f"{base.FAKE_KINDS.get(kind, kind)} ({count})" for kind, count in counts.items())]
    heads += ["photographs as they are" if change == calibration.UNCHANGED else f"after {change}" for change in changed]
    rows = []
    for card in cards:
        rates = {rate.kind: rate for rate in card.errors}
        cells = [_rate_cell(rates.get(kind)) for kind in counts]
        cells += [f"{changes[card.name][change]:.1%}" if change in changes[card.name] else "" for change in changed]
        rows.append([card.name, *cells])
    return _build_table(heads, rows)


def _rate_cell(rate: base.ErrorRate | None) -> str:
    if rate is None:
        return ""
    return f"{rate.rate:.1%}" if rate.auc is None else f"{rate.rate:.1%} ({rate.auc:.3f})"


def build_same_source_table() -> str:
    """Return a table of the detectors: AUC on fakes by others against photographs of the same source."""
    kinds = list(calibration.SAME_SOURCES)
    heads = [f"{base.FAKE_KINDS[kind]}, against {' and '.join(calibration.SAME_SOURCES[kind])}" for kind in kinds]
    rows = []
    for name in [*registry.loadable("embedded"), *registry.loadable("plain")]:
        measured = weights.find_entry(name).options.get("same_source", {})
        cells = [
            "{auc:.2f} [{low:.2f}, {high:.2f}]".format(**measured[kind]) if kind in measured else "" for kind in kinds
        ]
        rows.append((name, *cells))
    return _build_table(("detector", *heads), rows)


def _build_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def install_weights(name: str, file: Path, options: dict[str, Any], trained_on: str) -> weights.Entry:
    """Copy `file` to `weights/NAME.safetensors`, write its registry entry and return it.

    Values that the entry had before stay unless `options` replaces them. `trained_on` describes the photographs.
    """
    target = SETTINGS.weights_dir / f"{name}.safetensors"
    if file.resolve() != target.resolve():
        shutil.copyfile(file, target)
    path = SETTINGS.weights_dir / "registry.toml"
    registry = _read_registry(path)
    before = registry.get(name, {})
    facts: dict[str, Any] = {
        "profile": "embedded",
        "file": target.name,
        "sha256": weights.file_hash(target),
        "bytes": target.stat().st_size,
        "licence": LICENCE,
        "source": TRAINING_COMMANDS.get(name, f"python -m backend train detector {name}") + f", on {trained_on}",
    }
    if name == "generator":
        facts["epsilon"] = GENERATOR_EPSILON
    elif name not in TRAINING_COMMANDS:
        facts["known_failures"] = KNOWN_FAILURES
    registry[name] = before | facts | options
    _write_registry(path, registry)
    return weights.find_entry(name)


def note_visibility() -> None:
    """Write to the encoder's entry how visible each row of codes is, which generator and encoder decide together.

    Call it once both are installed. If one is missing, or if they do not fit each other, nothing is written, and a
    search takes equal steps.
    """
    path = SETTINGS.weights_dir / "registry.toml"
    registry = _read_registry(path)
    if not {"generator", "encoder"} <= set(registry):
        return
    registry["encoder"].pop("visibility", None)
    entries = registry["generator"], registry["encoder"]
    drawing, encoding = (weights.read_checkpoint(SETTINGS.weights_dir / entry["file"]) for entry in entries)
    try:
        inverter = inversion.build_embedded_inverter(drawing, encoding, *entries, "generator")
    except RuntimeError:  # networks of different sizes, until the other is trained too
        logger.warning("Generator and encoder do not fit each other: train the other one too.")
    else:
        registry["encoder"]["visibility"] = list(inversion.measure_row_visibility(inverter))
    _write_registry(path, registry)


def _read_registry(path: Path) -> dict[str, Any]:
    return weights.read_toml(path) if path.exists() else {}


def _write_registry(path: Path, registry: dict[str, Any]) -> None:
    path.write_text(REGISTRY_HEADER + tomli_w.dumps(dict(sorted(registry.items()))), encoding="utf-8")
    weights.read_entries.cache_clear()
    update_model_card()
