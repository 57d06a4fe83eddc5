"""Make fakes from aligned photographs: swaps, redrawn faces, latent edits and samples (All-in-One-DF in small).

TR-Net (arXiv 2203.11433) pairs each fake with one photograph. Families and kinds here: replacement (`swap`, of two
photographs; in some of them the generator has drawn the face), attribute editing (`edit`, the generator's rendering
of a photograph after a latent edit) and synthesis (`sample`, drawn from z, inverted and drawn again, and
`reconstruction`, the rendering of a photograph as it is). A fake's target is the photograph that it was made from; a
sample's is the nearest one. A manifest names family, kind, what the generator has drawn of it, target, how it was
paired, source and seed. The same seed gives the same bytes on the same device, and a stopped run can be resumed.

A swap takes the steps of classical replacement tools: the source's inner face is warped so that its landmarks fall on
the target's, its colours are matched inside the face (Reinhard et al. 2001, section 3), and it is blended with a
feathered mask or in the gradient domain (Perez et al. 2003, section 3). In newer tools a network draws the face:
`redraw_face` is the step that they add. Landmarks come from the last network of MTCNN alone (Zhang et al. 2016,
section 2.2), because the position of the face in an aligned picture is known.
"""

import csv
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from scipy import fft, interpolate, ndimage
from skimage import color, draw
from torch import Tensor, nn
from torch.nn import functional as F

from backend import images
from backend.errors import UserError
from backend.face_packs import Photographs
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import ModulatedConv2d, StyledConv, StyleGAN2, ToRGB
from backend.progress import Job, Step

Array = np.ndarray
PICTURE_RIM = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 0.5], [1.0, 0.5], [0.0, 1.0], [0.5, 1.0], [1.0, 1.0]])
LANDMARK_INPUT = 48  # side in pixels of what the network takes
ALIGNED_CENTRE, ALIGNED_SIDE = (0.5, 0.53), 0.78  # of a face in an aligned picture, in its widths
MIN_LANDMARK_SCORE = 0.7
LANDMARK_BLOCK = 256
NEAREST_SIDE = 32  # pixels
NEAREST_SPACE = f"nearest by L2 on {NEAREST_SIDE}x{NEAREST_SIDE} pixels"  # the papers name no space
FAMILIES = {"swap": "replacement", "reconstruction": "synthesis", "edit": "attribute", "sample": "synthesis"}
FAKE_KINDS = tuple(FAMILIES)
MANIFEST_COLUMNS = ("file", "family", "kind", "drawn", "target", "pairing", "source", "seed")
NOTHING_DRAWN, FACE_DRAWN, ALL_DRAWN = "nothing", "face", "all"  # what of a fake the generator has drawn
MADE_FROM = "made from it"
SWAP_CANDIDATES = 4  # photographs among which a swap looks for the most similar pose


def swap_faces(
    target: Array, source: Array, target_points: Array, source_points: Array, *, blend: str, feather: float
) -> Array:
    """Put the source's inner face on the target, which keeps its hair, outline and background; all uint8 (S, S, 3).

    Landmarks (5, 2) are x, y in pixels: eyes, nose, mouth corners. `blend` is `feather` or `poisson`, and `feather` is
    the width of the soft edge in pixels.
    """
    warped = warp_to(source, source_points, target_points)
    inside = inner_face(target_points, target.shape[0]) > 0.5
    matched = match_colour(warped, target, inside)
    if blend == "poisson":
        matched = poisson_blend(matched, target.astype(np.float64), inside)
    return lay_on(matched, target, target_points, feather)


def redraw_face(swapped: Array, drawn: Array, target: Array, target_points: Array, *, feather: float) -> Array:
    """Replace the face of a swap by a network's drawing of it, as tools with generative networks do.

    DeepfakeTIMIT (Korshunov and Marcel 2018, section 2), the replacement family of TR-Net's paper, is made this way:
    the network draws the face, its colours are matched, and it is blended into the frame. `swapped` is what
    `swap_faces` returned, `drawn` the network's drawing of it, both uint8 (S, S, 3); the rest is as for `swap_faces`.
    """
    matched = match_colour(drawn, swapped, inner_face(target_points, target.shape[0]) > 0.5)
    return lay_on(matched, target, target_points, feather)


def lay_on(face: Array, target: Array, target_points: Array, feather: float) -> Array:
    """Blend a face (S, S, 3) that is already in place into the target, with a soft edge; uint8 (S, S, 3)."""
    soft = swapped_share(target_points, target.shape[0], feather)[..., None]
    background = target.astype(np.float64)
    mixed = background + soft * (face - background)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def swapped_share(target_points: Array, size: int, feather: float) -> Array:
    """Return how much of each pixel a swap replaces: (S, S) in [0, 1]."""
    mask = inner_face(target_points, size)
    return ndimage.gaussian_filter(ndimage.grey_erosion(mask, size=2 * int(feather / 2) + 1), feather)


def inner_face(points: Array, size: int) -> Array:
    """Return a float mask (S, S) in {0, 1} from the brows to the chin."""
    left, right, nose, mouth_left, mouth_right = points
    eyes = (left + right) / 2
    mouth = (mouth_left + mouth_right) / 2
    width = float(np.linalg.norm(right - left))
    across = (right - left) / max(1e-6, width)
    down = np.array([-across[1], across[0]])
    height = max(1e-6, float((mouth - eyes) @ down))
    centre = (eyes + mouth + nose) / 3
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    corners = centre + across * cosine * 1.05 * width + down * sine * np.where(sine > 0, 1.15 * height, height)
    return draw.polygon2mask((size, size), corners[:, ::-1]).astype(np.float64)


def partial_swap(target: Array, swapped: Array, randomness: np.random.Generator) -> Array:
    """Keep a swap only in one random soft ellipse of the face, as local edits do; uint8 (S, S, 3).

    This turns a few thousand swaps into as many as training needs.
    """
    size = target.shape[0]
    rows, columns = np.mgrid[0:size, 0:size]
    row, column = randomness.normal([0.55 * size, 0.5 * size], 0.08 * size)
    height, width = randomness.uniform(0.14, 0.4, 2) * size
    edge = randomness.uniform(0.02, 0.1)
    distance = np.hypot((rows - row) / height, (columns - column) / width)
    mask = np.clip((1 - distance) / edge + 0.5, 0, 1)[..., None]
    mixed = target + mask * (swapped.astype(np.float64) - target)
    return np.rint(mixed).astype(np.uint8)


def warp_to(source: Array, source_points: Array, target_points: Array) -> Array:
    """Warp uint8 (S, S, 3) by a thin-plate spline so that the landmarks meet; float64 result in [0, 255]."""
    size = source.shape[0]
    rim = PICTURE_RIM * (size - 1)
    spline = interpolate.RBFInterpolator(
        np.concatenate([target_points, rim]), np.concatenate([source_points, rim]), kernel="thin_plate_spline"
    )
    step = 4  # the spline is smooth: a coarse grid, interpolated, is exact to a fraction of a pixel
    axis = np.arange(0, size + step, step, dtype=np.float64)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    coarse = spline(grid.reshape(-1, 2)).reshape(*grid.shape)
    rows, columns = np.mgrid[0:size, 0:size] / step
    places = [ndimage.map_coordinates(coarse[..., index], [rows, columns], order=1) for index in (1, 0)]
    channels = np.moveaxis(source.astype(np.float64), -1, 0)
    return np.stack([ndimage.map_coordinates(channel, places, order=1, mode="reflect") for channel in channels], -1)


def match_colour(face: Array, target: Array, mask: Array) -> Array:
    """Give the face the target's mean and spread of Lab colours inside the mask; float64 in [0, 255]."""
    lab = color.rgb2lab(np.clip(face, 0, 255) / 255)
    inside, expected = lab[mask], color.rgb2lab(target / 255.0)[mask]
    gain = np.clip(expected.std(0) / (inside.std(0) + 1e-6), 0.6, 1.6)
    shifted = (lab - inside.mean(0)) * gain + expected.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # colours outside the gamut are expected, and clipped
        return np.clip(color.lab2rgb(shifted), 0, 1) * 255


def poisson_blend(face: Array, target: Array, mask: Array) -> Array:
    """Blend in the gradient domain: the face's gradients inside the mask, the target's outside and on the rim."""
    out = np.empty_like(target)
    for channel in range(3):
        inside, outside = face[..., channel], target[..., channel]
        horizontal = np.where(mask[:, 1:] & mask[:, :-1], np.diff(inside, axis=1), np.diff(outside, axis=1))
        vertical = np.where(mask[1:] & mask[:-1], np.diff(inside, axis=0), np.diff(outside, axis=0))
        divergence = np.diff(horizontal, axis=1)[1:-1] + np.diff(vertical, axis=0)[:, 1:-1]
        out[..., channel] = _solve_poisson(divergence, outside)
    return np.clip(out, 0, 255)


def _solve_poisson(divergence: Array, border: Array) -> Array:
    """Solve the Poisson equation on a rectangle whose border is given, by sine transforms."""
    height, width = border.shape
    right = divergence.copy()
    right[0] -= border[0, 1:-1]
    right[-1] -= border[-1, 1:-1]
    right[:, 0] -= border[1:-1, 0]
    right[:, -1] -= border[1:-1, -1]
    rows = 2 * np.cos(np.pi * np.arange(1, height - 1) / (height - 1)) - 2
    columns = 2 * np.cos(np.pi * np.arange(1, width - 1) / (width - 1)) - 2
    spectrum = fft.dstn(right, type=1) / (rows[:, None] + columns[None])
    solved = border.copy()
    solved[1:-1, 1:-1] = fft.idstn(spectrum, type=1)
    return solved


class LandmarkedPhotographs:
    def __init__(self, photographs: Photographs) -> None:
        self.photographs = photographs
        points, scores = zip(*map(find_landmarks, photographs.pictures.split(LANDMARK_BLOCK)), strict=True)
        self._points = torch.cat(points).double().numpy()
        self._has_face = torch.cat(scores).numpy() >= MIN_LANDMARK_SCORE

    def __len__(self) -> int:
        return len(self.photographs)

    def name(self, index: int) -> str:
        return self.photographs.names[index]

    def picture(self, index: int) -> np.ndarray:
        """Return one photograph as uint8 (size, size, 3)."""
        return self.photographs.pictures[index].permute(1, 2, 0).numpy()

    def landmarks_of(self, index: int) -> np.ndarray | None:
        """Return (5, 2) landmarks in pixels, or None if there is no face."""
        return self._points[index] if self._has_face[index] else None

    def similar_pose(self, index: int, randomness: np.random.Generator, count: int) -> tuple[int, np.ndarray] | None:
        """Draw `count` photographs, and return the index and landmarks of the one posed most like `index`."""
        points = self.landmarks_of(index)
        others = [int(other) for other in randomness.integers(len(self), size=count) if other != index]
        candidates = [(other, place) for other in others if (place := self.landmarks_of(other)) is not None]
        if points is None or not candidates:
            return None
        return min(candidates, key=lambda item: float(np.abs(item[1] - points).sum()))


@torch.no_grad()
def find_landmarks(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return landmarks (N, 5, 2) in pixels and scores (N,) in [0, 1] of aligned uint8 pictures (N, 3, S, S)."""
    count, _, size, _ = pictures.shape
    network = _landmark_network()
    values = (pictures.float() - 127.5) / 128
    centre = torch.tensor(ALIGNED_CENTRE).expand(count, 2) * size
    side = torch.full((count, 1), ALIGNED_SIDE * size)
    shift, _, _ = network(_cut_windows(values, centre, side))
    corners = torch.cat([centre - side / 2, centre + side / 2], 1) + shift * side
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    side = (corners[:, 2:] - corners[:, :2]).max(1, keepdim=True).values
    _, points, scores = network(_cut_windows(values, centre, side))
    places = torch.stack([points[:, :5], points[:, 5:]], 2)
    return centre[:, None] + (places - 0.5) * side[:, None], scores[:, 1]


def _cut_windows(values: Tensor, centre: Tensor, side: Tensor) -> Tensor:
    """Sample the square windows (N, 3, 48, 48) with these centres and sides in pixels; black outside."""
    size = values.shape[-1]
    steps = (torch.arange(LANDMARK_INPUT) + 0.5) / LANDMARK_INPUT - 0.5
    across = (centre[:, :1] + steps * side) * 2 / size - 1
    down = (centre[:, 1:] + steps * side) * 2 / size - 1
    grid = torch.broadcast_tensors(across[:, None], down[:, :, None])
    return F.grid_sample(values, torch.stack(grid, dim=3), align_corners=False)


@functools.lru_cache(maxsize=1)
def _landmark_network() -> nn.Module:
    from facenet_pytorch.models.mtcnn import ONet

    return ONet().eval().requires_grad_(False)


class NearestPhotograph:
    """Finds the nearest photograph by the Euclidean distance of pictures shrunk to 32x32 pixels."""

    def __init__(self, photographs: Photographs) -> None:
        self.names = photographs.names
        self.features = torch.cat([_nearest_features(block) for block in photographs.pictures.split(512)])
        self.lengths = self.features.square().sum(1)

    def index(self, picture: Tensor) -> int:
        """Return the index of the photograph nearest to a picture, uint8 (3, S, S); the first of equals."""
        return int((self.lengths - 2 * self.features @ _nearest_features(picture[None])[0]).argmin())

    def name(self, picture: np.ndarray) -> str:
        """Return the name of the photograph nearest to a picture, uint8 (S, S, 3); the first of equals."""
        return self.names[self.index(torch.from_numpy(np.array(picture)).permute(2, 0, 1))]


def _nearest_features(pictures: Tensor) -> Tensor:
    """Return (N, 3 * 32 * 32), around zero, of uint8 pictures (N, 3, S, S)."""
    return F.adaptive_avg_pool2d(pictures.float() / 255 - 0.5, NEAREST_SIDE).flatten(1)


def modulated_layers(generator: StyleGAN2) -> list[tuple[int, ModulatedConv2d]]:
    """Return every modulated layer with the W+ row that it reads."""
    styled = [(index + 1, cast(StyledConv, block).conv) for index, block in enumerate(generator.convs)]
    colours = [(2 * index + 3, cast(ToRGB, to_rgb).conv) for index, to_rgb in enumerate(generator.to_rgbs)]
    return [(0, generator.conv1.conv), (1, generator.to_rgb1.conv), *styled, *colours]


def edit_directions(generator: StyleGAN2, rows: range, count: int) -> Tensor:
    """Return the `count` unit directions (count, style_dim) that move the styles of `rows` most."""
    weights = [layer.modulation.weight for row, layer in modulated_layers(generator) if row in rows]
    stacked = torch.cat([weight / weight.norm() for weight in weights])
    _, vectors = torch.linalg.eigh(stacked.t() @ stacked)
    return vectors.t().flip(0)[:count]


@dataclass(frozen=True)
class FakesSettings:
    """How many fakes of each kind, and from which seed."""

    per_kind: int
    seed: int = 0
    kinds: tuple[str, ...] = FAKE_KINDS  # some of `FAKE_KINDS`
    truncation: float = 0.8  # of samples
    # Share of the swaps whose face the generator redraws. The others come from two photographs alone. Redrawing changes
    # neither the photographs nor how they are blended.
    redrawn: float = 0.5

    def drawn_part(self, kind: str, seed: int) -> str:
        """Return what of the fake with this seed the generator draws."""
        if kind != "swap":
            return ALL_DRAWN
        return FACE_DRAWN if np.random.default_rng([seed, 1]).random() < self.redrawn else NOTHING_DRAWN


@dataclass(frozen=True)
class BuiltFakes:
    folder: Path
    counts: dict[str, int]
    skipped: int


def build_fakes(
    photographs: Photographs, out: Path, inverter: Inverter | None, settings: FakesSettings
) -> Job[BuiltFakes]:
    """Write PNG fakes and `manifest.csv` to `out`, from aligned photographs of the generator's size.

    Manifests of earlier versions, which lack families and the targets of samples, are completed.

    Raises:
        UserError: The folder holds fakes of another seed, or with another share of redrawn swaps.
    """
    nearest = functools.cache(lambda: NearestPhotograph(photographs))
    rows = [_complete_row(row, out, nearest) for row in _read_manifest(out / "manifest.csv")]
    done = {row["file"]: row for row in rows}
    plan = [(kind, index) for kind in settings.kinds for index in range(settings.per_kind)]
    landmarks = LandmarkedPhotographs(photographs)
    skipped = 0
    try:
        for number, (kind, index) in enumerate(plan):
            name = f"{kind}/{kind}_{index:06d}.png"
            seed = settings.seed * 1_000_003 + index
            drawn = settings.drawn_part(kind, seed)
            if name in done:
                if done[name]["seed"] != str(seed):
                    raise UserError(f"{out.name} holds fakes of another seed.", "Choose another folder with --out.")
                if done[name]["drawn"] != drawn:
                    raise UserError(
                        f"{out.name} holds swaps with another share of redrawn faces.",
                        "Choose another folder with --out, or that share with --redrawn (0 in earlier versions).",
                    )
                continue
            fake = make_fake(kind, landmarks, inverter, seed, truncation=settings.truncation, drawn=drawn)
            if fake is None:
                skipped += 1
                continue
            picture, target, source = fake
            (out / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(out / name)
            row = {"file": name, "kind": kind, "drawn": drawn, "target": target, "source": source, "seed": str(seed)}
            rows.append(_complete_row(row, out, nearest))
            if number % 50 == 0:
                _write_manifest(out / "manifest.csv", rows)
                yield Step(number, len(plan), f"{kind} {index} of {settings.per_kind}")
    finally:
        _write_manifest(out / "manifest.csv", rows)
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in settings.kinds}
    return BuiltFakes(out, counts, skipped)


def make_fake(
    kind: str, landmarks: LandmarkedPhotographs, inverter: Inverter | None, seed: int, *, truncation: float, drawn: str
) -> tuple[np.ndarray, str, str] | None:
    """Return a fake and the file names of its target and source; None if there is no face."""
    randomness = np.random.default_rng(seed)
    target = int(randomness.integers(len(landmarks)))
    if drawn == NOTHING_DRAWN:
        return _make_swap(landmarks, target, randomness, None)
    if inverter is None:
        raise ValueError(f"{kind} needs an inverter")
    if kind == "swap":
        return _make_swap(landmarks, target, randomness, inverter)
    if kind == "sample":
        return images.to_array(draw_samples(inverter, 1, seed=seed, truncation=truncation)), "", ""
    picture = _render_picture(inverter, landmarks.picture(target), randomness if kind == "edit" else None)
    return picture, landmarks.name(target), ""


def draw_samples(inverter: Inverter, count: int, *, seed: int, truncation: float, reinvert: bool = True) -> Tensor:
    """Draw `count` new faces (count, 3, size, size) in [0, 1] from z, truncated towards the mean code.

    A code of z repeats one row, and its drawing is smooth. So the encoder inverts this drawing, which adds the offsets
    that photographs have, and the generator draws the result. Without `reinvert`, the first drawing is returned.
    """
    z = torch.randn(count, inverter.generator.style_dim, generator=torch.Generator().manual_seed(seed))
    z = z.to(inverter.latent_average.device)  # drawn on the CPU, so that every device draws the same
    with torch.no_grad():
        w = inverter.generator.mapping(z)[:, None].expand(-1, inverter.rows, -1)
        mean = inverter.latent_average
        drawn = inverter.synthesize(mean + truncation * (w - mean))
        return inverter.synthesize(inverter.invert(drawn)) if reinvert else drawn


def read_origins(folder: Path) -> dict[str, str]:
    """Return, by file in the manifest of `folder`, the name of the photograph it is paired with (or "")."""
    return {row["file"]: row["target"] for row in _read_manifest(folder / "manifest.csv")}


@torch.no_grad()
def _render_picture(inverter: Inverter, picture: np.ndarray, editing: np.random.Generator | None = None) -> np.ndarray:
    """Return the generator's drawing of a picture, uint8 (S, S, 3), after a random edit if `editing` is given."""
    codes = inverter.invert(images.to_tensor(picture).to(inverter.latent_average.device))
    if editing is not None:
        codes = _edit_codes(inverter, codes, editing)
    return images.to_array(inverter.synthesize(codes))


def _make_swap(
    landmarks: LandmarkedPhotographs, target: int, randomness: np.random.Generator, redrawing: Inverter | None
) -> tuple[np.ndarray, str, str] | None:
    points = landmarks.landmarks_of(target)
    similar = landmarks.similar_pose(target, randomness, SWAP_CANDIDATES)
    if points is None or similar is None:
        return None
    source, source_points = similar
    blend = "poisson" if randomness.random() < 0.5 else "feather"
    feather = float(randomness.uniform(1.5, 4.0))
    photograph = landmarks.picture(target)
    picture = swap_faces(photograph, landmarks.picture(source), points, source_points, blend=blend, feather=feather)
    if redrawing is not None:
        drawn = _render_picture(redrawing, picture)
        picture = redraw_face(picture, drawn, photograph, points, feather=feather)
    return picture, landmarks.name(target), landmarks.name(source)


def _edit_codes(inverter: Inverter, codes: Tensor, randomness: np.random.Generator) -> Tensor:
    """Move the codes along one closed-form direction of one level by 1 to 3 standard deviations of the code."""
    third = inverter.rows // 3
    level = int(randomness.integers(3))
    rows = range(level * third, (level + 1) * third)
    directions = edit_directions(inverter.generator, rows, 12)
    direction = directions[int(randomness.integers(len(directions)))]
    amount = float(randomness.choice([-1, 1]) * randomness.uniform(1, 3)) * float(codes.std())
    moved = codes.clone()
    moved[:, rows.start : rows.stop] += amount * direction * direction.numel() ** 0.5 * 0.3
    return moved


def _complete_row(row: dict[str, str], folder: Path, nearest: Callable[[], NearestPhotograph]) -> dict[str, str]:
    """Return a row of the manifest with its family, what was drawn and, for a sample, its nearest photograph."""
    target, pairing = row["target"], row.get("pairing", "")
    if target and not pairing:
        pairing = MADE_FROM
    elif not target:
        with Image.open(folder / row["file"]) as picture:
            target, pairing = nearest().name(np.asarray(picture)), NEAREST_SPACE
    # Earlier versions redrew no swap.
    drawn = row.get("drawn") or (NOTHING_DRAWN if row["kind"] == "swap" else ALL_DRAWN)
    return row | {"family": FAMILIES[row["kind"]], "drawn": drawn, "target": target, "pairing": pairing}


def _read_manifest(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_manifest(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
