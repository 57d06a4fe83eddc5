"""How often an attack changes a verdict: attack success rate and its transfer to other detectors.

Artifact-Eraser (arXiv 2404.08341) and its code: an attack starts from the generator's inversion of a picture, or from
the picture itself if it changes pixels. It succeeds if the picture was called fake before and after mere inversion,
and no longer after the attack. The paper names no denominator and its code uses two, so all four are given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.detectors.base import THRESHOLD
from backend.evaluate.metrics.base import Estimate, proportion, register_metric

SOURCE = "Dong et al. 2024 (Artifact-Eraser), arXiv 2404.08341, section 4 and its code"
Scores = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Success:
    """Successes over four denominators."""

    everything: Estimate  # all pictures
    detected: Estimate  # those called fake before
    after_inversion: Estimate  # those called fake after the inversion
    both: Estimate  # those called fake before and after the inversion


def attack_success(original: Scores, inversion: Scores, attacked: Scores) -> Success:
    """Return the attack success rate from p_fake (N,) in [0, 1] of originals, starting points and attacked pictures."""
    before = np.asarray(original, dtype=np.float64) > THRESHOLD
    start = np.asarray(inversion, dtype=np.float64) > THRESHOLD
    after = np.asarray(attacked, dtype=np.float64) < THRESHOLD
    hits = int((before & start & after).sum())
    return Success(
        proportion(hits, len(before)),
        proportion(hits, int(before.sum())),
        proportion(hits, int(start.sum())),
        proportion(hits, int((before & start).sum())),
    )


@register_metric(
    "transfer_rate",
    "Transfer rate",
    unit="share of the pictures that the other detector called fake before and after inversion",
    better="higher",
    sentence="How often a detector that the attack never saw is turned along with the attacked one.",
    source=SOURCE,
)
def transfer_rate(original: Scores, inversion: Scores, attacked: Scores) -> Estimate:
    """Return the success rate over `both`, by the scores (N,) of a detector that was not attacked."""
    return attack_success(original, inversion, attacked).both


register_metric(
    "asr_all",
    "Attack success rate (all)",
    unit="share of all pictures",
    better="higher",
    sentence="How often a fake that was caught, also after mere inversion, is no longer caught after the attack.",
    source=SOURCE,
)(lambda *scores: attack_success(*scores).everything)
register_metric(
    "asr_detected",
    "Attack success rate (detected)",
    unit="share of the pictures called fake before",
    better="higher",
    sentence="The same successes, counted among the pictures that the detector called fake to begin with.",
    source=SOURCE,
)(lambda *scores: attack_success(*scores).detected)
register_metric(
    "asr_after_inversion",
    "Attack success rate (after inversion)",
    unit="share of the pictures called fake after inversion",
    better="higher",
    sentence="The same successes, counted among the pictures that are called fake after mere inversion.",
    source=SOURCE,
)(lambda *scores: attack_success(*scores).after_inversion)
register_metric(
    "asr_both",
    "Attack success rate (both)",
    unit="share of the pictures called fake before and after inversion",
    better="higher",
    sentence="The same successes, counted among the pictures called fake both times: the headline number here.",
    source=SOURCE,
)(lambda *scores: attack_success(*scores).both)
