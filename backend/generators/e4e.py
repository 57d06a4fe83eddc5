"""The e4e encoder (Tov et al. 2021, section 4): from a face to W+ codes, one base code plus an offset per row."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators import arcface
from backend.generators.stylegan2 import EqualLinear, row_count
from backend.images import GREY

BRIGHT_SIDE, COLOUR_SIDE = 20, 8  # pixels: brightness needs more detail than colour
LINEAR_INPUTS = BRIGHT_SIDE**2 + 2 * COLOUR_SIDE**2
RIDGE = 1e-5  # of the pictures' mean square, so that neighbouring pixels do not get large opposite weights


class LinearPath(nn.Module):
    """A linear map from faces to the first `codes` numbers of a code; it starts at zero."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(codes, LINEAR_INPUTS))
        self.bias = nn.Parameter(torch.zeros(codes))

    def forward(self, faces: Tensor) -> Tensor:
        """Return (N, codes) for faces (N, 3, S, S) in [-1, 1], always in float32 or better."""
        with torch.autocast(faces.device.type, enabled=False):  # half precision would round the strongest numbers
            return F.linear(shrink_picture(faces.to(self.weight.dtype)), self.weight, self.bias)

    @torch.no_grad()
    def fit(self, faces: Tensor, codes: Tensor) -> None:
        """Fit the map by least squares from outputs of `shrink_picture` (N, LINEAR_INPUTS) to codes (N, any)."""
        mean, targets = faces.double().mean(0), codes[:, : len(self.bias)].double()
        centred, average = faces.double() - mean, targets.mean(0)
        gram = centred.t() @ centred
        gram += RIDGE * gram.diagonal().mean() * torch.eye(LINEAR_INPUTS, dtype=gram.dtype, device=gram.device)
        weight = torch.linalg.solve(gram, centred.t() @ (targets - average)).t()
        self.weight.copy_(weight)
        self.bias.copy_(average - weight @ mean)


def shrink_picture(faces: Tensor) -> Tensor:
    """Return brightness and two colour differences (N, LINEAR_INPUTS) of faces (N, 3, S, S) at a few pixels."""
    bright = (faces * faces.new_tensor(GREY)[None, :, None, None]).sum(1, keepdim=True)
    colours = faces[:, ::2] - bright  # red and blue
    sides = (bright, BRIGHT_SIDE), (colours, COLOUR_SIDE)
    return torch.cat([F.adaptive_avg_pool2d(part, side).flatten(1) for part, side in sides], dim=1)


CODE_SIZE = 512
COARSE_ROWS, MIDDLE_ROWS = 3, 7  # rows before these read the 1/16 and the 1/8 feature map, the rest 1/4
TAP_QUARTER, TAP_EIGHTH = 6, 20  # units after which the two finer maps are taken
HAAR_BANDS = 4


class StyleHead(nn.Module):
    """Reduce a feature map to one code with stride-2 convolutions."""

    def __init__(self, channels: int, spatial: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(int(math.log2(spatial))):
            layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(channels, CODE_SIZE)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.convs(features).flatten(1))


class E4EEncoder(nn.Module):
    """IR-SE50 feature pyramid with one head per W+ row.

    Args:
        output_size: Size of the generator in pixels; it decides the number of rows.
        input_size: Size of the input in pixels, a power of two from 32 (published: 256).
        width: Factor on all channels; 1.0 is the published network and its key names and shapes.
        linear: How many numbers of the base code have a linear part beside the network's; 0 as published.
        early: Channels of the first stages, in place of those that the width gives; empty as published.
        detail: Whether it reads faces and what drawings lacked as bands of half the size (see `haar_bands`); the body
            then works at half the size. Otherwise it reads their sum.
    """

    def __init__(
        self,
        output_size: int,
        input_size: int = 256,
        width: float = 1.0,
        linear: int = 0,
        *,
        early: Sequence[int] = (),
        detail: bool = False,
    ) -> None:
        super().__init__()
        stages = [*early, *arcface.ir_se_widths(width)[len(early) :]]
        channels = stages[-1]
        self.input_size, self.detail = input_size, detail
        self.rows = row_count(output_size)
        self.input_layer = arcface.ir_se_stem(stages[0], 2 * HAAR_BANDS * 3 if detail else 3)
        self.body = arcface.ir_se_body(stages)
        inner = input_size // 2 if detail else input_size
        sizes = [inner // (16 if row < COARSE_ROWS else 8 if row < MIDDLE_ROWS else 4) for row in range(self.rows)]
        self.styles = nn.ModuleList(StyleHead(channels, size) for size in sizes)
        self.latlayer1 = nn.Conv2d(stages[2], channels, 1)
        self.latlayer2 = nn.Conv2d(stages[1], channels, 1)
        self.linear = LinearPath(linear) if linear else None

    def forward(self, faces: Tensor, lacking: Tensor | None = None) -> Tensor:
        """Return codes (N, rows, 512), before the latent average, for faces (N, 3, S, S) in [-1, 1].

        `lacking`, of the same shape, is what earlier drawings lacked of the faces (see `accumulate_feedback`).
        """
        lacking = torch.zeros_like(faces) if lacking is None else lacking
        quarter, eighth, coarse = self._features(faces, lacking)
        middle = _add_upsampled(coarse, self.latlayer1(eighth))
        fine = _add_upsampled(middle, self.latlayer2(quarter))
        base = self._base(faces, lacking, coarse)
        codes = [base]
        for row in range(1, self.rows):
            source = coarse if row < COARSE_ROWS else middle if row < MIDDLE_ROWS else fine
            codes.append(base + self.styles[row](source))
        return torch.stack(codes, dim=1)

    def base(self, faces: Tensor) -> Tensor:
        """Return the base code (N, 512) alone, row 0 of `forward`, without running the other heads."""
        lacking = torch.zeros_like(faces)
        return self._base(faces, lacking, self._features(faces, lacking)[2])

    def means(self, faces: Tensor) -> Tensor:
        """Return faces at the size at which the body and the linear path work."""
        return F.avg_pool2d(faces, 2) if self.detail else faces

    def _base(self, faces: Tensor, lacking: Tensor, coarse: Tensor) -> Tensor:
        base: Tensor = self.styles[0](coarse)
        if self.linear is None:
            return base
        linear = self.linear(self.means(faces + lacking))
        return F.pad(linear, (0, CODE_SIZE - linear.shape[1])) + base

    def _features(self, faces: Tensor, lacking: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the feature maps at 1/4, 1/8 and 1/16 of what the body reads."""
        read = torch.cat([haar_bands(faces), haar_bands(lacking)], dim=1) if self.detail else faces + lacking
        features = self.input_layer(read)
        taps = []
        for index, unit in enumerate(self.body):
            features = unit(features)
            if index in (TAP_QUARTER, TAP_EIGHTH):
                taps.append(features)
        return taps[0], taps[1], features

    def initialize(self) -> None:
        """Draw Kaiming weights for training from scratch."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in self.styles:
            cast(StyleHead, head).linear.weight.data.mul_(0.5)


def accumulate_feedback(
    look: Callable[[Tensor], Tensor], draw: Callable[[Tensor], Tensor], faces: Tensor, feedback: Sequence[float]
) -> Tensor:
    """Return what drawings lacked of the faces, summed over all looks but the last; of the faces' shape.

    A lean form of ReStyle (Alaluf et al. 2021): each further look of the encoder knows the results of earlier looks.

    Args:
        look: Encodes the faces, given what was lacking so far.
        draw: Draws codes as (N, 3, H, W), unclamped.
        faces: (N, 3, S, S) in [-1, 1], of the encoder's size.
        feedback: For each further look, the factor on the last drawing's difference.
    """
    lacking = torch.zeros_like(faces)
    for amount in feedback:
        with torch.no_grad():
            drawn = F.interpolate(draw(look(lacking)).clamp(-1, 1), faces.shape[-2:], mode="area")
            lacking = lacking + amount * (faces - drawn)
    return lacking


def haar_bands(pictures: Tensor) -> Tensor:
    """Split pictures (N, C, S, S) into means of 2x2 pixels and three differences, (N, 4 * C, S / 2, S / 2).

    The Haar transform; differences are on four times the scale of the means.
    """
    a, b, c, d = (pictures[..., row::2, column::2] for row in (0, 1) for column in (0, 1))
    left, right, top, bottom = a + c, b + d, a + b, c + d
    return torch.cat([(left + right) / 4, left - right, top - bottom, a + d - b - c], dim=1)


def _add_upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True) + fine
