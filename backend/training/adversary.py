"""A discriminator in training, beside whatever draws the pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backend.training.augmentation import AdaptiveStrength, augment
from backend.training.discriminator import Discriminator
from backend.training.generator import update
from backend.training.regularisers import fooling, lazy_betas, lazy_share, r1, telling

ADJUST_EVERY = 4  # steps between two changes of the augmentation
ZEROES = 1e-8  # Adam's epsilon, as published


@dataclass(frozen=True, kw_only=True)
class AdversarySettings:
    """Settings of a discriminator; `settings/generator_adversarial.toml` explains them."""

    discriminator_width: float
    discriminator_rate: float
    r1_weight: float
    r1_every: int
    augmentation_target: float
    augmentation_images: float


@dataclass(frozen=True)
class Arithmetic:
    """How a device computes.

    Args:
        device: Where.
        dtype: Of feature maps; what R1 and path lengths differentiate twice stays float32.
        compiled: Whether networks are compiled where they are not differentiated twice.
    """

    device: torch.device
    dtype: torch.dtype
    compiled: bool

    @classmethod
    def of(cls, device: torch.device, *, compiled: bool, bfloat16: bool = False) -> "Arithmetic":
        """Return bfloat16 where CUDA computes with it or where it is asked for, float32 elsewhere.

        Only CUDA gains from compiling.
        """
        cuda = device.type == "cuda"
        half = bfloat16 or (cuda and torch.cuda.is_bf16_supported())
        return cls(device, torch.bfloat16 if half else torch.float32, compiled and cuda)

    def ready(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the function, compiled if that is wanted."""
        return torch.compile(function) if self.compiled else function

    def narrow(self) -> torch.autocast:
        """Return a context in which networks compute with `dtype`, as far as that is safe."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def randomness(self, seed: int, number: int) -> torch.Generator:
        """Return the random numbers of one step."""
        return torch.Generator(self.device).manual_seed(seed * 1_000_003 + number)


class Adversary:
    """Discriminator, its optimiser, and the augmentation through which it sees pictures.

    Args:
        size: Largest side of the pictures in pixels.
        settings: Of the run.
        arithmetic: How to compute.
    """

    def __init__(self, size: int, settings: AdversarySettings, arithmetic: Arithmetic) -> None:
        self.settings, self.arithmetic = settings, arithmetic
        self.discriminator = Discriminator(size, settings.discriminator_width).to(arithmetic.device)
        self.discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.strength = AdaptiveStrength(settings.augmentation_target, settings.augmentation_images)
        self.strength.to(arithmetic.device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), 1e-3, lazy_betas(settings.r1_every), ZEROES, fused=True
        )
        self._judge = arithmetic.ready(self.discriminator)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"discriminator": self.discriminator, "augmentation": self.strength}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimiser."""
        return {"discriminator": self.optimizer}

    def fooling(self, drawn: Tensor, randomness: torch.Generator) -> Tensor:
        """Return the loss of the generator that drew pictures (N, 3, S, S) in [-1, 1]."""
        self.discriminator.requires_grad_(requires_grad=False)
        return fooling(self._logits(drawn, randomness))

    def train(self, real: Tensor, drawn: Tensor, number: int, randomness: torch.Generator) -> dict[str, Tensor]:
        """Train one step on photographs and drawings, both (N, 3, S, S) in [-1, 1], and return the losses."""
        settings = self.settings
        self.discriminator.requires_grad_(requires_grad=True)
        rate = settings.discriminator_rate * lazy_share(settings.r1_every)
        on_real, on_drawn = (self._logits(pictures, randomness) for pictures in (real, drawn.detach()))
        loss = telling(on_real, on_drawn)
        update(self.optimizer, loss, rate, longest=torch.inf)
        values = {"discriminator": loss.detach(), "real_sign": on_real.detach().sign().mean()}
        if settings.r1_every and number % settings.r1_every == 0:
            values["r1"] = self._regularise(real, rate, randomness)
        self.strength.observe(on_real.detach())
        if number % ADJUST_EVERY == ADJUST_EVERY - 1:
            self.strength.adjust()
        return values | {"augmentation": self.strength.p.clone()}

    def _logits(self, pictures: Tensor, randomness: torch.Generator) -> Tensor:
        return self._judge(augment(pictures, self.strength.p, randomness), self.arithmetic.dtype)

    def _regularise(self, real: Tensor, rate: float, randomness: torch.Generator) -> Tensor:
        """Make a step that flattens the discriminator where it sees photographs; return the penalty."""
        seen = augment(real, self.strength.p, randomness).detach().requires_grad_()
        penalty = r1(self.discriminator(seen), seen)
        weight = self.settings.r1_weight / 2 * self.settings.r1_every
        update(self.optimizer, weight * penalty, rate, longest=torch.inf)
        return penalty.detach()
