"""StyleGAN2 in plain PyTorch: modulated convolutions, mapping and synthesis (Karras et al. 2020, sections 2 and 4).

State-dict keys and shapes are those of the widely used `g_ema` checkpoints, so an official file loads
with `strict=True`. Nothing is compiled; the same code runs on a CPU and on CUDA, in float32, bfloat16 or float16. In
the latter two, the features are halves, while codes, styles and the picture that the layers add up stay float32,
because a step of a latent search is smaller than what a half can tell apart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def binomial_kernel(gain: float) -> Tensor:
    """Return the 4x4 low-pass filter [1, 3, 3, 1] of StyleGAN2, summing to `gain`."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    return kernel * (gain / kernel.sum())


def filter_channels(images: Tensor, kernel: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
    """Convolve every channel of (N, C, H, W) with one 2-D kernel."""
    channels = images.shape[1]
    weight = kernel.to(images.dtype).expand(channels, 1, *kernel.shape)
    return F.conv2d(images, weight, padding=padding, stride=stride, groups=channels)


class PixelNorm(nn.Module):
    """Scale every vector to unit mean square."""

    def forward(self, vectors: Tensor) -> Tensor:
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

    def forward(self, vectors: Tensor) -> Tensor:
        dtype = vectors.dtype
        out = F.linear(vectors * self.scale, self.weight.to(dtype), (self.bias * self.lr_mul).to(dtype))
        return F.leaky_relu(out, 0.2) * math.sqrt(2) if self.activate else out


class _LowPass(nn.Module):
    """Holds the published `kernel` buffer."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", binomial_kernel(gain=4.0))


class Blur(_LowPass):
    """Low-pass filter after a transposed convolution."""

    def forward(self, images: Tensor) -> Tensor:
        return filter_channels(images, self.kernel, padding=1)


class Upsample(_LowPass):
    """Double the size of (N, 3, H, W) pictures with the low-pass filter."""

    def forward(self, images: Tensor) -> Tensor:
        n, c, h, w = images.shape
        spread = images.new_zeros(n, c, 2 * h, 2 * w)
        spread[:, :, ::2, ::2] = images
        return filter_channels(F.pad(spread, (2, 1, 2, 1)), self.kernel)


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
        self._cached: tuple[Tensor, tuple[int, int], Tensor] | None = None
        if up:
            self.blur = Blur()

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        """Return (N, outputs, H or 2H, W or 2W) for features (N, inputs, H, W) and codes (N, style_dim)."""
        out, power = self.parts(features, code)
        return out if power is None else out * power

    def parts(self, features: Tensor, code: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the convolution and the factor still to be applied to it, (N, outputs, 1, 1) or None.

        There is one factor per channel, so it may wait until after the filter, where a caller joins it with its own.
        """
        # The equalised learning rate's factor goes to the style, which is far smaller than the weights.
        style = self.modulation(code) * self.scale
        weight = self.weight[0].to(features.dtype)
        styled = features * style.to(features.dtype)[:, :, None, None]
        if self.up:
            out = self.blur(F.conv_transpose2d(styled, weight.transpose(0, 1), stride=2))
        else:
            out = F.conv2d(styled, weight, padding=self.padding)
        if not self.demodulate:
            return out, None
        # Sums of squares leave the range of half precision, so they are taken in float32.
        power = style.float().square() @ self._squares().t()
        return out, torch.rsqrt(power + 1e-8).to(out.dtype)[:, :, None, None]

    def _squares(self) -> Tensor:
        """Return the sums (outputs, inputs) of squared weights, cached while frozen weights stay the same."""
        weight = self.weight
        if weight.requires_grad:
            return weight[0].float().square().sum((2, 3))
        version = (weight._version, weight.data_ptr())  # noqa: SLF001 - the only sign of a change in place
        if self._cached is None or self._cached[0] is not weight or self._cached[1] != version:
            self._cached = (weight, version, weight[0].float().square().sum((2, 3)))
        return self._cached[2]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the stored sums out of copies."""
        return self.__dict__ | {"_cached": None}


class NoiseInjection(nn.Module):
    """Add a fixed noise map with one learned strength."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        return features + (self.weight * noise).to(features.dtype)


class BiasedLeakyReLU(nn.Module):
    """Add a bias, apply LeakyReLU(0.2) and restore the variance with a factor of sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        biased = features + self.bias.to(features.dtype)[None, :, None, None]
        return F.leaky_relu(biased, 0.2) * math.sqrt(2)


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise and activation."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style_dim, up=up)
        self.noise = NoiseInjection()
        self.activate = BiasedLeakyReLU(outputs)

    def forward(self, features: Tensor, code: Tensor, noise: Tensor) -> Tensor:
        # activate(noise(conv(...))) in fewer passes: LeakyReLU commutes with the positive factor sqrt(2), so the
        # factor joins the demodulation, the noise and the bias, which are all small.
        out, power = self.conv.parts(features, code)
        assert power is not None
        gain = math.sqrt(2)
        bias = (self.activate.bias * gain).to(out.dtype)[None, :, None, None]
        out = torch.addcmul(bias, out, power * gain)
        out += (self.noise.weight * gain * noise).to(out.dtype)
        return F.leaky_relu_(out, 0.2)


class ToRGB(nn.Module):
    """Project features to colours and add the upsampled picture of the layer below."""

    def __init__(self, inputs: int, style_dim: int, *, up: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        if up:
            self.upsample = Upsample()

    def forward(self, features: Tensor, code: Tensor, skip: Tensor | None = None) -> Tensor:
        # Pictures of all sizes are added up in at least float32, in which halves would lose the darkest shades.
        out = self.conv(features, code).to(self.bias.dtype) + self.bias
        return out if skip is None else out + self.upsample(skip)


class ConstantInput(nn.Module):
    """The learned 4x4 feature map that every picture starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


ROWS_PER_RESOLUTION = 2


def default_channels(channel_multiplier: int = 2) -> dict[int, int]:
    """Return the published channel table: resolution in pixels to feature channels."""
    wide = {4: 512, 8: 512, 16: 512, 32: 512}
    return wide | {size: 16384 * channel_multiplier // size for size in (64, 128, 256, 512, 1024)}


def row_count(size: int) -> int:
    """Return how many W+ rows a generator of `size` pixels reads (18 at 1024, 12 at 128)."""
    return ROWS_PER_RESOLUTION * int(math.log2(size)) - 2


OFFSET_SIZE = 32  # side in pixels of the feature maps that an offset is added to


@dataclass(frozen=True)
class FeatureOffset:
    """What a face has that no code describes, added at one size, so that rows still act before and after it.

    Args:
        features: Added to the feature maps (N, C, S, S) of `offset_size`.
        picture: Added to the picture of this size, (N, 3, S, S).
    """

    features: Tensor
    picture: Tensor

    def select(self, faces: Tensor) -> "FeatureOffset":
        """Return the same for some faces; `faces` is a boolean mask (N,) or indices."""
        return FeatureOffset(self.features[faces], self.picture[faces])

    def add_to(self, features: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        return features + self.features.to(features.dtype), picture + self.picture


@dataclass(frozen=True)
class Partial:
    """A synthesis that stopped before the first layer that reads `row`.

    Args:
        row: The first W+ row not read yet.
        features: Feature maps (N, C, H, W).
        picture: Picture so far (N, 3, h, w), or None before the first colours.
        offset: Added once the layers of its size have run.
    """

    row: int
    features: Tensor
    picture: Tensor | None
    offset: FeatureOffset | None = None

    def select(self, faces: Tensor) -> "Partial":
        """Return the same for some faces; `faces` is a boolean mask (N,) or indices."""
        picture = None if self.picture is None else self.picture[faces]
        return Partial(self.row, self.features[faces], picture, self.offset and self.offset.select(faces))


class StyleGAN2(nn.Module):
    """StyleGAN2 generator with the skip architecture.

    Args:
        size: Output size in pixels, a power of two from 8.
        style_dim: Length of one code.
        mapping_layers: Depth of the mapping network from z to w.
        channel_multiplier: Width of the layers from 64 pixels on, for the published channel table.
        channels: Resolution to channels, in place of the published table.
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

    def synthesize(
        self,
        codes: Tensor,
        *,
        resolution: int | None = None,
        noise: list[Tensor] | None = None,
        offset: FeatureOffset | None = None,
    ) -> Tensor:
        """Draw pictures from W+ codes.

        Args:
            codes: (N, rows, style_dim); with a lower `resolution`, later rows are not read.
            resolution: Stop at this size in pixels and return the generator's own picture there.
            noise: One map per layer in place of the registered ones.
            offset: What the faces have beside their codes.

        Returns:
            (N, 3, resolution, resolution), unclamped, around [-1, 1].
        """
        return self.resume(self.prefix(codes, 0, offset=offset), codes, resolution=resolution, noise=noise)

    @property
    def offset_size(self) -> int:
        """Return the side in pixels at which an offset is added: 32, or half of a smaller picture."""
        return min(OFFSET_SIZE, self.size // 2)

    @property
    def offset_row(self) -> int:
        """Return the last row that is read before an offset is added; later layers read it too."""
        return row_count(self.offset_size) - 1

    def no_offset(self, count: int) -> FeatureOffset:
        """Return an offset of zeros for `count` faces."""
        side, layer = self.offset_size, self._last_layer(self.offset_size)
        weight = layer.conv.weight
        return FeatureOffset(
            weight.new_zeros(count, weight.shape[2], side, side), weight.new_zeros(count, 3, side, side)
        )

    def prefix(
        self, codes: Tensor, row: int, *, dtype: torch.dtype | None = None, offset: FeatureOffset | None = None
    ) -> Partial:
        """Run only the layers that read the rows before `row`, with the registered noise.

        `dtype` is the type of the feature maps, here and in `resume`; by default that of the codes. `offset` is added
        here or in `resume`, where the layers of its size end.
        """
        start = self.input.input.to(dtype or codes.dtype).expand(len(codes), -1, -1, -1)
        # Convolutions are faster with the channels last, and every layer keeps the order that it is given.
        start = start.contiguous(memory_format=torch.channels_last)
        return self._run(Partial(0, start, None, offset), row, codes, None, None)

    def resume(
        self,
        partial: Partial,
        codes: Tensor | Sequence[Tensor],
        *,
        resolution: int | None = None,
        noise: list[Tensor] | None = None,
    ) -> Tensor:
        """Run the layers that `partial` left out, which read the rows of `codes` from `partial.row` on.

        Codes may also be one tensor (N, style_dim) per row, so that gradients are taken for some rows only.
        """
        picture = self._run(partial, self.rows, codes, resolution, noise).picture
        if picture is None:
            raise ValueError("the synthesis stopped before its first picture")
        return picture

    def _run(
        self,
        partial: Partial,
        end: int,
        codes: Tensor | Sequence[Tensor],
        resolution: int | None,
        noise: list[Tensor] | None,
    ) -> Partial:
        rows = codes.unbind(1) if isinstance(codes, Tensor) else codes
        maps = noise if noise is not None else list(self.noises.buffers())
        features, picture, offset = partial.features, partial.picture, partial.offset
        last = self._last_layer(self.offset_size)
        for row, layer in self._layers(resolution or self.size):
            if not partial.row <= row < end:
                continue
            if isinstance(layer, ToRGB):
                picture = layer(features, rows[row], picture)
                if layer is last and offset is not None:
                    features, picture = offset.add_to(features, picture)
            else:
                features = layer(features, rows[row], maps[row])
        return Partial(end, features, picture, offset)

    def _last_layer(self, size: int) -> ToRGB:
        """Return the layer that ends the work at a size in pixels."""
        return self.to_rgb1 if size == 4 else cast(ToRGB, self.to_rgbs[int(math.log2(size)) - 3])

    def _layers(self, stop: int) -> Iterator[tuple[int, nn.Module]]:
        """Yield every layer up to `stop` pixels in order, with the row that it reads."""
        yield 0, self.conv1
        yield 1, self.to_rgb1
        for level in range(int(math.log2(stop)) - 2):
            row = 1 + 2 * level
            yield row, self.convs[2 * level]
            yield row + 1, self.convs[2 * level + 1]
            yield row + 2, self.to_rgbs[level]

    def fresh_noise(self, seed: int) -> list[Tensor]:
        """Return one standard-normal map per layer, reproducible from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(old.shape, generator=generator).to(old) for old in self.noises.buffers()]
