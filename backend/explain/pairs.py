"""Real-fake pairs: explain the real photo, and attack its fake where the explanation points.

Gowrisankar and Thing (2312.06627): what makes the detector call the real photo real must be missing in the fake,
so a faithful map of the real one names the places where the fake is turned real most easily.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from backend.detectors.card import THRESHOLD, Detector
from backend.detectors.inference import Judge
from backend.errors import UserError
from backend.explain.proof import Proof, ProofSettings, prove
from backend.explain.segments import slic_segments
from backend.progress import Job

Source = Literal["real", "fake"]


@dataclass(frozen=True)
class PairSettings:
    """Settings of a pair.

    Args:
        segments: How many segments to aim at; the paper has 100.
        segments_of: `real` divides the real photo and carries its segments over to the fake, pixel by pixel.
            `fake` divides the fake, and averages the map of the real photo over its segments, as the public
            re-implementation (IDT-ITI/XAI-Deepfakes) does.
        proof: How the fake is attacked.
    """

    segments: int = 100
    segments_of: Source = "real"
    proof: ProofSettings = field(default_factory=ProofSettings)

    def check(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            UserError: A setting is out of its range.
        """
        if self.segments < 2:
            raise UserError("One segment cannot be ranked.", "Use at least 2 segments.")
        if self.segments_of not in ("real", "fake"):
            raise UserError(f"There are no segments of {self.segments_of}.", "Use real or fake.")
        self.proof.check()


@dataclass(frozen=True)
class PairProof:
    """How far the score of a fake falls where the map of its real photo points.

    Args:
        p_real_photo: Probability of fake of the real photo, in [0, 1].
        labels: The segments (H, W), from 0 without gaps.
        proof: The attack on the fake.
        settings: The settings.
    """

    p_real_photo: float
    labels: Tensor
    proof: Proof
    settings: PairSettings

    @property
    def both_right(self) -> bool:
        """Whether the detector calls the real photo real and the fake fake, as the protocol asks."""
        return self.p_real_photo < THRESHOLD and self.proof.predicted == "fake"

    @property
    def summary(self) -> str:
        """Say in plain words what came out."""
        parts = [f"On the fake, at the places of the real photo's map: {self.proof.summary}"]
        if self.p_real_photo >= THRESHOLD:
            parts.append(
                f"The detector calls the real photo fake ({self.p_real_photo:.2f}), so the pair tests no right verdict."
            )
        return " ".join(parts)


def prove_pair(
    real: Tensor, fake: Tensor, detector: Detector, saliency: Tensor, settings: PairSettings | None = None
) -> Job[PairProof]:
    """Attack a fake in the segments that the map of its real photo ranks highest.

    Args:
        real: The real photo (1, 3, H, W) in [0, 1].
        fake: The fake made from it (1, 3, H, W), in the same position.
        detector: What is asked.
        saliency: Map of the real photo (H, W) for the verdict real, higher where more speaks for it.
        settings: Settings of the pair.

    Yields:
        The steps of the attack.

    Raises:
        UserError: A setting is out of its range, or the photos differ in size.
    """
    settings = settings or PairSettings()
    settings.check()
    if real.shape != fake.shape:
        raise UserError("The real photo and the fake differ in size.", "Use two crops of the same size and position.")
    judge = Judge(detector)
    p_real_photo = float(torch.sigmoid(judge.logit_fake(real.detach().to(judge.device)))[0])
    labels = slic_segments((real if settings.segments_of == "real" else fake)[0], settings.segments)
    proof = yield from prove(fake, detector, saliency, labels, settings.proof)
    return PairProof(p_real_photo, labels, proof, settings)
