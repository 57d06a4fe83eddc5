"""Adversarial training: StyleGAN2's discriminator, e4e's latent discriminator, their losses and their steps.

The losses are non-saturating, with R1 and path lengths (Karras et al. 2020, section 3.2; the residual discriminator:
section 4.1 and appendix B). The latent discriminator (Tov et al. 2021, section 4.2) tells codes of the mapping
network from those of the encoder, every row on its own, and so keeps the encoder's codes where edits work.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators.stylegan2 import (
    BiasedLeakyReLU,
    EqualLinear,
    binomial_kernel,
    default_channels,
    filter_channels,
)
from backend.training.augmentation import AdaptiveStrength, augment_pictures
from backend.training.loop import Arithmetic, step_generator, update_weights

SPREAD_GROUP = 4  # pictures whose spread is compared
LEAST_CHANNELS = 8
AUGMENTATION_EVERY = 4  # steps between two changes of its probability
ADAM_EPSILON = 1e-8  # as published
LATENT_LAYERS = 4
POOLED_CODES = 50  # pictures whose codes are kept
LATENT_R1_WEIGHT, LATENT_R1_EVERY = 10.0, 16


class EqualConv2d(nn.Module):
    """Convolution with the equalised learning rate of Karras et al. 2018; with stride 2 the input is filtered first."""

    kernel: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, *, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.scale = 1 / math.sqrt(inputs * size**2)
        self.size, self.down = size, down
        if down:
            self.register_buffer("kernel", binomial_kernel(gain=1.0))

    def forward(self, features: Tensor) -> Tensor:
        weight = (self.weight * self.scale).to(features.dtype)
        if not self.down:
            return F.conv2d(features, weight, padding=self.size // 2)
        if self.size == 1:  # it skips every other value, which need not be filtered
            return F.conv2d(filter_channels(features, self.kernel, padding=1, stride=2), weight)
        return F.conv2d(filter_channels(features, self.kernel, padding=2), weight, stride=2)


class DiscriminatorBlock(nn.Module):
    """Two convolutions, the second of which halves the size, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.activate1 = EqualConv2d(inputs, inputs, 3), BiasedLeakyReLU(inputs)
        self.conv2, self.activate2 = EqualConv2d(inputs, outputs, 3, down=True), BiasedLeakyReLU(outputs)
        self.shortcut = EqualConv2d(inputs, outputs, 1, down=True)

    def forward(self, features: Tensor) -> Tensor:
        branch = self.activate2(self.conv2(self.activate1(self.conv1(features))))
        return (branch + self.shortcut(features)) / math.sqrt(2)


class StyleGANDiscriminator(nn.Module):
    """Pictures to one logit, high for photographs.

    Args:
        size: Largest side of the pictures in pixels, a power of two; smaller ones enter at their own block.
        width: Factor on the published channels.
    """

    def __init__(self, size: int, width: float = 1.0) -> None:
        super().__init__()
        table = default_channels(2)
        channels = {side: max(LEAST_CHANNELS, round(table[side] * width)) for side in table if side <= size}
        self.from_rgbs, self.blocks = nn.ModuleDict(), nn.ModuleDict()
        for side in sorted(channels)[1:]:
            first = nn.Sequential(EqualConv2d(3, channels[side], 1), BiasedLeakyReLU(channels[side]))
            self.from_rgbs[str(side)] = first
            self.blocks[str(side)] = DiscriminatorBlock(channels[side], channels[side // 2])
        last = channels[4]
        self.conv, self.activate = EqualConv2d(last + 1, last, 3), BiasedLeakyReLU(last)
        self.linear = nn.Sequential(EqualLinear(16 * last, last, activate=True), EqualLinear(last, 1))

    def forward(self, pictures: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return logits (N,) of pictures (N, 3, S, S) in [-1, 1]; down to 4 pixels, features are of `dtype`."""
        side = pictures.shape[-1]
        features = self.from_rgbs[str(side)](pictures.to(dtype).contiguous(memory_format=torch.channels_last))
        while side > 4:
            features = cast(Tensor, self.blocks[str(side)](features))
            side //= 2
        features = self.activate(self.conv(append_spread(features.float())))
        return self.linear(features.flatten(1)).squeeze(1)


def append_spread(features: Tensor) -> Tensor:
    """Append to features (N, C, H, W) one channel with the mean deviation within groups of pictures.

    It exposes a generator that always draws the same face (Karras et al. 2018, section 3).
    """
    count, channels, height, width = features.shape
    group = SPREAD_GROUP if count % SPREAD_GROUP == 0 else count
    groups = features.view(group, count // group, channels, height, width)
    deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([features, deviation.repeat(group)[:, None, None, None].expand(-1, 1, height, width)], dim=1)


def generator_loss(fake: Tensor) -> Tensor:
    """Return the generator's loss from logits (N,) of its drawings (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss from logits (N,) of real and fake examples."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1_penalty(logits: Tensor, examples: Tensor) -> Tensor:
    """Return the mean squared slope of logits (N,) at real examples (N, ...) (Mescheder et al. 2018)."""
    (slope,) = torch.autograd.grad(logits.sum(), examples, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def path_lengths(pictures: Tensor, codes: Tensor, randomness: torch.Generator) -> Tensor:
    """Return how far (N,) pictures (N, 3, S, S) move with their codes (N, rows, D), in a random direction."""
    noise = torch.randn(pictures.shape, generator=randomness, device=pictures.device)
    side = pictures.shape[-1]
    (slope,) = torch.autograd.grad((pictures * noise).sum() / side, codes, create_graph=True)
    return slope.square().sum(2).mean(1).sqrt()


def path_penalty(lengths: Tensor, mean: Tensor, decay: float) -> Tensor:
    """Return the mean squared difference of lengths (N,) from their running mean, which is updated in place."""
    with torch.no_grad():
        mean.lerp_(lengths.mean().to(mean), 1 - decay)
    return (lengths - mean).square().mean()


def lazy_betas(every: int) -> tuple[float, float]:
    """Return Adam's betas for a loss that joins at one step in `every` (0: never), adapted as in section 3.2."""
    return 0.0, 0.99 ** lazy_share(every)


def lazy_share(every: int) -> float:
    """Return the factor on the learning rate that compensates for the additional steps."""
    return every / (every + 1) if every else 1.0


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSettings:
    """Settings of a discriminator; `settings/generator_adversarial.toml` explains them."""

    discriminator_width: float
    discriminator_rate: float
    r1_weight: float
    r1_every: int
    augmentation_target: float
    augmentation_images: float


class DiscriminatorTrainer:
    """Discriminator of pictures up to `size` pixels, its optimiser, and the augmentation through which it sees them."""

    def __init__(self, size: int, settings: DiscriminatorSettings, arithmetic: Arithmetic) -> None:
        self.settings, self.arithmetic = settings, arithmetic
        self.discriminator = StyleGANDiscriminator(size, settings.discriminator_width).to(arithmetic.device)
        self.discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.strength = AdaptiveStrength(settings.augmentation_target, settings.augmentation_images)
        self.strength.to(arithmetic.device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), 1e-3, lazy_betas(settings.r1_every), ADAM_EPSILON, fused=True
        )
        self.modules: dict[str, nn.Module] = {"discriminator": self.discriminator, "augmentation": self.strength}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"discriminator": self.optimizer}
        self._judge = arithmetic.compile(self.discriminator)

    def generator_loss(self, drawn: Tensor, randomness: torch.Generator) -> Tensor:
        """Return the loss of the generator that drew pictures (N, 3, S, S) in [-1, 1]."""
        self.discriminator.requires_grad_(requires_grad=False)
        return generator_loss(self._logits(drawn, randomness))

    def train(self, real: Tensor, drawn: Tensor, number: int, randomness: torch.Generator) -> dict[str, Tensor]:
        """Train one step on photographs and drawings, both (N, 3, S, S) in [-1, 1], and return the losses."""
        settings = self.settings
        self.discriminator.requires_grad_(requires_grad=True)
        rate = settings.discriminator_rate * lazy_share(settings.r1_every)
        real_logits, drawn_logits = (self._logits(pictures, randomness) for pictures in (real, drawn.detach()))
        loss = discriminator_loss(real_logits, drawn_logits)
        update_weights(self.optimizer, loss, rate, max_norm=torch.inf)
        values = {"discriminator": loss.detach(), "real_sign": real_logits.detach().sign().mean()}
        if settings.r1_every and number % settings.r1_every == 0:
            values["r1"] = self._regularise(real, rate, randomness)
        self.strength.observe(real_logits.detach())
        if number % AUGMENTATION_EVERY == AUGMENTATION_EVERY - 1:
            self.strength.adjust()
        return values | {"augmentation": self.strength.p.clone()}

    def _logits(self, pictures: Tensor, randomness: torch.Generator) -> Tensor:
        return self._judge(augment_pictures(pictures, self.strength.p, randomness), self.arithmetic.dtype)

    def _regularise(self, real: Tensor, rate: float, randomness: torch.Generator) -> Tensor:
        """Take a step that flattens the discriminator at photographs; return the penalty."""
        augmented = augment_pictures(real, self.strength.p, randomness).detach().requires_grad_()
        penalty = r1_penalty(self.discriminator(augmented), augmented)
        weight = self.settings.r1_weight / 2 * self.settings.r1_every
        update_weights(self.optimizer, weight * penalty, rate, max_norm=torch.inf)
        return penalty.detach()


class CodePool(nn.Module):
    """Codes of past pictures, half of which are judged in place of new ones (Shrivastava et al. 2017)."""

    kept: Tensor
    filled: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(POOLED_CODES, rows, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def exchange(self, codes: Tensor, randomness: torch.Generator) -> Tensor:
        """Store codes (N, rows, width) and return as many, some of them older; `randomness` is on the CPU."""
        exchanged = codes.clone()
        for number in range(len(codes)):
            if self.filled < POOLED_CODES:
                self.kept[self.filled] = codes[number]
                self.filled += 1
            elif torch.rand((), generator=randomness) < 0.5:
                place = int(torch.randint(POOLED_CODES, (), generator=randomness))
                exchanged[number] = self.kept[place]
                self.kept[place] = codes[number]
        return exchanged


class LatentDiscriminator:
    """The latent discriminator with its optimiser and pool, for codes (rows, width)."""

    def __init__(self, rows: int, width: int, rate: float, device: torch.device) -> None:
        layers = [layer for _ in range(LATENT_LAYERS - 1) for layer in (nn.Linear(width, width), nn.LeakyReLU(0.2))]
        self.network = nn.Sequential(*layers, nn.Linear(width, 1)).to(device)
        self.pool = CodePool(rows, width).to(device)
        self.rate = rate
        self.optimizer = torch.optim.Adam(self.network.parameters(), rate, fused=True)
        self.modules: dict[str, nn.Module] = {"latent_discriminator": self.network, "pool": self.pool}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"latent_discriminator": self.optimizer}

    def encoder_loss(self, codes: Tensor) -> Tensor:
        """Return the loss of the encoder that gave codes (N, rows, width)."""
        self.network.requires_grad_(requires_grad=False)
        return generator_loss(self.network(codes))

    def train(self, real: Tensor, codes: Tensor, number: int, seed: int) -> Tensor:
        """Train one step on codes (N, width) of the mapping network and (N, rows, width) of the encoder."""
        self.network.requires_grad_(requires_grad=True)
        real = real.detach().requires_grad_()
        real_logits = self.network(real)
        exchanged = self.pool.exchange(codes.detach(), step_generator(seed, number))
        loss = discriminator_loss(real_logits, self.network(exchanged))
        total = loss
        if number % LATENT_R1_EVERY == 0:
            total = loss + LATENT_R1_WEIGHT / 2 * LATENT_R1_EVERY * r1_penalty(real_logits, real)
        update_weights(self.optimizer, total, self.rate, max_norm=torch.inf)
        return loss.detach()
