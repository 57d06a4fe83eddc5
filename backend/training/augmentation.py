"""Augmentation: random changes of what a discriminator sees (ADA), and of a detector's training pictures.

Adaptive discriminator augmentation (Karras et al. 2020, "Training GANs with limited data", appendix B): the
discriminator sees photographs and drawings only through random changes, each made with probability p. As long as p
stays well below 1, the generator does not learn the changes themselves. p rises while the discriminator is too
sure of the photographs of the training set. Detectors get other framing and colours, so that they do not memorise the
few pictures of a kind.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHIFT = 0.125  # of the side: whole pixels at most, and the deviation of fractional ones
SCALE, BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.2, 0.5, 1.0  # deviations; of scales, of their binary logarithm
LUMA = 1 / math.sqrt(3)  # of each colour
GREYS = 255.0


def augment_pictures(pictures: Tensor, strength: Tensor | float, randomness: torch.Generator) -> Tensor:
    """Change pictures (N, 3, S, S) in [-1, 1] at random: pixel blitting, geometry and colours; differentiable.

    Values that leave [-1, 1] are kept. `strength` is the probability p of every change, in [0, 1], and `randomness` is
    on the device of the pictures.
    """
    dice = _Dice(len(pictures), strength, randomness)
    places = _place_matrices(dice, pictures.shape[-1])
    grid = F.affine_grid(places[:, :2], list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    colours = _colour_matrices(dice)
    return torch.baddbmm(colours[:, :3, 3:], colours[:, :3, :3], moved.flatten(2)).view_as(pictures)


class AdaptiveStrength(nn.Module):
    """The probability p, and the signs that it is adjusted by; part of a checkpoint.

    p stays where the mean sign of the logits of photographs is `target`, and can rise from 0 to 1 within `images`.
    """

    p: Tensor
    signs: Tensor
    seen: Tensor

    def __init__(self, target: float, images: float) -> None:
        super().__init__()
        self.target, self.images = target, images
        for name in ("p", "signs", "seen"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def observe(self, logits: Tensor) -> None:
        """Count the signs of the logits (N,) of photographs."""
        self.signs += logits.sign().sum()
        self.seen += len(logits)

    @torch.no_grad()
    def adjust(self) -> None:
        """Move p by what was observed since the last call."""
        direction = (self.signs / self.seen.clamp_min(1) - self.target).sign()
        self.p.add_(direction * self.seen / self.images).clamp_(0, 1)
        self.signs.zero_()
        self.seen.zero_()


class _Dice:
    """Random numbers, one for each picture."""

    def __init__(self, count: int, strength: Tensor | float, randomness: torch.Generator) -> None:
        self.count, self.strength, self.randomness = count, strength, randomness

    def uniform(self) -> Tensor:  # in [0, 1)
        return torch.rand(self.count, generator=self.randomness, device=self.randomness.device)

    def normal(self) -> Tensor:
        return torch.randn(self.count, generator=self.randomness, device=self.randomness.device)

    def maybe(self, values: Tensor, strength: Tensor | float | None = None) -> Tensor:
        """Return the values where a change is made, and 0 where it is not."""
        return torch.where(self.uniform() < (self.strength if strength is None else strength), values, 0.0)


def _place_matrices(dice: _Dice, side: int) -> Tensor:
    """Return matrices (N, 3, 3) from places in the result to places in the picture, in [-1, 1].

    Every change is as likely as its inverse, so it does not matter which way the matrices go.
    """
    mirrored = dice.maybe((dice.uniform() < 0.5).float())
    quarters = dice.maybe((dice.uniform() * 4).floor())
    whole = [(dice.maybe(dice.uniform() * 2 - 1) * SHIFT * side).round() * 2 / side for _ in range(2)]
    bigger = torch.exp2(dice.maybe(dice.normal() * SCALE))
    # Two rotations, around a stretch; neither is made with probability 1 - p.
    once = 1 - (1 - torch.as_tensor(dice.strength)).sqrt()
    first, second = (dice.maybe((dice.uniform() * 2 - 1) * math.pi, once) for _ in range(2))
    stretched = torch.exp2(dice.maybe(dice.normal() * SCALE))
    fractional = [dice.maybe(dice.normal()) * 2 * SHIFT for _ in range(2)]
    steps = (
        _scaling(1 - 2 * mirrored, torch.ones_like(mirrored)),
        _rotation(quarters * (math.pi / 2)),
        _shift(*whole),
        _scaling(bigger, bigger),
        _rotation(first),
        _scaling(stretched, 1 / stretched),
        _rotation(second),
        _shift(*fractional),
    )
    return functools.reduce(torch.matmul, steps)


def _colour_matrices(dice: _Dice) -> Tensor:
    """Return matrices (N, 4, 4) that change colours."""
    identity = torch.eye(4, device=dice.randomness.device)
    axis = torch.tensor([LUMA, LUMA, LUMA, 0.0], device=identity.device)
    luma = torch.outer(axis, axis)
    brighter = identity.repeat(dice.count, 1, 1)
    brighter[:, :3, 3] = (dice.maybe(dice.normal()) * BRIGHTNESS)[:, None]
    contrast = torch.exp2(dice.maybe(dice.normal() * CONTRAST))
    inverted = dice.maybe((dice.uniform() < 0.5).float())
    hue = dice.maybe((dice.uniform() * 2 - 1) * math.pi)
    saturation = torch.exp2(dice.maybe(dice.normal() * SATURATION))
    scaled = torch.diag_embed(torch.stack([contrast, contrast, contrast, torch.ones_like(contrast)], dim=1))
    flipped = identity - 2 * luma * inverted[:, None, None]
    turned = _around_luma(hue, identity, luma)
    homogeneous = torch.diag(torch.tensor([0.0, 0, 0, 1], device=identity.device))
    chroma = identity - luma - homogeneous
    saturated = luma + homogeneous + chroma * saturation[:, None, None]
    return saturated @ turned @ flipped @ scaled @ brighter


def _around_luma(angle: Tensor, identity: Tensor, luma: Tensor) -> Tensor:
    """Return rotations (N, 4, 4) around the grey axis (Rodrigues)."""
    cross = torch.zeros_like(identity)
    for row, column, sign in ((0, 1, -1), (0, 2, 1), (1, 0, 1), (1, 2, -1), (2, 0, -1), (2, 1, 1)):
        cross[row, column] = sign * LUMA
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    turned = cosine * identity + sine * cross + (1 - cosine) * luma
    turned[:, 3, 3] = 1
    return turned


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _shift(x: Tensor, y: Tensor) -> Tensor:
    matrices = torch.eye(3, device=x.device).repeat(len(x), 1, 1)
    matrices[:, 0, 2], matrices[:, 1, 2] = x, y
    return matrices


def _rotation(angle: Tensor) -> Tensor:
    cosine, sine = angle.cos(), angle.sin()
    matrices = _scaling(cosine, cosine)
    matrices[:, 0, 1], matrices[:, 1, 0] = -sine, sine
    return matrices


@dataclass(frozen=True)
class Variation:
    """How far pictures may change."""

    shift: int = 0  # largest displacement in whole pixels, which need no resampling; edges are mirrored
    # Largest relative change of contrast, to which each channel adds up to half as much, and largest change of
    # brightness as a share of 255, the same for all channels.
    colours: float = 0.0


UNVARIED = Variation()


def vary_picture(picture: np.ndarray, randomness: np.random.Generator, variation: Variation) -> np.ndarray:
    """Return uint8 (S, S, 3) displaced and in other colours; the same randomness changes every picture alike."""
    if variation.shift:
        top, left = randomness.integers(0, 2 * variation.shift + 1, 2)
        height, width = picture.shape[:2]
        margin = ((variation.shift,) * 2, (variation.shift,) * 2, (0, 0))
        picture = np.pad(picture, margin, mode="reflect")[top : top + height, left : left + width]
    if variation.colours:
        limit = variation.colours
        contrast = 1 + randomness.uniform(-limit, limit) + randomness.uniform(-limit, limit, 3) / 2
        brightness = GREYS * randomness.uniform(-limit, limit)
        values = (picture.astype(np.float32) - GREYS / 2) * contrast + GREYS / 2 + brightness
        picture = np.clip(np.rint(values), 0, GREYS).astype(np.uint8)
    return picture
