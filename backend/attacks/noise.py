"""Noise: white Gaussian noise, the plainest attack of TR-Net (2203.11433, section 5.2; Frank et al. 2020).

The detector's gradient is not used.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.attacks.base import Attacked, PixelLength, judge_attack, mask_region, restore_outside
from backend.attacks.registry import register_attack
from backend.detectors.base import Detector
from backend.errors import UserError
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen
from backend.settings import validated


@validated
@dataclass(frozen=True)
class NoiseSettings:
    """Settings of the attack; the defaults are those of the paper's weak defence.

    The strength of each face is drawn uniformly between `low` and `high`. The paper calls 5 to 20 a variance; its
    Table 4 (26.86 dB) fits the standard deviation that the reference code uses, in grey levels.

    Args:
        low: Smallest standard deviation, in values of a picture in [0, 1].
        high: Largest standard deviation.
        seed: Of strengths and noise.
    """

    low: PixelLength = 5 / 255
    high: PixelLength = 20 / 255
    seed: int = 0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UserError("`low` must not be greater than `high`.", "Use for example 5/255 and 20/255.")


@register_attack(
    "noise",
    title="Noise",
    paper="Frank et al. 2020, arXiv 2003.08685",
    needs="nothing",
    settings=NoiseSettings(),
    order=10,
)
def attack(
    images: Tensor, detector: Detector, settings: NoiseSettings | None = None, mask: Tensor | None = None
) -> Job[Attacked]:
    """Add noise to faces (N, 3, H, W) in [0, 1], where `mask_region` allows; the detector only judges."""
    settings = settings or NoiseSettings()
    started = time.perf_counter()
    original = images.detach().to(detector.mean.device)
    region = mask_region(mask, original)
    generator = torch.Generator().manual_seed(settings.seed)  # on the CPU, so that every device draws the same
    fraction = torch.rand(len(original), 1, 1, 1, generator=generator)
    strength = settings.low + (settings.high - settings.low) * fraction
    noise = strength * torch.randn(original.shape, generator=generator)
    attacked = restore_outside(original + noise.to(original.device), original, region)
    with frozen(detector), MODEL_LOCK:
        result = judge_attack("Noise", original, attacked, detector, settings, started=started)
    yield Step(1, 1, "Noise was added.", attacked[:1].cpu())
    return result
