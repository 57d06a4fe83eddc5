"""How alike two pictures are: PSNR, SSIM and LPIPS."""

import numpy as np
import torch
from torch import Tensor

from backend.evaluate.metrics.metric import Metric
from backend.perceptual import build_lpips, lpips_missing
from backend.runtime import loaded

SMALLEST = 32  # pixels; below, AlexNet's last feature map is empty


def psnr(original: np.ndarray, other: np.ndarray) -> float | None:
    """Return the peak signal-to-noise ratio in dB of two uint8 pictures (H, W, 3); None where they are equal."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(original, other):
        return None
    return float(peak_signal_noise_ratio(original, other, data_range=255))


def ssim(original: np.ndarray, other: np.ndarray) -> float:
    """Return the structural similarity in [-1, 1] of two uint8 pictures (H, W, 3), windows of 7 pixels."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(original, other, channel_axis=2, data_range=255))


def lpips(original: Tensor, other: Tensor) -> Tensor:
    """Return the perceptual distance LPIPS (AlexNet, version 0.1), (N,) from 0.

    Args:
        original: (N, 3, H, W) in [0, 1], at least 32 pixels wide and high.
        other: The same.

    Raises:
        RuntimeError: `lpips_missing` says why it cannot be measured.
    """
    reason = lpips_missing()
    if reason:
        raise RuntimeError(reason)
    network = loaded("lpips alex", build_lpips)
    with torch.no_grad():
        return network(original, other, normalize=True).flatten()


METRICS = (
    Metric(
        "psnr",
        "PSNR",
        "dB",
        "higher",
        "How little the pixels changed; above 40 dB it is hard to see, below 30 dB it is often plain.",
        "scikit-image; TR-Net, arXiv 2203.11433, table 4",
        psnr,
    ),
    Metric(
        "ssim",
        "SSIM",
        "",
        "higher",
        "How well local structure is kept; 1 is an equal picture.",
        "Wang et al. 2004, IEEE TIP 13(4); scikit-image",
        ssim,
    ),
    Metric(
        "lpips",
        "LPIPS (AlexNet)",
        "",
        "lower",
        "How different two pictures look to a network that was fitted to people's judgements; 0 is equal.",
        "Zhang et al. 2018, arXiv 1801.03924; package lpips",
        lpips,
        lpips_missing,
    ),
)
