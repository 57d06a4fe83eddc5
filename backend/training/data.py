"""Training data: labelled pictures for detectors, pairs for TR-Net, and how batches are drawn from them.

A detector's batch has as many photographs as fakes, each fake with its counterpart under the same degradation. The
counterpart is the photograph that the fake was made from or, for fakes by others, a photograph of the same source.
With photographs of other sources, a detector would learn the sources in place of the forgery, and call photographs from
the sources of the fakes fake. Both pictures of a pair are saved as JPEG in the same way.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from backend import face_packs, fakes
from backend.attacks.registry import WHITE_BOX, get_attack
from backend.detectors import registry
from backend.errors import UserError
from backend.face_packs import Photographs, base_name
from backend.fakes import NearestPhotograph, partial_swap
from backend.images import like_photograph
from backend.progress import Job, Step, within
from backend.training.augmentation import UNVARIED, Variation, vary_picture
from backend.training.degradation import Defence

REAL = "real"
ATTACKED = "attacked"  # fakes after an attack on detectors, for the strong defence
REAL_SOURCE = 0  # the number of real photographs among the sources
WILD_PACKS = "wild*"  # fakes by others and photographs of their sources
CALIBRATION_PART = 20  # one photograph in so many sets thresholds and does not train
MEASURING_PART = 5  # one picture in so many of the wild packs is only measured
ATTACK_BATCH = 16
MAX_ATTACKED = 4000  # fakes


@dataclass(frozen=True)
class LabelledPictures:
    pictures: Tensor  # uint8 (N, 3, S, S)
    kinds: np.ndarray  # (N,), `real` or the kind of fake
    origins: np.ndarray | None = None  # index of the photograph that a fake was made from, -1 where there is none
    # Where each comes from: its folder or, without one, its name up to the first underscore.
    sources: np.ndarray | None = None

    def of_kind(self, kind: str) -> Tensor:
        return self.pictures[torch.from_numpy(np.flatnonzero(self.kinds == kind))]


@dataclass(frozen=True)
class LabelledSplit:
    training: LabelledPictures
    calibrating: LabelledPictures
    measuring: LabelledPictures


class _LabelledRow(NamedTuple):
    picture: Tensor
    kind: str
    name: str
    origin: str


def read_labelled(data: Path, folders: Sequence[Path], size: int) -> LabelledSplit:
    """Read photographs, fakes made from them, and fakes by others.

    A fake has the same use as its photograph, so no photograph that trains also sets a threshold or measures. `data`
    holds photographs or packs, of which `wild*` hold fakes by others; `folders` are as `train fakes` writes them, with
    `train/` and `val/`; `size` is the side of the pictures in pixels.
    """
    training: list[_LabelledRow] = []
    calibrating: list[_LabelledRow] = []
    photographs, held = face_packs.split_photographs(data, size)
    measured = set(held.names)
    measuring = [_LabelledRow(picture, REAL, name, "") for name, picture in zip(held.names, held.pictures, strict=True)]
    for name, picture in zip(photographs.names, photographs.pictures, strict=True):
        part = calibrating if face_packs.falls_into_part(name, CALIBRATION_PART) else training
        part.append(_LabelledRow(picture, REAL, name, ""))
    for folder in folders:
        for row in _read_fakes(folder / "train", size):
            if row.origin in measured:
                continue
            calibrates = face_packs.falls_into_part(row.origin or row.name, CALIBRATION_PART)
            (calibrating if calibrates else training).append(row)
        measuring += _read_fakes(folder / "val", size)
    if list(data.glob(f"{WILD_PACKS}.tar")):
        wild = face_packs.load_photographs(data, size, WILD_PACKS)
        for name, picture in zip(wild.names, wild.pictures, strict=True):
            kind = name.split("/")[0]
            measures = face_packs.falls_into_part(name, MEASURING_PART)
            label = REAL if kind.endswith("_real") and not measures else kind
            (measuring if measures else training).append(_LabelledRow(picture, label, name, ""))
    if not any(row.kind == REAL for row in calibrating) or not any(row.kind != REAL for row in calibrating):
        raise UserError(
            "There are too few photographs or fakes to set a threshold.", "Give at least a hundred of each."
        )
    return LabelledSplit(_stack_rows(training), _stack_rows(calibrating), _stack_rows(measuring))


def _read_fakes(folder: Path, size: int) -> list[_LabelledRow]:
    pack = face_packs.load_photographs(folder, size)
    origins = fakes.read_origins(folder)
    return [
        _LabelledRow(picture, name.split("/")[0], name, origins.get(name, ""))
        for name, picture in zip(pack.names, pack.pictures, strict=True)
    ]


def _stack_rows(rows: list[_LabelledRow]) -> LabelledPictures:
    places = {row.name: index for index, row in enumerate(rows) if row.kind == REAL}
    origins = np.array([places.get(row.origin, -1) if row.origin else -1 for row in rows])
    sources = np.array([source_of(row.name) for row in rows])
    return LabelledPictures(
        torch.stack([row.picture for row in rows]), np.array([row.kind for row in rows]), origins, sources
    )


def source_of(name: str) -> str:
    """Return where a picture comes from: its folder or, without one, its name up to the first underscore."""
    folder, _, file = name.rpartition("/")
    return folder.split("/")[0] or file.split("_")[0]


@dataclass(frozen=True)
class LabelledBatch:
    """Labelled pictures as a network takes them."""

    images: Tensor  # float32 (N, 3, S, S) in [0, 1]
    labels: Tensor  # float32 (N,), 1 is fake
    kinds: list[str]  # `real` or the kind of fake of each picture
    masks: Tensor | None = None  # float32 (N, 1, M, M) in [0, 1], how much of each part was forged; if it is known


class LabelledBatches:
    """Batches that depend on seed and number alone.

    Args:
        examples: Training pictures.
        size: How many pictures a batch has; half of them are photographs.
        shares: Kind of fake to its share of the fakes; kinds without pictures are left out.
        defence: What every picture goes through; a fake and its photograph go through the same.
        partial_share: Share of the swaps that are kept in a part of the face only.
        adversarial_share: Probability that an attacked fake replaces a fake, if there are any.
        seed: Of the run.
        variation: How framing and colours may change, before `defence` and alike for a fake and its photograph.
        compared_with: Source of fakes by others to the sources of their counterparts; if there are no photographs of
            these sources, any photographs serve.
    """

    def __init__(
        self,
        examples: LabelledPictures,
        *,
        size: int,
        shares: Mapping[str, float],
        defence: Defence,
        partial_share: float,
        adversarial_share: float,
        seed: int,
        variation: Variation = UNVARIED,
        compared_with: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        kinds = set(examples.kinds.tolist())
        unknown = kinds - {REAL, ATTACKED} - set(shares)
        if unknown:
            raise UserError(
                f"No share of a batch is set for fakes of the kind {', '.join(sorted(unknown))}.",
                "Add it to [shares] in backend/training/settings/detector.toml.",
            )
        self.examples, self.size, self.defence, self.seed = examples, size, defence, seed
        self.partial_share, self.variation = partial_share, variation
        self.adversarial_share = adversarial_share if ATTACKED in kinds else 0.0
        present = {kind: share for kind, share in shares.items() if kind in kinds}
        if not present or REAL not in kinds:
            raise UserError("Training needs photographs and fakes.", "Name folders that hold both.")
        self.kinds = list(present)
        self.shares = [share / sum(present.values()) for share in present.values()]
        self.members = {kind: np.flatnonzero(examples.kinds == kind) for kind in kinds}
        self.counterparts = {source: self._photographs(sources) for source, sources in (compared_with or {}).items()}

    def draw(self, number: int) -> LabelledBatch:
        """Return batch `number`, photographs first; the pictures of a pair differ only in the forgery."""
        randomness = np.random.default_rng([self.seed, number])
        half = self.size // 2
        real, fake, kinds = [], [], []
        for choice in randomness.choice(self.kinds, half, p=self.shares):
            is_attacked = bool(self.adversarial_share) and randomness.random() < self.adversarial_share
            kind = ATTACKED if is_attacked else str(choice)
            index = int(randomness.choice(self.members[kind]))
            origin = -1 if self.examples.origins is None else int(self.examples.origins[index])
            if origin < 0:
                origin = int(randomness.choice(self._counterparts_of(index)))
            seed = int(randomness.integers(1 << 32))
            before, after = (self.examples.pictures[place].permute(1, 2, 0).numpy() for place in (origin, index))
            if kind == "swap" and randomness.random() < self.partial_share:
                after = partial_swap(before, after, randomness)
            real.append(self._degrade(before, seed))
            fake.append(self._degrade(after, seed))
            kinds.append(kind)
        labels = torch.tensor([0.0] * half + [1.0] * half)
        return LabelledBatch(stack_images(real + fake), labels, [REAL] * half + kinds)

    def _photographs(self, sources: Sequence[str]) -> np.ndarray:
        photographs = self.members[REAL]
        if self.examples.sources is None:
            return photographs
        chosen = photographs[np.isin(self.examples.sources[photographs], list(sources))]
        return chosen if len(chosen) else photographs

    def _counterparts_of(self, index: int) -> np.ndarray:
        source = "" if self.examples.sources is None else str(self.examples.sources[index])
        return self.counterparts.get(source, self.members[REAL])

    def _degrade(self, picture: np.ndarray, seed: int) -> np.ndarray:
        randomness = np.random.default_rng(seed)
        if randomness.random() < 0.5:
            picture = picture[:, ::-1]
        picture = vary_picture(picture, randomness, self.variation)
        return self.defence(np.ascontiguousarray(picture), randomness)


def stack_images(pictures: list[np.ndarray]) -> Tensor:
    """Return float32 (N, 3, S, S) in [0, 1] of N pictures, uint8 (S, S, 3)."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().float() / 255


def add_attacked(
    examples: LabelledPictures, attack: str, *, seed: int, limit: int = MAX_ATTACKED
) -> Job[LabelledPictures]:
    """Add fakes after an attack to training pictures; each keeps the photograph that it was made from.

    They stay in memory. At most `limit` fakes are attacked; `seed` draws them and seeds the attack.

    Raises:
        UserError: There is no such attack, its weights are missing, or there are no fakes.
    """
    chosen = get_attack(attack)
    if not chosen.available():
        raise UserError(f"{chosen.title} is not trained yet.", "Train it first, with --install.")
    fakes = np.flatnonzero(~np.isin(examples.kinds, [REAL, ATTACKED]))
    if not len(fakes):
        raise UserError("There are no fakes to attack.", "Name folders of fakes with --fakes DIR.")
    drawn = np.sort(np.random.default_rng(seed).permutation(fakes)[:limit])
    white_box = registry.load(WHITE_BOX)
    attacked, parts = [], np.array_split(drawn, -(-len(drawn) // ATTACK_BATCH))
    for number, part in enumerate(parts):
        pictures = examples.pictures[torch.from_numpy(part)].float() / 255
        job = chosen.run(pictures, white_box, seed=seed * 1_000_003 + number)
        result = yield from within(job, number, len(parts), f"{chosen.title}: ")
        attacked.append((result.images.clamp(0, 1) * 255).round().byte().cpu())
        yield Step(number + 1, len(parts), f"{chosen.title}: {sum(map(len, attacked))} of {len(drawn)} fakes")
    kinds = np.concatenate([examples.kinds, np.full(len(drawn), ATTACKED)])
    origins, sources = (
        values if values is None else np.concatenate([values, values[drawn]])
        for values in (examples.origins, examples.sources)
    )
    pictures = torch.cat([examples.pictures, *attacked])
    return replace(examples, pictures=pictures, kinds=kinds, origins=origins, sources=sources)


@dataclass(frozen=True)
class Pairs:
    real: Tensor  # uint8 (N, 3, S, S)
    fake: Tensor  # uint8 (N, 3, S, S)
    sources: Tensor  # int64 (N,), the kind of each fake as a number from 1; 0 stands for real photographs
    kinds: tuple[str, ...]  # names of the kinds, the one with number 1 first

    def __len__(self) -> int:
        return len(self.fake)

    def of_kind(self, kind: str) -> "Pairs":
        chosen = self.sources == self.kinds.index(kind) + 1
        return Pairs(self.real[chosen], self.fake[chosen], self.sources[chosen], self.kinds)


def load_pairs(photographs: Photographs, folders: Sequence[Path], *, kinds: tuple[str, ...] = ()) -> Pairs:
    """Read the fakes in some folders, each with the photograph that its manifest names as `target`.

    Names of photographs are matched without their folders. A sample from z, which was made from no photograph, is
    paired with the nearest one. Without `kinds`, all kinds are read, in alphabetical order.

    Raises:
        UserError: No fake belongs to these photographs.
    """
    places = {base_name(name): index for index, name in enumerate(photographs.names)}
    nearest = functools.cache(lambda: NearestPhotograph(photographs))
    rows: list[tuple[str, int, Tensor]] = []
    for folder in folders:
        for picture, kind, _, target in _read_fakes(folder, photographs.pictures.shape[-1]):
            origin = places.get(base_name(target)) if target else nearest().index(picture)
            if origin is not None and (not kinds or kind in kinds):
                rows.append((kind, origin, picture))
    kinds = kinds or tuple(sorted({kind for kind, _, _ in rows}))
    if not rows:
        raise UserError(
            f"No fake in {folders[0].name} was made from one of these photographs.",
            "Give the photographs with --data that `train fakes` was given.",
        )
    sources = torch.tensor([kinds.index(kind) + 1 for kind, _, _ in rows])
    real = photographs.pictures[torch.tensor([origin for _, origin, _ in rows])]
    return Pairs(real, torch.stack([picture for _, _, picture in rows]), sources, kinds)


@dataclass(frozen=True)
class PairBatch:
    """Pairs as a network takes them: pictures (N, 3, S, S) in [0, 1] and the fakes' sources (N,)."""

    real: Tensor
    fake: Tensor
    sources: Tensor


def draw_pairs(pairs: Pairs, count: int, *, seed: int, step: int, jpeg_share: float) -> PairBatch:
    """Draw `count` pairs, every kind equally often, in an order that depends on seed and step alone.

    Both pictures of a pair are mirrored alike and, in a share `jpeg_share` of the pairs, saved as JPEG alike: they
    differ in the forgery, not in the file.
    """
    randomness = np.random.default_rng([seed, step])
    members = [np.flatnonzero((pairs.sources == number).numpy()) for number in range(1, len(pairs.kinds) + 1)]
    members = [indices for indices in members if len(indices)]
    chosen = [int(randomness.choice(members[int(randomness.integers(len(members)))])) for _ in range(count)]
    real, fake = [], []
    for index in chosen:
        pair_seed = int(randomness.integers(1 << 32))
        real.append(_mirror_and_save(pairs.real[index], pair_seed, jpeg_share))
        fake.append(_mirror_and_save(pairs.fake[index], pair_seed, jpeg_share))
    return PairBatch(stack_images(real), stack_images(fake), pairs.sources[chosen])


def _mirror_and_save(picture: Tensor, seed: int, jpeg_share: float) -> np.ndarray:
    randomness = np.random.default_rng(seed)
    pixels = picture.permute(1, 2, 0).numpy()
    if randomness.random() < 0.5:
        pixels = pixels[:, ::-1]
    if randomness.random() >= jpeg_share:
        return pixels
    return like_photograph(np.ascontiguousarray(pixels))
