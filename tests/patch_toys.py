"""A detector that reads the contrast in one patch only, and a face that it calls fake."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.base import Card, Detector

SIZE = 64
CONTRAST = 0.1  # so little that an attack within 16 of 255 grey levels can remove it
TINT = 0.2
PATCH = (slice(16, 32), slice(32, 48))  # two by two cells of SOBOL's grid


class PatchContrast(nn.Module):
    """One logit: slope * (mean squared contrast in the patch - threshold)."""

    def __init__(self, slope: float, threshold: float, size: int) -> None:
        super().__init__()
        patch = torch.zeros(1, 1, size, size)
        patch[..., PATCH[0], PATCH[1]] = 1
        self.register_buffer("patch", patch)
        self.features = nn.Conv2d(1, 1, 1, bias=False)  # for Grad-CAM: the contrast as it is
        nn.init.ones_(self.features.weight)
        self.slope, self.threshold = slope, threshold
        self.calls = self.images = 0  # what it was asked

    def forward(self, images: Tensor) -> Tensor:
        self.calls, self.images = self.calls + 1, self.images + len(images)
        grey = images.mean(1, keepdim=True)
        contrast = (grey - F.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)).square() * self.patch
        return self.slope * (self.features(contrast).sum((2, 3)) / self.patch.sum() - self.threshold)


def patch_detector(slope: float = 3000.0, threshold: float = 0.0008, size: int = SIZE) -> Detector:
    card = Card(
        name="patch",
        title="Patch",
        paper="",
        weights="patch",
        input_size=size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        outputs="one logit, fake high",
        cam_layer="features",
        trained_on="",
        licence="",
        errors=(),
        known_failures="",
    )
    return Detector(PatchContrast(slope, threshold, size), card).eval()


def untextured(size: int = SIZE) -> Tensor:
    """Return the face without the chessboard, which the detector calls real: a perfect adversarial image."""
    return face(size, textured=False)


def face(size: int = SIZE, *, textured: bool = True) -> Tensor:
    """Return smooth colours (1, 3, S, S) with a chessboard in the patch, which the detector calls fake."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    picture = torch.stack([0.3 + 0.3 * x, 0.3 + 0.3 * y, 0.45 + 0.2 * (6 * x).sin() * (6 * y).cos()])[None]
    picture[:, 0, PATCH[0], PATCH[1]] += TINT  # makes the patch one segment, and leaves its grey as it is
    picture[:, 2, PATCH[0], PATCH[1]] -= TINT
    if textured:
        chessboard = ((torch.arange(size)[:, None] + torch.arange(size)) % 2).float() - 0.5
        picture[..., PATCH[0], PATCH[1]] += CONTRAST * chessboard[PATCH]
    return picture


def in_patch(saliency: Tensor) -> bool:
    """Say whether the middle of a map's highest place (H, W) lies in the patch; a segment is one place."""
    row, column = (saliency >= saliency.max() * (1 - 1e-6)).nonzero().double().mean(0).tolist()
    return PATCH[0].start <= row < PATCH[0].stop and PATCH[1].start <= column < PATCH[1].stop
