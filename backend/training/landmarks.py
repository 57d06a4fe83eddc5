"""Five landmarks of faces that are aligned already, thousands at once.

Where a face lies is known in an aligned picture, so of MTCNN (Zhang et al. 2016, section 2.2) only the last network
is needed: it refines the known box once and finds the landmarks in the refined one.
"""

import functools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.training.datasets import Photographs

INPUT = 48  # side in pixels of what the network takes
CENTRE, SIDE = (0.5, 0.53), 0.78  # of a face in an aligned picture, in its widths
MIN_SCORE = 0.7
BLOCK = 256


class Landmarks:
    """Photographs with their landmarks."""

    def __init__(self, photographs: Photographs) -> None:
        self.photographs = photographs
        found = [find(block) for block in photographs.pictures.split(BLOCK)]
        self._points = torch.cat([points for points, _ in found]).double().numpy()
        self._found = torch.cat([scores for _, scores in found]).numpy() >= MIN_SCORE

    def __len__(self) -> int:
        """Return how many photographs there are."""
        return len(self.photographs)

    def name(self, index: int) -> str:
        """Return the name of one photograph."""
        return self.photographs.names[index]

    def picture(self, index: int) -> np.ndarray:
        """Return one photograph as uint8 (size, size, 3)."""
        return self.photographs.pictures[index].permute(1, 2, 0).numpy()

    def of(self, index: int) -> np.ndarray | None:
        """Return (5, 2) landmarks in pixels, or None where no face is found."""
        return self._points[index] if self._found[index] else None


@torch.no_grad()
def find(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return landmarks (N, 5, 2) in pixels and scores (N,) in [0, 1] of aligned uint8 pictures (N, 3, S, S)."""
    count, _, size, _ = pictures.shape
    network = _network()
    values = (pictures.float() - 127.5) / 128
    centre = torch.tensor(CENTRE).expand(count, 2) * size
    side = torch.full((count, 1), SIDE * size)
    shift, _, _ = network(_cut(values, centre, side))
    corners = torch.cat([centre - side / 2, centre + side / 2], 1) + shift * side
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    side = (corners[:, 2:] - corners[:, :2]).max(1, keepdim=True).values
    _, points, scores = network(_cut(values, centre, side))
    places = torch.stack([points[:, :5], points[:, 5:]], 2)
    return centre[:, None] + (places - 0.5) * side[:, None], scores[:, 1]


def _cut(values: Tensor, centre: Tensor, side: Tensor) -> Tensor:
    """Sample the square windows (N, 3, 48, 48) with these centres and sides in pixels; black outside."""
    size = values.shape[-1]
    steps = (torch.arange(INPUT) + 0.5) / INPUT - 0.5
    across = (centre[:, :1] + steps * side) * 2 / size - 1
    down = (centre[:, 1:] + steps * side) * 2 / size - 1
    grid = torch.stack(
        [across[:, None].expand(-1, INPUT, -1), down[:, :, None].expand(-1, -1, INPUT)],
        dim=3,
    )
    return F.grid_sample(values, grid, align_corners=False)


@functools.lru_cache(maxsize=1)
def _network() -> nn.Module:
    from facenet_pytorch.models.mtcnn import ONet

    return ONet().eval().requires_grad_(False)
