"""The perceptual loss of encoder training: ST-LPIPS (Ghildyal and Liu 2022) of whole faces and of enlarged parts.

At the size of a small face, its AlexNet hardly sees the finest detail: a face and the same face sharpened are equally
far from the photograph for it, though not for the VGG network that measures the result. Parts of faces at twice their
size show it that detail at no further cost.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.perceptual import build_st_lpips
from backend.training.adversary import Arithmetic
from backend.training.generator import random_squares

ENLARGED = 2  # how often larger a part is shown; its side is that much smaller than the face's


class PerceptualLoss:
    """A perceptual distance of some faces of a batch.

    Args:
        share: Of the faces of a batch, that are compared: the first ones, and one at least.
        enlarged: Of those, that are compared in a random part, twice as large.
        arithmetic: How to compute.
    """

    def __init__(self, share: float, enlarged: float, arithmetic: Arithmetic) -> None:
        self.share, self.enlarged, self.arithmetic = share, enlarged, arithmetic
        self.network = network().to(arithmetic.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, drawn: Tensor, wanted: Tensor, randomness: torch.Generator) -> Tensor:
        """Return the mean distance of drawings from photographs, both (N, 3, S, S) in [-1, 1]; differentiable."""
        seen = max(1, math.ceil(self.share * len(drawn)))
        pair = torch.cat([drawn[:seen], wanted[:seen]], dim=1)
        some = torch.randperm(seen, generator=randomness, device=pair.device)
        parts = some[: round(self.enlarged * seen)]
        if len(parts):
            pair = torch.cat([pair[some[len(parts) :]], enlarged_parts(pair[parts], randomness)])
        one, other = (half.contiguous(memory_format=torch.channels_last) for half in pair.chunk(2, dim=1))
        with self.arithmetic.narrow():
            distances: Tensor = self.network(one, other)
        return distances.mean()


def enlarged_parts(pictures: Tensor, randomness: torch.Generator) -> Tensor:
    """Return a random square of half the side of each picture (N, C, S, S), enlarged to (N, C, S, S)."""
    size = pictures.shape[-1]
    parts = random_squares(pictures, size // ENLARGED, randomness)
    return F.interpolate(parts, size=(size, size), mode="bilinear", align_corners=False)


def network() -> Any:
    """Return the network on AlexNet, its first convolution joined with the low-pass filter that follows it.

    Both are linear and every second value of their result is kept, so one convolution with a larger window gives the
    same in a quarter of the time, but for the outermost values, where the filter alone would see its input mirrored.
    """
    found: Any = build_st_lpips("alex")
    first = found.net.slice1
    convolution, low_pass = first[0], first[1]
    first[0], first[1] = joined(convolution, low_pass.filt[0, 0], low_pass.pad_sizes[0]), nn.Identity()
    return found


def joined(convolution: nn.Conv2d, kernel: Tensor, padding: int) -> nn.Conv2d:
    """Return one frozen convolution of stride 2 for a convolution of stride 1 and a filter of stride 2 after it.

    Args:
        convolution: With a bias.
        kernel: (K, K), symmetric and summing to 1, for every channel.
        padding: Of the filter in pixels; values outside the picture count as 0 before the convolution.
    """
    weight = convolution.weight.detach()
    own, filters = weight.shape[-1], kernel.shape[-1]
    spread = F.conv2d(weight.flatten(0, 1)[:, None], kernel[None, None].to(weight), padding=filters - 1)
    window = own + filters - 1
    whole = nn.Conv2d(weight.shape[1], weight.shape[0], window, 2, int(convolution.padding[0]) + padding)
    whole.requires_grad_(requires_grad=False)
    whole.weight.copy_(spread.view(*weight.shape[:2], window, window))
    assert whole.bias is not None
    assert convolution.bias is not None
    whole.bias.copy_(convolution.bias)
    return whole
