"""The likeness of two pictures (PSNR, SSIM, LPIPS) and of two sets of pictures (kernel inception distance)."""

import numpy as np
from numpy.typing import NDArray

from backend.evaluate.metrics.base import Estimate, mean, register_metric
from backend.similarity import batch_lpips, lpips_missing, picture_psnr, picture_ssim

KID_DRAWS = 10
KID_DEGREE = 3

register_metric(
    "psnr",
    "PSNR",
    unit="dB",
    better="higher",
    sentence="How little the pixels changed; above 40 dB it is hard to see, below 30 dB it is often plain.",
    source="scikit-image; TR-Net, arXiv 2203.11433, table 4",
)(picture_psnr)
register_metric(
    "ssim",
    "SSIM",
    better="higher",
    sentence="How well local structure is kept; 1 is an equal picture.",
    source="Wang et al. 2004, IEEE TIP 13(4); scikit-image",
)(picture_ssim)
register_metric(
    "lpips",
    "LPIPS (AlexNet)",
    better="lower",
    sentence="How different two pictures look to a network that was fitted to people's judgements; 0 is equal.",
    source="Zhang et al. 2018, arXiv 1801.03924; package lpips",
    missing=lpips_missing,
)(batch_lpips)


def kernel_distance(one: NDArray[np.floating], two: NDArray[np.floating]) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets of features, the kernel inception distance.

    The kernel is (x . y / D + 1)^3 (Binkowski et al. 2018, section 4). The features are (N, D) and (M, D) with N and
    M > 1. Equal distributions give 0 on average, so a single value can be slightly negative.
    """

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x @ y.T / x.shape[1] + 1) ** KID_DEGREE

    def within(x: NDArray[np.float64]) -> float:
        values = kernel(x, x)
        return float((values.sum() - np.trace(values)) / (len(x) * (len(x) - 1)))

    first, second = one.astype(np.float64), two.astype(np.float64)
    return within(first) + within(second) - 2 * float(kernel(first, second).mean())


def kernel_distance_of_draws(
    one: NDArray[np.floating], two: NDArray[np.floating], size: int, seed: int = 0, draws: int = KID_DRAWS
) -> Estimate:
    """Return the mean and standard deviation of the distance over seeded draws of `size` rows from each set."""
    generator = np.random.default_rng(seed)
    return mean(
        kernel_distance(*(rows[generator.choice(len(rows), size, replace=False)] for rows in (one, two)))
        for _ in range(draws)
    )
