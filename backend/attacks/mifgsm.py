"""MIFGSM: sign steps along an accumulated gradient (Dong et al. 2018, arXiv 1710.06081)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from backend.attacks.base import Attacked, AttackVariant, check_step_settings, descend_log_odds, project_to_box
from backend.detectors.base import Detector
from backend.progress import Job


@dataclass(frozen=True)
class MIFGSMSettings:
    """Settings of the attack; the defaults are those of torchattacks.

    Args:
        epsilon: How far any value of a picture in [0, 1] may move; 8/255 is 8 of 255 grey levels. `paper000` has
            no such bound: there nothing moves further than steps * alpha.
        alpha: Length of a step.
        steps: How many.
        decay: Factor on what was accumulated before.
        variant: `standard` divides every gradient by its mean absolute value before it is added; `paper000` adds
            it as it is, as Artifact-Eraser's code does, see `PAPER000`.
        seed: Recorded; nothing is drawn at random.
    """

    epsilon: float = 8 / 255
    alpha: float = 2 / 255
    steps: int = 10
    decay: float = 1.0
    variant: AttackVariant = "standard"
    seed: int = 0


# Artifact-Eraser (2404.08341) works in [-1, 1], where its 2/255 is 1/255 here.
ARTIFACT_ERASER = MIFGSMSettings(epsilon=1.0, alpha=1 / 255, steps=8, decay=0.89, variant="paper000")


def attack(
    images: Tensor, detector: Detector, settings: MIFGSMSettings | None = None, mask: Tensor | None = None
) -> Job[Attacked]:
    """Attack a detector with MIFGSM.

    Args:
        images: Faces (N, 3, H, W) in [0, 1].
        detector: What is attacked; its gradient is used.
        settings: Settings of the attack.
        mask: 1 where pixels may change, (H, W) or (N, 1, H, W); everywhere by default.

    Raises:
        UserError: A setting is out of its range.
    """
    chosen = settings or MIFGSMSettings()
    check_step_settings(chosen.variant, {"epsilon": chosen.epsilon, "alpha": chosen.alpha}, chosen.steps)
    original = images.detach().to(detector.mean.device)
    momentum = torch.zeros_like(original)

    def move(current: Tensor, gradient: Tensor) -> Tensor:
        nonlocal momentum
        if chosen.variant == "standard":
            size = gradient.abs().mean((1, 2, 3), keepdim=True)
            gradient = torch.where(size > 0, gradient / size, gradient)  # no slope, no step
        momentum = gradient + chosen.decay * momentum
        return project_to_box(current - chosen.alpha * momentum.sign(), original, chosen.epsilon)

    return (
        yield from descend_log_odds(
            "MIFGSM", images, detector, chosen, move, steps=chosen.steps, variant=chosen.variant, mask=mask
        )
    )
