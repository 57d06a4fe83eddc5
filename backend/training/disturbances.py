"""What pictures go through before a discriminator looks at them, alike for all and with gradients.

TR-Net's paper shows its discriminators clean pictures. A detector that was trained with blur, rescaling, noise and
JPEG reads traces that outlive them, which such discriminators hardly notice beside the finer ones.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.saving import like_photographs

KINDS = ("blur", "rescale", "noise", "jpeg")
BLUR = (0.4, 1.2)  # standard deviation in pixels
RESCALE = (0.45, 0.9)  # of the side, and back
NOISE = (0.5, 5.0)  # standard deviation in grey levels
QUALITY = (55, 95)


def disturb(batches: list[Tensor], randomness: torch.Generator) -> list[Tensor]:
    """Blur, rescale, add noise to, or encode as JPEG some batches, each (N, 3, S, S) in [0, 1], all in the same way.

    Gradients pass; through JPEG as if it were not there.

    Args:
        batches: Pictures; batches of equal size get the same noise.
        randomness: Draws which, and how strongly.
    """
    kind = KINDS[int(torch.randint(len(KINDS), (), generator=randomness))]
    place = float(torch.rand((), generator=randomness))
    if kind == "blur":
        return [blur(one, _between(BLUR, place)) for one in batches]
    if kind == "rescale":
        return [rescale(one, _between(RESCALE, place)) for one in batches]
    if kind == "noise":
        pattern = torch.randn(batches[0].shape, generator=randomness) * _between(NOISE, place) / 255
        return [one + pattern.to(one) for one in batches]
    return [through_jpeg(one, round(_between(QUALITY, place))) for one in batches]


def blur(pictures: Tensor, deviation: float, reach: int | None = None) -> Tensor:
    """Smooth (N, C, S, S) by a Gaussian of a standard deviation in pixels, cut off at `reach` (three deviations)."""
    reach = reach or max(1, round(3 * deviation))
    places = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
    weights = torch.exp(-places.square() / (2 * deviation**2))
    weights = (weights / weights.sum()).expand(pictures.shape[1], 1, 1, -1)
    rows = F.conv2d(F.pad(pictures, (reach, reach, 0, 0), mode="reflect"), weights, groups=pictures.shape[1])
    columns = F.pad(rows, (0, 0, reach, reach), mode="reflect")
    return F.conv2d(columns, weights.transpose(2, 3), groups=pictures.shape[1])


def rescale(pictures: Tensor, factor: float) -> Tensor:
    """Make (N, 3, S, S) smaller by a factor, and as large as before."""
    size = pictures.shape[-2:]
    small = [max(8, round(side * factor)) for side in size]
    smaller = F.interpolate(pictures, small, mode="bilinear", antialias=True)
    return F.interpolate(smaller, size, mode="bilinear")


def through_jpeg(pictures: Tensor, quality: int) -> Tensor:
    """Encode (N, 3, S, S) as JPEG with 4:2:0; the gradient is that of the picture itself."""
    pixels = (pictures.detach().clamp(0, 1) * 255).round().byte()
    made = like_photographs(pixels, quality).to(pictures) / 255
    return pictures + (made - pictures).detach()


def in_eight_bits(pictures: Tensor) -> Tensor:
    """Round (N, 3, S, S) in [0, 1] to what a file can hold; the gradient is that of the picture itself."""
    return pictures + (pictures.clamp(0, 1).mul(255).round().div(255) - pictures).detach()


def _between(limits: tuple[float, float], place: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * place
