"""Every attack on one face, side by side: what it changes and what all detectors then say."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend import images, similarity, weights
from backend.alignment import CroppedPhoto
from backend.attacks.registry import COMPARED, WHITE_BOX, get_attack
from backend.detectors import predict, registry
from backend.progress import Job, Step, within


@dataclass(frozen=True, eq=False)
class AttackedFace:
    """One attack on the face.

    Args:
        name: Of the attack.
        title: Name for people.
        needs: What an attacker must have.
        picture: uint8 (S, S, 3).
        psnr: In dB against the face; None where no pixel differs.
        ssim: Against the face, 1 = equal.
        p_fake: By detector, the probability of fake in [0, 1].
        seconds: Time taken.
    """

    name: str
    title: str
    needs: str
    picture: np.ndarray
    psnr: float | None
    ssim: float | None
    p_fake: dict[str, float]
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return what a saved picture carries, as plain values for JSON."""
        said = {"attack": self.name, "p_fake": self.p_fake, "metrics": {"psnr": self.psnr, "ssim": self.ssim}}
        return said | {"seconds": self.seconds, "versions": weights.package_versions()}


@dataclass(frozen=True, eq=False)
class AttackComparison:
    """All attacks on one face.

    Args:
        original: The face, uint8 (S, S, 3).
        p_fake: By detector, of the face.
        attacks: In the order of the table.
        missing: Titles of attacks whose weights are not installed.
    """

    original: np.ndarray
    p_fake: dict[str, float]
    attacks: tuple[AttackedFace, ...]
    missing: tuple[str, ...]


def compare_attacks(
    face: Tensor, source: CroppedPhoto | None = None, *, strength: float = 1.0, seed: int = 0
) -> Job[AttackComparison]:
    """Run every attack of the table on a face and ask all detectors about the 8-bit results.

    Args:
        face: (1, 3, H, W) in [0, 1].
        source: The photo of the face, from which detectors that want another crop are shown their own.
        strength: Factor on TR-Net's change; it was trained for 1.
        seed: Of the attacks that draw at random.

    Raises:
        UserError: The white-box detector is not installed, or the strength is out of range.
    """
    white_box = registry.load(WHITE_BOX)
    original = images.to_array(face)
    made, missing = [], []
    for number, name in enumerate(COMPARED):
        attack = get_attack(name).at(strength)
        if not attack.available():
            missing.append(attack.title)
            continue
        started = time.perf_counter()
        job = attack.run(face, white_box, seed=seed)
        attacked = yield from within(job, number, len(COMPARED), f"{attack.title}: ")
        seconds = time.perf_counter() - started
        made.append((attack, images.to_array(attacked.images), seconds))
        yield Step(number + 1, len(COMPARED), f"{attack.title} is done.")
    pictures = torch.cat([face, *(images.to_tensor(picture) for _, picture, _ in made)])
    scores = predict.predict_p_fake(pictures, sources=source)
    rows = []
    for place, (attack, picture, seconds) in enumerate(made, 1):
        likeness = similarity.psnr_and_ssim(original, picture)
        own = {name: values[place] for name, values in scores.items()}
        rows.append(
            AttackedFace(
                attack.name, attack.title, attack.needs, picture, likeness["psnr"], likeness["ssim"], own, seconds
            )
        )
    return AttackComparison(original, {name: values[0] for name, values in scores.items()}, tuple(rows), tuple(missing))
