"""StyleGAN2 synthesis as the widely used PyTorch programs write it: the peer of the benchmarks.

Every picture has its own modulated weights (one group per picture), the weights are scaled and demodulated again at
every call, and filters run as zero insertion, padding and a one-channel convolution. This is what
rosinality/stylegan2-pytorch and the e4e project do on a machine without their compiled operations.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.generators.stylegan2 import ModulatedConv2d, StyledConv, StyleGAN2, ToRGB


def synthesize(generator: StyleGAN2, codes: Tensor) -> Tensor:
    """Return what `generator.synthesize(codes)` returns, (N, 3, size, size), from the same weights."""
    noises = list(generator.noises.buffers())
    features = generator.input.input.repeat(len(codes), 1, 1, 1)
    features = _styled(generator.conv1, features, codes[:, 0], noises[0])
    picture = _to_rgb(generator.to_rgb1, features, codes[:, 1], None)
    row = 1
    for number, to_rgb in enumerate(generator.to_rgbs):
        for layer in (generator.convs[2 * number], generator.convs[2 * number + 1]):
            features = _styled(layer, features, codes[:, row], noises[row])  # type: ignore[arg-type]
            row += 1
        picture = _to_rgb(to_rgb, features, codes[:, row], picture)  # type: ignore[arg-type]
    return picture


def _styled(layer: StyledConv, features: Tensor, code: Tensor, noise: Tensor) -> Tensor:
    out = _modulated(layer.conv, features, code)
    out = out + layer.noise.weight * noise
    return F.leaky_relu(out + layer.activate.bias.view(1, -1, 1, 1), negative_slope=0.2) * math.sqrt(2)


def _to_rgb(layer: ToRGB, features: Tensor, code: Tensor, skip: Tensor | None) -> Tensor:
    out = _modulated(layer.conv, features, code) + layer.bias
    return out if skip is None else out + _upfirdn(skip, layer.upsample.kernel, up=2, before=2, after=1)


def _modulated(layer: ModulatedConv2d, features: Tensor, code: Tensor) -> Tensor:
    batch, inputs, height, width = features.shape
    outputs, kernel = layer.weight.shape[1], layer.weight.shape[-1]
    style = F.linear(code, layer.modulation.weight * layer.modulation.scale, layer.modulation.bias)
    weight = layer.scale * layer.weight * style.view(batch, 1, inputs, 1, 1)
    if layer.demodulate:
        demodulation = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
        weight = weight * demodulation.view(batch, outputs, 1, 1, 1)
    grouped = features.reshape(1, batch * inputs, height, width)
    if layer.up:
        turned = weight.transpose(1, 2).reshape(batch * inputs, outputs, kernel, kernel)
        out = F.conv_transpose2d(grouped, turned, stride=2, groups=batch)
        out = out.view(batch, outputs, *out.shape[-2:])
        return _upfirdn(out, layer.blur.kernel, up=1, before=1, after=1)
    out = F.conv2d(grouped, weight.view(batch * outputs, inputs, kernel, kernel), padding=layer.padding, groups=batch)
    return out.view(batch, outputs, *out.shape[-2:])


def _upfirdn(pictures: Tensor, kernel: Tensor, *, up: int, before: int, after: int) -> Tensor:
    """Insert zeros, pad, and filter, as the reference implementation without compiled operations does."""
    batch, channels, height, width = pictures.shape
    spread = pictures.reshape(-1, 1, height, 1, width, 1)
    spread = F.pad(spread, [0, up - 1, 0, 0, 0, up - 1]).view(-1, 1, height * up, width * up)
    padded = F.pad(spread, [before, after, before, after])
    out = F.conv2d(padded, torch.flip(kernel, [0, 1])[None, None])
    return out.view(batch, channels, *out.shape[-2:])
