"""Say in words what a model was trained on, from the data that the command was given."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from backend import verdicts
from backend.training import datasets

# The training packs that the shipped models were trained on, known by the names of their pictures.
SHIPPED_NAMES = "437521dd807fb869aeee8de8334e88737539c632ae6ec1be368f38ac3fe0002f"
SHIPPED = "CelebA, All-Age-Faces, FFHQ and official portraits, 12,453 aligned faces of 128 pixels"


def photographs(data: Path, given: str | None = None) -> str:
    """Describe the training photographs in a folder of pictures or packs; `given` wins.

    Raises:
        UserError: There are none.
    """
    if given:
        return given
    packs = sorted(path.name for path in data.glob(f"{datasets.TRAIN}.tar"))
    names = datasets.names(data, datasets.TRAIN)
    if names_hash(names) == SHIPPED_NAMES:
        return SHIPPED
    where = f" in {' and '.join(packs)}" if packs else ""
    return f"{len(names):,} aligned photographs{where}, supplied by whoever trained it"


def examples(trained_on: str, kinds: Iterable[str]) -> str:
    """Describe what a detector learned from: photographs in words, and the kinds of its fakes."""
    fakes = [verdicts.KINDS.get(kind, kind) for kind in sorted(set(kinds)) if not kind.endswith("real")]
    return f"{trained_on}; and fakes: {', '.join(fakes)}"


def names_hash(names: Iterable[str]) -> str:
    """Return the SHA-256 of sorted file names without their folders, as hex digits."""
    bases = sorted(name.rsplit("/", 1)[-1] for name in names)
    return hashlib.sha256("\n".join(bases).encode()).hexdigest()
