"""PGD: sign steps, projected into a box around the face (Madry et al. 2018, arXiv 1706.06083)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.attacks.base import Attacked, AttackVariant, Count, PixelLength, descend_log_odds, project_to_box
from backend.attacks.registry import register_white_box
from backend.detectors.base import Detector
from backend.progress import Job
from backend.settings import validated


@validated
@dataclass(frozen=True)
class PGDSettings:
    """Settings of the attack.

    TR-Net (2203.11433) leaves steps and alpha open and prints an epsilon of 0.003, which contradicts the 32.23 dB
    of its Table 4. Steps, alpha and the random start are those of torchattacks, which it used; epsilon is FGSM's.

    Args:
        epsilon: How far any value of a picture in [0, 1] may move; 8/255 is 8 of 255 grey levels.
        alpha: Length of a step.
        seed: Seed of the random start.
        random_start: Start at a point drawn uniformly from the box instead of at the face.
        variant: `standard`, or `artifact_eraser`: the search is bounded by the box alone, and [0, 1] bounds only what
            is saved.
    """

    epsilon: PixelLength = 8 / 255
    alpha: PixelLength = 2 / 255
    steps: Count = 40
    seed: int = 0
    random_start: bool = True
    variant: AttackVariant = "standard"


# Artifact-Eraser (2404.08341) works in [-1, 1]: its steps of 2/255 and its box of 25/255 are half as large here.
ARTIFACT_ERASER = PGDSettings(epsilon=12.5 / 255, alpha=1 / 255, steps=8, random_start=False, variant="artifact_eraser")


@register_white_box(
    "pgd",
    title="PGD",
    paper="Madry et al. 2018, arXiv 1706.06083",
    settings=PGDSettings(),
    eraser=ARTIFACT_ERASER,
    eraser_title="PGD, 8 steps",
    order=40,
)
def attack(
    images: Tensor, detector: Detector, settings: PGDSettings | None = None, mask: Tensor | None = None
) -> Job[Attacked]:
    """Attack faces (N, 3, H, W) in [0, 1]; arguments as in `descend_log_odds`."""
    settings = settings or PGDSettings()
    start = original = images.detach().to(detector.mean.device)
    if settings.random_start:
        generator = torch.Generator().manual_seed(settings.seed)  # on the CPU, so that every device draws the same
        noise = (2 * torch.rand(original.shape, generator=generator) - 1) * settings.epsilon
        start = (original + noise.to(original.device)).clamp(0, 1)

    def move(current: Tensor, gradient: Tensor) -> Tensor:
        moved = current - settings.alpha * gradient.sign()
        if settings.variant == "artifact_eraser":
            return original + (moved - original).clamp(-settings.epsilon, settings.epsilon)
        return project_to_box(moved, original, settings.epsilon)

    return (yield from descend_log_odds("PGD", images, detector, settings, move, mask=mask, start=start))
