"""What a detector's training pictures go through: one save, the paper's weak defence, or the shipped history.

TR-Net (arXiv 2203.11433, section 5.3) calls random blur, cropping, JPEG and noise the weak defence, and attacked
fakes among the training data the strong one; the latter is a matter of data (see labelled.py and batches.py).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from backend.saving import as_jpeg, like_photograph
from backend.training.history import History, age

Name = Literal["none", "weak", "shipped"]
Defence = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SHARE = 0.5  # how often each step of the weak defence acts
BLUR_SIDES = (3, 5, 7, 9)
BLUR_SIGMA = 4.0  # of the reference code, which hands the border mode over as sigma
CROP = (5.0, 20.0)  # per cent of the side
QUALITY = (10, 75)  # of the JPEG, the upper end excluded
NOISE = (5.0, 20.0)  # standard deviation in grey levels


def named(name: Name, history: History | None = None) -> Defence:
    """Return a function from a picture, uint8 (S, S, 3), and a source of randomness to a picture like it.

    Args:
        name: `none` (saved alike, and not degraded), `weak` (of the paper), or `shipped` (the milder history that this
            app's detectors learn).
        history: How strong the steps of `shipped` may be.
    """
    if name == "none":
        return lambda picture, _: like_photograph(picture)
    if name == "weak":
        return weak
    return lambda picture, randomness: age(picture, randomness, history or History())


def weak(picture: np.ndarray, randomness: np.random.Generator) -> np.ndarray:
    """Blur, crop, save as JPEG and add noise, in this order and each with probability 0.5; uint8 (S, S, 3)."""
    if randomness.random() < SHARE:
        picture = blurred(picture, int(randomness.choice(BLUR_SIDES)))
    if randomness.random() < SHARE:
        picture = cropped(picture, float(randomness.uniform(*CROP)))
    if randomness.random() < SHARE:
        picture = compressed(picture, int(randomness.integers(*QUALITY)))
    if randomness.random() < SHARE:
        picture = noisy(picture, float(randomness.uniform(*NOISE)), randomness)
    return picture


def blurred(picture: np.ndarray, side: int) -> np.ndarray:
    """Smooth uint8 (S, S, 3) by a Gaussian of standard deviation 4, cut off at `side` pixels (odd)."""
    places = np.arange(side) - side // 2
    weights = np.exp(-(places**2) / (2 * BLUR_SIGMA**2))
    weights /= weights.sum()
    values = picture.astype(np.float32)
    for axis in (0, 1):
        values = ndimage.correlate1d(values, weights, axis=axis, mode="mirror")
    return _as_bytes(values)


def cropped(picture: np.ndarray, per_cent: float) -> np.ndarray:
    """Cut off half of `per_cent` of the side at every edge, and resize back; uint8 (S, S, 3)."""
    height, width = picture.shape[:2]
    top, left = int(height * per_cent / 200), int(width * per_cent / 200)
    inner = Image.fromarray(picture[top : height - top, left : width - left])
    return np.asarray(inner.resize((width, height), Image.Resampling.BICUBIC))


def compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    """Save uint8 (S, S, 3) as JPEG and read it again."""
    return np.asarray(as_jpeg(Image.fromarray(picture), quality))


def noisy(picture: np.ndarray, deviation: float, randomness: np.random.Generator) -> np.ndarray:
    """Add normal noise of a standard deviation in grey levels; uint8 (S, S, 3)."""
    return _as_bytes(picture + deviation * randomness.standard_normal(picture.shape))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
