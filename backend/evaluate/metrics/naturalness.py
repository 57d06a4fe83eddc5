"""How natural a picture looks by itself: total variation and estimated noise level; no reference is needed."""

import numpy as np
import torch
from torch import Tensor

from backend.evaluate.metrics.base import register_metric

PATCH, STRIDE = 8, 3
SOURCE = "Dong et al. 2024 (Artifact-Eraser), arXiv 2404.08341, section 4, as in its code"


@register_metric(
    "tv",
    "Total variation",
    unit="squared grey levels (0 to 255)",
    better="lower",
    sentence="How much neighbouring pixels differ; visible attack noise raises it.",
    source=SOURCE,
)
def total_variation(images: Tensor) -> Tensor:
    """Return the mean squared difference (N,) of neighbouring pixels of images (N, 3, H, W) in [0, 1]."""
    values = images.double() * 255
    _, channels, height, width = values.shape
    vertical = (values[:, :, 1:] - values[:, :, :-1]).square().sum((1, 2, 3)) / ((height - 1) * width * channels)
    horizontal = (values[..., 1:] - values[..., :-1]).square().sum((1, 2, 3)) / (height * (width - 1) * channels)
    return vertical + horizontal


@register_metric(
    "esnle",
    "Estimated noise level (ESNLE)",
    unit="grey levels (0 to 255)",
    better="lower",
    sentence="How strong the noise in the picture is, estimated from the picture alone.",
    source="Chen, Zhu and Heng 2015, ICCV, algorithm 1; " + SOURCE,
)
def noise_level(images: Tensor) -> Tensor:
    """Return the estimated standard deviation of the noise (N,) of images (N, 3, H, W) in [0, 1], H and W at least 8.

    The eigenvalues of the covariance of all 8 x 8 x 3 patches are those of the picture plus those of the noise. The
    largest are dropped one by one, until the mean of the rest is their median: what is left is noise alone.
    """
    return torch.tensor([_noise_level(image) for image in images], dtype=torch.float64)


def _noise_level(image: Tensor) -> float:
    patches = image.double().unfold(1, PATCH, STRIDE).unfold(2, PATCH, STRIDE)  # (3, rows, columns, 8, 8)
    vectors = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * PATCH * PATCH)
    centred = vectors - vectors.mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / len(centred)).flip(0).clamp_min(0).numpy()
    for first in range(len(eigenvalues)):
        rest = eigenvalues[first:]
        level = rest.mean()
        if (rest > level).sum() == (rest < level).sum():
            return float(np.sqrt(level) * 255)
    raise AssertionError("the last eigenvalue alone equals its mean")
