"""Noise fingerprints: what the residuals of one source have in common (Marra et al. 2019; TR-Net, section 3.3)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from backend import residuals

BATCH = 128


@torch.no_grad()
def fingerprint(images: Tensor) -> Tensor:
    """Return the mean Wiener residual (3, S, S) of uint8 pictures (N, 3, S, S), in values of [0, 1] (eq. 2)."""
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    for part in images.split(BATCH):
        total += residuals.wiener_residual(part.float() / 255).sum(0, dtype=torch.float64)
    return (total / len(images)).float()


@torch.no_grad()
def correlations(images: Tensor, fingerprints: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the correlation (N,) in [-1, 1] of uint8 pictures (N, 3, S, S) with each fingerprint (eq. 3)."""
    found: dict[str, list[Tensor]] = {name: [] for name in fingerprints}
    for part in images.split(BATCH):
        noise = residuals.wiener_residual(part.float() / 255)
        for name, one in fingerprints.items():
            found[name].append(residuals.correlation(one, noise))
    return {name: torch.cat(parts) for name, parts in found.items()}
