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

from backend import weights
from backend.evaluate.metrics.identity import ARCFACE_SIDE, INSTALL_IDENTITY, crop_for_recognition
from backend.generators import dlib_resnet
from backend.generators.arcface import ArcFace
from backend.runtime import device
from backend.similarity import build_st_lpips
from backend.training.degradation import blur_batch
from backend.training.loop import Arithmetic

ENLARGEMENT = 2  # how often larger a part is shown; its side is that much smaller than the face's


class PerceptualLoss:
    """A perceptual distance of some faces of a batch.

    Args:
        share: Of the faces of a batch, that are compared: the first ones, and one at least.
        enlarged: Of those, that are compared in a random part, twice as large.
        arithmetic: How to compute.
    """

    def __init__(self, share: float, enlarged: float, arithmetic: Arithmetic) -> None:
        self.share, self.enlarged, self.arithmetic = share, enlarged, arithmetic
        self.network = build_perceptual_network().to(arithmetic.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, drawn: Tensor, wanted: Tensor, randomness: torch.Generator) -> Tensor:
        """Return the mean distance of drawings from photographs, both (N, 3, S, S) in [-1, 1]; differentiable."""
        seen = max(1, math.ceil(self.share * len(drawn)))
        pair = torch.cat([drawn[:seen], wanted[:seen]], dim=1)
        some = torch.randperm(seen, generator=randomness, device=pair.device)
        parts = some[: round(self.enlarged * seen)]
        if len(parts):
            pair = torch.cat([pair[some[len(parts) :]], enlarge_parts(pair[parts], randomness)])
        one, other = (half.contiguous(memory_format=torch.channels_last) for half in pair.chunk(2, dim=1))
        with self.arithmetic.narrow():
            distances: Tensor = self.network(one, other)
        return distances.mean()


def enlarge_parts(pictures: Tensor, randomness: torch.Generator) -> Tensor:
    """Return a random square of half the side of each picture (N, C, S, S), enlarged to (N, C, S, S)."""
    size = pictures.shape[-1]
    parts = random_squares(pictures, size // ENLARGEMENT, randomness)
    return F.interpolate(parts, size=(size, size), mode="bilinear", align_corners=False)


def build_perceptual_network() -> Any:
    """Return the network on AlexNet, its first convolution joined with the low-pass filter that follows it.

    Both are linear and every second value of their result is kept, so one convolution with a larger window gives the
    same in a quarter of the time, but for the outermost values, where the filter alone would see its input mirrored.
    """
    found: Any = build_st_lpips("alex")
    first = found.net.slice1
    convolution, low_pass = first[0], first[1]
    first[0], first[1] = join_filter(convolution, low_pass.filt[0, 0], low_pass.pad_sizes[0]), nn.Identity()
    return found


def join_filter(convolution: nn.Conv2d, kernel: Tensor, padding: int) -> nn.Conv2d:
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


ARCFACE, ARCFACE_NAME = "arcface", "ArcFace"  # entry of the registry, and its name in words

IDENTITY_MISSING = (
    f"{ARCFACE_NAME} was not fetched (python -m backend weights fetch {ARCFACE}), and dlib's network is not installed "
    f"({INSTALL_IDENTITY})."
)


@dataclass(frozen=True)
class FaceEmbedding:
    """A recognition network.

    Args:
        name: Its name.
        embed: From faces (N, 3, S, S) in [0, 1] to vectors (N, D); differentiable.
    """

    name: str
    embed: Callable[[Tensor], Tensor]

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return half the mean squared distance of the vectors of faces (N, 3, S, S) in [-1, 1].

        For unit vectors, which ArcFace gives, this is 1 - cosine. dlib's are compared by their distance, up to 0.6 for
        one person, which is 0.18 here.
        """
        a, b = (self.embed((pictures + 1) / 2) for pictures in (one, other))
        return (a - b).square().sum(1).mean() / 2


def find_face_embedding(template: str) -> FaceEmbedding | None:
    """Return the best network on this machine for faces aligned as `template`, or None."""
    entry = weights.read_entries().get(ARCFACE)
    if entry is not None and entry.path.is_file():
        arcface = ArcFace()
        arcface.load_state_dict(weights.load_entry(ARCFACE), strict=True)
        arcface = arcface.eval().requires_grad_(requires_grad=False).to(device())
        return FaceEmbedding(
            ARCFACE_NAME, lambda faces: arcface(crop_for_recognition(faces, template, ARCFACE_SIDE) * 2 - 1)
        )
    if dlib_resnet.dlib_resnet_path() is None:
        return None
    dlib = dlib_resnet.load_dlib_resnet().to(device())
    return FaceEmbedding("dlib ResNet v1", lambda faces: dlib(dlib_resnet.cut_dlib_chips(faces, template)))


SHARPENING_SPREAD = 1.2  # standard deviation of the blur in pixels, as unsharp masks use it

SHARPENING_RADIUS = 3  # of the blur in pixels


def sharpen_pictures(pictures: Tensor, amount: float) -> Tensor:
    """Add `amount` times their difference to a Gaussian blur to pictures (N, C, S, S): an unsharp mask."""
    return pictures + amount * (pictures - blur_batch(pictures, SHARPENING_SPREAD, SHARPENING_RADIUS))


def picture_losses(drawn: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return the mean absolute and squared difference of two batches of pictures."""
    return {"l1": F.l1_loss(drawn, wanted), "l2": F.mse_loss(drawn, wanted)}


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


def load_perceptual_network(name: str) -> nn.Module:
    """Load a shift-tolerant perceptual network; its weights come with the package `stlpips-pytorch`."""
    return build_st_lpips(name)
