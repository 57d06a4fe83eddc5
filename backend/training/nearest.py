"""The photograph that is nearest to a generated face, where no photograph is its origin."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend.training.datasets import Photographs

SIDE = 32  # pixels
SPACE = f"nearest by L2 on {SIDE}x{SIDE} pixels"  # the papers name no space


class Nearest:
    """Finds the nearest of many photographs by the Euclidean distance of pictures shrunk to 32x32 pixels."""

    def __init__(self, photographs: Photographs) -> None:
        self.names = photographs.names
        self.features = torch.cat([_features(block) for block in photographs.pictures.split(512)])
        self.lengths = self.features.square().sum(1)

    def index(self, picture: Tensor) -> int:
        """Return the place of the photograph nearest to a picture, uint8 (3, S, S); the first of equals."""
        one = _features(picture[None])[0]
        return int((self.lengths - 2 * self.features @ one).argmin())

    def name(self, picture: np.ndarray) -> str:
        """Return the name of the photograph nearest to a picture, uint8 (S, S, 3); the first of equals."""
        return self.names[self.index(torch.from_numpy(np.array(picture)).permute(2, 0, 1))]


def _features(pictures: Tensor) -> Tensor:
    """Return (N, 3 * 32 * 32), around zero, of uint8 pictures (N, 3, S, S)."""
    return F.adaptive_avg_pool2d(pictures.float() / 255 - 0.5, SIDE).flatten(1)
