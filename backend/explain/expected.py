"""How long an explanation will take, from a quick measurement of the detector on this machine."""

import functools
import time

import torch

from backend.detectors import registry
from backend.detectors.inference import Judge
from backend.explain import methods
from backend.explain.explaining import attack_settings
from backend.explain.explanation import ExplainSettings

PROBE = 16  # pictures
SHARE_OF_ATTACK = 0.4  # of its iterations, after which a face is called real on average (METHODS: 23 of 80)
WHITE_BOX_PASSES = 120  # of one picture, forward and backward


def expected_seconds(detector: str, settings: ExplainSettings) -> float:
    """Return about how many seconds a map takes."""
    pictures = float(methods.method(settings.method).pictures(settings.preset))
    adversarial = settings.reference == "adversarial" and methods.method(settings.method).references
    if adversarial and settings.shortcut:
        pictures += WHITE_BOX_PASSES
    elif adversarial:
        attack = attack_settings(settings)
        pictures += SHARE_OF_ATTACK * attack.iterations * (2 * attack.probes + 1)
    return 0.5 + pictures * seconds_a_picture(detector)


@functools.lru_cache(maxsize=32)
def seconds_a_picture(detector: str) -> float:
    """Measure one forward pass of a batch, once a detector and process."""
    judge = Judge(registry.load(detector))
    size = registry.card(detector).input_size
    faces = torch.rand(PROBE, 3, size, size, generator=torch.Generator().manual_seed(0)).to(judge.device)
    judge.logit_fake(faces[:1])
    started = time.perf_counter()
    judge.logit_fake(faces)
    return (time.perf_counter() - started) / PROBE
