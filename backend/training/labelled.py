"""Labelled pictures for detectors: which ones train, which ones set the threshold, which ones measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backend.errors import UserError
from backend.training import datasets, fakes

REAL = "real"
ATTACKED = "attacked"  # fakes after an attack on detectors, for the strong defence
WILD = "wild*"
CALIBRATION_PART = 20  # one photograph in so many is kept from training, to set thresholds
MEASURING_PART = 5  # of the wild pack, one in so many only measures


@dataclass(frozen=True)
class Examples:
    """Labelled pictures.

    Args:
        pictures: uint8 (N, 3, S, S).
        kinds: `real` or the kind of fake, one a picture.
        origins: Index of the photograph that a fake was made from, -1 where there is none.
        sources: Where each comes from: its folder or, without one, its name up to the first underscore.
    """

    pictures: Tensor
    kinds: np.ndarray
    origins: np.ndarray | None = None
    sources: np.ndarray | None = None

    def of(self, kind: str) -> Tensor:
        """Return the pictures of one kind."""
        return self.pictures[torch.from_numpy(np.flatnonzero(self.kinds == kind))]


@dataclass(frozen=True)
class Split:
    """Examples by what they are for."""

    training: Examples
    calibrating: Examples
    measuring: Examples


class _Row(NamedTuple):
    picture: Tensor
    kind: str
    name: str
    origin: str


def read(data: Path, folders: Sequence[Path], size: int) -> Split:
    """Read photographs, fakes made from them, and fakes by others.

    A fake goes where its photograph goes, so no photograph that trains also sets a threshold or measures.

    Args:
        data: Folder of photographs or packs; `wild*` packs hold fakes by others.
        folders: Folders with `train/` and `val/`, as `train fakes` writes them.
        size: Side of the pictures in pixels.
    """
    training: list[_Row] = []
    calibrating: list[_Row] = []
    photographs, held = datasets.split(data, size)
    measured = set(held.names)
    measuring = [_Row(picture, REAL, name, "") for name, picture in zip(held.names, held.pictures, strict=True)]
    for name, picture in zip(photographs.names, photographs.pictures, strict=True):
        part = calibrating if datasets.one_in(CALIBRATION_PART, name) else training
        part.append(_Row(picture, REAL, name, ""))
    for folder in folders:
        for row in _made(folder / "train", size):
            if row.origin in measured:
                continue
            part = calibrating if datasets.one_in(CALIBRATION_PART, row.origin or row.name) else training
            part.append(row)
        measuring += _made(folder / "val", size)
    if list(data.glob(f"{WILD}.tar")):
        wild = datasets.load(data, size, WILD)
        for name, picture in zip(wild.names, wild.pictures, strict=True):
            kind = name.split("/")[0]
            measures = datasets.one_in(MEASURING_PART, name)
            label = REAL if kind.endswith("_real") and not measures else kind
            (measuring if measures else training).append(_Row(picture, label, name, ""))
    if not any(row.kind == REAL for row in calibrating) or not any(row.kind != REAL for row in calibrating):
        raise UserError(
            "There are too few photographs or fakes to set a threshold.", "Give at least a hundred of each."
        )
    return Split(_examples(training), _examples(calibrating), _examples(measuring))


def _made(folder: Path, size: int) -> list[_Row]:
    made = datasets.load(folder, size)
    origin = fakes.origins(folder)
    return [
        _Row(picture, name.split("/")[0], name, origin.get(name, ""))
        for name, picture in zip(made.names, made.pictures, strict=True)
    ]


def _examples(rows: list[_Row]) -> Examples:
    where = {row.name: index for index, row in enumerate(rows) if row.kind == REAL}
    origins = np.array([where.get(row.origin, -1) if row.origin else -1 for row in rows])
    sources = np.array([source(row.name) for row in rows])
    return Examples(torch.stack([row.picture for row in rows]), np.array([row.kind for row in rows]), origins, sources)


def source(name: str) -> str:
    """Return where a picture comes from: its folder or, without one, its name up to the first underscore."""
    folder, _, file = name.rpartition("/")
    return folder.split("/")[0] or file.split("_")[0]
