"""Compare all methods on one face: eleven maps, with one attack for all of them."""

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backend.attacks.result import Attacked
from backend.detectors.card import THRESHOLD, Detector
from backend.explain.explaining import PROGRESS, attack_job, attack_passes, explain, staged
from backend.explain.explanation import ExplainSettings, Explanation
from backend.explain.masking import Inferences
from backend.explain.methods import METHODS, Reference
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen


@dataclass(frozen=True)
class Finished(Step):
    """A step with which one map is finished.

    Args:
        explanation: The map and what belongs to it.
    """

    explanation: Explanation | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """All maps of one face.

    Args:
        done: One explanation a method and reference, in the order of the table.
        attacked: The adversarial image that all of them share; None where the face is called real to begin with.
        attack: What the attack asked of the detector.
        seconds: Time of everything, the attack included.
        settings: The settings that all have in common; method and reference of them are not used.
        detector: Name of the detector.
    """

    done: tuple[Explanation, ...]
    attacked: Attacked | None
    attack: Inferences
    seconds: float
    settings: ExplainSettings
    detector: str

    @property
    def inferences(self) -> Inferences:
        """Return all that the attack and the methods asked of the detector."""
        return sum((one.explanation for one in self.done), self.attack)

    @property
    def summary(self) -> str:
        """Say in one paragraph what was done and found."""
        maps = [one for one in self.done if not one.degenerate]
        parts = [f"{len(maps)} of {len(self.done)} maps show something."]
        if self.attacked is not None:
            parts.append(self.attacked.summary)
            if not bool(self.attacked.flipped[0]):
                parts.append("The adversarial image is still called fake; trust the maps that use it less.")
        reasons = sorted({one.reason for one in self.done if one.degenerate})
        return " ".join([*parts, *reasons])


def variants() -> list[tuple[str, Reference]]:
    """Return method and reference of every map, in order; the reference is `original` where there is no choice."""
    return [(name, reference) for name, one in METHODS.items() for reference in one.references or ("original",)]


def compare_all(face: Tensor, detector: Detector, settings: ExplainSettings | None = None) -> Job[Comparison]:
    """Explain one face with every method and every reference, with one adversarial image.

    Args:
        face: (1, 3, H, W) in [0, 1].
        detector: What is explained.
        settings: What all maps have in common; method and reference of them are not used.

    Yields:
        One step a batch, and a `Finished` for every map.

    Raises:
        UserError: A setting is out of its range.
    """
    settings = settings or ExplainSettings()
    settings.check()
    started = time.perf_counter()
    wanted = variants()
    costs = [attack_passes(settings), *(METHODS[name].pictures(settings.preset) for name, _ in wanted)]
    ends = [round(PROGRESS * sum(costs[: place + 1]) / sum(costs)) for place in range(len(costs))]
    attacked: Attacked | None = None
    if settings.towards == "fake" and _called_fake(face, detector):
        attacked = yield from staged(attack_job(face.to(detector.mean.device), detector, settings), 0, ends[0])
    done: list[Explanation] = []
    for place, (name, reference) in enumerate(wanted):
        own = replace(settings, method=name, reference=reference)
        made = yield from staged(explain(face, detector, own, attacked), ends[place], ends[place + 1])
        done.append(made)
        yield Finished(ends[place + 1], PROGRESS, f"{made.title} is done.", explanation=made)
    asked = Inferences(attacked.image_count, attacked.call_count) if attacked else Inferences()
    return Comparison(tuple(done), attacked, asked, time.perf_counter() - started, settings, detector.card.name)


def _called_fake(face: Tensor, detector: Detector) -> bool:
    with frozen(detector), MODEL_LOCK, torch.inference_mode():
        return float(detector.p_fake(face.to(detector.mean.device))[0]) >= THRESHOLD
