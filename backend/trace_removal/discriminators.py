"""TR-Net's three discriminators: spatial, spectral and noise fingerprint (arXiv 2203.11433, section 4.3).

All share one backbone of five strided convolutions, as in the released code; the spatial one can have a finer one
instead.
"""

import itertools
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import residuals
from backend.trace_removal import spectra

Norm = Literal["layer", "batch"]
SpectralForm = Literal["standardised", "paper", "code"]
SpatialForm = Literal["strided", "residual"]
CHANNELS = (128, 256, 512, 512, 512)
SLOPE = 0.2  # of the leaky ReLU
SMALLEST_DEVIATION = 1e-3
DETAIL_GAIN = 10.0


class Backbone(nn.Module):
    """Five 4 x 4 convolutions of stride 2, then a 4 x 4 convolution to one logit.

    Args:
        given: Channels of the input: 3 for pictures (11,028,097 parameters), 1 for a spectrum (11,024,001).
        width: Factor on the other channels; 1 is the published size.
        norm: `layer` (GroupNorm with one group) goes with a gradient penalty, `batch` without one.
    """

    def __init__(self, given: int = 3, width: float = 1.0, norm: Norm = "layer") -> None:
        super().__init__()
        channels = [max(1, round(count * width)) for count in CHANNELS]
        layers: list[nn.Module] = [nn.Conv2d(given, channels[0], 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for before, after in itertools.pairwise(channels):
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=False))
            layers.append(_norm(after, norm))
            layers.append(nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels[-1], 1, 4)
        self.feature_count = channels[-1] * 16
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the last layer's features (N, 512 * width, 4, 4) of inputs (N, C, 128, 128)."""
        return cast(Tensor, self.layers(inputs))

    def logit(self, features: Tensor) -> Tensor:
        """Return the log-odds of real (N,) from features."""
        return self.last(features).flatten(1).mean(1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the log-odds of real (N,)."""
        return self.logit(self.features(inputs))


class ResidualBackbone(nn.Module):
    """A stem that keeps every pixel, then four residual stages of half the side each; not in the paper.

    The first layer of `Backbone` leaves one in four places, so that it hardly learns what detectors learn from the
    same pictures: a face swap has its traces between neighbouring pixels. Here they are shown beside the picture.

    Args:
        given: Channels of the input.
        width: Factor on the other channels, as in `Backbone`.
        norm: As in `Backbone`.
    """

    def __init__(self, given: int = 3, width: float = 1.0, norm: Norm = "layer") -> None:
        super().__init__()
        channels = [max(8, round(count * width)) for count in (64, *CHANNELS[:4])]
        self.stem = nn.Sequential(
            nn.Conv2d(2 * given, channels[0], 3, padding=1), _norm(channels[0], norm), nn.LeakyReLU(SLOPE)
        )
        self.stages = nn.Sequential(*(_Residual(a, b, norm) for a, b in itertools.pairwise(channels)))
        self.last = nn.Linear(channels[-1], 1)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the last stage's features (N, 512 * width, H / 16, W / 16) of inputs (N, C, H, W)."""
        detail = inputs - F.avg_pool2d(inputs, 3, 1, 1, count_include_pad=False)
        return cast(Tensor, self.stages(self.stem(torch.cat([inputs, DETAIL_GAIN * detail], dim=1))))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the log-odds of real (N,)."""
        return cast(Tensor, self.last(self.features(inputs).mean((2, 3))).flatten())


class _Residual(nn.Module):
    """Two 3 x 3 convolutions, the first of stride 2, beside a 1 x 1 convolution of the halved input."""

    def __init__(self, given: int, made: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(given, made, 3, 2, 1, bias=False), _norm(made, norm)
        self.conv2, self.norm2 = nn.Conv2d(made, made, 3, 1, 1, bias=False), _norm(made, norm)
        self.beside = nn.Conv2d(given, made, 1)

    def forward(self, features: Tensor) -> Tensor:
        inner = F.leaky_relu(self.norm1(self.conv1(features)), SLOPE)
        inner = self.norm2(self.conv2(inner)) + self.beside(F.avg_pool2d(features, 2))
        return F.leaky_relu(inner, SLOPE)


def _norm(channels: int, norm: Norm) -> nn.Module:
    return nn.GroupNorm(1, channels) if norm == "layer" else nn.BatchNorm2d(channels)


class SpatialDiscriminator(nn.Module):
    """D1: looks at the pixels.

    Args:
        width: Factor on the channels.
        norm: As in `Backbone`.
        form: `strided`, the published backbone, or `residual`, the finer one.
    """

    def __init__(self, width: float = 1.0, norm: Norm = "layer", form: SpatialForm = "strided") -> None:
        super().__init__()
        self.backbone = Backbone(3, width, norm) if form == "strided" else ResidualBackbone(3, width, norm)

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the backbone is shown: the pictures."""
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Return the log-odds of real (N,) of pictures (N, 3, 128, 128) in [0, 1]."""
        return cast(Tensor, self.backbone(images))


class SpectralDiscriminator(nn.Module):
    """D2: looks at the spectrum of the brightness.

    Args:
        width: Factor on the channels.
        norm: As in `Backbone`.
        form: What it is shown. `standardised`: log power and phase, two channels, each frequency of the power
            shifted and scaled by its mean and deviation over real pictures (see `fit`), and both without what
            rounding to 8 bits hides. `paper`: amplitude and
            phase as printed, of which the one at frequency 0 is a thousand times the others. `code`: the log power
            alone, as released.
        size: Side of the pictures.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, width: float = 1.0, norm: Norm = "layer", form: SpectralForm = "standardised", size: int = 128
    ) -> None:
        super().__init__()
        self.form = form
        self.backbone = Backbone(1 if form == "code" else 2, width, norm)
        self.register_buffer("mean", torch.zeros(size, size))
        self.register_buffer("deviation", torch.ones(size, size))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Take mean and deviation of the log power from real pictures (N, 3, size, size) in [0, 1]."""
        power = spectra.log_power(images, self._floor())
        self.mean.copy_(power.mean(0))
        self.deviation.copy_(power.std(0).clamp_min(SMALLEST_DEVIATION))

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the backbone is shown, (N, 1 or 2, size, size)."""
        if self.form == "code":
            return spectra.log_power(images)[:, None]
        if self.form == "paper":
            return torch.stack([spectra.amplitude(images), spectra.phase(images)], dim=1)
        power = spectra.log_power(images, self._floor())
        visible = 1 - self._floor() * torch.exp(-power)  # share of the power that is not rounding
        angle = visible * spectra.phase(images) / spectra.PHASE_STD
        return torch.stack([(power - self.mean) / self.deviation, angle], dim=1)

    def _floor(self) -> float:
        return spectra.rounding_power(*self.mean.shape)

    def forward(self, images: Tensor) -> Tensor:
        """Return the log-odds of real (N,) of pictures (N, 3, size, size) in [0, 1]."""
        return cast(Tensor, self.backbone(self.inputs(images)))


class FingerprintDiscriminator(nn.Module):
    """D3: looks at SRM noise maps, and names the source of a picture.

    Args:
        sources: How many sources there are, real photographs among them; 0 leaves the head out, as released.
        width: Factor on the channels.
        norm: As in `Backbone`.
    """

    def __init__(self, sources: int = 0, width: float = 1.0, norm: Norm = "layer") -> None:
        super().__init__()
        self.backbone = Backbone(3, width, norm)
        hidden = max(8, round(512 * width))
        self.source_head = (
            nn.Sequential(
                nn.Flatten(), nn.Linear(self.backbone.feature_count, hidden), nn.ReLU(), nn.Linear(hidden, sources)
            )
            if sources
            else None
        )

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the backbone is shown: three noise maps (N, 3, 128, 128)."""
        return residuals.srm(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return the log-odds of real (N,) of pictures (N, 3, 128, 128) in [0, 1]."""
        return cast(Tensor, self.backbone(self.inputs(images)))

    def with_source(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-odds of real (N,) and one logit a source (N, sources) of pictures (N, 3, 128, 128)."""
        return self.judge(self.inputs(images))

    def judge(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same of noise maps (N, 3, 128, 128)."""
        if self.source_head is None:
            raise ValueError("this discriminator was built without sources")
        features = self.backbone.features(maps)
        return self.backbone.logit(features), cast(Tensor, self.source_head(features))


Discriminator = SpatialDiscriminator | SpectralDiscriminator | FingerprintDiscriminator


def source_loss(logits: Tensor, sources: Tensor) -> Tensor:
    """Return the cross-entropy over all sources (eq. 12) of logits (N, sources) and their true numbers (N,)."""
    return F.cross_entropy(logits, sources)
