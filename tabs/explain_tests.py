"""The tests that go with maps, and a comparison that puts every finished map to one."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from backend.detectors.card import Detector
from backend.explain.comparing import Comparison, Finished
from backend.explain.explanation import ExplainSettings, Explanation
from backend.explain.proof import ProofSettings, proof_settings, prove
from backend.progress import Job, Running, Step, within

LAST = 3  # segments of the test that a comparison shows


class Tested(NamedTuple):
    """One map of a comparison.

    Args:
        explanation: The map.
        sufficiency: How far p_fake falls where it points; None for a map that was not tested.
        random: How far it falls in random places of the same size; None likewise.
    """

    explanation: Explanation
    sufficiency: float | None
    random: float | None


def tested(step: Step, explanation: Explanation) -> Tested:
    """Return the map that a step of a comparison finished, with what the step's values say of its test."""
    return Tested(explanation, step.values.get("sufficiency"), step.values.get("random"))


def quick_test(seed: int) -> ProofSettings:
    """Return the one test of every map of a comparison; eleven slow ones would take minutes."""
    return proof_settings(seed, shortcut=True, tops=(LAST,), draws=1)


def tested_maps(
    compare: Callable[[Tensor, Detector, ExplainSettings], Job[Comparison]],
    crop: Tensor,
    detector: Detector,
    settings: ExplainSettings,
) -> Job[Comparison]:
    """Pass on the steps of a comparison, with the sufficiency of every finished map in the step's values."""
    test = quick_test(settings.seed)
    with Running(compare(crop, detector, settings)) as running:
        for step in running:
            made = step.explanation if isinstance(step, Finished) else None
            if made is not None and made.settings.towards == "fake" and made.explains_verdict and not made.degenerate:
                testing = prove(crop, detector, made.saliency, made.labels, test)
                proof = yield from within(testing, step.number, step.total)
                values = {"sufficiency": float(proof.sufficiency[0]), "random": float(proof.random_mean[0])}
                yield replace(step, values=values)
            else:
                yield step
    return running.result
