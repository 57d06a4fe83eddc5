"""How long an explanation and its test will take, from a quick measurement of the detector on this machine."""

import functools
import time
from dataclasses import replace

import torch

from backend.attacks.nes import NESSettings
from backend.detectors import registry
from backend.detectors.inference import Judge
from backend.explain import methods
from backend.explain.comparing import variants
from backend.explain.deletion import CurveSettings
from backend.explain.explaining import attack_passes
from backend.explain.explanation import ExplainSettings
from backend.explain.proof import ProofSettings
from backend.runtime import MODEL_LOCK

PROBE = 16  # pictures
WITH_GRADIENT = 3  # forward passes that one forward and backward pass costs
OVERHEAD = 0.5  # seconds that the detector does not work


def expected_seconds(detector: str, settings: ExplainSettings, proof: ProofSettings | None = None) -> float:
    """Return about how many seconds a map takes, and its test and curves with it where there is one."""
    passes = float(methods.method(settings.method).pictures(settings.preset))
    if settings.reference == "adversarial" and methods.method(settings.method).references:
        passes += attack_passes(settings)
    if proof is not None:
        passes += _test_passes(proof) + 2 * (CurveSettings().steps + 1)
    return OVERHEAD + passes * seconds_a_picture(detector)


def expected_comparison_seconds(detector: str, settings: ExplainSettings, proof: ProofSettings) -> float:
    """Return about how many seconds all maps take, which share one attack, with one test each."""
    kinds = [replace(settings, method=name) for name, _ in variants()]
    passes = sum(methods.method(one.method).pictures(one.preset) + _test_passes(proof) for one in kinds)
    return OVERHEAD * len(kinds) + (passes + attack_passes(settings)) * seconds_a_picture(detector)


def _test_passes(proof: ProofSettings) -> float:
    """Return the passes of all attacks of a test; few of them, in so little of the face, end before their time."""
    attacks = len(proof.tops) * (1 + proof.draws)
    if isinstance(proof.attack, NESSettings):
        return attacks * proof.attack.iterations * (2 * proof.attack.probes + 1)
    return attacks * proof.attack.steps * WITH_GRADIENT


@functools.lru_cache(maxsize=32)
def seconds_a_picture(detector: str) -> float:
    """Measure one forward pass of a batch, once a detector and process."""
    judge = Judge(registry.load(detector))
    size = registry.card(detector).input_size
    faces = torch.rand(PROBE, 3, size, size, generator=torch.Generator().manual_seed(0)).to(judge.device)
    with MODEL_LOCK:  # waiting for another visitor's job is not measured
        judge.logit_fake(faces[:1])
        started = time.perf_counter()
        judge.logit_fake(faces)
        return (time.perf_counter() - started) / PROBE
