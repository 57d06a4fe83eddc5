"""FGSM: one step of fixed length against the sign of the gradient (Goodfellow et al. 2015, arXiv 1412.6572)."""

from dataclasses import dataclass

from torch import Tensor

from backend.attacks.base import Attacked, AttackVariant, check_step_settings, descend_log_odds
from backend.detectors.base import Detector
from backend.progress import Job


@dataclass(frozen=True)
class FGSMSettings:
    """Settings of the attack.

    Args:
        epsilon: Length of a step in every value of a picture in [0, 1]; 8/255 is 8 of 255 grey levels. TR-Net
            (2203.11433) prints 0.003, which contradicts the 30.13 dB of its Table 4; 8/255 gives 30.07 dB.
        steps: How many; more than one is the iterative form of Artifact-Eraser's code. Nothing moves further than
            steps * epsilon.
        variant: `standard`, or `paper000` as in `PAPER000`.
        seed: Recorded; nothing is drawn at random.
    """

    epsilon: float = 8 / 255
    steps: int = 1
    variant: AttackVariant = "standard"
    seed: int = 0


# Artifact-Eraser (2404.08341) works in [-1, 1], where its 2/255 (Celeb-DF; 3 for DFDC, 4 for FF++) is 1/255 here.
ARTIFACT_ERASER = FGSMSettings(epsilon=1 / 255, steps=8, variant="paper000")


def attack(
    images: Tensor, detector: Detector, settings: FGSMSettings | None = None, mask: Tensor | None = None
) -> Job[Attacked]:
    """Attack a detector with FGSM.

    Args:
        images: Faces (N, 3, H, W) in [0, 1].
        detector: What is attacked; its gradient is used.
        settings: Settings of the attack.
        mask: 1 where pixels may change, (H, W) or (N, 1, H, W); everywhere by default.

    Raises:
        UserError: A setting is out of its range.
    """
    chosen = settings or FGSMSettings()
    check_step_settings(chosen.variant, {"epsilon": chosen.epsilon}, chosen.steps)

    def move(current: Tensor, gradient: Tensor) -> Tensor:
        return (current - chosen.epsilon * gradient.sign()).clamp(0, 1)

    return (
        yield from descend_log_odds(
            "FGSM", images, detector, chosen, move, steps=chosen.steps, variant=chosen.variant, mask=mask
        )
    )
