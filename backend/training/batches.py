"""Batches for detectors: as many photographs as fakes, each fake beside its like with the same history.

The like of a fake is the photograph that it was made from or, for fakes by others, a photograph of the source that
theirs were made from. Beside photographs of other sources, a detector would learn the sources in place of the forgery
and call photographs fake that come from where fakes came from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.errors import UserError
from backend.training.defences import Defence
from backend.training.labelled import ATTACKED, REAL, Examples
from backend.training.swaps import partial_swap
from backend.training.variation import UNVARIED, Variation, varied


@dataclass(frozen=True)
class Batch:
    """Labelled pictures as a network takes them.

    Args:
        images: float32 (N, 3, S, S) in [0, 1].
        labels: float32 (N,), 1 is fake.
        kinds: `real` or the kind of fake, one a picture.
    """

    images: Tensor
    labels: Tensor
    kinds: list[str]


class Batches:
    """Batches that depend on seed and number alone.

    Args:
        examples: Training pictures.
        size: How many pictures a batch has; half of them are photographs.
        shares: Kind of fake to its share of the fakes; kinds of which there are no pictures are left out.
        defence: What every picture goes through; a fake and its photograph go through the same.
        partial_share: Of the swaps, how many are kept in a part of the face only.
        adversarial_share: Probability that a fake gives way to an attacked one, where there are any.
        seed: Of the run.
        variation: How framing and colours may change, before `defence` and alike for a fake and its photograph.
        beside: Source of fakes by others to the sources of the photographs that they are shown beside; any photographs
            where none of those are there.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        size: int,
        shares: Mapping[str, float],
        defence: Defence,
        partial_share: float,
        adversarial_share: float,
        seed: int,
        variation: Variation = UNVARIED,
        beside: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        found = set(examples.kinds.tolist())
        unknown = found - {REAL, ATTACKED} - set(shares)
        if unknown:
            raise UserError(
                f"No share of a batch is set for fakes of the kind {', '.join(sorted(unknown))}.",
                "Add it to [shares] in backend/training/settings/detector.toml.",
            )
        self.examples, self.size, self.defence, self.seed = examples, size, defence, seed
        self.partial_share, self.variation = partial_share, variation
        self.adversarial_share = adversarial_share if ATTACKED in found else 0.0
        present = {kind: share for kind, share in shares.items() if kind in found}
        if not present or REAL not in found:
            raise UserError("Training needs photographs and fakes.", "Name folders that hold both.")
        self.kinds = list(present)
        self.shares = [share / sum(present.values()) for share in present.values()]
        self.members = {kind: np.flatnonzero(examples.kinds == kind) for kind in found}
        self.likes = {source: self._photographs(likes) for source, likes in (beside or {}).items()}

    def draw(self, number: int) -> Batch:
        """Return batch `number`, photographs first.

        A pair differs in nothing but the forgery, so nothing else can be learned from it.
        """
        randomness = np.random.default_rng([self.seed, number])
        half = self.size // 2
        real, fake, kinds = [], [], []
        for drawn in randomness.choice(self.kinds, half, p=self.shares):
            attacked = bool(self.adversarial_share) and randomness.random() < self.adversarial_share
            kind = ATTACKED if attacked else str(drawn)
            index = int(randomness.choice(self.members[kind]))
            origin = -1 if self.examples.origins is None else int(self.examples.origins[index])
            if origin < 0:
                origin = int(randomness.choice(self._likes_of(index)))
            seed = int(randomness.integers(1 << 32))
            before, after = self.pixels(origin), self.pixels(index)
            if kind == "swap" and randomness.random() < self.partial_share:
                after = partial_swap(before, after, randomness)
            real.append(self._changed(before, seed))
            fake.append(self._changed(after, seed))
            kinds.append(kind)
        labels = torch.tensor([0.0] * half + [1.0] * half)
        return Batch(as_images(real + fake), labels, [REAL] * half + kinds)

    def _photographs(self, sources: Sequence[str]) -> np.ndarray:
        everything = self.members[REAL]
        if self.examples.sources is None:
            return everything
        chosen = everything[np.isin(self.examples.sources[everything], list(sources))]
        return chosen if len(chosen) else everything

    def _likes_of(self, index: int) -> np.ndarray:
        source = "" if self.examples.sources is None else str(self.examples.sources[index])
        return self.likes.get(source, self.members[REAL])

    def _changed(self, picture: np.ndarray, seed: int) -> np.ndarray:
        randomness = np.random.default_rng(seed)
        if randomness.random() < 0.5:
            picture = picture[:, ::-1]
        picture = varied(picture, randomness, self.variation)
        return self.defence(np.ascontiguousarray(picture), randomness)

    def pixels(self, index: int) -> np.ndarray:
        """Return one picture as uint8 (S, S, 3)."""
        return self.examples.pictures[index].permute(1, 2, 0).numpy()


def as_images(pictures: list[np.ndarray]) -> Tensor:
    """Return float32 (N, 3, S, S) in [0, 1] of N pictures, uint8 (S, S, 3)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
