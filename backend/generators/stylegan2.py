"""StyleGAN2 synthesis in plain PyTorch (Karras et al. 2020, sections 2 and 4).

State-dict keys and shapes are those of the widely used `g_ema` checkpoints, so an official file loads
with `strict=True`. Nothing is compiled; the same code runs on a CPU and on CUDA, in float32, bfloat16 or float16. In
the latter two, the features are halves, while codes, styles and the picture that the layers add up stay float32, for
a step of a latent search is smaller than what a half can tell apart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.generators.modulated import ConstantInput, EqualLinear, ModulatedConv2d, PixelNorm, StyledConv, ToRGB

__all__ = ["EqualLinear", "ModulatedConv2d", "Partial", "StyleGAN2", "default_channels", "row_count"]

ROWS_PER_RESOLUTION = 2


def default_channels(channel_multiplier: int) -> dict[int, int]:
    """Return the published channel table: resolution in pixels to feature channels."""
    wide = {4: 512, 8: 512, 16: 512, 32: 512}
    return wide | {size: 16384 * channel_multiplier // size for size in (64, 128, 256, 512, 1024)}


def row_count(size: int) -> int:
    """Return how many W+ rows a generator of `size` pixels reads (18 at 1024, 12 at 128)."""
    return ROWS_PER_RESOLUTION * int(math.log2(size)) - 2


@dataclass(frozen=True)
class Partial:
    """A synthesis that stopped before the first layer that reads `row`.

    Args:
        row: The first W+ row not read yet.
        features: Feature maps (N, C, H, W).
        picture: Picture so far (N, 3, h, w), or None before the first colours.
    """

    row: int
    features: Tensor
    picture: Tensor | None

    def select(self, faces: Tensor) -> "Partial":
        """Return the same for some faces; `faces` is a boolean mask (N,) or indices."""
        picture = None if self.picture is None else self.picture[faces]
        return Partial(self.row, self.features[faces], picture)


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
        return self.resume(self.prefix(codes, 0), codes, resolution=resolution, noise=noise)

    def prefix(
        self,
        codes: Tensor,
        row: int,
        *,
        resolution: int | None = None,
        noise: list[Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Partial:
        """Run only the layers that read the rows before `row`.

        Args:
            codes: As in `synthesize`.
            row: The first row that is not read.
            resolution: As in `synthesize`.
            noise: As in `synthesize`.
            dtype: Type of the feature maps, here and in what `resume` adds; None takes that of the codes.
        """
        start = self.input.input.to(dtype or codes.dtype).expand(len(codes), -1, -1, -1)
        # Convolutions are faster with the channels last, and every layer keeps the order that it is given.
        start = start.contiguous(memory_format=torch.channels_last)
        return self._run(Partial(0, start, None), row, codes, resolution, noise)

    def resume(
        self,
        partial: Partial,
        codes: Tensor | Sequence[Tensor],
        *,
        resolution: int | None = None,
        noise: list[Tensor] | None = None,
    ) -> Tensor:
        """Run the layers that `partial` left out; of `codes`, the rows from `partial.row` on are read.

        Codes may also come as one tensor (N, style_dim) a row, so that gradients are taken for some rows only.
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
        features, picture = partial.features, partial.picture
        for row, layer in self._layers(resolution or self.size):
            if not partial.row <= row < end:
                continue
            if isinstance(layer, ToRGB):
                picture = layer(features, rows[row], picture)
            else:
                features = layer(features, rows[row], maps[row])
        return Partial(end, features, picture)

    def _layers(self, stop: int) -> Iterator[tuple[int, nn.Module]]:
        """Yield every layer up to `stop` pixels in its order, with the row that it reads."""
        yield 0, self.conv1
        yield 1, self.to_rgb1
        for level in range(int(math.log2(stop)) - 2):
            row = 1 + 2 * level
            yield row, self.convs[2 * level]
            yield row + 1, self.convs[2 * level + 1]
            yield row + 2, self.to_rgbs[level]

    def fresh_noise(self, seed: int) -> list[Tensor]:
        """Return one standard-normal map a layer, reproducible from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(old.shape, generator=generator).to(old) for old in self.noises.buffers()]
