"""What happens to pictures on their way: JPEG, blur, a smaller size, noise. Each has strengths in its own unit."""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from backend.errors import UserError

NONE = "none"
UNITS = {"jpeg": "JPEG quality", "blur": "standard deviation in pixels", "resize": "factor", "noise": "grey levels"}


MOST = {"jpeg": 100, "blur": 100, "resize": 1, "noise": 255}


def corrupt(picture: np.ndarray, kind: str, strength: float, seed: int, name: str) -> np.ndarray:
    """Return uint8 (H, W, 3) after one corruption.

    Args:
        picture: uint8 (H, W, 3).
        kind: `none`, `jpeg`, `blur`, `resize` or `noise`.
        strength: Quality (1 to 100), standard deviation in pixels, factor in (0, 1], or standard deviation in grey
            levels.
        seed: Of the noise.
        name: Of the picture, so that no two pictures get the same noise.
    """
    if kind == NONE:
        return picture
    if kind == "noise":
        return _noise(picture, strength, seed, name)
    return _KINDS[kind](picture, strength)


def parse(text: str) -> tuple[str, float]:
    """Read `jpeg 70` as kind and strength.

    Raises:
        UserError: There is no such kind, or the strength is no number.
    """
    if text == NONE:
        return NONE, 0.0
    kind, _, strength = text.partition(" ")
    try:
        value = float(strength)
    except ValueError:
        value = -1.0
    if kind not in UNITS or not 0 < value <= MOST[kind]:
        raise UserError(f"There is no corruption {text}.", "Write for example: jpeg 70, blur 1, resize 0.5, noise 5.")
    return kind, value


def _jpeg(picture: np.ndarray, quality: float) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=round(quality))
    with Image.open(io.BytesIO(buffer.getvalue())) as saved:
        return np.array(saved.convert("RGB"))


def _blur(picture: np.ndarray, deviation: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return _rounded(gaussian_filter(picture.astype(np.float64), (deviation, deviation, 0)))


def _resize(picture: np.ndarray, factor: float) -> np.ndarray:
    height, width = picture.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    image = Image.fromarray(picture)
    return np.array(image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC))


def _noise(picture: np.ndarray, deviation: float, seed: int, name: str) -> np.ndarray:
    own = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
    return _rounded(picture + np.random.default_rng(own).normal(0, deviation, picture.shape))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_KINDS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {"jpeg": _jpeg, "blur": _blur, "resize": _resize}
