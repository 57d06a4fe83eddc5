"""Degradations of training pictures: blur, rescaling, noise and JPEG, alike for real and fake.

Packs differ in sharpness, JPEG quality and source size. A detector would learn that difference in place of forgery,
so both classes get the same distribution of degradations. A defence says what a detector's training pictures go
through: one save, the weak defence of TR-Net's paper (arXiv 2203.11433, section 5.3: random blur, cropping, JPEG and
noise), or the shipped, milder degradation. The strong defence, attacked fakes among the training data, is in
`data.py`.

Discriminators get degraded batches too, with gradients: TR-Net's paper shows them clean pictures, but a detector that
was trained with degradations reads traces that survive them. Such discriminators hardly notice these beside the finer
traces.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from backend.images import as_jpeg, like_photograph, like_photographs, round_to_bytes
from backend.video import save_as_frame

WEAK_SHARE = 0.5  # how often each step of the weak defence acts
WEAK_BLUR_SIDES = (3, 5, 7, 9)
WEAK_BLUR_SIGMA = 4.0  # as in the reference code, which passes the border mode as sigma
WEAK_CROP = (5.0, 20.0)  # per cent of the side
WEAK_QUALITY = (10, 75)  # of the JPEG, the upper end excluded
WEAK_NOISE = (5.0, 20.0)  # standard deviation in grey levels
BATCH_DEGRADATIONS = ("blur", "rescale", "noise", "jpeg")
BATCH_BLUR = (0.4, 1.2)  # standard deviation in pixels
BATCH_RESCALE = (0.45, 0.9)  # of the side, and back
BATCH_NOISE = (0.5, 5.0)  # standard deviation in grey levels
BATCH_QUALITY = (55, 95)
SAVED_ONLINE = {"none": 0.12, "jpeg": 0.36, "twice": 0.14, "messenger": 0.14, "screenshot": 0.08, "video": 0.16}
ONLINE_QUALITY = (45, 99)  # of a JPEG
ONLINE_CRF = (16, 35)  # of H.264: from hardly any loss to strong loss
DefenceName = Literal["none", "weak", "shipped"]
Defence = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Degradation:
    """How strong each step may be; shares are probabilities in [0, 1]."""

    blur: float = 1.2  # largest Gaussian radius in pixels
    blur_share: float = 0.25
    rescale: float = 0.45  # smallest factor of a resize down, followed by one back up
    rescale_share: float = 0.25
    noise: float = 5.0  # largest standard deviation in grey levels (0 to 255)
    noise_share: float = 0.2
    quality: int = 55  # lowest JPEG quality; the highest is 98
    jpeg_share: float = 0.6


def degrade_picture(picture: np.ndarray, randomness: np.random.Generator, degradation: Degradation) -> np.ndarray:
    """Return uint8 (S, S, 3) after one random degradation."""
    image = Image.fromarray(picture)
    size = image.size
    if randomness.random() < degradation.rescale_share:
        factor = randomness.uniform(degradation.rescale, 1.0)
        small = (max(8, round(size[0] * factor)), max(8, round(size[1] * factor)))
        down, up = randomness.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS], 2)
        image = image.resize(small, Image.Resampling(down)).resize(size, Image.Resampling(up))
    if randomness.random() < degradation.blur_share:
        image = image.filter(ImageFilter.GaussianBlur(randomness.uniform(0.1, degradation.blur)))
    if randomness.random() < degradation.noise_share:
        values = np.asarray(image, dtype=np.float32)
        noise = randomness.normal(0, randomness.uniform(0.5, degradation.noise), values.shape)
        image = Image.fromarray(round_to_bytes(values + noise))
    if randomness.random() < degradation.jpeg_share:
        image = as_jpeg(image, int(randomness.integers(degradation.quality, 99)), int(randomness.integers(0, 3)))
    return np.asarray(image)


def defence_named(name: DefenceName, degradation: Degradation | None = None) -> Defence:
    """Return a function from a picture, uint8 (S, S, 3), and a source of randomness to a picture like it.

    `none` only saves pictures alike, `weak` is the defence of the paper, and `shipped` the milder degradation of this
    app's detectors, up to the strengths in `degradation`.
    """
    if name == "none":
        return lambda picture, _: like_photograph(picture)
    if name == "weak":
        return weak_defence
    return lambda picture, randomness: degrade_picture(picture, randomness, degradation or Degradation())


def weak_defence(picture: np.ndarray, randomness: np.random.Generator) -> np.ndarray:
    """Blur, crop, save as JPEG and add noise, in this order and each with probability 0.5; uint8 (S, S, 3)."""
    if randomness.random() < WEAK_SHARE:
        picture = blur_picture(picture, int(randomness.choice(WEAK_BLUR_SIDES)))
    if randomness.random() < WEAK_SHARE:
        picture = crop_picture(picture, float(randomness.uniform(*WEAK_CROP)))
    if randomness.random() < WEAK_SHARE:
        picture = compress_picture(picture, int(randomness.integers(*WEAK_QUALITY)))
    if randomness.random() < WEAK_SHARE:
        picture = add_noise(picture, float(randomness.uniform(*WEAK_NOISE)), randomness)
    return picture


def degrade_as_online(picture: np.ndarray, randomness: np.random.Generator) -> np.ndarray:
    """Send uint8 (S, S, 3) through what pictures go through online, and return it at its own size.

    It is resized, blurred, sharpened, smoothed by a beauty filter or noisy, and then saved: as JPEG, once or twice, by
    a messenger, as a screenshot or as a frame of a video.
    """
    side = picture.shape[0]
    if randomness.random() < 0.35:
        picture = _resized(_resized(picture, round(side * randomness.uniform(0.4, 1.3)), randomness), side, randomness)
    if randomness.random() < 0.2:
        picture = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(randomness.uniform(0.2, 1.5))))
    if randomness.random() < 0.2:
        sharpen = ImageFilter.UnsharpMask(randomness.uniform(0.5, 2), int(randomness.integers(30, 180)), 0)
        picture = np.asarray(Image.fromarray(picture).filter(sharpen))
    if randomness.random() < 0.12:
        picture = beautify_picture(picture, float(randomness.uniform(0.4, 1)))
    if randomness.random() < 0.2:
        picture = add_noise(picture, float(randomness.uniform(0.5, 6)), randomness)
    way = str(randomness.choice(list(SAVED_ONLINE), p=list(SAVED_ONLINE.values())))
    if way == "video":
        return save_as_frame(picture, int(randomness.integers(*ONLINE_CRF)), moved=randomness.random() < 0.6)
    if way == "messenger":
        small = _resized(picture, round(side * randomness.uniform(0.5, 0.95)), randomness)
        return _resized(compress_picture(small, int(randomness.integers(45, 82))), side, randomness)
    if way == "screenshot":
        shown = round_to_bytes(255 * (picture / 255.0) ** randomness.uniform(0.85, 1.15))
        factor = randomness.uniform(0.8, 1.6)
        picture = _resized(_resized(shown, round(side * factor), randomness), side, randomness)
    if way in {"twice", "screenshot"} and randomness.random() < 0.7:
        picture = compress_picture(picture, int(randomness.integers(*ONLINE_QUALITY)))
        shift = [int(amount) for amount in randomness.integers(0, 8, 2)]  # the blocks of the second lie elsewhere
        moved = compress_picture(np.roll(picture, shift, (0, 1)), int(randomness.integers(*ONLINE_QUALITY)))
        return np.roll(moved, [-amount for amount in shift], (0, 1))
    if way == "none":
        return picture
    saved = as_jpeg(Image.fromarray(picture), int(randomness.integers(*ONLINE_QUALITY)), int(randomness.integers(0, 3)))
    return np.asarray(saved)


def _resized(picture: np.ndarray, side: int, randomness: np.random.Generator) -> np.ndarray:
    method = randomness.choice([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling(method)))


def beautify_picture(picture: np.ndarray, share: float) -> np.ndarray:
    """Smooth skin but not outlines of uint8 (S, S, 3), as beauty filters do; `share` of the fine detail goes."""
    values = picture.astype(np.float32)
    smooth = ndimage.gaussian_filter(values, (2, 2, 0))
    grey = values.mean(2)
    outline = ndimage.gaussian_filter(np.abs(grey - smooth.mean(2)), 1.5)[..., None]
    kept = np.clip(outline / 10, 0, 1) ** 2
    return round_to_bytes(values + (1 - kept) * share * (smooth - values))


def blur_picture(picture: np.ndarray, side: int) -> np.ndarray:
    """Smooth uint8 (S, S, 3) by a Gaussian of standard deviation 4, cut off at `side` pixels (odd)."""
    sigma = (WEAK_BLUR_SIGMA, WEAK_BLUR_SIGMA, 0)
    return round_to_bytes(ndimage.gaussian_filter(picture.astype(np.float32), sigma, radius=side // 2, mode="mirror"))


def crop_picture(picture: np.ndarray, per_cent: float) -> np.ndarray:
    """Cut off half of `per_cent` of the side at every edge, and resize back; uint8 (S, S, 3)."""
    height, width = picture.shape[:2]
    top, left = int(height * per_cent / 200), int(width * per_cent / 200)
    inner = Image.fromarray(picture[top : height - top, left : width - left])
    return np.asarray(inner.resize((width, height), Image.Resampling.BICUBIC))


def compress_picture(picture: np.ndarray, quality: int) -> np.ndarray:
    """Save uint8 (S, S, 3) as JPEG and read it again."""
    return np.asarray(as_jpeg(Image.fromarray(picture), quality))


def add_noise(picture: np.ndarray, deviation: float, randomness: np.random.Generator) -> np.ndarray:
    """Add normal noise of a standard deviation in grey levels; uint8 (S, S, 3)."""
    return round_to_bytes(picture + deviation * randomness.standard_normal(picture.shape))


def degrade_batches(batches: list[Tensor], randomness: torch.Generator) -> list[Tensor]:
    """Blur, rescale, add noise to, or encode as JPEG several batches (N, 3, S, S) in [0, 1], all in the same way.

    Batches of equal size get the same noise. Gradients pass, through JPEG as if it were the identity.
    """
    kind = BATCH_DEGRADATIONS[int(torch.randint(len(BATCH_DEGRADATIONS), (), generator=randomness))]
    place = float(torch.rand((), generator=randomness))
    if kind == "blur":
        return [blur_batch(batch, _between(BATCH_BLUR, place)) for batch in batches]
    if kind == "rescale":
        return [rescale_batch(batch, _between(BATCH_RESCALE, place)) for batch in batches]
    if kind == "noise":
        pattern = torch.randn(batches[0].shape, generator=randomness) * _between(BATCH_NOISE, place) / 255
        return [batch + pattern.to(batch) for batch in batches]
    return [compress_batch(batch, round(_between(BATCH_QUALITY, place))) for batch in batches]


def blur_batch(pictures: Tensor, deviation: float, reach: int | None = None) -> Tensor:
    """Smooth (N, C, S, S) by a Gaussian of a standard deviation in pixels, cut off at `reach` (three deviations)."""
    reach = reach or max(1, round(3 * deviation))
    places = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
    weights = torch.exp(-places.square() / (2 * deviation**2))
    weights = (weights / weights.sum()).expand(pictures.shape[1], 1, 1, -1)
    rows = F.conv2d(F.pad(pictures, (reach, reach, 0, 0), mode="reflect"), weights, groups=pictures.shape[1])
    columns = F.pad(rows, (0, 0, reach, reach), mode="reflect")
    return F.conv2d(columns, weights.transpose(2, 3), groups=pictures.shape[1])


def rescale_batch(pictures: Tensor, factor: float) -> Tensor:
    """Shrink (N, 3, S, S) by a factor and enlarge it to its old size."""
    size = pictures.shape[-2:]
    small = [max(8, round(side * factor)) for side in size]
    smaller = F.interpolate(pictures, small, mode="bilinear", antialias=True)
    return F.interpolate(smaller, size, mode="bilinear")


def compress_batch(pictures: Tensor, quality: int) -> Tensor:
    """Encode (N, 3, S, S) as JPEG with 4:2:0; gradients pass as if through the identity."""
    pixels = (pictures.detach().clamp(0, 1) * 255).round().byte()
    return pictures + (like_photographs(pixels, quality).to(pictures) / 255 - pictures).detach()


def round_batch(pictures: Tensor) -> Tensor:
    """Round (N, 3, S, S) in [0, 1] to what a file can hold; gradients pass as if through the identity."""
    return pictures + (pictures.clamp(0, 1).mul(255).round().div(255) - pictures).detach()


def _between(limits: tuple[float, float], place: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * place
