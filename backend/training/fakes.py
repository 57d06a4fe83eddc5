"""Build fakes from real photographs, so that real and fake share source, crop and history.

Kinds: `swap` (two photographs), `reconstruction` (the generator's rendering of the photograph), `edit` (its
rendering after a latent edit), `sample` (drawn from z). A manifest names sources, kind and seed; the same seed
gives the same bytes, and a run that was stopped continues.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.generators.inversion import Inverter
from backend.progress import Job, Step
from backend.training import latent_edits, swaps
from backend.training.datasets import Photographs
from backend.training.landmarks import Landmarks

KINDS = ("swap", "reconstruction", "edit", "sample")
COLUMNS = ("file", "kind", "target", "source", "seed")
CANDIDATES = 4  # photographs among which a swap looks for the most similar pose


@dataclass(frozen=True)
class FakesSettings:
    """How many fakes of each kind, and from which seed."""

    per_kind: int
    seed: int = 0
    kinds: tuple[str, ...] = KINDS
    truncation: float = 0.8


@dataclass(frozen=True)
class Fakes:
    """What a finished run reports."""

    folder: Path
    counts: dict[str, int]
    skipped: int


def build(photographs: Photographs, out: Path, inverter: Inverter | None, settings: FakesSettings) -> Job[Fakes]:
    """Write PNG fakes and `manifest.csv` to `out`, from aligned photographs of the generator's size."""
    rows = _read_manifest(out / "manifest.csv")
    done = {row["file"] for row in rows}
    plan = [(kind, index) for kind in settings.kinds for index in range(settings.per_kind)]
    landmarks = Landmarks(photographs)
    skipped = 0
    for number, (kind, index) in enumerate(plan):
        name = f"{kind}/{kind}_{index:06d}.png"
        if name in done:
            continue
        seed = settings.seed * 1_000_003 + index
        made = make(kind, landmarks, inverter, seed, settings.truncation)
        if made is None:
            skipped += 1
            continue
        picture, target, source = made
        (out / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(out / name)
        rows.append({"file": name, "kind": kind, "target": target, "source": source, "seed": str(seed)})
        if number % 50 == 0:
            _write_manifest(out / "manifest.csv", rows)
            yield Step(number, len(plan), f"{kind} {index} of {settings.per_kind}")
    _write_manifest(out / "manifest.csv", rows)
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in settings.kinds}
    return Fakes(out, counts, skipped)


def make(
    kind: str, landmarks: Landmarks, inverter: Inverter | None, seed: int, truncation: float
) -> tuple[np.ndarray, str, str] | None:
    """Make one fake: the picture, its target's and its source's file name; None where no face is found."""
    randomness = np.random.default_rng(seed)
    target = int(randomness.integers(len(landmarks)))
    if kind == "swap":
        return _swap(landmarks, target, randomness)
    if inverter is None:
        raise ValueError(f"{kind} needs an inverter")
    if kind == "sample":
        picture = draw_samples(inverter, 1, seed=seed, truncation=truncation)
        return _pixels(picture), "", ""
    face = torch.from_numpy(landmarks.picture(target).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        codes = inverter.invert(face)
        if kind == "edit":
            codes = _edit(inverter, codes, randomness)
        picture = inverter.synthesize(codes)
    return _pixels(picture), landmarks.name(target), ""


def draw_samples(inverter: Inverter, count: int, *, seed: int, truncation: float) -> Tensor:
    """Draw `count` new faces (count, 3, size, size) in [0, 1] from z, truncated towards the mean code."""
    z = torch.randn(count, inverter.generator.style_dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        w = inverter.generator.mapping(z)[:, None].expand(-1, inverter.rows, -1)
        mean = inverter.latent_average
        return inverter.synthesize(mean + truncation * (w - mean))


def origins(folder: Path) -> dict[str, str]:
    """Return, for every file of the manifest in `folder`, the photograph that it was made from (or nothing)."""
    return {row["file"]: row["target"] for row in _read_manifest(folder / "manifest.csv")}


def _swap(landmarks: Landmarks, target: int, randomness: np.random.Generator) -> tuple[np.ndarray, str, str] | None:
    points = landmarks.of(target)
    others = [int(index) for index in randomness.integers(len(landmarks), size=CANDIDATES) if index != target]
    found = [(index, candidate) for index in others if (candidate := landmarks.of(index)) is not None]
    if points is None or not found:
        return None
    source, source_points = min(found, key=lambda item: float(np.abs(item[1] - points).sum()))
    blend = "poisson" if randomness.random() < 0.5 else "feather"
    feather = float(randomness.uniform(1.5, 4.0))
    picture = swaps.swap_faces(
        landmarks.picture(target), landmarks.picture(source), points, source_points, blend=blend, feather=feather
    )
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
    return (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


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
