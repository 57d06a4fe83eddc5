"""Losses between a drawing and its photograph: pixels, perceptual distance, identity, and sharpened targets.

The perceptual loss is ST-LPIPS (Ghildyal and Liu 2022) of whole faces and of enlarged parts: at the size of a small
face, its AlexNet hardly sees the finest detail. A face and the same face sharpened are equally far from the
photograph for it, though not for the VGG network that measures the result. Parts at twice their size show it that
detail at no further cost.

A drawing fitted to photographs is softer than they are: where a detail's place is uncertain, every distance of pixels
or features is smallest for less of it. Fitted to sharpened photographs, it is about as sharp as they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators import dlib_resnet
from backend.generators.arcface import ARCFACE_ENTRY, find_arcface
from backend.generators.dlib_resnet import INSTALL_IDENTITY
from backend.runtime import device
from backend.similarity import build_st_lpips
from backend.training.degradation import blur_batch
from backend.training.loop import Arithmetic

ENLARGEMENT = 2  # factor by which a part of a face is smaller than the face
SHARPENING_SPREAD = 1.2  # standard deviation of the blur in pixels, as unsharp masks use it
SHARPENING_RADIUS = 3  # of the blur in pixels
ARCFACE_NAME = "ArcFace"
IDENTITY_MISSING = (
    f"{ARCFACE_NAME} was not fetched (python -m backend weights fetch {ARCFACE_ENTRY}), and dlib's network is not "
    f"installed ({INSTALL_IDENTITY})."
)


class PerceptualLoss:
    """A perceptual distance of the first faces of a batch.

    At least one face, and a share `share` of all, is compared; of these, a share `enlarged` in a random part, enlarged
    twofold.
    """

    def __init__(self, share: float, enlarged: float, arithmetic: Arithmetic) -> None:
        self.share, self.enlarged, self.arithmetic = share, enlarged, arithmetic
        self.network = build_perceptual_network().to(arithmetic.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, drawn: Tensor, target: Tensor, randomness: torch.Generator) -> Tensor:
        """Return the mean distance of drawings from photographs, both (N, 3, S, S) in [-1, 1]; differentiable."""
        count = max(1, math.ceil(self.share * len(drawn)))
        pair = torch.cat([drawn[:count], target[:count]], dim=1)
        order = torch.randperm(count, generator=randomness, device=pair.device)
        parts = order[: round(self.enlarged * count)]
        if len(parts):
            pair = torch.cat([pair[order[len(parts) :]], enlarge_parts(pair[parts], randomness)])
        halves = (half.contiguous(memory_format=torch.channels_last) for half in pair.chunk(2, dim=1))
        with self.arithmetic.autocast():
            distances: Tensor = self.network(*halves)
        return distances.mean()


def enlarge_parts(pictures: Tensor, randomness: torch.Generator) -> Tensor:
    """Return a random square of half the side of each picture (N, C, S, S), enlarged to (N, C, S, S)."""
    size = pictures.shape[-1]
    parts = random_squares(pictures, size // ENLARGEMENT, randomness)
    return F.interpolate(parts, size=(size, size), mode="bilinear", align_corners=False)


def build_perceptual_network() -> Any:
    """Return the network on AlexNet, its first convolution joined with the low-pass filter that follows it.

    Both are linear, and every second value of the result is kept. So one convolution with a larger window gives the
    same result in a quarter of the time, except at the border, where the filter alone would see its input mirrored.
    """
    network: Any = build_st_lpips("alex")
    first = network.net.slice1
    convolution, low_pass = first[0], first[1]
    first[0], first[1] = join_filter(convolution, low_pass.filt[0, 0], low_pass.pad_sizes[0]), nn.Identity()
    return network


def join_filter(convolution: nn.Conv2d, kernel: Tensor, padding: int) -> nn.Conv2d:
    """Return one frozen convolution of stride 2 for a convolution of stride 1 and a filter of stride 2 after it.

    Args:
        convolution: With a bias.
        kernel: (K, K), symmetric and summing to 1, for every channel.
        padding: Of the filter in pixels; values outside the picture count as 0 before the convolution.
    """
    weight = convolution.weight.detach()
    side = kernel.shape[-1]
    spread = F.conv2d(weight.flatten(0, 1)[:, None], kernel[None, None].to(weight), padding=side - 1)
    window = weight.shape[-1] + side - 1
    joined = nn.Conv2d(weight.shape[1], weight.shape[0], window, 2, int(convolution.padding[0]) + padding)
    joined.requires_grad_(requires_grad=False)
    joined.weight.copy_(spread.view(*weight.shape[:2], window, window))
    assert joined.bias is not None
    assert convolution.bias is not None
    joined.bias.copy_(convolution.bias)
    return joined


@dataclass(frozen=True)
class FaceEmbedding:
    name: str
    embed: Callable[[Tensor], Tensor]  # from faces (N, 3, S, S) in [0, 1] to vectors (N, D); differentiable

    def distance(self, drawn: Tensor, target: Tensor) -> Tensor:
        """Return half the mean squared distance of the vectors of faces (N, 3, S, S) in [-1, 1].

        For ArcFace's unit vectors this is 1 - cosine. dlib's vectors of one person are up to 0.6 apart, which is 0.18
        here.
        """
        a, b = (self.embed((pictures + 1) / 2) for pictures in (drawn, target))
        return (a - b).square().sum(1).mean() / 2


def find_face_embedding(template: str) -> FaceEmbedding | None:
    """Return the best network on this machine for faces aligned as `template`, or None."""
    arcface = find_arcface()
    if arcface is not None:
        return FaceEmbedding(ARCFACE_NAME, lambda faces: arcface(faces, template))
    if dlib_resnet.dlib_resnet_path() is None:
        return None
    dlib = dlib_resnet.load_dlib_resnet().to(device())
    return FaceEmbedding("dlib ResNet v1", lambda faces: dlib(dlib_resnet.cut_dlib_chips(faces, template)))


def sharpen_pictures(pictures: Tensor, amount: float) -> Tensor:
    """Apply an unsharp mask to pictures (N, C, S, S): add `amount` times their difference from a Gaussian blur."""
    return pictures + amount * (pictures - blur_batch(pictures, SHARPENING_SPREAD, SHARPENING_RADIUS))


def picture_losses(drawn: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the mean absolute and squared difference of two batches of pictures."""
    return {"l1": F.l1_loss(drawn, target), "l2": F.mse_loss(drawn, target)}


def random_squares(pictures: Tensor, side: int, randomness: torch.Generator) -> Tensor:
    """Return a square (N, C, side, side) at a random place of each picture (N, C, S, S)."""
    size, device = pictures.shape[-1], pictures.device
    if side == size:
        return pictures
    corners = torch.randint(size - side + 1, (len(pictures), 2), generator=randomness, device=device).tolist()
    squares = [
        picture[:, top : top + side, left : left + side] for picture, (top, left) in zip(pictures, corners, strict=True)
    ]
    return torch.stack(squares)
