"""Whether a picture suits the detectors: a photograph, sharp, large, whole, uncovered and seen from the front.

Detectors only know what they were trained on, and answer everything else as well. Each check is a tick or a cross with
a reason; a cross makes an answer mean little, and hides nothing. Two small linear models on statistics of the aligned
crop, which has the same size for every photo, tell drawings and covered faces; `python -m backend train suitability`
writes both to `weights/suitability.json`. No check changes when a picture is mirrored.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from backend import faces
from backend.alignment import AlignedFace, LocatedFace, locate_all
from backend.errors import UserError
from backend.faces import Face
from backend.images import GREY, turned
from backend.settings import SETTINGS
from backend.weights import REINSTALL

FILE = "suitability.json"
CHECKS = ("drawing", "resolution", "blur", "compression", "pose", "occlusion", "borders")
TEMPLATE, SIDE = "embedded", 128  # of the crop on which pictures are judged

MAX_BLUR = 0.82  # see `blur`; a Gaussian of 1.5 pixels on an aligned face of 128 pixels has 0.83
MAX_BLOCKING = 1.4  # see `blocking`; of a face that has the size of the crop
JPEG_BLOCK = 8
CLIPPED_STEP = 24.0  # grey levels: larger steps are outlines, not blocks
JUDGED_SIDE = 768  # pixels around the middle of a face in which blocks are looked for

BORDER_SAMPLES = 400  # rows and columns of a photo that are looked at
BORDER_SPREAD = 8  # grey levels around the colour of the outermost line
PLAIN, IN_BORDER = 0.85, 0.65  # shares of the outermost and of another line of a border that have its colour
STRAIGHT = 0.65  # share of the border that ends at one line
MIN_BORDER, MAX_BORDER = 0.02, 0.45  # of the side
BORDER_EDGE = 2  # lines within which a border ends

MAX_DEVIATION = 8.0  # of a transformed feature, in standard deviations
SLOPES = (0.5, 1.0, 2, 4, 8, 16, 32, 64)  # grey levels a pixel, between the bins of a histogram
RELATIVE_SLOPES = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the mean slope
LBP_TOLERANCE = 2.0  # grey levels
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SPECTRAL_BANDS = 12
# Blue and red less brightness (ITU-R BT.601).
CHROMA = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=np.float32)


@dataclass(frozen=True)
class Check:
    """One question about a picture.

    Args:
        name: One of `CHECKS`.
        reason: What was seen, one sentence.
        advice: What to do, one sentence; empty where the check is passed.
    """

    name: str
    passed: bool
    reason: str
    advice: str = ""


@dataclass(frozen=True)
class Suitability:
    """All checks of one face, in the order of `CHECKS`."""

    checks: tuple[Check, ...]

    @property
    def suitable(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    @classmethod
    def from_record(cls, rows: Sequence[Mapping[str, Any]]) -> "Suitability":
        """Return the checks that `record` returned."""
        named = [{"name": row["check"], **{key: row[key] for key in ("passed", "reason", "advice")}} for row in rows]
        return cls(tuple(Check(**values) for values in named))

    def record(self) -> list[dict[str, Any]]:
        """Return the checks as JSON values."""
        rows = [asdict(check) for check in self.checks]
        return [{"check": row.pop("name")} | row for row in rows]


@dataclass(frozen=True)
class LinearModel:
    """A logistic model of features and of their squares.

    Args:
        mean: Of each feature among photographs, (F,).
        transform: What makes features comparable: a factor for each, (F,), or a matrix (F, K).
        weights: Of the K transformed features, then of their squares, (2 K,).
        bias: So chosen that the threshold is at 0.
    """

    mean: np.ndarray
    transform: np.ndarray
    weights: np.ndarray
    bias: float

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Return log-odds (N,) of features (N, F); positive ones are refused."""
        return expand_features(features, self.mean, self.transform) @ self.weights + self.bias


def expand_features(features: np.ndarray, mean: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Transform features (N, F), cut outliers off, and append the squares: (N, 2 K)."""
    centred = features - mean
    values = centred * transform if transform.ndim == 1 else centred @ transform
    values = np.clip(values, -MAX_DEVIATION, MAX_DEVIATION)
    return np.concatenate([values, values**2], axis=1)


def check_suitability(located: LocatedFace) -> Suitability:
    """Check whether the detectors' answers about a face mean anything.

    Raises:
        UserError: The file of the models is missing or damaged.
    """
    aligned = located.aligned(TEMPLATE, SIDE)
    crop = aligned.crop
    return Suitability(
        (
            check_drawing(crop),
            _check_resolution(located.face),
            _check_blur(crop),
            _check_compression(located.photo, aligned),
            _check_pose(located.face),
            _check_occlusion(crop, located.face, located.photo.shape),
            _check_borders(located.photo),
        )
    )


def find_turn_of_photograph(image: np.ndarray) -> int | None:
    """Return how far a uint8 (H, W, 3) picture without an upright face must be turned so that one is upright.

    Returns:
        Degrees clockwise: 90, 180 or 270; None where no turn shows a face, or only a drawn one: two dots and an arc
        are a face to the finder when they lie on their side.
    """
    turn = faces.find_other_turn(image)
    found = [] if turn is None else locate_all(np.ascontiguousarray(turned(image, turn)))
    photographed = any(check_drawing(located.aligned(TEMPLATE, SIDE).crop).passed for located in found)
    return turn if photographed else None


def _check(name: str, problem: str | None, passed: str, advice: str) -> Check:
    """Return a cross with its problem and what to do, or a tick with the sentence `passed`."""
    return Check(name, True, passed) if problem is None else Check(name, False, problem, advice)


def check_drawing(crop: np.ndarray) -> Check:
    """Check that an aligned crop, uint8 (128, 128, 3), is no drawing."""
    drawn = load_models()["drawing"].log_odds(drawing_features(crop)[None])[0] > 0
    problem = "It looks drawn or painted, or too little of the face shows; the detectors work only on photographs."
    advice = "Use a photograph of a face."
    return _check("drawing", problem if drawn else None, "It does not look like a drawing.", advice)


def _check_resolution(face: Face) -> Check:
    advice = "Use a larger copy of the picture, or one taken from closer up."
    return _check("resolution", faces.size_problem(face), "The face is large enough.", advice)


def _check_blur(crop: np.ndarray) -> Check:
    problem = "The face is blurred, so the fine detail that the detectors look at is gone."
    advice = "Use a sharper picture, or the original file if this one was enlarged."
    return _check("blur", problem if blur(crop) > MAX_BLUR else None, "The face is sharp enough.", advice)


def _check_compression(photo: np.ndarray, aligned: AlignedFace) -> Check:
    # Blocks of a large face are averaged away in the crop that the detectors see.
    reduction = float(abs(np.linalg.det(aligned.matrix[:, :2]))) ** -0.5
    blocks = blocking(_surroundings(photo, aligned.face)) > MAX_BLOCKING * max(1.0, reduction) ** 0.5
    problem = "The picture was compressed so strongly that it shows square blocks."
    advice = "Use the original file rather than a copy that was sent by a messenger or saved many times."
    return _check("compression", problem if blocks else None, "It is not strongly compressed.", advice)


def _check_pose(face: Face) -> Check:
    advice = "Use a picture in which the person faces the camera."
    return _check("pose", faces.pose_problem(face), "The face is seen from the front.", advice)


def _check_occlusion(crop: np.ndarray, face: Face, shape: tuple[int, ...]) -> Check:
    problem = faces.edge_problem(face, shape)
    if problem is None and load_models()["occlusion"].log_odds(occlusion_features(crop)[None])[0] > 0:
        problem = "Something seems to cover part of the face: sunglasses, a mask or a hand, for example."
    return _check("occlusion", problem, "Nothing seems to cover the face.", "Use a picture that shows the whole face.")


def _check_borders(photo: np.ndarray) -> Check:
    problem = "The picture has a plain border, so it may be a screenshot, which lacks fine detail."
    advice = "Use the picture file itself rather than a screenshot of it."
    return _check("borders", problem if has_border(photo) else None, "The picture has no border.", advice)


@functools.cache
def load_models() -> dict[str, LinearModel]:
    """Read the models for drawings and for covered faces.

    Raises:
        UserError: Their file is missing or damaged.
    """
    try:
        content = json.loads((SETTINGS.weights_dir / FILE).read_text(encoding="utf-8"))
        return {name: _read_model(content[name]) for name in ("drawing", "occlusion")}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("The file that tells drawings from photographs is missing or damaged.", REINSTALL) from None


def _read_model(values: dict[str, Any]) -> LinearModel:
    mean, transform, weights = (np.asarray(values[key], dtype=np.float64) for key in ("mean", "transform", "weights"))
    if transform.shape[:1] != mean.shape or weights.shape != (2 * transform.shape[-1],):
        raise ValueError
    return LinearModel(mean, transform, weights, float(values["bias"]))


def blur(crop: np.ndarray) -> float:
    """Return how little finer a crop, uint8 (S, S, 3), is than a copy of half its size: from 0, which is sharp, to 1.

    At an outline of a blurred picture, twice as many pixels share a step that is half as high.
    """
    grey = _brightness(_planes(crop))[None]
    fine, coarse = (float(np.sqrt((_slope(plane[0]) ** 2).mean())) for plane in (grey, _block_means(grey, 2)))
    return min(max(coarse / (fine + 1e-3) - 1, 0.0), 1.0)


def blocking(picture: np.ndarray) -> float:
    """Return how much larger steps between the blocks of JPEG are than others, in a uint8 (H, W, 3) picture.

    1 stands for no blocks. Where the blocks lie is not known, because pictures are cut; so they are looked for at all
    eight places along both sides (after Wang, Sheikh and Bovik 2002). Blocks that were resized are not found.
    """
    grey = _brightness(_planes(picture))
    ratios = []
    for lines in (grey, grey.T):
        steps = np.minimum(np.abs(np.diff(lines, axis=1)), CLIPPED_STEP).mean(axis=0)
        if len(steps) < 4 * JPEG_BLOCK:
            return 1.0
        # A median over the blocks leaves out the few lines of the picture itself, such as a border's.
        places = np.median(steps[: len(steps) // JPEG_BLOCK * JPEG_BLOCK].reshape(-1, JPEG_BLOCK), axis=0)
        ratios.append((places.max() + 0.1) / (np.median(places) + 0.1))
    return float(np.mean(ratios))


def _surroundings(photo: np.ndarray, face: Face) -> np.ndarray:
    """Cut the pixels of the photo around a face, unchanged; at most JUDGED_SIDE wide and high."""
    x0, y0, x1, y1 = face.box
    parts = []
    for middle, width, limit in (((y0 + y1) / 2, y1 - y0, photo.shape[0]), ((x0 + x1) / 2, x1 - x0, photo.shape[1])):
        half = min(max(width, JUDGED_SIDE / 4), JUDGED_SIDE / 2)
        centre = min(max(middle, 0), limit)
        parts.append(slice(max(0, round(centre - half)), min(limit, round(centre + half))))
    return photo[tuple(parts)]


def has_border(photo: np.ndarray) -> bool:
    """Say whether a uint8 (H, W, 3) photo has a border of one colour along one of its sides, or text on one colour.

    A plain background behind a person is none: it ends where the person begins, not in a straight line.
    """
    rows, columns = (_places(count) for count in photo.shape[:2])
    sampled = photo[np.ix_(rows, columns)].astype(np.int16)
    turned = sampled.swapaxes(0, 1)
    return any(_starts_with_border(lines) for lines in (sampled, sampled[::-1], turned, turned[::-1]))


def _places(count: int) -> np.ndarray:
    """Return places of the lines that are looked at, from the first to the last of `count`."""
    return np.rint(np.linspace(0, count - 1, min(count, BORDER_SAMPLES))).astype(int)


def _starts_with_border(lines: np.ndarray) -> bool:
    """Say whether the first lines of (L, W, 3) have one colour, up to a line beyond which hardly a pixel has it."""
    colour = np.median(lines[0], axis=0)
    if (np.abs(lines[0] - colour).max(axis=1) <= BORDER_SPREAD).mean() < PLAIN:
        return False
    alike = np.abs(lines[: int(MAX_BORDER * len(lines)) + BORDER_EDGE] - colour).max(axis=2) <= BORDER_SPREAD
    shares = alike.mean(axis=1)
    outside = np.flatnonzero(shares < IN_BORDER)
    if not len(outside):
        return False
    end = int(outside[0])
    ended = alike[max(0, end - BORDER_EDGE)] & ~alike[min(end + BORDER_EDGE, len(alike) - 1)]
    return bool(end >= max(3, MIN_BORDER * len(lines)) and ended.mean() >= STRAIGHT)


def drawing_features(crop: np.ndarray) -> np.ndarray:
    """Describe texture, colours and spectrum of an aligned crop, uint8 (128, 128, 3), at two scales: float64 (F,)."""
    planes = _planes(crop)
    coarse = _block_means(planes, 2)
    parts = [_texture(planes), _texture(coarse), _palette(crop), _tones(coarse), _spectrum(_brightness(planes))]
    return np.concatenate(parts).astype(np.float64)


def _planes(picture: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W, 3) as float32 (3, H, W)."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32)


def _brightness(planes: np.ndarray) -> np.ndarray:
    return np.tensordot(np.asarray(GREY, dtype=np.float32), planes, 1)


def _chroma(planes: np.ndarray) -> np.ndarray:
    return np.tensordot(CHROMA, planes, 1)


def _block_means(planes: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of factor x factor pixels of (C, H, W); both sides are multiples of `factor`."""
    count, height, width = planes.shape
    return planes.reshape(count, height // factor, factor, width // factor, factor).mean(axis=(2, 4))


def _slope(plane: np.ndarray) -> np.ndarray:
    down, right = np.gradient(plane)
    return np.sqrt(down * down + right * right)


def _shares(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    """Return the roots of the shares of values below, between and above the edges; roots vary alike at every size."""
    below = np.searchsorted(np.sort(values, axis=None), edges)
    return np.sqrt(np.diff(below, prepend=0, append=values.size) / values.size)


def _quantiles(values: np.ndarray) -> np.ndarray:
    """Return values of these ranks; without interpolation, which would cost more than the sorting."""
    ranks = [round(share * (values.size - 1)) for share in QUANTILES]
    return np.sort(values, axis=None)[ranks]


def _texture(planes: np.ndarray) -> np.ndarray:
    """Describe the texture of (3, H, W): slopes, local binary patterns, contrast, and detail of single pixels."""
    from scipy import ndimage

    grey = _brightness(planes)
    slope = _slope(grey)
    mean = ndimage.gaussian_filter(grey, 7 / 6)
    deviation = np.sqrt(np.maximum(ndimage.gaussian_filter(grey * grey, 7 / 6) - mean * mean, 0))
    residual = np.abs(grey - ndimage.uniform_filter(grey, 3))
    return np.concatenate(
        [
            _shares(slope, SLOPES),
            _shares(slope / (slope.mean() + 1e-3), RELATIVE_SLOPES),
            _binary_patterns(grey),
            _normalised_contrast((grey - mean) / (deviation + 1)),
            np.log1p(_quantiles(deviation)),
            [np.log1p(residual.mean()), (residual < 0.5).mean()],
        ]
    )


def _binary_patterns(grey: np.ndarray) -> np.ndarray:
    """Return the roots of the shares of the ten uniform local binary patterns that ignore turns (Ojala et al. 2002)."""
    height, width = grey.shape
    centre = grey[1:-1, 1:-1] + LBP_TOLERANCE
    ring = np.stack([grey[1 + y : height - 1 + y, 1 + x : width - 1 + x] > centre for y, x in RING]).view(np.uint8)
    changes = (ring ^ np.roll(ring, 1, axis=0)).sum(axis=0, dtype=np.uint8)
    patterns = np.where(changes <= 2, ring.sum(axis=0, dtype=np.uint8), len(RING) + 1)
    return np.sqrt(np.bincount(patterns.ravel(), minlength=len(RING) + 2) / patterns.size)


def _normalised_contrast(values: np.ndarray) -> np.ndarray:
    """Describe the distribution of locally normalised contrast, a bell in natural pictures (Mittal et al. 2012)."""
    squares = values * values
    power = float(squares.mean()) + 1e-6
    # Both diagonals, and both sides, are averaged: a mirrored picture swaps them.
    beside = ((values[:, 1:] * values[:, :-1]).mean() + (values[1:] * values[:-1]).mean()) / 2
    across = ((values[1:, 1:] * values[:-1, :-1]).mean() + (values[1:, :-1] * values[:-1, 1:]).mean()) / 2
    return np.array(
        [
            np.log(power),
            np.abs(values).mean() ** 2 / power,
            (squares * values).mean() / power**1.5,
            np.log((squares * squares).mean() / power**2 + 1e-6),
            beside / power,
            across / power,
            (np.abs(values) < 0.1).mean(),
        ]
    )


def _palette(crop: np.ndarray) -> np.ndarray:
    """Describe how many colours a uint8 (H, W, 3) picture has, with 32 levels each of red, green and blue."""
    levels = crop.astype(np.int64) >> 3
    counts = np.bincount((levels @ (1024, 32, 1)).ravel())
    shares = np.sort(counts[counts > 0])[::-1] / counts.sum()
    tops = np.sqrt([shares[:count].sum() for count in (1, 4, 16, 64)])
    return np.concatenate([tops, [np.log(len(shares)), -(shares * np.log(shares)).sum()]])


def _tones(planes: np.ndarray) -> np.ndarray:
    """Describe brightness, colourfulness and the colour of the skin of an aligned crop (3, S, S).

    Of half size, because a JPEG file holds colours at half size, and a crop of a larger one does not.
    """
    high, low = planes.max(axis=0), planes.min(axis=0)
    spread = high - low
    chroma = _chroma(planes) / 64
    side = planes.shape[1]
    grey, colour_slope = _brightness(planes), 64 * (_slope(chroma[0]) + _slope(chroma[1])).mean()
    skin = chroma[:, side * 3 // 8 : side * 6 // 8, side * 5 // 16 : side * 11 // 16].reshape(2, -1)
    return np.concatenate(
        [
            _quantiles(grey) / 255,
            _quantiles(spread) / 255,
            _quantiles(spread / (high + 8)),
            np.sqrt([(low > 247).mean(), (high < 8).mean(), (spread > 128).mean()]),
            np.median(skin, axis=1),
            skin.std(axis=1),
            chroma.reshape(2, -1).std(axis=1),
            [np.log((colour_slope + 0.1) / (_slope(grey).mean() + 0.1))],
        ]
    )


def _spectrum(grey: np.ndarray) -> np.ndarray:
    """Return the log power of (S, S) in rings of frequencies less their mean, and this mean."""
    window = np.hanning(len(grey))
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * window[:, None] * window)) ** 2
    rings = _frequency_rings(len(grey))
    sums = np.bincount(rings, power.ravel(), SPECTRAL_BANDS + 2)[1:-1]
    counts = np.bincount(rings, minlength=SPECTRAL_BANDS + 2)[1:-1]
    levels = np.log(sums / counts + 1)
    return np.append(levels - levels.mean(), levels.mean())


@functools.cache
def _frequency_rings(side: int) -> np.ndarray:
    """Return the ring from 1 of each frequency of `rfft2`; 0 and SPECTRAL_BANDS + 1 lie below and above all rings."""
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    return np.searchsorted(np.geomspace(2 / side, 0.5, SPECTRAL_BANDS + 1), radius.ravel())


def occlusion_features(crop: np.ndarray) -> np.ndarray:
    """Describe an aligned crop, uint8 (128, 128, 3), by what its halves share and in what they differ: float64 (F,)."""
    planes = _planes(crop)
    grey = _brightness(planes)[None]
    small = _block_means(grey, 8)
    middle = small[:, 3:14, 3:13]
    small = (small - middle.mean()) / (middle.std() + 4)
    chroma = _block_means(_chroma(planes), 16)
    chroma = (chroma - np.median(chroma[:, 2:7, 2:6], axis=(1, 2), keepdims=True)) / 16
    power = _block_means(grey * grey, 16) - _block_means(grey, 16) ** 2
    detail = np.log1p(np.sqrt(np.maximum(power, 0)))
    return np.concatenate([_both_halves(part) for part in (small, chroma, detail - detail.mean())])


def _both_halves(planes: np.ndarray) -> np.ndarray:
    """Return the means of (C, H, W) and its mirror image, and how far they differ: float64, as many numbers."""
    half = planes.shape[2] // 2
    left, right = planes[..., :half], planes[..., ::-1][..., :half]
    return np.concatenate([((left + right) / 2).ravel(), np.abs(left - right).ravel()]).astype(np.float64)
