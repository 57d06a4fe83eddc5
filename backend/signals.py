"""Noise residuals, fingerprints and spectra of pictures; all differentiable.

Wiener residual, fingerprint and correlation: Marra et al. 2019, sections 3 and 4, as used by TR-Net (Liu et al. 2022,
arXiv 2203.11433, equations 2 and 3). SRM: three filters of Fridrich and Kodovsky 2012, in the form of Zhou et al. 2018,
section 3.2. Spectra: TR-Net, section 4, equations 4 and 5 (amplitude and phase), 8 and 9 (Gaussian filters) and 10
(power spectral density); they are not normalised, so the value at frequency 0 is the sum of the pixels.
"""

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend.images import GREY

WIENER_WINDOW = 3  # side in pixels of the neighbourhood of the Wiener filter
SRM_LIMIT = 3.0  # responses are cut off here
SRM_KERNELS = torch.tensor(
    [
        [[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]],
        [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ],
    dtype=torch.float32,
) / torch.tensor([4.0, 12.0, 2.0]).view(3, 1, 1)
FINGERPRINT_BATCH = 128
POWER_FLOOR = 1e-8  # added to a power before its logarithm
ROUNDING_VARIANCE = sum(weight**2 for weight in GREY) / 12 / 255**2  # variance of the brightness after rounding
FILTER_SIGMA = 20.0  # of the Gaussian filters, in frequency bins of a picture of 128 pixels; as a blur of 1.02 pixels
FILTER_SIGMA_SIDE = 128
SKIPPED_SHARE = 0.1  # of the profile's lowest frequencies, which the released code leaves out
PHASE_STD = math.pi / math.sqrt(3)  # of a phase that takes every angle equally often


def wiener_residual(images: Tensor) -> Tensor:
    """Subtract from every channel its Wiener estimate (Lim 1990; `scipy.signal.wiener` with a 3x3 window).

    The noise power is the mean local variance of the channel. Beyond the border lie zeros, as in scipy. A channel
    that is zero everywhere has a residual of zero, where scipy divides by zero.

    The pictures (N, C, H, W) have any range; the residual has their shape and scales with them.
    """
    mean = _window_mean(images)
    variance = (_window_mean(images.square()) - mean.square()).clamp_min(0)
    noise = variance.mean((-2, -1), keepdim=True)
    # Where the variance is below the noise the estimate is the local mean, elsewhere it moves towards the pixel.
    floor = torch.finfo(images.dtype).tiny
    return (images - mean) * noise / torch.maximum(variance, noise).clamp_min(floor)


def srm_residuals(images: Tensor) -> Tensor:
    """Return three SRM noise maps (N, 3, H, W) in [-3, 3] of pictures (N, 3, H, W) in [0, 1].

    Each filter is summed over the three colours; beyond the border lie zeros.
    """
    kernels = SRM_KERNELS.to(images)[:, None].expand(3, 3, 5, 5)
    return F.conv2d(images, kernels, padding=2).clamp(-SRM_LIMIT, SRM_LIMIT)


def residual_correlation(fingerprint: Tensor, residuals: Tensor) -> Tensor:
    """Return the normalised correlation (N,) in [-1, 1] of a fingerprint (C, H, W) with residuals (N, C, H, W).

    No mean is subtracted. The correlation is 0 where either has no energy.
    """
    pattern, flat = fingerprint.flatten(), residuals.flatten(1)
    energy = pattern.square().sum() * flat.square().sum(1)
    return (flat @ pattern) / torch.where(energy > 0, energy, torch.ones_like(energy)).sqrt()


def _window_mean(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, WIENER_WINDOW, stride=1, padding=WIENER_WINDOW // 2)


@torch.no_grad()
def measure_fingerprint(images: Tensor) -> Tensor:
    """Return the mean Wiener residual (3, S, S) of uint8 pictures (N, 3, S, S), in values of [0, 1] (eq. 2)."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    for part in images.split(FINGERPRINT_BATCH):
        total += wiener_residual(part.float() / 255).sum(0, dtype=torch.float64)
    return (total / len(images)).float()


@torch.no_grad()
def fingerprint_correlations(images: Tensor, fingerprints: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the correlation (N,) in [-1, 1] of uint8 pictures (N, 3, S, S) with each fingerprint (eq. 3)."""
    correlations: dict[str, list[Tensor]] = {name: [] for name in fingerprints}
    for part in images.split(FINGERPRINT_BATCH):
        residuals = wiener_residual(part.float() / 255)
        for name, fingerprint in fingerprints.items():
            correlations[name].append(residual_correlation(fingerprint, residuals))
    return {name: torch.cat(parts) for name, parts in correlations.items()}


def brightness(images: Tensor) -> Tensor:
    """Return the brightness (N, H, W) of colour pictures (N, 3, H, W), in their range."""
    weights = torch.tensor(GREY, dtype=images.dtype, device=images.device)
    return (images * weights.view(3, 1, 1)).sum(1)


def log_power(images: Tensor, floor: float = POWER_FLOOR) -> Tensor:
    """Return ln(|F|^2 + floor) of the brightness, (N, H, W), frequency 0 at [0, 0], from (N, 3, H, W) in [0, 1]."""
    return torch.log(_power(torch.fft.fft2(brightness(images))) + floor)


def rounding_power(height: int, width: int) -> float:
    """Return the |F|^2 of the brightness that rounding to 8 bits adds to every frequency of a picture in [0, 1].

    Anything weaker is lost when the picture is saved, but the gradients of its logarithm and phase are unbounded.
    """
    return ROUNDING_VARIANCE * height * width


def phase_spectrum(images: Tensor) -> Tensor:
    """Return the phase (N, H, W) in (-pi, pi] of the brightness of (N, 3, H, W), frequency 0 at [0, 0].

    Where a frequency is absent, the phase and its gradient are 0; arctan(b / a) of eq. 5 would lose the quadrant.
    """
    spectrum = torch.fft.fft2(brightness(images))
    present = _power(spectrum.detach()) > POWER_FLOOR
    real = torch.where(present, spectrum.real, torch.ones_like(spectrum.real))
    imaginary = torch.where(present, spectrum.imag, torch.zeros_like(spectrum.imag))
    return torch.atan2(imaginary, real)


def amplitude_spectrum(images: Tensor) -> Tensor:
    """Return |F| (N, H, W) of the brightness of (N, 3, H, W), frequency 0 at [0, 0]; as eq. 4, no logarithm."""
    return (_power(torch.fft.fft2(brightness(images))) + POWER_FLOOR).sqrt()


def radial_psd(images: Tensor) -> Tensor:
    """Return the power (N, M // 2) averaged over angle for the radii k = 0 .. M / 2 - 1 (eq. 10).

    The pictures are (N, 3, H, W) in [0, 1], and M is the shorter side. The power is |F|^2 divided by the number of
    pixels, so that white noise of variance v has v at every radius.
    """
    height, width = images.shape[-2:]
    power = _power(torch.fft.fft2(brightness(images))) / (height * width)
    return _radial_mean(power, *_rings(height, width, one_sided=False))[:, : min(height, width) // 2]


def radial_psd_as_coded(images: Tensor) -> Tensor:
    """Return the released code's profile (N, K): decibels of one half of the spectrum, averaged, scaled to [0, 1].

    K is 91 for 128 pixels: the radii reach into the corner. The scaling is by each picture's own smallest and
    largest value.
    """
    height, width = images.shape[-2:]
    spectrum = torch.fft.rfft2(brightness(images))
    decibels = 20 * torch.log(_power(spectrum) + POWER_FLOOR)
    profile = _radial_mean(decibels, *_rings(height, width, one_sided=True))
    low, high = profile.amin(1, keepdim=True), profile.amax(1, keepdim=True)
    return (profile - low) / (high - low).clamp_min(POWER_FLOOR)


def without_lowest_radii(profile: Tensor) -> Tensor:
    """Return a profile (N, K) without the first tenth of its radii, as the released code compares it."""
    return profile[:, int(SKIPPED_SHARE * profile.shape[1]) :]


def split_frequencies(images: Tensor, sigma: float = FILTER_SIGMA) -> tuple[Tensor, Tensor]:
    """Return low and high frequencies of (N, C, H, W) in any range; they add up to the picture (eq. 8 and 9).

    `sigma` is that of the Gaussian exp(-(u^2 + v^2) / (2 sigma^2)) on the centred spectrum, in bins of a picture of 128
    pixels. The paper does not give it; s pixels of spatial blur are 128 / (2 pi s) bins.
    """
    height, width = images.shape[-2:]
    keep = _gaussian_filter(height, width, sigma).to(images)
    low = torch.fft.irfft2(keep * torch.fft.rfft2(images), s=(height, width))
    return low, images - low


def gaussian_blur(images: Tensor, side: int, sigma: float) -> Tensor:
    """Return (N, C, H, W) after a Gaussian of `side` x `side` pixels, edges mirrored; sigma in pixels."""
    channels, reach = images.shape[1], side // 2
    kernel = gaussian_kernel(side, sigma).to(images).expand(channels, 1, side, side)
    return F.conv2d(F.pad(images, (reach, reach, reach, reach), mode="reflect"), kernel, groups=channels)


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.real.square() + spectrum.imag.square()


def _radial_mean(values: Tensor, rings: Tensor, counts: Tensor) -> Tensor:
    sums = values.new_zeros(len(values), len(counts)).index_add(1, rings.to(values.device), values.flatten(1))
    return sums / counts.to(values)


@lru_cache(maxsize=16)
def _rings(height: int, width: int, *, one_sided: bool) -> tuple[Tensor, Tensor]:
    """Return the radius of every frequency, rounded down and flattened, and the number of frequencies at each."""
    rings = _radius(height, width, one_sided=one_sided).floor().long().flatten()
    return rings, torch.bincount(rings).clamp_min(1)


@lru_cache(maxsize=16)
def _gaussian_filter(height: int, width: int, sigma: float) -> Tensor:
    radius = _radius(height, width, one_sided=True) * (FILTER_SIGMA_SIDE / min(height, width))
    return torch.exp(-radius.square() / (2 * sigma**2))


def _radius(height: int, width: int, *, one_sided: bool) -> Tensor:
    """Return distances from frequency 0, in bins of the shorter side, frequency 0 at [0, 0]."""
    side = min(height, width)
    rows = torch.fft.fftfreq(height, dtype=torch.float64) * side
    columns = (torch.fft.rfftfreq if one_sided else torch.fft.fftfreq)(width, dtype=torch.float64) * side
    # Rounding keeps whole radii whole: sqrt(9) must not become 2.999.
    return torch.round(torch.hypot(rows[:, None], columns[None]) * 1e6) / 1e6


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix, float32 (size, size): row k holds the cosine of frequency k."""
    return _dct_rows(size).clone()


@lru_cache(maxsize=8)
def _dct_rows(size: int) -> Tensor:
    index = np.arange(size)
    rows = np.cos(np.pi * index[:, None] * (index[None, :] + 0.5) / size) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return torch.from_numpy(rows.astype(np.float32))


def dct2(images: Tensor) -> Tensor:
    """Return the orthonormal DCT-II along both axes of (..., H, W); coefficient [0, 0] is the mean times sqrt(HW)."""
    height, width = map(int, images.shape[-2:])  # plain numbers, also while a network is traced
    rows, columns = dct_matrix(height).to(images), dct_matrix(width).to(images)
    return rows @ images.contiguous() @ columns.T


def gaussian_kernel(side: int, sigma: float) -> Tensor:
    """Return a Gaussian (side, side) that sums to 1; sigma in pixels."""
    place = torch.arange(side) - (side - 1) / 2
    line = torch.exp(-place.square() / (2 * sigma**2))
    line = line / line.sum()
    return line[:, None] * line[None]
