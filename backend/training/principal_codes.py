"""Latent codes that photographs have before any encoder exists: their principal components.

A generator learns far faster from codes that already say what is in the picture than together with an encoder
that does not know it yet (the idea of Bojanowski et al. 2018, section 3: one latent a picture, started from
principal components). The encoder learns the same codes afterwards, and offsets to them.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 32  # side in pixels of what the components see
BLOCK = 512  # pictures at a time
LARGE = 0.9  # of the largest


class PrincipalCodes(nn.Module):
    """A linear map from faces to codes; its tensors belong to a checkpoint.

    Args:
        code: Length of a code.
        power: Exponent that evens out the components' spreads: 0 leaves them, 1 makes them equal.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, code: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("mean", torch.zeros(3 * SIZE * SIZE))
        self.register_buffer("basis", torch.zeros(3 * SIZE * SIZE, code))

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> "PrincipalCodes":
        """Find the components of uint8 pictures (N, 3, S, S) and of their mirror images; return itself."""
        flat = torch.cat([_flat(block) for block in pictures.split(BLOCK)])
        mirrored = flat.view(-1, 3, SIZE, SIZE).flip(3).flatten(1)
        mean = (flat.mean(0) + mirrored.mean(0)) / 2
        covariance = sum((part - mean).t() @ (part - mean) for part in (flat, mirrored)) / (2 * len(flat))
        values, vectors = torch.linalg.eigh(covariance)
        count = self.basis.shape[1]
        spread = values.flip(0)[:count].clamp_min(1e-8).sqrt()
        basis = vectors.flip(1)[:, :count]
        # A sign that is always the same: of the first large entry, for the largest may have an opposite in the mirror.
        large = (basis.abs() >= LARGE * basis.abs().amax(0, keepdim=True)).to(torch.uint8)
        basis = basis * basis.gather(0, large.argmax(0, keepdim=True)).sign()
        scaled = basis * spread**-self.power
        codes_spread = (spread ** (1 - self.power)).square().mean().sqrt()
        self.mean.copy_(mean)
        self.basis.copy_(scaled / codes_spread)
        return self

    def forward(self, faces: Tensor) -> Tensor:
        """Return codes (N, code), of unit mean square on the fitted pictures, for faces (N, 3, S, S) in [-1, 1]."""
        small = faces if faces.shape[-1] == SIZE else F.interpolate(faces, size=(SIZE, SIZE), mode="area")
        return (small.flatten(1) - self.mean) @ self.basis


def load(path: Path) -> PrincipalCodes:
    """Read the codes that a generator's run left beside it."""
    tensors = load_file(path)
    codes = PrincipalCodes(tensors["basis"].shape[1], 0.0)
    codes.load_state_dict(tensors)
    return codes


def _flat(pictures: Tensor) -> Tensor:
    faces = pictures.float() / 127.5 - 1
    return F.interpolate(faces, size=(SIZE, SIZE), mode="area").flatten(1)
