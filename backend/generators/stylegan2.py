"""StyleGAN2 synthesis in plain PyTorch (Karras et al. 2020, sections 2 and 4).

State-dict keys and shapes are those of the widely used `g_ema` checkpoints, so an official file loads
with `strict=True`. Nothing is compiled; the same code runs on a CPU and on CUDA, in float32 or bfloat16.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_PER_RESOLUTION = 2


def default_channels(channel_multiplier: int) -> dict[int, int]:
    """Return the published channel table: resolution in pixels to feature channels."""
    wide = {4: 512, 8: 512, 16: 512, 32: 512}
    return wide | {size: 16384 * channel_multiplier // size for size in (64, 128, 256, 512, 1024)}


def row_count(size: int) -> int:
    """Return how many W+ rows a generator of `size` pixels reads (18 at 1024, 12 at 128)."""
    return ROWS_PER_RESOLUTION * int(math.log2(size)) - 2


def _binomial_kernel(gain: float) -> Tensor:
    """Return the 4x4 low-pass filter [1, 3, 3, 1] of StyleGAN2, summing to `gain`."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    return kernel * (gain / kernel.sum())


def _filter(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every channel of (N, C, H, W) with one 2-D kernel, without padding."""
    channels = images.shape[1]
    weight = kernel.to(images.dtype).expand(channels, 1, *kernel.shape)
    return F.conv2d(images, weight, groups=channels)


class PixelNorm(nn.Module):
    """Scale every vector to unit mean square."""

    def forward(self, vectors: Tensor) -> Tensor:  # noqa: D102
        return vectors * torch.rsqrt(vectors.square().mean(dim=1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """Linear layer with the equalised learning rate of Karras et al. 2018 (weights scaled at run time)."""

    def __init__(
        self, inputs: int, outputs: int, *, bias: float = 0.0, lr_mul: float = 1.0, activate: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.scale = lr_mul / math.sqrt(inputs)
        self.lr_mul = lr_mul
        self.activate = activate

    def forward(self, vectors: Tensor) -> Tensor:  # noqa: D102
        dtype = vectors.dtype
        out = F.linear(vectors, (self.weight * self.scale).to(dtype), (self.bias * self.lr_mul).to(dtype))
        return F.leaky_relu(out, 0.2) * math.sqrt(2) if self.activate else out


class Blur(nn.Module):
    """Low-pass filter after a transposed convolution; holds the published `kernel` buffer."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", _binomial_kernel(gain=4.0))

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return _filter(F.pad(images, (1, 1, 1, 1)), self.kernel)


class Upsample(nn.Module):
    """Double the size of (N, 3, H, W) pictures with the low-pass filter."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", _binomial_kernel(gain=4.0))

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        n, c, h, w = images.shape
        spread = images.new_zeros(n, c, 2 * h, 2 * w)
        spread[:, :, ::2, ::2] = images
        return _filter(F.pad(spread, (2, 1, 2, 1)), self.kernel)


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style (Karras et al. 2020, section 2.2).

    Scaling the input by the style and the output by the demodulation factor equals scaling the weights,
    and needs one ordinary convolution a batch instead of one group a picture.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style_dim: int, *, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.padding = kernel // 2
        self.demodulate = demodulate
        self.up = up
        if up:
            self.blur = Blur()

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Return (N, outputs, H or 2H, W or 2W) for features (N, inputs, H, W) and codes (N, style_dim)."""
        style = self.modulation(code)
        weight = self.weight[0] * self.scale
        out = features * style.to(features.dtype)[:, :, None, None]
        if self.up:
            out = F.conv_transpose2d(out, weight.to(out.dtype).transpose(0, 1), stride=2)
        else:
            out = F.conv2d(out, weight.to(out.dtype), padding=self.padding)
        if self.demodulate:
            # Sums of squares leave the range of half precision, so they are taken in float32.
            power = style.float().square() @ weight.float().square().sum((2, 3)).t()
            out = out * torch.rsqrt(power + 1e-8).to(out.dtype)[:, :, None, None]
        return self.blur(out) if self.up else out


class NoiseInjection(nn.Module):
    """Add a fixed noise map with one learned strength."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:  # noqa: D102
        return features + (self.weight * noise).to(features.dtype)


class BiasedLeakyReLU(nn.Module):
    """Add a bias, apply LeakyReLU(0.2) and restore the variance with a factor of sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        biased = features + self.bias.to(features.dtype)[None, :, None, None]
        return F.leaky_relu(biased, 0.2) * math.sqrt(2)


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise and activation."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style_dim, up=up)
        self.noise = NoiseInjection()
        self.activate = BiasedLeakyReLU(outputs)

    def forward(self, features: Tensor, code: Tensor, noise: Tensor) -> Tensor:  # noqa: D102
        return self.activate(self.noise(self.conv(features, code), noise))


class ToRGB(nn.Module):
    """Project features to colours and add the upsampled picture of the layer below."""

    def __init__(self, inputs: int, style_dim: int, *, up: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = Upsample()

    def forward(self, features: Tensor, code: Tensor, skip: Tensor | None = None) -> Tensor:  # noqa: D102
        out = self.conv(features, code) + self.bias.to(features.dtype)
        return out if skip is None else out + self.upsample(skip)


class ConstantInput(nn.Module):
    """The learned 4x4 feature map every picture starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class StyleGAN2(nn.Module):
    """StyleGAN2 generator with the skip architecture.

    Args:
        size: Output size in pixels, a power of two from 8.
        style_dim: Length of one code.
        mapping_layers: Depth of the mapping network from z to w.
        channel_multiplier: Width of the layers from 64 pixels on, for the published channel table.
        channels: Another table, resolution to channels, in place of the published one.
    """

    def __init__(
        self,
        size: int,
        style_dim: int = 512,
        mapping_layers: int = 8,
        channel_multiplier: int = 2,
        channels: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ValueError(f"size must be a power of two from 8, not {size}")
        table = dict(channels or default_channels(channel_multiplier))
        self.size = size
        self.style_dim = style_dim
        self.rows = row_count(size)
        layers = [EqualLinear(style_dim, style_dim, lr_mul=0.01, activate=True) for _ in range(mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *layers)
        self.input = ConstantInput(table[4])
        self.conv1 = StyledConv(table[4], table[4], style_dim)
        self.to_rgb1 = ToRGB(table[4], style_dim, up=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        self.noises = nn.Module()
        self.noises.register_buffer("noise_0", torch.randn(1, 1, 4, 4))
        below = table[4]
        for level in range(3, int(math.log2(size)) + 1):
            width = table[2**level]
            self.convs.append(StyledConv(below, width, style_dim, up=True))
            self.convs.append(StyledConv(width, width, style_dim))
            self.to_rgbs.append(ToRGB(width, style_dim))
            for _ in range(2):
                index = len(list(self.noises.buffers()))
                self.noises.register_buffer(f"noise_{index}", torch.randn(1, 1, 2**level, 2**level))
            below = width

    def mapping(self, z: Tensor) -> Tensor:
        """Map latents z (N, style_dim) to w (N, style_dim), without truncation."""
        return self.style(z)

    def synthesize(self, codes: Tensor, *, resolution: int | None = None, noise: list[Tensor] | None = None) -> Tensor:
        """Draw pictures from W+ codes.

        Args:
            codes: (N, rows, style_dim); with a lower `resolution`, rows beyond its own are not read.
            resolution: Stop at this size in pixels instead of `size`; the result is the picture that the
                generator itself holds at that resolution.
            noise: One map a layer in place of the registered ones.

        Returns:
            (N, 3, resolution, resolution), unclamped, around [-1, 1].
        """
        stop = resolution or self.size
        maps = noise if noise is not None else list(self.noises.buffers())
        features = self.input.input.to(codes.dtype).expand(len(codes), -1, -1, -1)
        features = self.conv1(features, codes[:, 0], maps[0])
        picture = self.to_rgb1(features, codes[:, 1])
        for level in range(int(math.log2(stop)) - 2):
            row = 1 + 2 * level
            features = self.convs[2 * level](features, codes[:, row], maps[row])
            features = self.convs[2 * level + 1](features, codes[:, row + 1], maps[row + 1])
            picture = self.to_rgbs[level](features, codes[:, row + 2], picture)
        return picture

    def fresh_noise(self, seed: int) -> list[Tensor]:
        """Return one standard-normal map a layer, reproducible from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(old.shape, generator=generator).to(old) for old in self.noises.buffers()]
