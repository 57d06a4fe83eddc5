"""Pairs of a fake and the photograph it was made from, drawn with the same last JPEG for both."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backend.errors import UserError
from backend.saving import like_photograph
from backend.training import datasets, fakes
from backend.training.datasets import Photographs
from backend.training.nearest import Nearest

REAL_SOURCE = 0  # the number of real photographs among the sources


@dataclass(frozen=True)
class Pairs:
    """Fakes with their photographs.

    Args:
        real: uint8 (N, 3, S, S).
        fake: uint8 (N, 3, S, S).
        sources: int64 (N,), the kind of each fake as a number from 1; 0 stands for real photographs.
        kinds: Names of the kinds, the one with number 1 first.
    """

    real: Tensor
    fake: Tensor
    sources: Tensor
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.fake)

    def of(self, kind: str) -> "Pairs":
        """Return the pairs of one kind."""
        chosen = self.sources == self.kinds.index(kind) + 1
        return Pairs(self.real[chosen], self.fake[chosen], self.sources[chosen], self.kinds)


def load(photographs: Photographs, folders: Sequence[Path], *, kinds: tuple[str, ...] = ()) -> Pairs:
    """Read the fakes in some folders, each with the photograph that its manifest names as `target`.

    A fake that was made from no photograph (a sample from z) is paired with the one that is most like it.

    Args:
        photographs: Real faces; their names are matched without their folders.
        folders: What `train fakes` wrote.
        kinds: Names and order of the kinds; by default those that are found, in alphabetical order.

    Raises:
        UserError: No fake belongs to these photographs.
    """
    where = {_base(name): index for index, name in enumerate(photographs.names)}
    nearest = functools.cache(lambda: Nearest(photographs))
    found: list[tuple[str, int, Tensor]] = []
    for folder in folders:
        origins = fakes.origins(folder)
        made = datasets.load(folder, photographs.pictures.shape[-1])
        targets = [origins.get(name, "") for name in made.names]
        for name, target, picture in zip(made.names, targets, made.pictures, strict=True):
            origin = where.get(_base(target)) if target else nearest().index(picture)
            if origin is not None:
                found.append((name.split("/")[0], origin, picture))
    kinds = kinds or tuple(sorted({kind for kind, _, _ in found}))
    rows = [row for row in found if row[0] in kinds]
    if not rows:
        raise UserError(
            f"No fake in {folders[0].name} was made from one of these photographs.",
            "Give the photographs with --data that `train fakes` was given.",
        )
    sources = torch.tensor([kinds.index(kind) + 1 for kind, _, _ in rows])
    real = photographs.pictures[torch.tensor([origin for _, origin, _ in rows])]
    return Pairs(real, torch.stack([picture for _, _, picture in rows]), sources, kinds)


@dataclass(frozen=True)
class Batch:
    """Pairs as a network takes them: pictures (N, 3, S, S) in [0, 1] and the fakes' sources (N,)."""

    real: Tensor
    fake: Tensor
    sources: Tensor


def draw(pairs: Pairs, count: int, *, seed: int, step: int, jpeg_share: float) -> Batch:
    """Draw pairs, every kind as often, in an order that depends on seed and step alone.

    Both pictures of a pair are mirrored, and saved as JPEG, alike: what differs is the forgery, not the file.

    Args:
        pairs: Where to draw from.
        count: How many.
        seed: Of the run.
        step: Number of the step.
        jpeg_share: Share of the pairs that are saved as JPEG, as packs of photographs are.
    """
    randomness = np.random.default_rng([seed, step])
    members = [np.flatnonzero((pairs.sources == number).numpy()) for number in range(1, len(pairs.kinds) + 1)]
    members = [one for one in members if len(one)]
    chosen = [int(randomness.choice(members[int(randomness.integers(len(members)))])) for _ in range(count)]
    real, fake = [], []
    for index in chosen:
        ending = int(randomness.integers(1 << 32))
        real.append(_ended(pairs.real[index], ending, jpeg_share))
        fake.append(_ended(pairs.fake[index], ending, jpeg_share))
    return Batch(_unit(real), _unit(fake), pairs.sources[chosen])


def _ended(picture: Tensor, seed: int, jpeg_share: float) -> np.ndarray:
    randomness = np.random.default_rng(seed)
    pixels = picture.permute(1, 2, 0).numpy()
    if randomness.random() < 0.5:
        pixels = pixels[:, ::-1]
    if randomness.random() >= jpeg_share:
        return pixels
    return like_photograph(np.ascontiguousarray(pixels))


def _unit(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float() / 255


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]
