"""MIFGSM: sign steps along an accumulated gradient (Dong et al. 2018, arXiv 1710.06081)."""

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
class MIFGSMSettings:
    """Settings of the attack; the defaults are those of torchattacks.

    Args:
        epsilon: How far any value of a picture in [0, 1] may move; 8/255 is 8 of 255 grey levels. Artifact-Eraser has
            no such bound: there nothing moves further than steps * alpha.
        alpha: Length of a step.
        decay: Factor on the momentum of the steps before.
        variant: `standard` divides every gradient by its mean absolute value before it is added; `artifact_eraser` adds
            it as it is.
        seed: Recorded; nothing is drawn at random.
    """

    epsilon: PixelLength = 8 / 255
    alpha: PixelLength = 2 / 255
    steps: Count = 10
    decay: float = 1.0
    variant: AttackVariant = "standard"
    seed: int = 0


# Artifact-Eraser (2404.08341) works in [-1, 1], where its 2/255 is 1/255 here.
ARTIFACT_ERASER = MIFGSMSettings(epsilon=1.0, alpha=1 / 255, steps=8, decay=0.89, variant="artifact_eraser")


@register_white_box(
    "mifgsm",
    title="MIFGSM",
    paper="Dong et al. 2018, arXiv 1710.06081",
    settings=MIFGSMSettings(),
    eraser=ARTIFACT_ERASER,
    eraser_title="MIFGSM, unnormalised",
    order=30,
)
def attack(
    images: Tensor, detector: Detector, settings: MIFGSMSettings | None = None, mask: Tensor | None = None
) -> Job[Attacked]:
    """Attack faces (N, 3, H, W) in [0, 1]; arguments as in `descend_log_odds`."""
    settings = settings or MIFGSMSettings()
    original = images.detach().to(detector.mean.device)
    momentum = torch.zeros_like(original)

    def move(current: Tensor, gradient: Tensor) -> Tensor:
        nonlocal momentum
        if settings.variant == "standard":
            size = gradient.abs().mean((1, 2, 3), keepdim=True)
            gradient = torch.where(size > 0, gradient / size, gradient)  # no slope, no step
        momentum = gradient + settings.decay * momentum
        return project_to_box(current - settings.alpha * momentum.sign(), original, settings.epsilon)

    return (yield from descend_log_odds("MIFGSM", images, detector, settings, move, mask=mask))
