"""StyleGAN2's residual discriminator (Karras et al. 2020, section 4.1 and appendix B)."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators.modulated import BiasedLeakyReLU, EqualLinear, binomial_kernel, filtered
from backend.generators.stylegan2 import default_channels

GROUP = 4  # pictures whose spread is compared
LEAST_CHANNELS = 8


class EqualConv2d(nn.Module):
    """Convolution with the equalised learning rate of Karras et al. 2018; with stride 2 the input is filtered first."""

    kernel: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, *, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.scale = 1 / math.sqrt(inputs * size**2)
        self.size, self.down = size, down
        if down:
            self.register_buffer("kernel", binomial_kernel(gain=1.0))

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        weight = (self.weight * self.scale).to(features.dtype)
        if not self.down:
            return F.conv2d(features, weight, padding=self.size // 2)
        if self.size == 1:  # what it does not read need not be filtered
            return F.conv2d(filtered(features, self.kernel, padding=1, stride=2), weight)
        return F.conv2d(filtered(features, self.kernel, padding=2), weight, stride=2)


class Block(nn.Module):
    """Two convolutions, the second of which halves the size, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.activate1 = EqualConv2d(inputs, inputs, 3), BiasedLeakyReLU(inputs)
        self.conv2, self.activate2 = EqualConv2d(inputs, outputs, 3, down=True), BiasedLeakyReLU(outputs)
        self.shortcut = EqualConv2d(inputs, outputs, 1, down=True)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        branch = self.activate2(self.conv2(self.activate1(self.conv1(features))))
        return (branch + self.shortcut(features)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Pictures to one logit, high for photographs.

    Args:
        size: Largest side of the pictures in pixels, a power of two; smaller ones enter at their own block.
        width: Factor on the published channels.
    """

    def __init__(self, size: int, width: float = 1.0) -> None:
        super().__init__()
        table = default_channels(2)
        channels = {side: max(LEAST_CHANNELS, round(table[side] * width)) for side in table if side <= size}
        self.from_rgbs, self.blocks = nn.ModuleDict(), nn.ModuleDict()
        for side in sorted(channels)[1:]:
            first = nn.Sequential(EqualConv2d(3, channels[side], 1), BiasedLeakyReLU(channels[side]))
            self.from_rgbs[str(side)] = first
            self.blocks[str(side)] = Block(channels[side], channels[side // 2])
        last = channels[4]
        self.conv, self.activate = EqualConv2d(last + 1, last, 3), BiasedLeakyReLU(last)
        self.linear = nn.Sequential(EqualLinear(16 * last, last, activate=True), EqualLinear(last, 1))

    def forward(self, pictures: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return logits (N,) of pictures (N, 3, S, S) in [-1, 1]; down to 4 pixels, features are of `dtype`."""
        side = pictures.shape[-1]
        features = self.from_rgbs[str(side)](pictures.to(dtype).contiguous(memory_format=torch.channels_last))
        while side > 4:
            features = cast(Tensor, self.blocks[str(side)](features))
            side //= 2
        features = self.activate(self.conv(with_spread(features.float())))
        return self.linear(features.flatten(1)).squeeze(1)


def with_spread(features: Tensor) -> Tensor:
    """Append to features (N, C, H, W) one channel with the mean deviation within groups of pictures.

    A generator that always draws the same is told by it (Karras et al. 2018, section 3).
    """
    count, channels, height, width = features.shape
    group = GROUP if count % GROUP == 0 else count
    groups = features.view(group, count // group, channels, height, width)
    deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([features, deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)], dim=1)
