"""The layers of StyleGAN2 (Karras et al. 2020, section 2): modulated convolution, noise, filters, colours."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def binomial_kernel(gain: float) -> Tensor:
    """Return the 4x4 low-pass filter [1, 3, 3, 1] of StyleGAN2, summing to `gain`."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    return kernel * (gain / kernel.sum())


def filtered(images: Tensor, kernel: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
    """Convolve every channel of (N, C, H, W) with one 2-D kernel."""
    channels = images.shape[1]
    weight = kernel.to(images.dtype).expand(channels, 1, *kernel.shape)
    return F.conv2d(images, weight, padding=padding, stride=stride, groups=channels)


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
        out = F.linear(vectors * self.scale, self.weight.to(dtype), (self.bias * self.lr_mul).to(dtype))
        return F.leaky_relu(out, 0.2) * math.sqrt(2) if self.activate else out


class Blur(nn.Module):
    """Low-pass filter after a transposed convolution; holds the published `kernel` buffer."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", binomial_kernel(gain=4.0))

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        return filtered(images, self.kernel, padding=1)


class Upsample(nn.Module):
    """Double the size of (N, 3, H, W) pictures with the low-pass filter."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", binomial_kernel(gain=4.0))

    def forward(self, images: Tensor) -> Tensor:  # noqa: D102
        n, c, h, w = images.shape
        spread = images.new_zeros(n, c, 2 * h, 2 * w)
        spread[:, :, ::2, ::2] = images
        return filtered(F.pad(spread, (2, 1, 2, 1)), self.kernel)


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
        """Return the convolution and what it is still to be multiplied with, (N, outputs, 1, 1) or None.

        The factor is one a channel, so it may wait until after the filter, where a caller joins it with its own.
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
        """Return the sums (outputs, inputs) of squared weights, taken once as long as frozen weights stay the same."""
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

    def forward(self, features: Tensor, code: Tensor, skip: Tensor | None = None) -> Tensor:  # noqa: D102
        # Pictures of all sizes are added up in at least float32, in which halves would lose the darkest shades.
        out = self.conv(features, code).to(self.bias.dtype) + self.bias
        return out if skip is None else out + self.upsample(skip)


class ConstantInput(nn.Module):
    """The learned 4x4 feature map every picture starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))
