"""The white-box shortcut to an adversarial image: PGD within the bounds of NES, and then only as much as is needed.

An image that is called real with great confidence serves badly as a reference: any trace of it outweighs the rest
of the face, and all mixtures look alike to the detector. NES feels its way and stops at the first image that is
called real. PGD's first such image lies far beyond that point, so the way to it is searched.
"""

import time

import torch
from torch import Tensor

from backend.attacks import pgd
from backend.attacks.pgd import PGDSettings
from backend.attacks.pixels import judged
from backend.attacks.result import Attacked
from backend.detectors.card import THRESHOLD, Detector
from backend.detectors.inference import Judge
from backend.progress import Job, Step

SHARES = 32  # how finely the way is divided


def least_flip(face: Tensor, detector: Detector, bounds: PGDSettings) -> Job[Attacked]:
    """Attack with PGD until the face is called real, and keep the least share of the change that suffices.

    Args:
        face: (1, 3, H, W) in [0, 1], called fake.
        detector: What is attacked; its gradient is used.
        bounds: Settings of PGD; the steps are the most that are made.

    Yields:
        One step an update.

    Returns:
        The attack's result; its image is not rounded to 8 bits, as that of NES is not.
    """
    started = time.perf_counter()
    face = face.detach().to(detector.mean.device)
    made, count, updates = face, 0, 0
    job = pgd.attack(face, detector, bounds)
    try:
        for step in job:
            count = step.number
            if step.values["p_fake"] < THRESHOLD:  # of the picture before this update
                break
            assert step.preview is not None
            made, updates = step.preview.to(face), count
            yield step
    finally:
        job.close()
    judge = Judge(detector)
    shares = torch.linspace(1 / SHARES, 1, SHARES, device=face.device)[:, None, None, None]
    way = face + shares * (made - face)
    real = (torch.sigmoid(judge.logit_fake_of_all(way)) < THRESHOLD).nonzero().flatten()
    chosen = way[int(real[0]) if len(real) else -1][None]
    yield Step(bounds.steps, bounds.steps, "The least change that suffices was looked for.", chosen.cpu())
    return judged(
        "PGD",
        face,
        chosen,
        detector,
        bounds,
        started=started,
        iterations=updates,
        image_count=count + judge.images,
        call_count=count + judge.calls,
    )
