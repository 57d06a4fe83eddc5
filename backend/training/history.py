"""A random history for a picture: blur, rescaling, noise and JPEG, drawn alike for real and fake.

Packs differ in sharpness, JPEG quality and source size. A detector would learn that difference in place of
forgery, so both classes are given the same distribution of histories before it sees them.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from backend.saving import as_jpeg


@dataclass(frozen=True)
class History:
    """How strong each step may be; shares are probabilities in [0, 1].

    Args:
        blur: Largest Gaussian radius in pixels.
        blur_share: How often.
        rescale: Smallest factor of a resize down, followed by one back up.
        rescale_share: How often.
        noise: Largest standard deviation in grey levels (0 to 255).
        noise_share: How often.
        quality: Lowest JPEG quality; the highest is 98.
        jpeg_share: How often.
    """

    blur: float = 1.2
    blur_share: float = 0.25
    rescale: float = 0.45
    rescale_share: float = 0.25
    noise: float = 5.0
    noise_share: float = 0.2
    quality: int = 55
    jpeg_share: float = 0.6


def age(picture: np.ndarray, randomness: np.random.Generator, history: History) -> np.ndarray:
    """Return uint8 (S, S, 3) after one random history."""
    image = Image.fromarray(picture)
    size = image.size
    if randomness.random() < history.rescale_share:
        factor = randomness.uniform(history.rescale, 1.0)
        small = (max(8, round(size[0] * factor)), max(8, round(size[1] * factor)))
        down, up = randomness.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS], 2)
        image = image.resize(small, Image.Resampling(down)).resize(size, Image.Resampling(up))
    if randomness.random() < history.blur_share:
        image = image.filter(ImageFilter.GaussianBlur(randomness.uniform(0.1, history.blur)))
    if randomness.random() < history.noise_share:
        values = np.asarray(image, dtype=np.float32)
        noise = randomness.normal(0, randomness.uniform(0.5, history.noise), values.shape)
        image = Image.fromarray(np.clip(np.rint(values + noise), 0, 255).astype(np.uint8))
    if randomness.random() < history.jpeg_share:
        image = as_jpeg(image, int(randomness.integers(history.quality, 99)), int(randomness.integers(0, 3)))
    return np.asarray(image)
