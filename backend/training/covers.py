"""Cover a part of an aligned face by code: sunglasses, a mask, a bar, a hand, a mosaic, a scarf.

The first five teach the model that tells covered faces; the scarf is only measured.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

LEARNED_COVERS = ("sunglasses", "mask", "bar", "hand", "mosaic")
HELD_OUT_COVERS = ("scarf",)
COVERS = LEARNED_COVERS + HELD_OUT_COVERS
# Where an aligned face has its parts, in sides of the crop.
EYES, EYE_LINE, NOSE_LINE, MOUTH_LINE = (0.3675, 0.6325), 0.42, 0.57, 0.72

Randomness = np.random.Generator
# A mask, in grey, and the colours below it, (3,) or (S, S, 3).
Cover = tuple[Image.Image, np.ndarray]
_SHAPE_SIDE = 512  # pixels at which the shape of a cover is drawn


def cover_face(cover: str, picture: np.ndarray, seed: int) -> np.ndarray:
    """Cover a part of an aligned face, uint8 (S, S, 3), with one of `COVERS`."""
    randomness = np.random.default_rng([COVERS.index(cover), seed])
    side = len(picture)
    if cover == "mosaic":
        return _pixelate(picture, randomness)
    shape, layer = _COVER_SHAPES[cover](randomness, picture)
    alpha = np.asarray(shape.resize((side, side), Image.Resampling.LANCZOS), dtype=float)[..., None] / 255
    shading = ndimage.gaussian_filter(picture.astype(float).mean(axis=2), side / 12)[..., None]
    lit = layer * (1 + randomness.uniform(0, 0.6) * (shading / shading.mean() - 1))
    grain = randomness.normal(0, randomness.uniform(0, 4), (side, side, 1))
    covered = picture * (1 - alpha) + (lit + grain) * alpha
    return np.clip(np.rint(covered), 0, 255).astype(np.uint8)


def _new_shape() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    shape = Image.new("L", (_SHAPE_SIDE, _SHAPE_SIDE))
    return shape, ImageDraw.Draw(shape)


def _place(*values: float) -> list[float]:
    return [value * _SHAPE_SIDE for value in values]


def _sunglasses(randomness: Randomness, _: np.ndarray) -> Cover:
    shape, pen = _new_shape()
    wide, high, drop = randomness.uniform(0.1, 0.135), randomness.uniform(0.065, 0.11), randomness.uniform(-0.01, 0.03)
    strength = int(randomness.integers(195, 256))
    round_lens = randomness.random() < 0.5
    for eye in EYES:
        box = _place(eye - wide, EYE_LINE + drop - high, eye + wide, EYE_LINE + drop + high)
        if round_lens:
            pen.ellipse(box, fill=strength)
        else:
            pen.rounded_rectangle(box, radius=_SHAPE_SIDE * 0.04, fill=strength)
    pen.line(
        _place(EYES[0], EYE_LINE - 0.02, EYES[1], EYE_LINE - 0.02), fill=strength, width=round(0.018 * _SHAPE_SIDE)
    )
    return shape, randomness.uniform(0, 60) + randomness.uniform(0, 20, 3)


def _mask(randomness: Randomness, _: np.ndarray) -> Cover:
    shape, pen = _new_shape()
    top, half = randomness.uniform(0.5, 0.6), randomness.uniform(0.23, 0.29)
    corners = [(0.5, top), (0.5 + half * 0.6, top + 0.03), (0.5 + half, top + 0.1), (0.5 + half * 0.9, 0.82)]
    corners += [(0.5 + half * 0.5, 0.95), (0.5 - half * 0.5, 0.95), (0.5 - half * 0.9, 0.82), (0.5 - half, top + 0.1)]
    pen.polygon([tuple(_place(*corner)) for corner in [*corners, (0.5 - half * 0.6, top + 0.03)]], fill=255)
    choice = randomness.integers(4)
    colours = ((185, 215, 235), (245, 245, 245), (25, 25, 30), tuple(randomness.integers(0, 256, 3).tolist()))
    return shape, np.array(colours[choice]) + randomness.uniform(-15, 15, 3)


def _bar(randomness: Randomness, _: np.ndarray) -> Cover:
    shape, pen = _new_shape()
    middle, half = randomness.choice([EYE_LINE, EYE_LINE, MOUTH_LINE]), randomness.uniform(0.05, 0.1)
    left, right, tilt = randomness.uniform(0.05, 0.28), randomness.uniform(0.72, 0.95), randomness.uniform(-0.03, 0.03)
    ends = [(left, middle - half + tilt), (right, middle - half - tilt), (right, middle + half - tilt)]
    pen.polygon([tuple(_place(*end)) for end in [*ends, (left, middle + half + tilt)]], fill=255)
    colours = ((0, 0, 0), (0, 0, 0), (255, 255, 255), tuple(randomness.integers(0, 256, 3).tolist()))
    return shape, np.array(colours[randomness.integers(4)], dtype=float)


def _hand(randomness: Randomness, picture: np.ndarray) -> Cover:
    """Cover a part with fingers: bars with round ends, in the colour of this skin or of something held."""
    shape, pen = _new_shape()
    x = randomness.choice([0.36, 0.5, 0.64]) + randomness.uniform(-0.05, 0.05)
    y = randomness.choice([EYE_LINE, NOSE_LINE + 0.05, MOUTH_LINE]) + randomness.uniform(-0.03, 0.03)
    angle, width = randomness.uniform(0, np.pi), randomness.uniform(0.05, 0.08)
    across = np.array([-np.sin(angle), np.cos(angle)]) * width * 1.05
    along = np.array([np.cos(angle), np.sin(angle)]) * randomness.uniform(0.15, 0.3)
    for finger in range(int(randomness.integers(2, 5))):
        centre = np.array([x, y]) + across * (finger - 1.5) + along * randomness.uniform(-0.2, 0.2)
        ends = [*(centre - along), *(centre + along)]
        pen.line(_place(*ends), fill=255, width=round(width * _SHAPE_SIDE))
        for end in (ends[:2], ends[2:]):
            pen.ellipse(_place(*np.add([end, end], [[-width / 2], [width / 2]]).ravel()), fill=255)
    side = len(picture)
    skin = np.median(picture[side // 2 : side * 5 // 8, side * 3 // 8 : side * 5 // 8].reshape(-1, 3), axis=0)
    own = skin * randomness.uniform(0.75, 1.1) + randomness.uniform(-8, 8, 3)
    return shape, own if randomness.random() < 0.6 else randomness.uniform(0, 255, 3)


def _scarf(randomness: Randomness, picture: np.ndarray) -> Cover:
    """Cover everything below the nose with striped cloth."""
    shape, pen = _new_shape()
    top = randomness.uniform(0.52, 0.63)
    ends = [
        (0.0, top + 0.1),
        (0.25, top + 0.02),
        (0.5, top),
        (0.75, top + 0.02),
        (1.0, top + 0.1),
        (1.0, 1.0),
        (0.0, 1.0),
    ]
    pen.polygon([tuple(_place(*end)) for end in ends], fill=255)
    side = len(picture)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = 0.5 + 0.5 * np.sin(2 * np.pi * randomness.uniform(4, 20) * (y + randomness.uniform(-0.5, 0.5) * x))
    first, second = randomness.uniform(0, 255, (2, 3))
    return shape, first + waves[..., None] * (second - first)


_COVER_SHAPES: Mapping[str, Callable[[Randomness, np.ndarray], Cover]] = {
    "sunglasses": _sunglasses,
    "mask": _mask,
    "bar": _bar,
    "hand": _hand,
    "scarf": _scarf,
}


def _pixelate(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Show the eyes in coarse squares only, as newspapers do."""
    side = len(picture)
    squares = int(randomness.integers(9, 15))
    coarse = Image.fromarray(picture).resize((squares, squares), Image.Resampling.BOX)
    mosaic = np.asarray(coarse.resize((side, side), Image.Resampling.NEAREST))
    result = picture.copy()
    rows = slice(round((EYE_LINE - 0.1) * side), round((EYE_LINE + 0.1) * side))
    columns = slice(round(0.2 * side), round(0.8 * side))
    result[rows, columns] = mosaic[rows, columns]
    return result
