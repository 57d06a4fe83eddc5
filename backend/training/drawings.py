"""Make drawings of ten kinds by code: three from nothing, seven from a portrait.

Six kinds teach the model that tells drawings from photographs. The other four are only measured: they stand for the
drawings that it never saw. A drawing depends on its kind, its seed and its portrait alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont
from scipy import ndimage, spatial
from skimage import color, feature, restoration

from backend.errors import UserError
from backend.images import GREY, round_to_bytes

LEARNED_KINDS = ("drawn", "render", "sketch", "ink", "cartoon", "oil")
HELD_OUT_KINDS = ("emoji", "halftone", "polygons", "strokes")
KINDS = LEARNED_KINDS + HELD_OUT_KINDS
TITLES = {
    "drawn": "flat drawn faces",
    "render": "3-D renders",
    "sketch": "pencil sketches",
    "ink": "ink drawings",
    "cartoon": "cartoonised photographs",
    "oil": "oil paintings",
    "emoji": "emoji of a font",
    "halftone": "comic prints in dots",
    "polygons": "low-polygon portraits",
    "strokes": "paintings in brush strokes",
}
SIDE = 384  # pixels of a flat drawing that is made from nothing
RENDERED_SIDE = 256
OVERSAMPLING = 3  # of shapes, whose outlines are smooth then
SKINS = (
    (255, 224, 189),
    (241, 194, 125),
    (224, 172, 105),
    (198, 134, 66),
    (141, 85, 36),
    (92, 58, 30),
    (255, 205, 148),
)
EMOJI = (*range(0x1F600, 0x1F641), 0x263A, 0x263B, 0x2639)

Randomness = np.random.Generator
# Angles in which the four inks of a print are screened, in degrees.
SCREENS = (15, 75, 0, 45)


def make_drawing(kind: str, seed: int, portrait: np.ndarray) -> np.ndarray:
    """Return a drawing as uint8 (H, W, 3).

    Args:
        kind: One of `KINDS`.
        seed: Decides everything that varies within a kind.
        portrait: uint8 (H, W, 3), which seven of the kinds draw; the others make a square of their own.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in _MAKERS:
        raise UserError(f"There is no kind of drawing named {kind}.", f"Choose one of: {', '.join(KINDS)}.")
    randomness = np.random.default_rng([KINDS.index(kind), seed])
    return round_to_bytes(_MAKERS[kind](randomness, portrait))


def _grey(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float32) @ np.asarray(GREY, dtype=np.float32)


def _scale(picture: np.ndarray) -> float:
    """Return lengths in a picture in units of those in one of 256 pixels."""
    return min(picture.shape[:2]) / 256


def _colour(randomness: Randomness, low: int = 0, high: int = 256) -> tuple[int, ...]:
    return tuple(randomness.integers(low, high, 3).tolist())


def _near(randomness: Randomness, colour: tuple[int, ...], by: int) -> tuple[int, ...]:
    return tuple(int(np.clip(value + randomness.integers(-by, by + 1), 0, 255)) for value in colour)


class _Canvas:
    """A picture on which shapes are drawn in units of its side, oversampled; x and y from 0 to 1."""

    def __init__(self, background: tuple[int, ...]) -> None:
        self.side = SIDE * OVERSAMPLING
        self.image = Image.new("RGB", (self.side, self.side), background)
        self.pen = ImageDraw.Draw(self.image)

    def points(self, places: np.ndarray) -> list[tuple[float, float]]:
        return [(float(x) * self.side, float(y) * self.side) for x, y in places]

    def ellipse(self, centre: tuple[float, float], axes: tuple[float, float], **how: Any) -> None:
        x, y = centre
        corners = np.array([[x - axes[0], y - axes[1]], [x + axes[0], y + axes[1]]])
        how["width"] = round(how.get("width", 0) * self.side)
        self.pen.ellipse(self.points(corners), **how)

    def polygon(self, places: np.ndarray, fill: tuple[int, ...]) -> None:
        self.pen.polygon(self.points(places), fill=fill)

    def line(self, places: np.ndarray, fill: tuple[int, ...], width: float) -> None:
        self.pen.line(self.points(places), fill=fill, width=max(1, round(width * self.side)), joint="curve")

    def pixels(self) -> np.ndarray:
        return np.asarray(self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _arc(
    centre: tuple[float, float], axes: tuple[float, float], start: float, end: float, count: int = 40
) -> np.ndarray:
    """Return points (count, 2) on an ellipse between two angles in degrees; 90 points down."""
    angles = np.radians(np.linspace(start, end, count))
    return np.stack([centre[0] + axes[0] * np.cos(angles), centre[1] + axes[1] * np.sin(angles)], axis=1)


def _drawn(randomness: Randomness, _: np.ndarray) -> np.ndarray:
    """Draw a face of flat shapes, as clip art and children's books have it."""
    uniform = randomness.uniform
    natural = randomness.random() < 0.75
    skin = _near(randomness, SKINS[randomness.integers(len(SKINS))], 12) if natural else _colour(randomness, 60)
    hair, background = _colour(randomness, 0, 200), _colour(randomness, 90 if randomness.random() < 0.7 else 0)
    outline = (20, 16, 16) if randomness.random() < 0.6 else tuple(round(value * 0.6) for value in skin)
    width = float(uniform(0.004, 0.014)) if randomness.random() < 0.65 else 0.0
    canvas = _Canvas(background)
    middle = (0.5 + float(uniform(-0.05, 0.05)), 0.52 + float(uniform(-0.04, 0.04)))
    axes = (float(uniform(0.21, 0.29)), float(uniform(0.27, 0.35)))
    around = {"outline": outline if width else None, "width": width}
    canvas.ellipse(
        (middle[0], middle[1] - 0.08), (axes[0] * uniform(1.05, 1.3), axes[1] * uniform(0.9, 1.2)), fill=hair
    )
    if randomness.random() < 0.5:  # long hair
        x, y = middle
        sides = np.array(
            [[x - axes[0] * 1.2, y], [x + axes[0] * 1.2, y], [x + axes[0] * 1.1, 1], [x - axes[0] * 1.1, 1]]
        )
        canvas.polygon(sides, hair)
    canvas.polygon(np.array([[0.36, 0.72], [0.64, 0.72], [0.66, 1.0], [0.34, 1.0]]), skin)
    canvas.ellipse((0.5, 1.12), (float(uniform(0.3, 0.5)), 0.24), fill=_colour(randomness), **around)
    for side in (-1, 1):
        canvas.ellipse((middle[0] + side * axes[0], middle[1]), (0.04, 0.06), fill=skin, **around)
    canvas.ellipse(middle, axes, fill=skin, **around)
    fringe = _arc((middle[0], middle[1] - axes[1] * 0.35), (axes[0] * 0.98, axes[1] * 0.68), 180, 360)
    canvas.polygon(np.vstack([fringe, [[middle[0], middle[1] - axes[1] * uniform(0.3, 0.8)]]]), hair)
    _draw_features(canvas, randomness, middle, axes, skin, outline)
    picture = canvas.pixels()
    return _shade(picture, randomness) if randomness.random() < 0.35 else picture


def _draw_features(
    canvas: _Canvas,
    randomness: Randomness,
    middle: tuple[float, float],
    axes: tuple[float, float],
    skin: tuple[int, ...],
    outline: tuple[int, ...],
) -> None:
    """Draw eyes, brows, nose, mouth and sometimes cheeks and glasses."""
    uniform = randomness.uniform
    darker = tuple(round(value * float(uniform(0.55, 0.85))) for value in skin)
    apart, height = axes[0] * float(uniform(0.4, 0.5)), middle[1] - axes[1] * float(uniform(0.02, 0.18))
    eye = float(uniform(0.03, 0.06))
    iris, glasses = _colour(randomness, 0, 160), randomness.random() < 0.2
    size, slant, squash = float(uniform(0.4, 0.7)), float(uniform(-0.02, 0.02)), float(uniform(0.55, 1.1))
    for side in (-1, 1):
        place = (middle[0] + side * apart, height)
        canvas.ellipse(place, (eye, eye * squash), fill="white", outline=outline, width=0.003)
        canvas.ellipse(place, (eye * size, eye * size), fill=iris)
        canvas.ellipse(place, (eye * size / 2, eye * size / 2), fill="black")
        canvas.ellipse((place[0] - eye * 0.2, place[1] - eye * 0.2), (eye * 0.12, eye * 0.12), fill="white")
        brow = np.array([[place[0] - eye, place[1] - eye * 1.5], [place[0] + eye, place[1] - eye * 1.5]])
        canvas.line(brow + np.array([[0, side * slant], [0, -side * slant]]), outline, float(uniform(0.006, 0.02)))
        if glasses:
            canvas.ellipse(place, (eye * 1.5, eye * 1.3), outline=outline, width=0.008)
        if randomness.random() < 0.2:
            canvas.ellipse(
                (place[0], height + axes[1] * 0.35), (0.04, 0.025), fill=_near(randomness, (240, 150, 140), 20)
            )
    nose = height + axes[1] * float(uniform(0.3, 0.45))
    if randomness.random() < 0.5:
        canvas.line(_arc((middle[0], nose), (0.025, 0.02), 0, 180), darker, 0.008)
    else:
        tip = np.array([[middle[0], nose - 0.09], [middle[0] - 0.03, nose], [middle[0] + 0.02, nose]])
        canvas.polygon(tip, darker)
    mouth, wide = (middle[0], height + axes[1] * float(uniform(0.6, 0.75))), float(uniform(0.05, 0.11))
    style = randomness.integers(3)
    lips = _near(randomness, (190, 60, 60), 40)
    if style == 0:
        canvas.line(_arc((mouth[0], mouth[1] - 0.02), (wide, float(uniform(0.02, 0.06))), 0, 180), outline, 0.008)
    elif style == 1:
        canvas.ellipse(mouth, (wide, float(uniform(0.015, 0.035))), fill=lips)
        canvas.line(np.array([[mouth[0] - wide, mouth[1]], [mouth[0] + wide, mouth[1]]]), outline, 0.004)
    else:
        canvas.polygon(_arc((mouth[0], mouth[1] - 0.02), (wide, float(uniform(0.04, 0.08))), 0, 180), lips)


def _shade(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Light a picture from one side, softly."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None] - 0.5
    angle, strength = randomness.uniform(0, 2 * np.pi), randomness.uniform(0.2, 0.7)
    return picture * (1 + strength * (x * np.cos(angle) + y * np.sin(angle)))[..., None]


def _render(randomness: Randomness, _: np.ndarray) -> np.ndarray:
    """Render a head of ellipsoids, lit by one lamp and the sky, as plain 3-D programs do."""
    uniform = randomness.uniform
    skin = np.array(
        _near(randomness, SKINS[randomness.integers(len(SKINS))], 15)
        if randomness.random() < 0.8
        else _colour(randomness, 60)
    )
    hair = np.array(_colour(randomness, 0, 170))
    turn = float(uniform(-0.25, 0.25))
    wide, high = float(uniform(0.5, 0.6)), float(uniform(0.68, 0.8))
    eyes_apart, eye_height, eye_size = float(uniform(0.2, 0.27)), float(uniform(-0.15, 0.0)), float(uniform(0.09, 0.13))
    lips = np.array(_near(randomness, (180, 80, 80), 35))
    parts: list[tuple[Any, Any, np.ndarray]] = [
        ((0, 0, 0), (wide, high, 0.6), skin),
        ((0, -0.22, -0.12), (wide * 1.08, high * 0.85, 0.62), hair),
        ((0, 1.1, -0.3), (0.28, 0.6, 0.28), skin),
        ((0, 1.55, -0.35), (float(uniform(0.8, 1.1)), 0.5, 0.4), np.array(_colour(randomness))),
        ((0, eye_height + 0.28, 0.55), (float(uniform(0.07, 0.12)), 0.15, 0.16), skin),
        ((0, eye_height + 0.55, 0.46), (float(uniform(0.15, 0.24)), float(uniform(0.04, 0.08)), 0.1), lips),
    ]
    for side in (-1, 1):
        centre = np.array([side * eyes_apart, eye_height, 0.47])
        parts += [
            ((side * wide, 0.05, 0), (0.1, 0.17, 0.1), skin),
            (tuple(centre), (eye_size,) * 3, np.array([245, 245, 245])),
            (
                (*centre[:2], centre[2] + 0.05),
                (eye_size * 0.62,) * 2 + (eye_size * 0.75,),
                np.array(_colour(randomness, 0, 150)),
            ),
            ((*centre[:2], centre[2] + 0.09), (eye_size * 0.3,) * 2 + (eye_size * 0.5,), np.array([10, 10, 10])),
            ((centre[0], centre[1] - 0.19, centre[2]), (0.15, 0.03, 0.12), hair),
        ]
    return _light(*_trace(parts, turn), randomness)


def _trace(parts: list, turn: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return heights (S, S), -inf where nothing is, normals (S, S, 3) and colours (S, S, 3) of ellipsoids."""
    side = RENDERED_SIDE * 2
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side * 2.2 - 1.1
    height = np.full((side, side), -np.inf, np.float32)
    normals, colours = np.zeros((2, side, side, 3), np.float32)
    cosine, sine = np.cos(turn), np.sin(turn)
    for (u, v, w), axes, colour in parts:
        centre = (u * cosine + w * sine, v, w * cosine - u * sine)
        rows, columns = (
            slice(*np.searchsorted(line, (middle - reach, middle + reach)))
            for line, middle, reach in ((y[:, 0], centre[1], axes[1]), (x[0], centre[0], axes[0]))
        )
        along, down = (x[rows, columns] - centre[0]) / axes[0], (y[rows, columns] - centre[1]) / axes[1]
        left = 1 - along**2 - down**2
        above = centre[2] + axes[2] * np.sqrt(np.maximum(left, 0))
        seen = (left > 0) & (above > height[rows, columns])
        slopes = np.stack([along / axes[0], down / axes[1], np.sqrt(np.maximum(left, 0)) / axes[2]], axis=-1)
        height[rows, columns][seen] = above[seen]
        normals[rows, columns][seen] = (slopes / (np.linalg.norm(slopes, axis=-1, keepdims=True) + 1e-9))[seen]
        colours[rows, columns][seen] = colour
    return height, normals, colours


def _light(height: np.ndarray, normals: np.ndarray, colours: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Shade a traced scene (S, S) after Phong, over a background that fades; return (S / 2, S / 2, 3)."""
    lamp = np.array([randomness.uniform(-0.7, 0.7), randomness.uniform(-0.8, 0.0), 1.0])
    lamp /= np.linalg.norm(lamp)
    towards = normals @ lamp
    gloss = np.maximum(2 * towards * normals[..., 2] - lamp[2], 0) ** randomness.uniform(8, 40)
    shine = randomness.uniform(0, 90)
    sky = 0.5 - 0.5 * normals[..., 1]
    lit = colours * (0.25 + 0.75 * np.maximum(towards, 0) + 0.2 * sky)[..., None] + shine * gloss[..., None]
    top, bottom = (np.array(_colour(randomness)) for _ in range(2))
    fade = np.linspace(0, 1, len(height))[:, None, None]
    scene = np.where(np.isfinite(height)[..., None], lit, top * (1 - fade) + bottom * fade)
    if randomness.random() < 0.5:  # light that bleeds under the skin softens renders
        scene = ndimage.gaussian_filter(scene, (randomness.uniform(0.5, 3),) * 2 + (0,))
    half = len(height) // 2
    return np.clip(scene, 0, 255).reshape(half, 2, half, 2, 3).mean(axis=(1, 3))


def _sketch(randomness: Randomness, portrait: np.ndarray) -> np.ndarray:
    """Draw in pencil: each tone is divided by its surroundings, so that only edges and soft shadows stay."""
    grey = _grey(portrait)
    around = ndimage.gaussian_filter(255 - grey, _scale(portrait) * randomness.uniform(2, 6))
    pencil = np.minimum(grey * 255 / np.maximum(255 - around, 1), 255)
    pencil = 255 * (pencil / 255) ** randomness.uniform(1, 3)
    shadow = ndimage.gaussian_filter(grey, 3 * _scale(portrait))
    tone = randomness.uniform(0, 0.35)
    drawing = pencil * (1 - tone * (1 - shadow / 255))
    if randomness.random() < 0.5:  # the grain of the paper shows where the pencil went
        grain = ndimage.gaussian_filter(randomness.standard_normal(grey.shape), 0.6 * _scale(portrait))
        drawing += grain / grain.std() * randomness.uniform(2, 8) * (1 - drawing / 300)
    paper = np.array(_near(randomness, (250, 246, 236), 8)) / 255 if randomness.random() < 0.5 else np.ones(3)
    coloured = drawing[..., None] * paper
    if randomness.random() < 0.3:  # crayons
        hue = ndimage.gaussian_filter(portrait.astype(np.float32), (2 * _scale(portrait),) * 2 + (0,))
        strength = randomness.uniform(0.2, 0.5)
        coloured = coloured * (1 - strength + strength * hue / 255)
    return coloured


def _ink(randomness: Randomness, portrait: np.ndarray) -> np.ndarray:
    """Draw in ink: a difference of Gaussians, cut at a threshold (Winnemöller 2011), with hatching in the shadows."""
    grey, scale = _grey(portrait) / 255, _scale(portrait)
    sigma = scale * randomness.uniform(0.6, 1.6)
    sharpened = 20 * (ndimage.gaussian_filter(grey, sigma) - 0.98 * ndimage.gaussian_filter(grey, sigma * 1.6))
    lines = np.where(sharpened > 0.35, 1, 1 + np.tanh(randomness.uniform(3, 12) * (sharpened - 0.35)))
    drawing = np.clip(lines, 0, 1)
    soft = ndimage.gaussian_filter(grey, 1.5 * scale)
    if randomness.random() < 0.5:  # shadows in solid black
        drawing = np.minimum(drawing, soft > np.quantile(soft, randomness.uniform(0.1, 0.35)))
    if randomness.random() < 0.5:
        y, x = np.mgrid[0 : grey.shape[0], 0 : grey.shape[1]]
        angle, period = randomness.uniform(0, np.pi), scale * randomness.uniform(3, 7)
        waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        shadow = soft < np.quantile(soft, randomness.uniform(0.3, 0.6))
        drawing = np.where(shadow & (waves > 0.3), 0, drawing)
    ink, paper = np.array(_colour(randomness, 0, 70)), np.array(_colour(randomness, 225))
    return ink + drawing[..., None] * (paper - ink)


def _cartoon(randomness: Randomness, portrait: np.ndarray) -> np.ndarray:
    """Turn a photograph into a cartoon: smooth, few tones or colours, and often dark outlines."""
    scale = _scale(portrait)
    if randomness.random() < 0.5:
        smooth = (
            restoration.denoise_tv_chambolle(
                portrait, weight=randomness.uniform(0.1, 0.3), max_num_iter=50, channel_axis=2
            )
            * 255
        )
    else:
        median = ImageFilter.MedianFilter(2 * max(1, round(randomness.uniform(1, 2) * scale)) + 1)
        smooth = np.asarray(Image.fromarray(portrait).filter(median).filter(median), dtype=float)
    image = ImageEnhance.Color(Image.fromarray(round_to_bytes(smooth))).enhance(randomness.uniform(0.9, 2))
    if randomness.random() < 0.5:
        palette = image.quantize(int(randomness.integers(5, 25)), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        flat = np.asarray(palette.convert("RGB"), dtype=float)
    else:
        lab = color.rgb2lab(np.asarray(image))
        step = 100 / randomness.integers(4, 11)
        lab[..., 0] = (np.floor(lab[..., 0] / step) + 0.5) * step
        flat = color.lab2rgb(lab) * 255
    if randomness.random() < 0.7:
        edges = feature.canny(
            _grey(smooth) / 255, randomness.uniform(0.8, 1.6) * scale, 0.02, randomness.uniform(0.05, 0.1)
        )
        edges = ndimage.gaussian_filter(edges.astype(float), 0.5 * scale) * 2 * scale
        flat = flat * (1 - np.clip(edges, 0, randomness.uniform(0.6, 1)))[..., None]
    return flat


def _oil(randomness: Randomness, portrait: np.ndarray) -> np.ndarray:
    """Paint in oil: each pixel takes the mean colour of the commonest brightness around it."""
    levels = int(randomness.integers(6, 16))
    side = 2 * max(1, round(_scale(portrait) * randomness.uniform(3, 6))) + 1
    bins = (_grey(portrait) * levels / 256).astype(int)
    most, painted = np.zeros(bins.shape), np.zeros(portrait.shape)
    for level in range(levels):
        inside = (bins == level).astype(np.float32)
        count = ndimage.uniform_filter(inside, side)
        colours = ndimage.uniform_filter(portrait * inside[..., None], (side, side, 1))
        better = count > most
        most[better] = count[better]
        painted[better] = (colours / np.maximum(count, 1e-6)[..., None])[better]
    image = ImageEnhance.Color(Image.fromarray(round_to_bytes(painted))).enhance(randomness.uniform(0.9, 1.6))
    if randomness.random() < 0.5:  # the relief of thick paint
        grey = _grey(painted)
        relief = np.gradient(ndimage.gaussian_filter(grey, 0.7))[0]
        return np.asarray(image) + (relief * randomness.uniform(0.5, 2))[..., None]
    return np.asarray(image)


def _emoji(randomness: Randomness, _: np.ndarray) -> np.ndarray:
    """Print an emoji of a font on a disc of colour."""
    canvas = _Canvas(_colour(randomness, 150) if randomness.random() < 0.7 else (255, 255, 255))
    size = float(randomness.uniform(0.6, 0.95))
    yellow = randomness.random() < 0.7
    fill = _near(randomness, (255, 204, 50), 25) if yellow else SKINS[randomness.integers(len(SKINS))]
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), round(size * canvas.side))
    glyph = chr(EMOJI[randomness.integers(len(EMOJI))])
    box = np.array(canvas.pen.textbbox((canvas.side / 2, canvas.side / 2), glyph, font=font, anchor="mm"))
    middle = tuple((box[:2] + box[2:]) / 2 / canvas.side)
    canvas.ellipse(middle, tuple((box[2:] - box[:2]) / 2 / canvas.side * 0.98), fill=fill)
    ink = _colour(randomness, 0, 60)
    canvas.pen.text((canvas.side / 2, canvas.side / 2), glyph, font=font, anchor="mm", fill=ink)
    picture = canvas.pixels()
    return _shade(picture, randomness) if randomness.random() < 0.5 else picture


def _halftone(randomness: Randomness, portrait: np.ndarray) -> np.ndarray:
    """Print in dots whose size follows the tone, in one ink or in four."""
    height, width = portrait.shape[:2]
    y, x = np.mgrid[0 : height * 2, 0 : width * 2] / 2
    period = _scale(portrait) * randomness.uniform(3, 7)
    soft = ndimage.gaussian_filter(portrait.astype(float), (period / 3,) * 2 + (0,)) / 255
    soft = soft.repeat(2, axis=0).repeat(2, axis=1)

    def screen(angle: float) -> np.ndarray:
        turn = np.radians(angle)
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        return 0.5 + 0.25 * (np.cos(2 * np.pi * along / period) + np.cos(2 * np.pi * across / period))

    if randomness.random() < 0.5:
        paper = np.array(_colour(randomness, 215))
        printed = np.where((soft @ GREY > screen(45))[..., None], paper, np.array(_colour(randomness, 0, 80)))
    else:
        black = 1 - soft.max(axis=2)
        colours = (1 - soft - black[..., None]) / np.maximum(1 - black, 1e-3)[..., None]
        inks = [*np.moveaxis(colours, 2, 0), black]
        dots = [ink > screen(angle) for ink, angle in zip(inks, SCREENS, strict=True)]
        printed = 255.0 * np.stack([~dots[channel] & ~dots[3] for channel in range(3)], axis=-1)
    return printed.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))


def _polygons(randomness: Randomness, portrait: np.ndarray) -> np.ndarray:
    """Cover a portrait with triangles of one colour each, smaller where there is more to see."""
    height, width = portrait.shape[:2]
    detail = ndimage.gaussian_gradient_magnitude(_grey(portrait), 2 * _scale(portrait)) + 1
    count = int(randomness.integers(300, 1500))
    drawn = randomness.choice(height * width, count, replace=False, p=(detail / detail.sum()).ravel())
    points = np.stack(np.unravel_index(drawn, (height, width)), axis=1).astype(float)
    corners = [[0, 0], [0, width - 1], [height - 1, 0], [height - 1, width - 1]]
    triangles = spatial.Delaunay(np.vstack([points + randomness.uniform(-0.4, 0.4, points.shape), corners]))
    places = np.stack(list(np.mgrid[0:height, 0:width]), axis=-1).reshape(-1, 2)
    labels = np.maximum(triangles.find_simplex(places), 0)
    counts = np.maximum(np.bincount(labels), 1)
    colours = [np.bincount(labels, portrait[..., channel].ravel()) / counts for channel in range(3)]
    return np.stack(colours, axis=1)[labels].reshape(height, width, 3)


def _strokes(randomness: Randomness, portrait: np.ndarray) -> np.ndarray:
    """Paint in strokes along the outlines, with ever finer brushes (after Hertzmann 1998)."""
    height, width = portrait.shape[:2]
    scale = _scale(portrait)
    image = Image.fromarray(np.full_like(portrait, _colour(randomness, 180)))
    pen = ImageDraw.Draw(image)
    for radius in (8 * scale, 4 * scale, randomness.uniform(1.6, 2.6) * scale):
        reference = ndimage.gaussian_filter(portrait.astype(float), (radius / 2, radius / 2, 0))
        down, right = np.gradient(ndimage.gaussian_filter(_grey(reference), radius / 2))
        step = max(2, round(radius))
        rows, columns = (grid.ravel() for grid in np.mgrid[0:height:step, 0:width:step])
        error = np.abs(reference - np.asarray(image)).sum(axis=2)[rows, columns]
        worth = np.flatnonzero((error > randomness.uniform(25, 60)) | (radius > 6 * scale))
        for place in randomness.permutation(worth):
            row, column = rows[place] + randomness.integers(-2, 3), columns[place] + randomness.integers(-2, 3)
            row, column = int(np.clip(row, 0, height - 1)), int(np.clip(column, 0, width - 1))
            angle = np.arctan2(right[row, column], -down[row, column]) + randomness.normal(0, 0.2)
            reach = radius * randomness.uniform(1.5, 4) * np.array([np.cos(angle), np.sin(angle)])
            colour = round_to_bytes(reference[row, column] + randomness.normal(0, 8, 3))
            ends = [(column - reach[0], row - reach[1]), (column + reach[0], row + reach[1])]
            pen.line(ends, fill=tuple(colour.tolist()), width=max(2, round(1.6 * radius)))
    return np.asarray(image)


_MAKERS: dict[str, Callable[[Randomness, np.ndarray], np.ndarray]] = {
    "drawn": _drawn,
    "render": _render,
    "sketch": _sketch,
    "ink": _ink,
    "cartoon": _cartoon,
    "oil": _oil,
    "emoji": _emoji,
    "halftone": _halftone,
    "polygons": _polygons,
    "strokes": _strokes,
}
