"""Real-fake pairs: explain the real photo, and attack its fake where the explanation points.

Gowrisankar and Thing (2312.06627): what makes the detector call the real photo real must be missing in the fake,
so a faithful map of the real one names the places where the fake is turned real most easily.
"""

import math
import time
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.detectors.base import THRESHOLD, Detector
from backend.detectors.inference import BatchedDetector
from backend.errors import UserError
from backend.explain.base import Preset, general_methods
from backend.explain.explanation import PROGRESS, ExplainSettings, Explanation, MapFinished, explain, stage_job
from backend.explain.segments import slic_segments
from backend.explain.sufficiency import Sufficiency, SufficiencySettings, measure_sufficiency
from backend.progress import Job
from backend.settings import validated

SegmentSource = Literal["real", "fake"]


@validated
@dataclass(frozen=True)
class PairSettings:
    """Settings of a pair.

    Args:
        segments: About how many segments; the paper has 100.
        segments_of: `real` divides the real photo and carries its segments over to the fake, pixel by pixel;
            `fake` divides the fake, and averages the map of the real photo over its segments, as the public
            re-implementation (IDT-ITI/XAI-Deepfakes) does.
        sufficiency: How the fake is attacked.
    """

    segments: Annotated[int, Field(ge=2)] = 100
    segments_of: SegmentSource = "real"
    sufficiency: SufficiencySettings = field(default_factory=SufficiencySettings)


@dataclass(frozen=True)
class PairSufficiency:
    """How far the score of a fake falls where the map of its real photo points.

    Args:
        p_real_photo: Probability of fake of the real photo, in [0, 1].
        labels: The segments (H, W), from 0 without gaps.
        sufficiency: The attack on the fake.
    """

    p_real_photo: float
    labels: Tensor
    sufficiency: Sufficiency
    settings: PairSettings

    @property
    def both_right(self) -> bool:
        """Whether the detector calls the fake fake and the real photo not, as the protocol asks."""
        return self.p_real_photo < THRESHOLD and self.sufficiency.predicted == "fake"

    @property
    def summary(self) -> str:
        parts = [f"On the fake, at the places of the real photo's map: {self.sufficiency.summary}"]
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
        detector: Whose verdicts are tested.
        saliency: Map of the real photo (H, W) for the verdict real, higher where more speaks for it.
        settings: Settings of the pair.

    Raises:
        UserError: The photos differ in size.
    """
    settings = settings or PairSettings()
    _require_same_size(real, fake)
    p_real_photo = _p_fake(detector, real)
    labels = slic_segments((real if settings.segments_of == "real" else fake)[0], settings.segments)
    sufficiency = yield from measure_sufficiency(fake, detector, saliency, labels, settings.sufficiency)
    return PairSufficiency(p_real_photo, labels, sufficiency, settings)


@validated
@dataclass(frozen=True)
class PairComparisonSettings:
    """Settings of a comparison.

    Args:
        methods: Names of the methods, in the order of the table.
        preset: How many samples they draw.
        pair: How the fake is attacked.
    """

    methods: tuple[str, ...] = field(default_factory=general_methods)
    preset: Preset = "quick"
    seed: int = 0
    pair: PairSettings = field(default_factory=PairSettings)


@dataclass(frozen=True, eq=False)
class PairComparison:
    """What every method's map of the real photo is worth on the fake.

    Args:
        done: For each method, its map of the real photo for the verdict real, and the attack on the fake; None without
            a map.
        p_real_photo: Probability of fake of the real photo, in [0, 1].
        p_fake_photo: The same of the fake.
    """

    done: tuple[tuple[Explanation, PairSufficiency | None], ...]
    p_real_photo: float
    p_fake_photo: float
    seconds: float
    settings: PairComparisonSettings
    detector: str

    @property
    def both_right(self) -> bool:
        """Whether the detector calls the fake fake and the real photo not; nothing is explained otherwise."""
        return self.p_real_photo < THRESHOLD <= self.p_fake_photo

    @property
    def random_mean(self) -> Tensor:
        """Return the mean sufficiency@k of random places over all maps (K,); NaN without any."""
        falls = [pair.sufficiency.random_values for _, pair in self.done if pair is not None]
        if not falls:
            return torch.full((len(self.settings.pair.sufficiency.tops),), torch.nan)
        return torch.cat(falls).mean(0)

    @property
    def summary(self) -> str:
        scores = f"p_fake is {self.p_real_photo:.2f} for the real photo and {self.p_fake_photo:.2f} for the fake."
        if not self.both_right:
            return (
                f"{scores} The test needs a detector that calls the fake fake and the real photo not; choose another "
                "detector or another pair."
            )
        falls = [
            (float(pair.sufficiency.values[-1]), explanation.explainer.title)
            for explanation, pair in self.done
            if pair is not None and not pair.sufficiency.values[-1].isnan()
        ]
        if not falls:
            return f"{scores} No method found a place in the real photo that speaks against a forgery."
        top = self.settings.pair.sufficiency.tops[-1]
        best, worst = max(falls), min(falls)
        compared = (
            f"With only the {top} highest segments of each map attacked in the fake, p_fake falls most for "
            f"{best[1]} ({best[0]:.2f}) and least for {worst[1]} ({worst[0]:.2f}); further is better for the map."
        )
        parts = [scores, compared]
        random = float(self.random_mean[-1])
        if not math.isnan(random):
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
        One step for each batch, and a `MapFinished` for every map, with its sufficiency in `values` where there is one.

    Raises:
        UserError: The photos differ in size.
    """
    settings = settings or PairComparisonSettings()
    started = time.perf_counter()
    _require_same_size(real, fake)
    p_real, p_fake = _p_fake(detector, real), _p_fake(detector, fake)
    done: list[tuple[Explanation, PairSufficiency | None]] = []
    names = settings.methods if p_real < THRESHOLD <= p_fake else ()
    for place, name in enumerate(names):
        begin, end = (round(PROGRESS * share / len(names)) for share in (place, place + 1))
        map_settings = ExplainSettings(
            name, "original", settings.preset, settings.seed, "real", segments=settings.pair.segments
        )
        explanation = yield from stage_job(explain(real, detector, map_settings), begin, (begin + end) // 2)
        pair, values = None, {}
        if not explanation.degenerate:
            job = measure_pair_sufficiency(real, fake, detector, explanation.saliency, settings.pair)
            pair = yield from stage_job(job, (begin + end) // 2, end)
            values = {"sufficiency": float(pair.sufficiency.values[-1])}
        done.append((explanation, pair))
        message = f"{explanation.explainer.title} is done."
        yield MapFinished(end, PROGRESS, message, values=values, explanation=explanation)
    return PairComparison(tuple(done), p_real, p_fake, time.perf_counter() - started, settings, detector.card.name)


def _require_same_size(real: Tensor, fake: Tensor) -> None:
    if real.shape != fake.shape:
        raise UserError("The real photo and the fake differ in size.", "Use two crops of the same size and position.")


def _p_fake(detector: Detector, photo: Tensor) -> float:
    judge = BatchedDetector(detector)
    return float(torch.sigmoid(judge.logit_fake(photo.detach().to(judge.device)))[0])
