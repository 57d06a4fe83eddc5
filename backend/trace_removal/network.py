"""TR-Net's generator (arXiv 2203.11433, section 4.2; layer sizes as in the released code)."""

import zlib
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.signals import gaussian_blur, gaussian_kernel

Statistics = Literal["batch", "fixed"]
CHANNELS = (32, 64, 128, 256)
MULTIPLE = 8  # the picture is halved three times
SMOOTHING = 0.2  # sigma in pixels
USUAL_CONTRAST = 8 / 255  # local standard deviation at which the network's change is left as it is
MIN_GAIN, MAX_GAIN = 0.5, 1.6  # factors on the change


class TRNet(nn.Module):
    """U-Net with bilinear upsampling and a feature-scaling layer.

    Args:
        width: Factor on all channels; 1 is the published size (1,800,687 trainable parameters).
        statistics: What batch normalisation uses in training. `batch`: mean and variance of the batch, as in the
            paper. `fixed`: mean 0 and variance 1, so that it is a scale and a shift per channel; the released code
            trains this way, because it calls the generator in evaluation mode.
        residual: False: the result is tanh(network), the published form. True: picture + bound * tanh(network), which
            starts as the identity and needs far less training to keep a face's detail; not in the paper.
        bound: Largest change of a value in the residual form, in [0, 1]. Without a bound, the cheapest way past a
            discriminator is a few coloured blots that everybody sees.
        grain: Standard deviation, in grey levels, of noise added to the network's input. The network has to draw
            texture where a generator left none, and has no other source of randomness; not in the paper. The noise
            depends on the picture alone: a picture always gives the same result, and no two share a pattern.
        by_contrast: Make the change of the residual form smaller on even skin, where it would be seen, and larger where
            neighbouring pixels differ and hide it (contrast masking, Legge and Foley 1980); see `contrast_gain`. Not
            in the paper.
    """

    def __init__(
        self,
        width: float = 1.0,
        *,
        statistics: Statistics = "batch",
        residual: bool = False,
        bound: float = 1.0,
        grain: float = 0.0,
        by_contrast: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.statistics, self.residual = width, statistics, residual
        self.bound, self.grain, self.by_contrast = bound, grain, by_contrast
        channels = [max(1, round(count * width)) for count in CHANNELS]
        self.down_blocks = nn.ModuleList(_Down(a, b) for a, b in zip([3, *channels[:-1]], channels, strict=True))
        self.up_blocks = nn.ModuleList(_Up(channels[i + 1], channels[i]) for i in (2, 1, 0))
        self.conv_after_scaling = nn.Conv2d(channels[0], 3, 3, stride=2, padding=1)
        self.conv_final = nn.Conv2d(3, 3, 1)
        self.smoothing = _Smoothing()
        self.apply(_initialise)
        if residual:
            nn.init.zeros_(self.conv_final.weight)

    def train(self, mode: bool = True) -> "TRNet":  # noqa: FBT001, FBT002 - the signature of nn.Module
        """Set the mode, but keep fixed statistics fixed."""
        super().train(mode)
        if self.statistics == "fixed":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return pictures of about [0, 1], unclamped, from pictures (N, 3, H, W) in [0, 1].

        Where H or W is not a multiple of 8, up to 7 rows or columns at the edges are lost, evenly on both sides.
        """
        features, skips = self._with_grain(images), []
        for number, block in enumerate(self.down_blocks):
            features = block(F.max_pool2d(features, 2) if number else features)
            skips.append(features)
        for block, skip in zip(self.up_blocks, reversed(skips[:-1]), strict=True):
            features = block(features, skip)
        scaled = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)
        drawn = torch.tanh(self.conv_final(self.conv_after_scaling(scaled)))
        if not self.residual:
            return drawn
        original = centre_crop(images, drawn)
        return original + self.bound * (drawn * contrast_gain(original) if self.by_contrast else drawn)

    def _with_grain(self, images: Tensor) -> Tensor:
        if not self.grain:
            return images
        return images + self.grain / 255 * torch.stack([_picture_noise(image) for image in images]).to(images)

    @torch.no_grad()
    def remove(self, images: Tensor, strength: float = 1.0) -> Tensor:
        """Return pictures (N, 3, H, W) in [0, 1] of any size without traces; their edges are kept.

        `strength` is a factor on the change; the network was trained for 1.
        """
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        return torch.lerp(images, self(padded)[..., :height, :width], strength).clamp(0, 1)


def _picture_noise(image: Tensor) -> Tensor:
    """Return normal noise (3, H, W), on the CPU, determined by the 8-bit values of the picture alone."""
    pixels = (image.detach().clamp(0, 1) * 255).round().byte().cpu().contiguous().numpy()
    return torch.randn(image.shape, generator=torch.Generator().manual_seed(zlib.crc32(pixels.tobytes())))


class _Down(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        features = self.norm1(F.relu(self.conv1(features)))
        return cast(Tensor, self.norm2(F.relu(self.conv2(features))))


class _Up(nn.Module):
    """Double the side, halve the channels, concatenate the skip connection, convolve twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs)
        self.conv1, self.norm1 = nn.Conv2d(2 * outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        enlarged = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        enlarged = self.norm0(F.relu(self.conv0(enlarged)))
        both = torch.cat([enlarged, centre_crop(skip, enlarged)], dim=1)
        both = self.norm1(F.relu(self.conv1(both)))
        return cast(Tensor, self.norm2(F.relu(self.conv2(both))))


class _Smoothing(nn.Module):
    """The 3 x 3 Gaussian that the released network holds and never calls; kept so that its files load."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", gaussian_kernel(3, SMOOTHING).expand(3, 1, 3, 3).clone())


@torch.no_grad()
def contrast_gain(images: Tensor) -> Tensor:
    """Return how large a change may be, (N, 1, H, W) in [0.5, 1.6], in pictures (N, 3, H, W) in [0, 1].

    It is the square root of the local standard deviation of the brightness, in units of 8 grey levels, clamped and
    smoothed.
    """
    grey = images.mean(1, keepdim=True)
    variance = (gaussian_blur(grey.square(), 9, 1.5) - gaussian_blur(grey, 9, 1.5).square()).clamp_min(0)
    return gaussian_blur((variance.sqrt() / USUAL_CONTRAST).sqrt().clamp(MIN_GAIN, MAX_GAIN), 7, 1.0)


def centre_crop(features: Tensor, like: Tensor) -> Tensor:
    """Cut (N, C, H, W) evenly on both sides to the height and width of `like`."""
    top, left = ((features.shape[axis] - like.shape[axis]) // 2 for axis in (-2, -1))
    return features[..., top : top + like.shape[-2], left : left + like.shape[-1]]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
