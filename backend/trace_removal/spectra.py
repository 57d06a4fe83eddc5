"""Spectra of pictures: log amplitude, phase, power over radius, low and high frequencies; all differentiable.

TR-Net (arXiv 2203.11433), section 4: eq. 4 and 5 (amplitude and phase), 8 and 9 (Gaussian filters), 10 (power
spectral density). Spectra are not normalised: the value at frequency 0 is the sum of the pixels.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.images import GREY
from backend.trace_removal.network import gaussian_kernel

FLOOR = 1e-8  # added to a power before its logarithm
ROUNDING = sum(weight**2 for weight in GREY) / 12 / 255**2  # variance of the brightness after rounding
SIGMA = 20.0  # of the Gaussian filters, in frequency bins of a picture of 128 pixels; as a blur of 1.02 pixels
SIGMA_SIDE = 128
SKIPPED_SHARE = 0.1  # of the profile's lowest frequencies, which the released code leaves out


def grey(images: Tensor) -> Tensor:
    """Return the brightness (N, H, W) of colour pictures (N, 3, H, W), in their range."""
    weights = torch.tensor(GREY, dtype=images.dtype, device=images.device)
    return (images * weights.view(3, 1, 1)).sum(1)


def log_power(images: Tensor, floor: float = FLOOR) -> Tensor:
    """Return ln(|F|^2 + floor) of the brightness, (N, H, W), frequency 0 at [0, 0], from (N, 3, H, W) in [0, 1]."""
    return torch.log(_power(torch.fft.fft2(grey(images))) + floor)


def rounding_power(height: int, width: int) -> float:
    """Return the |F|^2 of the brightness that rounding to 8 bits adds to every frequency of a picture in [0, 1].

    What is weaker is not in the saved picture, while the slope of its logarithm and of its phase has no limit.
    """
    return ROUNDING * height * width


def phase(images: Tensor) -> Tensor:
    """Return the phase (N, H, W) in (-pi, pi] of the brightness of (N, 3, H, W), frequency 0 at [0, 0].

    Where a frequency is absent, the phase and its gradient are 0; arctan(b / a) of eq. 5 would lose the quadrant.
    """
    spectrum = torch.fft.fft2(grey(images))
    present = _power(spectrum.detach()) > FLOOR
    real = torch.where(present, spectrum.real, torch.ones_like(spectrum.real))
    imaginary = torch.where(present, spectrum.imag, torch.zeros_like(spectrum.imag))
    return torch.atan2(imaginary, real)


def amplitude(images: Tensor) -> Tensor:
    """Return |F| (N, H, W) of the brightness of (N, 3, H, W), frequency 0 at [0, 0]; as eq. 4, no logarithm."""
    return (_power(torch.fft.fft2(grey(images))) + FLOOR).sqrt()


def psd(images: Tensor) -> Tensor:
    """Return the power (N, M // 2) averaged over angle for the radii k = 0 .. M / 2 - 1 (eq. 10).

    The power is |F|^2 divided by the number of pixels, so that white noise of variance v has v at every radius.

    Args:
        images: (N, 3, H, W) in [0, 1]; M is the shorter side.
    """
    height, width = images.shape[-2:]
    power = _power(torch.fft.fft2(grey(images))) / (height * width)
    return _radial_mean(power, *_rings(height, width, one_sided=False))[:, : min(height, width) // 2]


def psd_as_coded(images: Tensor) -> Tensor:
    """Return the released code's profile (N, K): decibels of one half of the spectrum, averaged, scaled to [0, 1].

    K is 91 for 128 pixels: the radii reach into the corner. The scaling is by each picture's own smallest and
    largest value.
    """
    height, width = images.shape[-2:]
    spectrum = torch.fft.rfft2(grey(images))
    decibels = 20 * torch.log(_power(spectrum) + FLOOR)
    profile = _radial_mean(decibels, *_rings(height, width, one_sided=True))
    low, high = profile.amin(1, keepdim=True), profile.amax(1, keepdim=True)
    return (profile - low) / (high - low).clamp_min(FLOOR)


def without_lowest(profile: Tensor) -> Tensor:
    """Return a profile (N, K) without the first tenth of its radii, as the released code compares it."""
    return profile[:, int(SKIPPED_SHARE * profile.shape[1]) :]


def split(images: Tensor, sigma: float = SIGMA) -> tuple[Tensor, Tensor]:
    """Return low and high frequencies of (N, C, H, W); they add up to the picture (eq. 8 and 9).

    Args:
        images: Pictures of any range.
        sigma: Of the Gaussian exp(-(u^2 + v^2) / (2 sigma^2)) on the centred spectrum, in bins of a picture of 128
            pixels. The paper does not give it; s pixels of spatial blur are 128 / (2 pi s) bins.
    """
    height, width = images.shape[-2:]
    keep = _gaussian(height, width, sigma).to(images)
    low = torch.fft.irfft2(keep * torch.fft.rfft2(images), s=(height, width))
    return low, images - low


def blur(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Return (N, C, H, W) after the released code's low-pass, a 3 x 3 Gaussian; sigma in pixels."""
    channels = images.shape[1]
    kernel = gaussian_kernel(3, sigma).to(images).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=channels)


def centred(spectrum: Tensor) -> Tensor:
    """Return a spectrum (..., H, W) with frequency 0 in the middle, for looking at."""
    return torch.fft.fftshift(spectrum, dim=(-2, -1))


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.real.square() + spectrum.imag.square()


def _radial_mean(values: Tensor, rings: Tensor, counts: Tensor) -> Tensor:
    sums = values.new_zeros(len(values), len(counts))
    sums = sums.index_add(1, rings.to(values.device), values.flatten(1))
    return sums / counts.to(values)


@lru_cache(maxsize=16)
def _rings(height: int, width: int, *, one_sided: bool) -> tuple[Tensor, Tensor]:
    """Return the radius of every frequency, flattened, rounded down, and how many each radius has."""
    rings = _radius(height, width, one_sided=one_sided).floor().long().flatten()
    return rings, torch.bincount(rings).clamp_min(1)


@lru_cache(maxsize=16)
def _gaussian(height: int, width: int, sigma: float) -> Tensor:
    radius = _radius(height, width, one_sided=True) * (SIGMA_SIDE / min(height, width))
    return torch.exp(-radius.square() / (2 * sigma**2))


def _radius(height: int, width: int, *, one_sided: bool) -> Tensor:
    """Return distances from frequency 0, in bins of the shorter side, frequency 0 at [0, 0]."""
    side = min(height, width)
    rows = torch.fft.fftfreq(height, dtype=torch.float64) * side
    columns = (torch.fft.rfftfreq if one_sided else torch.fft.fftfreq)(width, dtype=torch.float64) * side
    # Rounding keeps whole radii whole: sqrt(9) must not become 2.999.
    return torch.round(torch.hypot(rows[:, None], columns[None]) * 1e6) / 1e6


PHASE_STD = math.pi / math.sqrt(3)  # of a phase that takes every angle equally often
