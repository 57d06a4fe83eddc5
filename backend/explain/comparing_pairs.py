"""All methods on one real-fake pair: how far the fake's score falls where each map of the real photo points."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backend.detectors.card import THRESHOLD, Detector
from backend.detectors.inference import Judge
from backend.errors import UserError
from backend.explain.comparing import Finished
from backend.explain.explaining import PROGRESS, explain, staged
from backend.explain.explanation import ExplainSettings, Explanation
from backend.explain.methods import METHODS, Preset
from backend.explain.pairs import PairProof, PairSettings, prove_pair
from backend.progress import Job


@dataclass(frozen=True)
class PairComparisonSettings:
    """Settings of a comparison.

    Args:
        methods: Names of the methods, in the order of the table.
        preset: How many samples they draw.
        seed: Seed of everything that the maps draw.
        pair: How the fake is attacked.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    preset: Preset = "quick"
    seed: int = 0
    pair: PairSettings = field(default_factory=PairSettings)


@dataclass(frozen=True, eq=False)
class PairComparison:
    """What every method's map of the real photo is worth on the fake.

    Args:
        done: The map of the real photo for the verdict real by method, and the attack on the fake; None without a map.
        p_real_photo: Probability of fake of the real photo, in [0, 1].
        p_fake_photo: The same of the fake.
        seconds: Time of everything.
        settings: The settings.
        detector: Name of the detector.
    """

    done: tuple[tuple[Explanation, PairProof | None], ...]
    p_real_photo: float
    p_fake_photo: float
    seconds: float
    settings: PairComparisonSettings
    detector: str

    @property
    def both_right(self) -> bool:
        """Whether the detector calls the real photo real and the fake fake; nothing is explained otherwise."""
        return self.p_real_photo < THRESHOLD <= self.p_fake_photo

    @property
    def random_mean(self) -> Tensor:
        """Return the mean sufficiency@k of random places over all maps (K,); NaN without any."""
        tested = [proof.proof.random_sufficiency for _, proof in self.done if proof is not None]
        if not tested:
            return torch.full((len(self.settings.pair.proof.tops),), torch.nan)
        return torch.cat(tested).mean(0)

    @property
    def summary(self) -> str:
        """Say in one paragraph what came out."""
        said = f"p_fake is {self.p_real_photo:.2f} for the real photo and {self.p_fake_photo:.2f} for the fake."
        if not self.both_right:
            return (
                f"{said} The test needs a detector that calls the real photo real and the fake fake; choose another "
                "detector or another pair."
            )
        falls = [
            (float(proof.proof.sufficiency[-1]), made.method.title) for made, proof in self.done if proof is not None
        ]
        falls = sorted((fall for fall in falls if fall[0] == fall[0]), reverse=True)
        if not falls:
            return f"{said} No method found a place in the real photo that speaks for real."
        top = self.settings.pair.proof.tops[-1]
        best, worst = falls[0], falls[-1]
        compared = (
            f"With only the {top} highest segments of each map attacked in the fake, p_fake falls most for "
            f"{best[1]} ({best[0]:.2f}) and least for {worst[1]} ({worst[0]:.2f}); further is better for the map."
        )
        parts = [said, compared]
        random = float(self.random_mean[-1])
        if random == random:  # noqa: PLR0124 - only a missing value differs from itself
            parts.append(f"Random places of the same size make it fall by {random:.2f}.")
        return " ".join(parts)


def compare_pair(
    real: Tensor, fake: Tensor, detector: Detector, settings: PairComparisonSettings | None = None
) -> Job[PairComparison]:
    """Explain a real photo with every method, and attack its fake where each map points.

    Hidden parts show each method's usual fill: an adversarial image needs a face that is called fake.

    Args:
        real: The real photo (1, 3, H, W) in [0, 1].
        fake: The fake made from it (1, 3, H, W), in the same position.
        detector: What is explained and attacked.
        settings: Settings of the comparison.

    Yields:
        One step a batch, and a `Finished` for every map, with its sufficiency in `values` where there is one.

    Raises:
        UserError: A setting is out of its range, or the photos differ in size.
    """
    settings = settings or PairComparisonSettings()
    settings.pair.check()
    if real.shape != fake.shape:
        raise UserError("The real photo and the fake differ in size.", "Use two crops of the same size and position.")
    started = time.perf_counter()
    judge = Judge(detector)
    p_real, p_fake = (float(torch.sigmoid(judge.logit_fake(one.detach().to(judge.device)))[0]) for one in (real, fake))
    done: list[tuple[Explanation, PairProof | None]] = []
    names = settings.methods if p_real < THRESHOLD <= p_fake else ()
    for place, name in enumerate(names):
        begin, end = (round(PROGRESS * share / len(names)) for share in (place, place + 1))
        own = ExplainSettings(name, "original", settings.preset, settings.seed, "real", segments=settings.pair.segments)
        made = yield from staged(explain(real, detector, own), begin, (begin + end) // 2)
        proof, values = None, {}
        if not made.degenerate:
            job = prove_pair(real, fake, detector, made.saliency, settings.pair)
            proof = yield from staged(job, (begin + end) // 2, end)
            values = {"sufficiency": float(proof.proof.sufficiency[-1])}
        done.append((made, proof))
        yield Finished(end, PROGRESS, f"{made.method.title} is done.", values=values, explanation=made)
    return PairComparison(tuple(done), p_real, p_fake, time.perf_counter() - started, settings, detector.card.name)
