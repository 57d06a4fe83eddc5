"""Edit directions in closed form from the generator's weights (SeFa, Shen and Zhou 2021, section 3)."""

from typing import cast

import torch
from torch import Tensor

from backend.generators.stylegan2 import ModulatedConv2d, StyledConv, StyleGAN2, ToRGB


def modulations(generator: StyleGAN2) -> list[tuple[int, ModulatedConv2d]]:
    """Return every modulated layer with the W+ row that it reads."""
    layers: list[tuple[int, ModulatedConv2d]] = [(0, generator.conv1.conv), (1, generator.to_rgb1.conv)]
    for index, block in enumerate(generator.convs):
        layers.append((index + 1, cast(StyledConv, block).conv))
    for index, to_rgb in enumerate(generator.to_rgbs):
        layers.append((2 * index + 3, cast(ToRGB, to_rgb).conv))
    return layers


def directions(generator: StyleGAN2, rows: range, count: int) -> Tensor:
    """Return the `count` unit directions (count, style_dim) that move the styles of `rows` most."""
    weights = [layer.modulation.weight for row, layer in modulations(generator) if row in rows]
    stacked = torch.cat([weight / weight.norm() for weight in weights])
    _, vectors = torch.linalg.eigh(stacked.t() @ stacked)
    return vectors.t().flip(0)[:count]
