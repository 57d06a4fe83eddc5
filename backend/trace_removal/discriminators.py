"""TR-Net's three discriminators and its losses (arXiv 2203.11433, section 4.3 and eq. 6 to 13).

The discriminators look at pixels, spectrum and noise fingerprint. Each has a backbone of five strided convolutions, as
in the released code; the spatial one can have a finer one instead. Losses exist in the forms of the paper and of the
released code. The discriminators maximise log D(real) + log(1 - D(made)). The generator minimises -log D(made) in place
of log(1 - D(made)): the same goal without the vanishing gradient (Goodfellow et al. 2014, section 3).
"""

import itertools
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import signals
from backend.similarity import batch_ssim

Norm = Literal["layer", "batch"]
SpectralForm = Literal["standardised", "paper", "code"]
SpatialForm = Literal["strided", "residual"]
BACKBONE_CHANNELS = (128, 256, 512, 512, 512)
LEAKY_SLOPE = 0.2  # of the leaky ReLU
SMALLEST_DEVIATION = 1e-3
DETAIL_GAIN = 10.0
AdversarialForm = Literal["log", "lsgan"]
SimilarityForm = Literal["perceptual", "ssim"]
ProfileForm = Literal["paper", "log", "code"]
SSIM_WEIGHT = 10.0  # of the released code's similarity


class Backbone(nn.Module):
    """Five 4 x 4 convolutions of stride 2, then a 4 x 4 convolution to one logit.

    Args:
        inputs: Channels of the input: 3 for pictures (11,028,097 parameters), 1 for a spectrum (11,024,001).
        width: Factor on the other channels; 1 is the published size.
        norm: `layer` (GroupNorm with one group) goes with a gradient penalty, `batch` without one.
    """

    def __init__(self, inputs: int = 3, width: float = 1.0, norm: Norm = "layer") -> None:
        super().__init__()
        channels = [max(1, round(count * width)) for count in BACKBONE_CHANNELS]
        layers: list[nn.Module] = [nn.Conv2d(inputs, channels[0], 4, 2, 1), nn.LeakyReLU(LEAKY_SLOPE)]
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), _norm(after, norm), nn.LeakyReLU(LEAKY_SLOPE)]
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
        return self.last(features).flatten(1).mean(1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the log-odds of real (N,)."""
        return self.logit(self.features(inputs))


class ResidualBackbone(nn.Module):
    """A stem at full resolution, then four residual stages that each halve the side; not in the paper.

    The first layer of `Backbone` keeps one position in four, so it hardly learns what detectors learn from the same
    pictures: a face swap leaves its traces between neighbouring pixels. Here the fine detail is a second input. The
    arguments are those of `Backbone`.
    """

    def __init__(self, inputs: int = 3, width: float = 1.0, norm: Norm = "layer") -> None:
        super().__init__()
        channels = [max(8, round(count * width)) for count in (64, *BACKBONE_CHANNELS[:4])]
        self.stem = nn.Sequential(
            nn.Conv2d(2 * inputs, channels[0], 3, padding=1), _norm(channels[0], norm), nn.LeakyReLU(LEAKY_SLOPE)
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
    """Two 3 x 3 convolutions, the first with stride 2, plus a 1 x 1 convolution of the halved input."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), _norm(outputs, norm)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), _norm(outputs, norm)
        self.beside = nn.Conv2d(inputs, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        inner = F.leaky_relu(self.norm1(self.conv1(features)), LEAKY_SLOPE)
        inner = self.norm2(self.conv2(inner)) + self.beside(F.avg_pool2d(features, 2))
        return F.leaky_relu(inner, LEAKY_SLOPE)


def _norm(channels: int, norm: Norm) -> nn.Module:
    return nn.GroupNorm(1, channels) if norm == "layer" else nn.BatchNorm2d(channels)


class Discriminator(nn.Module):
    """A backbone and the form in which it is shown pictures."""

    backbone: Backbone | ResidualBackbone

    def inputs(self, images: Tensor) -> Tensor:
        """Return the backbone's input for pictures (N, 3, H, W) in [0, 1]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Return the log-odds of real (N,) of pictures (N, 3, 128, 128) in [0, 1]."""
        return cast(Tensor, self.backbone(self.inputs(images)))


class SpatialDiscriminator(Discriminator):
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
        return images


class SpectralDiscriminator(Discriminator):
    """D2: looks at the spectrum of the brightness.

    Args:
        width: Factor on the channels.
        norm: As in `Backbone`.
        form: What the backbone is shown. `standardised`: log power and phase in two channels, both without what
            rounding to 8 bits hides; each frequency of the power is standardised over real pictures (see `fit`).
            `paper`: amplitude and phase as printed; the amplitude at frequency 0 is a thousand times the others.
            `code`: the log power alone, as released.
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
        """Set mean and deviation of the log power from real pictures (N, 3, size, size) in [0, 1]."""
        power = signals.log_power(images, self._floor())
        self.mean.copy_(power.mean(0))
        self.deviation.copy_(power.std(0).clamp_min(SMALLEST_DEVIATION))

    def inputs(self, images: Tensor) -> Tensor:
        """Return the backbone's input, (N, 1 or 2, size, size)."""
        if self.form == "code":
            return signals.log_power(images)[:, None]
        if self.form == "paper":
            return torch.stack([signals.amplitude_spectrum(images), signals.phase_spectrum(images)], dim=1)
        power = signals.log_power(images, self._floor())
        visible = 1 - self._floor() * torch.exp(-power)  # share of the power that is not due to rounding
        angle = visible * signals.phase_spectrum(images) / signals.PHASE_STD
        return torch.stack([(power - self.mean) / self.deviation, angle], dim=1)

    def _floor(self) -> float:
        return signals.rounding_power(*self.mean.shape)


class FingerprintDiscriminator(Discriminator):
    """D3: looks at SRM noise maps, and names the source of a picture.

    Args:
        sources: Number of sources, including real photographs; 0 leaves the head out, as released.
        width: Factor on the channels.
        norm: As in `Backbone`.
    """

    backbone: Backbone

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
        """Return the backbone's input: three noise maps (N, 3, 128, 128)."""
        return signals.srm_residuals(images)

    def judge(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-odds of real (N,) and logits of the sources (N, sources) from noise maps (N, 3, 128, 128)."""
        if self.source_head is None:
            raise ValueError("this discriminator was built without sources")
        features = self.backbone.features(maps)
        return self.backbone.logit(features), cast(Tensor, self.source_head(features))


def source_loss(logits: Tensor, sources: Tensor) -> Tensor:
    """Return the cross-entropy over all sources (eq. 12) of logits (N, sources) and their true numbers (N,)."""
    return F.cross_entropy(logits, sources)


def discriminator_loss(kind: AdversarialForm, real: Tensor, made: Tensor) -> Tensor:
    """Return what a discriminator minimises, from its log-odds of real (N,) of real and of made pictures (eq. 7)."""
    if kind == "log":
        return F.softplus(-real).mean() + F.softplus(made).mean()
    return ((real - 1).square().mean() + made.square().mean()) / 2


def generator_loss(kind: AdversarialForm, made: Tensor) -> Tensor:
    """Return what the generator minimises, from a discriminator's log-odds of real (N,) of made pictures."""
    return F.softplus(-made).mean() if kind == "log" else (made - 1).square().mean()


def gradient_penalty(discriminate: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, places: Tensor) -> Tensor:
    """Return the zero-centred penalty: the mean squared gradient at points between fake and real pictures.

    Args:
        discriminate: A backbone: takes inputs (N, C, H, W), returns log-odds (N,).
        real: Its inputs for real pictures.
        fake: Its inputs for fakes before the generator, as in the released code.
        places: (N,) in [0, 1], from fake (0) to real (1).
    """
    share = places.view(-1, 1, 1, 1)
    between = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(discriminate(between).sum(), between, create_graph=True)
    return slope.flatten(1).square().sum(1).mean()


def perceptual_similarity(network: Callable[[Tensor, Tensor], Tensor], fake: Tensor, made: Tensor) -> Tensor:
    """Return the perceptual distance between the low frequencies of pictures in [0, 1] (eq. 9).

    `network` takes two batches in [-1, 1] and returns one distance per picture.
    """
    low = (signals.split_frequencies(images)[0] * 2 - 1 for images in (made, fake))
    return network(*low).mean()


def ssim_similarity(fake: Tensor, made: Tensor) -> Tensor:
    """Return the released code's similarity, 10 (1 - SSIM), of pictures blurred by 3 x 3 Gaussians."""
    blurred = (signals.gaussian_blur(images, 3, 1.0) for images in (fake, made))
    return SSIM_WEIGHT * (1 - batch_ssim(*blurred).mean())


def profile_loss(kind: ProfileForm, real: Tensor, made: Tensor) -> Tensor:
    """Return how far the power spectra of made pictures are from those of real ones, both (N, 3, H, W) (eq. 11).

    `paper` and `log` compare the high frequencies of each pair, radius by radius. The paper gives no unit for the
    power; here it is divided by the mean power of the real picture, or the loss would depend on the contrast.
    `code` compares with the mean profile of the real pictures. Gradients reach `made` in all three.
    """
    if kind == "code":
        expected = signals.without_lowest_radii(signals.radial_psd_as_coded(real)).mean(0, keepdim=True)
        return (signals.without_lowest_radii(signals.radial_psd_as_coded(made)) - expected).square().mean()
    of_real, of_made = (signals.radial_psd(signals.split_frequencies(images)[1]) for images in (real, made))
    if kind == "log":
        hidden = signals.ROUNDING_VARIANCE
        return (torch.log(of_made + hidden) - torch.log(of_real + hidden)).square().mean()
    unit = of_real.mean(1, keepdim=True) + signals.POWER_FLOOR
    return ((of_made - of_real) / unit).square().mean()


def likeness_floor_loss(fake: Tensor, made: Tensor, psnr: float, ssim_floor: float) -> Tensor:
    """Return how far pictures in [0, 1] fall below a PSNR (dB) and an SSIM to their originals; 0 where none does.

    Not in the paper, whose training is long enough to find the balance by itself. A floor on the batch mean could be
    met by leaving faces with few traces unchanged and spoiling the others.
    """
    error = (made - fake).square().flatten(1).mean(1) + 1e-10
    missing = F.relu(psnr + 10 * torch.log10(error)).mean() / 10
    return missing + 10 * F.relu(ssim_floor - batch_ssim(fake, made)).mean()
