"""Fit the mapping network to the codes that the encoder gives, so that z draws new faces."""

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.generators.stylegan2 import StyleGAN2

PEAK_RATE = 2.0  # the layers of the mapping network divide their weights, and with them every step, by 100


def fit_mapping(generator: StyleGAN2, codes: Tensor, *, steps: int = 3000, batch: int = 256, seed: int = 0) -> float:
    """Train `generator.style` so that normalised z gives the Gaussian with the mean and covariance of `codes`.

    Args:
        generator: Only its mapping network is changed.
        codes: (N, style_dim) base codes of photographs.
        steps: Optimisation steps.
        batch: Latents a step.
        seed: Seed of latents and order.

    Returns:
        The last mean squared error relative to the variance of the codes.
    """
    mean = codes.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(codes.t()))
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    spread = codes.var(0).mean()
    randomness = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        last = generator.style[-1]
        last.bias.copy_(mean / last.lr_mul / 2**0.5)  # type: ignore[union-attr, operator]
    optimizer = torch.optim.Adam(generator.style.parameters(), PEAK_RATE, (0.9, 0.99))
    generator.style.requires_grad_(True)
    relative = float("nan")
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * (1 - number / steps) + 1e-3
        z = torch.randn(batch, codes.shape[1], generator=randomness)
        wanted = mean + F.normalize(z) * codes.shape[1] ** 0.5 @ root
        error = F.mse_loss(generator.mapping(z), wanted) / spread
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
        relative = error.item()
    return relative
