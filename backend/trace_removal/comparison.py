"""Every attack on one face, side by side: what it changes and what all detectors then say."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backend import images, similarity, weights
from backend.alignment import LocatedFace
from backend.attacks.registry import WHITE_BOX, compared_attacks, get_attack
from backend.detectors import predict, registry
from backend.progress import Job, Step, within


@dataclass(frozen=True, eq=False)
class AttackedFace:
    """The face after one attack."""

    name: str
    title: str
    needs: str  # what an attacker must have
    picture: np.ndarray  # uint8 (S, S, 3)
    psnr: float | None  # in dB against the face; None where no pixel differs
    ssim: float | None  # against the face; 1 means equal
    p_fake: dict[str, float]  # in [0, 1], by detector
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return the facts for a saved picture, as plain values for JSON."""
        return {
            "attack": self.name,
            "p_fake": self.p_fake,
            "metrics": {"psnr": self.psnr, "ssim": self.ssim},
            "seconds": self.seconds,
            "versions": weights.package_versions(),
        }


@dataclass(frozen=True, eq=False)
class AttackComparison:
    """All attacks on one face."""

    original: np.ndarray  # uint8 (S, S, 3)
    p_fake: dict[str, float]  # of the original, by detector
    attacks: tuple[AttackedFace, ...]  # in the order of the table
    missing: tuple[str, ...]  # titles of attacks whose weights are not installed


def compare_attacks(located: LocatedFace, *, strength: float = 1.0, seed: int = 0) -> Job[AttackComparison]:
    """Run every attack in the table on a face of a photo and ask all detectors about the 8-bit results.

    Args:
        located: The face.
        strength: Factor on TR-Net's change; it was trained for 1.
        seed: For the random attacks.

    Raises:
        UserError: The white-box detector is not installed, or the strength is out of range.
    """
    white_box = registry.load(WHITE_BOX)
    source = predict.embedded_crop(located)
    original, face = source.aligned.crop, images.to_tensor(source.aligned.crop)
    attacked, missing = [], []
    names = compared_attacks()
    for number, name in enumerate(names):
        attack = get_attack(name).with_strength(strength)
        if not attack.available():
            missing.append(attack.title)
            continue
        started = time.perf_counter()
        job = attack.run(face, white_box, seed=seed)
        result = yield from within(job, number, len(names), f"{attack.title}: ")
        attacked.append((attack, images.to_array(result.images), time.perf_counter() - started))
        yield Step(number + 1, len(names), f"{attack.title} is done.")
    pictures = torch.cat([face, *(images.to_tensor(picture) for _, picture, _ in attacked)])
    scores = predict.predict_p_fake(pictures, sources=source)
    rows = []
    for place, (attack, picture, seconds) in enumerate(attacked, 1):
        likeness = similarity.psnr_and_ssim(original, picture)
        p_fake = {name: values[place] for name, values in scores.items()}
        psnr, ssim = likeness["psnr"], likeness["ssim"]
        rows.append(AttackedFace(attack.name, attack.title, attack.needs, picture, psnr, ssim, p_fake, seconds))
    return AttackComparison(original, {name: values[0] for name, values in scores.items()}, tuple(rows), tuple(missing))
