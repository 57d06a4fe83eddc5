"""Real-fake pairs: explain the real photo, and attack its fake where the explanation points.

Gowrisankar and Thing (2312.06627): what makes the detector call the real photo real must be missing in the fake,
so a faithful map of the real one names the places where the fake is turned real most easily.
"""

import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from backend.detectors.base import THRESHOLD, Detector
from backend.detectors.predict import BatchedDetector
from backend.errors import UserError
from backend.explain.base import Preset
from backend.explain.explanation import PROGRESS, ExplainSettings, Explanation, MapFinished, explain, stage_job
from backend.explain.registry import METHODS
from backend.explain.segments import slic_segments
from backend.explain.sufficiency import Sufficiency, SufficiencySettings, measure_sufficiency
from backend.progress import Job

SegmentSource = Literal["real", "fake"]


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
    segments_of: SegmentSource = "real"
    proof: SufficiencySettings = field(default_factory=SufficiencySettings)

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
class PairSufficiency:
    """How far the score of a fake falls where the map of its real photo points.

    Args:
        p_real_photo: Probability of fake of the real photo, in [0, 1].
        labels: The segments (H, W), from 0 without gaps.
        proof: The attack on the fake.
        settings: The settings.
    """

    p_real_photo: float
    labels: Tensor
    proof: Sufficiency
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


def measure_pair_sufficiency(
    real: Tensor, fake: Tensor, detector: Detector, saliency: Tensor, settings: PairSettings | None = None
) -> Job[PairSufficiency]:
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
    judge = BatchedDetector(detector)
    p_real_photo = float(torch.sigmoid(judge.logit_fake(real.detach().to(judge.device)))[0])
    labels = slic_segments((real if settings.segments_of == "real" else fake)[0], settings.segments)
    proof = yield from measure_sufficiency(fake, detector, saliency, labels, settings.proof)
    return PairSufficiency(p_real_photo, labels, proof, settings)


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

    done: tuple[tuple[Explanation, PairSufficiency | None], ...]
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
    judge = BatchedDetector(detector)
    p_real, p_fake = (float(torch.sigmoid(judge.logit_fake(one.detach().to(judge.device)))[0]) for one in (real, fake))
    done: list[tuple[Explanation, PairSufficiency | None]] = []
    names = settings.methods if p_real < THRESHOLD <= p_fake else ()
    for place, name in enumerate(names):
        begin, end = (round(PROGRESS * share / len(names)) for share in (place, place + 1))
        own = ExplainSettings(name, "original", settings.preset, settings.seed, "real", segments=settings.pair.segments)
        made = yield from stage_job(explain(real, detector, own), begin, (begin + end) // 2)
        proof, values = None, {}
        if not made.degenerate:
            job = measure_pair_sufficiency(real, fake, detector, made.saliency, settings.pair)
            proof = yield from stage_job(job, (begin + end) // 2, end)
            values = {"sufficiency": float(proof.proof.sufficiency[-1])}
        done.append((made, proof))
        yield MapFinished(end, PROGRESS, f"{made.method.title} is done.", values=values, explanation=made)
    return PairComparison(tuple(done), p_real, p_fake, time.perf_counter() - started, settings, detector.card.name)
