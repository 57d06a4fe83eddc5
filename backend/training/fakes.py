"""Build fakes from real photographs, each paired with one: All-in-One-DF of TR-Net (arXiv 2203.11433) in small.

Families and kinds: replacement (`swap`, of two photographs; of some the generator has drawn the face), attribute
editing (`edit`, the generator's rendering of a photograph after a latent edit) and synthesis (`sample`, drawn from z,
inverted and drawn again, and `reconstruction`, the rendering of a photograph as it is). A fake's target is the
photograph it was made from; a sample's is the nearest one. A manifest names family, kind, what of it the generator has
drawn, target, how it was paired, source and seed; the same seed gives the same bytes on the same device, and a run that
was stopped continues.
"""

import csv
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.errors import UserError
from backend.generators.inversion import Inverter
from backend.progress import Job, Step
from backend.training import latent_edits, swaps
from backend.training.datasets import Photographs
from backend.training.landmarks import Landmarks
from backend.training.nearest import SPACE, Nearest

FAMILIES = {"swap": "replacement", "reconstruction": "synthesis", "edit": "attribute", "sample": "synthesis"}
KINDS = tuple(FAMILIES)
COLUMNS = ("file", "family", "kind", "drawn", "target", "pairing", "source", "seed")
NOTHING, FACE, ALL = "nothing", "face", "all"  # what of a fake the generator has drawn
MADE_FROM = "made from it"
CANDIDATES = 4  # photographs among which a swap looks for the most similar pose


@dataclass(frozen=True)
class FakesSettings:
    """How many fakes of each kind, and from which seed.

    Args:
        per_kind: Fakes of each kind.
        seed: Of the run.
        kinds: Some of `KINDS`.
        truncation: Of samples.
        redrawn: Share of the swaps whose face the generator draws. The others are put together from two photographs
            alone; whether a swap is redrawn changes neither its photographs nor how they are blended.
    """

    per_kind: int
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    truncation: float = 0.8
    redrawn: float = 0.5

    def drawn(self, kind: str, seed: int) -> str:
        """Return what of the fake with this seed the generator draws."""
        if kind != "swap":
            return ALL
        return FACE if np.random.default_rng([seed, 1]).random() < self.redrawn else NOTHING


@dataclass(frozen=True)
class Fakes:
    """What a finished run reports."""

    folder: Path
    counts: dict[str, int]
    skipped: int


def build(photographs: Photographs, out: Path, inverter: Inverter | None, settings: FakesSettings) -> Job[Fakes]:
    """Write PNG fakes and `manifest.csv` to `out`, from aligned photographs of the generator's size.

    Manifests of earlier versions, without families and pairs of samples, are completed.

    Raises:
        UserError: The folder holds fakes of another seed, or with another share of redrawn swaps.
    """
    nearest = functools.cache(lambda: Nearest(photographs))
    rows = [_completed(row, out, nearest) for row in _read_manifest(out / "manifest.csv")]
    done = {row["file"]: row for row in rows}
    plan = [(kind, index) for kind in settings.kinds for index in range(settings.per_kind)]
    landmarks = Landmarks(photographs)
    skipped = 0
    try:
        for number, (kind, index) in enumerate(plan):
            name = f"{kind}/{kind}_{index:06d}.png"
            seed = settings.seed * 1_000_003 + index
            drawn = settings.drawn(kind, seed)
            if name in done:
                if done[name]["seed"] != str(seed):
                    raise UserError(f"{out.name} holds fakes of another seed.", "Choose another folder with --out.")
                if done[name]["drawn"] != drawn:
                    raise UserError(
                        f"{out.name} holds swaps of which another share was redrawn.",
                        "Choose another folder with --out, or that share with --redrawn (of earlier versions: 0).",
                    )
                continue
            made = make(kind, landmarks, inverter, seed, truncation=settings.truncation, drawn=drawn)
            if made is None:
                skipped += 1
                continue
            picture, target, source = made
            (out / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(out / name)
            row = {"file": name, "kind": kind, "drawn": drawn, "target": target, "source": source, "seed": str(seed)}
            rows.append(_completed(row, out, nearest))
            if number % 50 == 0:
                _write_manifest(out / "manifest.csv", rows)
                yield Step(number, len(plan), f"{kind} {index} of {settings.per_kind}")
    finally:
        _write_manifest(out / "manifest.csv", rows)
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in settings.kinds}
    return Fakes(out, counts, skipped)


def make(
    kind: str, landmarks: Landmarks, inverter: Inverter | None, seed: int, *, truncation: float, drawn: str
) -> tuple[np.ndarray, str, str] | None:
    """Make one fake: the picture, its target's and its source's file name; None where no face is found."""
    randomness = np.random.default_rng(seed)
    target = int(randomness.integers(len(landmarks)))
    if drawn == NOTHING:
        return _swap(landmarks, target, randomness, None)
    if inverter is None:
        raise ValueError(f"{kind} needs an inverter")
    if kind == "swap":
        return _swap(landmarks, target, randomness, inverter)
    if kind == "sample":
        return _pixels(draw_samples(inverter, 1, seed=seed, truncation=truncation)), "", ""
    picture = _rendered(inverter, landmarks.picture(target), randomness if kind == "edit" else None)
    return picture, landmarks.name(target), ""


def draw_samples(inverter: Inverter, count: int, *, seed: int, truncation: float, again: bool = True) -> Tensor:
    """Draw `count` new faces (count, 3, size, size) in [0, 1] from z, truncated towards the mean code.

    A code of z has the same row everywhere, and what it draws is smooth. So the encoder inverts this drawing, which
    adds the offsets that photographs have, and the generator draws the result; without `again` the first one is given.
    """
    z = torch.randn(count, inverter.generator.style_dim, generator=torch.Generator().manual_seed(seed))
    z = z.to(inverter.latent_average.device)  # drawn on the CPU, so that every device draws the same
    with torch.no_grad():
        w = inverter.generator.mapping(z)[:, None].expand(-1, inverter.rows, -1)
        mean = inverter.latent_average
        drawn = inverter.synthesize(mean + truncation * (w - mean))
        return inverter.synthesize(inverter.invert(drawn)) if again else drawn


def origins(folder: Path) -> dict[str, str]:
    """Return, for every file of the manifest in `folder`, the photograph that it is paired with (or nothing)."""
    return {row["file"]: row["target"] for row in _read_manifest(folder / "manifest.csv")}


@torch.no_grad()
def _rendered(inverter: Inverter, picture: np.ndarray, editing: np.random.Generator | None = None) -> np.ndarray:
    """Return the generator's drawing of a picture, uint8 (S, S, 3), after a random edit where one is asked for."""
    face = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    codes = inverter.invert(face.to(inverter.latent_average.device))
    if editing is not None:
        codes = _edit(inverter, codes, editing)
    return _pixels(inverter.synthesize(codes))


def _swap(
    landmarks: Landmarks, target: int, randomness: np.random.Generator, redrawing: Inverter | None
) -> tuple[np.ndarray, str, str] | None:
    points = landmarks.of(target)
    others = [int(index) for index in randomness.integers(len(landmarks), size=CANDIDATES) if index != target]
    found = [(index, candidate) for index in others if (candidate := landmarks.of(index)) is not None]
    if points is None or not found:
        return None
    source, source_points = min(found, key=lambda item: float(np.abs(item[1] - points).sum()))
    blend = "poisson" if randomness.random() < 0.5 else "feather"
    feather = float(randomness.uniform(1.5, 4.0))
    photograph = landmarks.picture(target)
    picture = swaps.swap_faces(
        photograph, landmarks.picture(source), points, source_points, blend=blend, feather=feather
    )
    if redrawing is not None:
        drawn = _rendered(redrawing, picture)
        picture = swaps.redraw_face(picture, drawn, photograph, points, feather=feather)
    return picture, landmarks.name(target), landmarks.name(source)


def _edit(inverter: Inverter, codes: Tensor, randomness: np.random.Generator) -> Tensor:
    """Move the codes along one closed-form direction of one level by 1 to 3 spreads of the code."""
    third = inverter.rows // 3
    level = int(randomness.integers(3))
    rows = range(level * third, (level + 1) * third)
    found = latent_edits.directions(inverter.generator, rows, 12)
    direction = found[int(randomness.integers(len(found)))]
    amount = float(randomness.choice([-1, 1]) * randomness.uniform(1, 3)) * float(codes.std())
    moved = codes.clone()
    moved[:, rows.start : rows.stop] += amount * direction * direction.numel() ** 0.5 * 0.3
    return moved


def _pixels(picture: Tensor) -> np.ndarray:
    return (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _completed(row: dict[str, str], folder: Path, nearest: Callable[[], Nearest]) -> dict[str, str]:
    """Return a row of the manifest with its family, what was drawn and, for a sample, its nearest photograph."""
    target, pairing = row["target"], row.get("pairing", "")
    if target and not pairing:
        pairing = MADE_FROM
    elif not target:
        with Image.open(folder / row["file"]) as picture:
            target, pairing = nearest().name(np.asarray(picture)), SPACE
    drawn = row.get("drawn") or (NOTHING if row["kind"] == "swap" else ALL)  # no swap was redrawn by earlier versions
    return row | {"family": FAMILIES[row["kind"]], "drawn": drawn, "target": target, "pairing": pairing}


def _read_manifest(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
