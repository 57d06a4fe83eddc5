"""What tests of adversarial and joint training share: pictures, seeds, and the networks at a toy's size."""

from collections import OrderedDict

import torch
from torch import nn

from backend.generators.e4e import LinearPath

SIZE = 32
CHANNELS = {"4": 8, "8": 8, "16": 8, "32": 8}


class SmallEncoder(nn.Module):
    """One convolution, and a head a row, with the interface of e4e's encoder."""

    def __init__(self, size: int, input_size: int, width: float, linear: int, *, early: list, detail: bool) -> None:
        super().__init__()
        self.input_size = input_size
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(2))
        self.styles = nn.ModuleList(nn.Sequential(OrderedDict(linear=nn.Linear(32, 512))) for _ in range(8))

        self.linear = LinearPath(linear) if linear else None

    def initialize(self) -> None:
        """Keep the weights that were drawn."""

    def means(self, pictures):
        """Return what the linear path reads."""
        return pictures

    def base(self, pictures):
        """Return the base code alone."""
        base = self.styles[0](self.stem(pictures).flatten(1))
        if self.linear is None:
            return base
        linear = self.linear(pictures)
        return base + nn.functional.pad(linear, (0, 512 - linear.shape[1]))

    def forward(self, pictures, lacking=0):
        pictures = pictures + lacking
        features = self.stem(pictures).flatten(1)
        base, offsets = self.base(pictures), [head(features) for head in self.styles[1:]]
        return torch.stack([base, *(base + offset for offset in offsets)], dim=1)


class L1(nn.Module):
    """A perceptual distance without a network."""

    def forward(self, first, second):
        return (first - second).abs().flatten(1).mean(1)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 6) -> torch.Tensor:
    return (torch.rand(count, 3, SIZE, SIZE, generator=random()) * 255).byte()
