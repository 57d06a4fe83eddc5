"""Held-out faces on which detectors and attacks are compared."""

from pathlib import Path

import numpy as np
import torch

from backend.detectors.registry import EMBEDDED_SIZE
from backend.errors import UserError
from backend.saving import like_photographs
from backend.trace_removal.table import Faces
from backend.training import datasets


def read(data: Path, fakes: Path, *, per_family: int | None = None, seed: int = 0) -> Faces:
    """Read fakes by family, and as many photographs, all saved as photographs are before anything attacks them.

    Args:
        data: Folder of photographs, or of packs, of which only `real-val` is read.
        fakes: Folder of the fakes builder: one folder a family; where it has a `val`, that one.
        per_family: How many fakes of each family at most, drawn by `seed`; all by default.
        seed: Seed of the draw.

    Raises:
        UserError: One of the folders holds no pictures, or `per_family` is not at least 1.
    """
    if per_family is not None and per_family < 1:
        raise UserError("There is nothing to measure.", "Give --per-family at least 1.")
    folder = fakes / "val" if (fakes / "val").is_dir() else fakes
    made = datasets.load(folder, EMBEDDED_SIZE)
    families = [Path(name).parent.name for name in made.names]
    if "" in families:
        raise UserError(f"The fakes in {folder.name} have no family.", "Name a folder with one folder for each family.")
    chosen: list[int] = []
    for family in sorted(set(families)):
        members = [index for index, one in enumerate(families) if one == family]
        chosen += _draw(members, per_family, seed)
    photographs = datasets.load(data, EMBEDDED_SIZE, "real-val*")
    real = _draw(list(range(len(photographs))), len(chosen), seed)
    return Faces(
        fakes=like_photographs(made.pictures[torch.tensor(chosen)]),
        families=tuple(families[index] for index in chosen),
        real=like_photographs(photographs.pictures[torch.tensor(real)]),
    )


def _draw(members: list[int], count: int | None, seed: int) -> list[int]:
    if count is None or count >= len(members):
        return members
    return sorted(np.random.default_rng(seed).choice(members, count, replace=False).tolist())
