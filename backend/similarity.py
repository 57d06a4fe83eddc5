"""Measure how alike two pictures are: PSNR, SSIM, LPIPS and shift-tolerant LPIPS; nothing is downloaded.

LPIPS needs AlexNet's weights from torchvision. Where they are absent, a loss can use ST-LPIPS (Ghildyal and Liu 2022),
whose weights come with its package, and without that package SSIM (Wang et al. 2004), which needs no weights.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend.runtime import device, load_once
from backend.weights import file_hash

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file name carries the first digits of its hash
SSIM_SIDE, SSIM_SIGMA = 11, 1.5  # window (Wang et al. 2004)
SSIM_PRODUCTS = 256  # up to this side in pixels, products with matrices are several times faster than convolutions
SSIM_CONSTANTS = (0.01**2, 0.03**2)  # for the range [0, 1]


@dataclass(frozen=True)
class PerceptualDistance:
    name: str  # for reports
    # From two batches (N, 3, H, W) in [-1, 1], of at least 32 pixels, to (N,) from 0; differentiable.
    distance: Callable[[Tensor, Tensor], Tensor]


def best_perceptual_distance() -> PerceptualDistance:
    """Return the best distance available on this machine: LPIPS, ST-LPIPS, or 1 - SSIM."""
    return load_once("perceptual distance", _choose_distance)


def _choose_distance() -> PerceptualDistance:
    if lpips_missing() is None:
        return _network_distance("LPIPS (AlexNet)", build_lpips())
    if importlib.util.find_spec("stlpips_pytorch") is not None:
        return _network_distance("ST-LPIPS (AlexNet)", build_st_lpips("alex"))
    return PerceptualDistance("1 - SSIM", lambda first, second: 1 - batch_ssim((first + 1) / 2, (second + 1) / 2))


def _network_distance(name: str, network: Any) -> PerceptualDistance:
    network = network.to(device())
    return PerceptualDistance(name, lambda first, second: network(first, second).flatten())


def build_lpips(*, random: bool = False) -> Any:
    """Return the package's network; `random` leaves AlexNet untrained and needs no file."""
    import lpips as package

    network = package.LPIPS(net="alex", version="0.1", pnet_rand=random, verbose=False)
    return network.eval().requires_grad_(requires_grad=False)


def build_st_lpips(name: str) -> Any:
    """Return a shift-tolerant perceptual network; its weights come with the package `stlpips-pytorch`."""
    from stlpips_pytorch import stlpips

    network = stlpips.LPIPS(net=name, variant="shift_tolerant", verbose=False)
    return network.eval().requires_grad_(requires_grad=False)


def lpips_missing() -> str | None:
    """Say why LPIPS cannot be measured here; nothing is downloaded."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not path.is_file():
        return f"LPIPS was not measured: its AlexNet weights ({ALEXNET}, from torchvision) are not on this machine."
    if not file_hash(path).startswith(Path(ALEXNET).stem.rsplit("-", 1)[1]):
        return f"LPIPS was not measured: the file {ALEXNET} is damaged."
    return None


def batch_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity (N,) of pictures in [0, 1], Gaussian windows, edges left out."""
    line = torch.exp(-(torch.arange(SSIM_SIDE) - SSIM_SIDE // 2).square() / (2 * SSIM_SIGMA**2)).to(first)
    line = line / line.sum()
    channels = first.shape[1]

    def local(values: Tensor) -> Tensor:
        if max(values.shape[-2:]) <= SSIM_PRODUCTS:
            down, across = (_windows(line, side) for side in values.shape[-2:])
            return down @ values @ across.T
        values = F.conv2d(values, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(values, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    # One pass over all five moments costs less than five.
    stacked = torch.cat([first, second, first * first, second * second, first * second])
    mean_a, mean_b, square_a, square_b, product = local(stacked).chunk(5)
    c1, c2 = SSIM_CONSTANTS
    variances = square_a - mean_a**2 + square_b - mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).flatten(1).mean(1)


def _windows(line: Tensor, side: int) -> Tensor:
    """Return the matrix (side - K + 1, side) that weighs every K neighbours by `line` (K,)."""
    places = torch.arange(side - len(line) + 1, device=line.device)[:, None]
    matrix = line.new_zeros(len(places), side)
    return matrix.scatter_(1, places + torch.arange(len(line), device=line.device), line.expand(len(places), -1))


def psnr_and_ssim(original: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """Return PSNR in dB (None where no pixel differs) and SSIM in [-1, 1] of two uint8 pictures (H, W, 3)."""
    return {"psnr": picture_psnr(original, other), "ssim": picture_ssim(original, other)}


def picture_psnr(original: np.ndarray, other: np.ndarray) -> float | None:
    """Return the peak signal-to-noise ratio in dB of two uint8 pictures (H, W, 3); None where they are equal."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(original, other):
        return None
    return float(peak_signal_noise_ratio(original, other, data_range=255))


def picture_ssim(original: np.ndarray, other: np.ndarray) -> float:
    """Return the structural similarity in [-1, 1] of two uint8 pictures (H, W, 3), windows of 7 pixels."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(original, other, channel_axis=2, data_range=255))


def batch_lpips(original: Tensor, other: Tensor) -> Tensor:
    """Return the perceptual distance LPIPS (AlexNet, version 0.1), (N,) from 0.

    Both batches are (N, 3, H, W) in [0, 1], at least 32 pixels wide and high.

    Raises:
        RuntimeError: LPIPS cannot be measured; the message is that of `lpips_missing`.
    """
    if reason := lpips_missing():
        raise RuntimeError(reason)
    network = load_once("lpips alex", build_lpips)
    with torch.no_grad():
        return network(original, other, normalize=True).flatten()


def batch_psnr(drawn: Tensor, target: Tensor) -> Tensor:
    """Return the PSNR (N,) in dB of pictures in [0, 1]."""
    return -10 * torch.log10((drawn - target).square().flatten(1).mean(dim=1).clamp_min(1e-10))
