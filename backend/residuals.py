"""Noise residuals of pictures, and how a fingerprint correlates with them: all differentiable.

Wiener residual and correlation: Marra et al. 2019, sections 3 and 4, as used by TR-Net (arXiv 2203.11433, eq. 2
and 3). SRM: three of the filters of Fridrich and Kodovsky 2012, in the form of Zhou et al. 2018, section 3.2.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 3  # side in pixels of the neighbourhood of the Wiener filter
SRM_LIMIT = 3.0  # responses are cut off here
SRM_KERNELS = torch.tensor(
    [
        [[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]],
        [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ],
    dtype=torch.float32,
) / torch.tensor([4.0, 12.0, 2.0]).view(3, 1, 1)


def wiener_residual(images: Tensor) -> Tensor:
    """Subtract from every channel its Wiener estimate (Lim 1990; `scipy.signal.wiener` with a 3x3 window).

    The noise power is the mean local variance of the channel. Beyond the border lie zeros, as in scipy. A channel
    that is zero everywhere has a residual of zero, where scipy divides by zero.

    Args:
        images: (N, C, H, W), any range; the residual scales with it.

    Returns:
        (N, C, H, W).
    """
    mean = _window_mean(images)
    variance = (_window_mean(images.square()) - mean.square()).clamp_min(0)
    noise = variance.mean((-2, -1), keepdim=True)
    # Where the variance is below the noise the estimate is the local mean, elsewhere it moves towards the pixel.
    floor = torch.finfo(images.dtype).tiny
    return (images - mean) * noise / torch.maximum(variance, noise).clamp_min(floor)


def srm(images: Tensor) -> Tensor:
    """Return three SRM noise maps (N, 3, H, W) in [-3, 3] of pictures (N, 3, H, W) in [0, 1].

    Each filter is summed over the three colours; beyond the border lie zeros.
    """
    kernels = SRM_KERNELS.to(images)[:, None].expand(3, 3, 5, 5)
    return F.conv2d(images, kernels, padding=2).clamp(-SRM_LIMIT, SRM_LIMIT)


def correlation(fingerprint: Tensor, residuals: Tensor) -> Tensor:
    """Return the normalised correlation in [-1, 1] of one fingerprint with each residual, no mean subtracted.

    Args:
        fingerprint: (C, H, W).
        residuals: (N, C, H, W).

    Returns:
        (N,); 0 where either has no energy.
    """
    one = fingerprint.flatten()
    many = residuals.flatten(1)
    energy = one.square().sum() * many.square().sum(1)
    return (many @ one) / torch.where(energy > 0, energy, torch.ones_like(energy)).sqrt()


def _window_mean(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, WINDOW, stride=1, padding=WINDOW // 2)
