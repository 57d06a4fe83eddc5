"""NF (Marra et al. 2019, arXiv 1812.11842): correlation of a picture's noise residual with the makers' fingerprints.

A maker is a network that draws whole pictures. The makers of other data sets are left out: averages over a few hundred
of their faces correlate with photographs as much as with their own.
"""

import torch
from torch import Tensor, nn

from backend.detectors.registry import EMBEDDED_SIZE, register_detector
from backend.signals import residual_correlation, wiener_residual

NF_MAKERS = ("reconstruction", "edit", "sample")  # kinds of fakes that our generator draws whole


@register_detector(
    "nf",
    title="NF",
    paper="Marra et al. 2019, arXiv 1812.11842",
    outputs="correlations by source, fake high",
    mean=0.0,
    std=1.0,
    embedded={"sources": NF_MAKERS, "input_size": EMBEDDED_SIZE},
    family="noise",
    order=110,
)
class NoiseFingerprints(nn.Module):
    """One fingerprint for each maker: the mean noise residual of its fakes, at unit power. Nothing is trained."""

    fingerprints: Tensor

    def __init__(self, sources: tuple[str, ...] = NF_MAKERS, input_size: int = 128) -> None:
        super().__init__()
        self.sources = tuple(sources)
        self.register_buffer("fingerprints", torch.zeros(len(self.sources), 3, input_size, input_size))

    def forward(self, faces: Tensor) -> Tensor:
        """Return correlations (N, sources) in [-1, 1] of faces (N, 3, S, S) in [0, 1]."""
        residuals = wiener_residual(faces)
        return torch.stack([residual_correlation(fingerprint, residuals) for fingerprint in self.fingerprints], dim=1)

    @torch.no_grad()
    def normalise(self) -> None:
        """Scale every fingerprint to unit power, which changes no correlation and suits half precision."""
        power = self.fingerprints.square().mean((1, 2, 3), keepdim=True).sqrt()
        self.fingerprints.div_(torch.where(power > 0, power, torch.ones_like(power)))
