"""FGSM: one step of fixed length against the sign of the gradient (Goodfellow et al. 2015, arXiv 1412.6572)."""

from dataclasses import dataclass

from torch import Tensor

from backend.attacks.base import Attacked, AttackVariant, Count, PixelLength, descend_log_odds
from backend.attacks.registry import register_white_box
from backend.detectors.base import Detector
from backend.progress import Job
from backend.settings import validated


@validated
@dataclass(frozen=True)
class FGSMSettings:
    """Settings of the attack.

    Args:
        epsilon: Length of a step in every value of a picture in [0, 1]; 8/255 is 8 of 255 grey levels. TR-Net
            (2203.11433) prints 0.003, which contradicts the 30.13 dB of its Table 4; 8/255 gives 30.07 dB.
        steps: More than one is the iterative form of Artifact-Eraser's code. No value moves further than
            steps * epsilon.
        variant: `standard`, or `artifact_eraser` as in `ARTIFACT_ERASER`.
        seed: Recorded; nothing is drawn at random.
    """

    epsilon: PixelLength = 8 / 255
    steps: Count = 1
    variant: AttackVariant = "standard"
    seed: int = 0


# Artifact-Eraser (2404.08341) works in [-1, 1], where its 2/255 (Celeb-DF; 3 for DFDC, 4 for FF++) is 1/255 here.
ARTIFACT_ERASER = FGSMSettings(epsilon=1 / 255, steps=8, variant="artifact_eraser")


@register_white_box(
    "fgsm",
    title="FGSM",
    paper="Goodfellow et al. 2015, arXiv 1412.6572",
    settings=FGSMSettings(),
    eraser=ARTIFACT_ERASER,
    eraser_title="FGSM, iterative",
    order=20,
)
def attack(
    images: Tensor, detector: Detector, settings: FGSMSettings | None = None, mask: Tensor | None = None
) -> Job[Attacked]:
    """Attack faces (N, 3, H, W) in [0, 1]; arguments as in `descend_log_odds`."""
    settings = settings or FGSMSettings()

    def move(current: Tensor, gradient: Tensor) -> Tensor:
        return (current - settings.epsilon * gradient.sign()).clamp(0, 1)

    return (yield from descend_log_odds("FGSM", images, detector, settings, move, mask=mask))
