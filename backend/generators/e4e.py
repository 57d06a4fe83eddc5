"""The e4e encoder (Tov et al. 2021, section 4): a face to W+ codes as one base code plus an offset a row."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators import irse
from backend.generators.linear_path import LinearPath
from backend.generators.stylegan2 import EqualLinear, row_count

CODE = 512
COARSE_ROWS, MIDDLE_ROWS = 3, 7  # rows before these read the 1/16 and the 1/8 feature map, the rest 1/4
TAP_QUARTER, TAP_EIGHTH = 6, 20  # units after which the two finer maps are taken


class StyleHead(nn.Module):
    """Reduce a feature map to one code with stride-2 convolutions."""

    def __init__(self, channels: int, spatial: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(int(math.log2(spatial))):
            layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(channels, CODE)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        return self.linear(self.convs(features).flatten(1))


class E4EEncoder(nn.Module):
    """IR-SE50 feature pyramid with one head a W+ row.

    Args:
        output_size: Size of the generator in pixels; it decides the number of rows.
        input_size: Size of the input in pixels, a power of two from 32 (published: 256).
        width: Factor on all channels; 1.0 is the published network and its key names and shapes.
        linear: How many numbers of the base code have a linear part beside the network's; 0 as published.
    """

    def __init__(self, output_size: int, input_size: int = 256, width: float = 1.0, linear: int = 0) -> None:
        super().__init__()
        channels = round(512 * width)
        self.input_size = input_size
        self.rows = row_count(output_size)
        self.input_layer = irse.stem(width)
        self.body = irse.body(width)
        sizes = [input_size // (16 if row < COARSE_ROWS else 8 if row < MIDDLE_ROWS else 4) for row in range(self.rows)]
        self.styles = nn.ModuleList(StyleHead(channels, size) for size in sizes)
        self.latlayer1 = nn.Conv2d(round(256 * width), channels, 1)
        self.latlayer2 = nn.Conv2d(round(128 * width), channels, 1)
        self.linear = LinearPath(linear) if linear else None

    def forward(self, faces: Tensor) -> Tensor:
        """Return codes (N, rows, 512), before the latent average, for faces (N, 3, S, S) in [-1, 1]."""
        quarter, eighth, coarse = self._features(faces)
        middle = _add_upsampled(coarse, self.latlayer1(eighth))
        fine = _add_upsampled(middle, self.latlayer2(quarter))
        base = self._base(faces, coarse)
        codes = [base]
        for row in range(1, self.rows):
            source = coarse if row < COARSE_ROWS else middle if row < MIDDLE_ROWS else fine
            codes.append(base + self.styles[row](source))
        return torch.stack(codes, dim=1)

    def base(self, faces: Tensor) -> Tensor:
        """Return the base code (N, 512) alone, which is row 0 of `forward`, without the other heads' work."""
        return self._base(faces, self._features(faces)[2])

    def _base(self, faces: Tensor, coarse: Tensor) -> Tensor:
        base: Tensor = self.styles[0](coarse)
        if self.linear is None:
            return base
        linear = self.linear(faces)
        return F.pad(linear, (0, CODE - linear.shape[1])) + base

    def _features(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the feature maps at 1/4, 1/8 and 1/16 of the input."""
        features = self.input_layer(faces)
        taps = []
        for index, unit in enumerate(self.body):
            features = unit(features)
            if index in (TAP_QUARTER, TAP_EIGHTH):
                taps.append(features)
        return taps[0], taps[1], features

    def initialize(self) -> None:
        """Draw Kaiming weights; training from nothing needs them, a published checkpoint overwrites them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in self.styles:
            cast(StyleHead, head).linear.weight.data.mul_(0.5)


def last_inputs(
    look: Callable[[Tensor], Tensor], draw: Callable[[Tensor], Tensor], faces: Tensor, feedback: Sequence[float]
) -> Tensor:
    """Return what the encoder reads at its last look, of the shape of the faces; without feedback, the faces.

    Args:
        look: Encodes what it is shown.
        draw: Draws what was encoded.
        faces: (N, 3, S, S) in [-1, 1], of the encoder's size.
        feedback: A number for each further look, see `further_look`.
    """
    inputs = faces
    for amount in feedback:
        with torch.no_grad():
            inputs = further_look(inputs, faces, draw(look(inputs)), amount)
    return inputs


def further_look(inputs: Tensor, faces: Tensor, drawn: Tensor, feedback: float) -> Tensor:
    """Return what the encoder reads next: what it read before, and again what the drawings lack of the faces.

    A lean form of ReStyle (Alaluf et al. 2021), which shows its encoder face and drawing side by side.

    Args:
        inputs: What the encoder read last, (N, 3, S, S); at first the faces.
        faces: (N, 3, S, S) in [-1, 1], of the encoder's size.
        drawn: (N, 3, H, W), what the generator drew of the codes read from `inputs`, unclamped.
        feedback: How often the difference is added.
    """
    seen = F.interpolate(drawn.clamp(-1, 1), faces.shape[-2:], mode="area")
    return inputs + feedback * (faces - seen)


def _add_upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=True) + fine
