"""Test a map: attack only the segments that it ranks highest, and see how far the score falls.

The protocol of Adv-XAI-Deepfakes (2502.03957, section 4) and Gowrisankar and Thing (2312.06627): a map that names
the right places names those where a small change moves the verdict most. As a control, as many pixels are
attacked in random segments.
"""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from backend.attacks import nes, pgd
from backend.attacks.base import Attacked
from backend.attacks.nes import NESSettings
from backend.attacks.pgd import PGDSettings
from backend.detectors.base import THRESHOLD, Detector
from backend.detectors.inference import BatchedDetector
from backend.errors import UserError
from backend.explain.explanation import ExplainSettings, Explanation, MapComparison, MapFinished, compare_methods
from backend.explain.segments import rank_scores, segment_scores, top_mask
from backend.progress import Job, Running, Step, within
from backend.settings import validated

LEAD = 0.05  # in p_fake; a smaller lead over random places may be chance
ITERATIONS = 50  # of an attack for evaluation; explanations take 80
# Of the white-box shortcut. PGD goes on after the verdict has flipped, so with the budget of NES any place would do.
SHORTCUT_DELTA = 4 / 255  # of pixels in [0, 1]
SHORTCUT_STEPS = 12  # of one grey level each: three times the way to the edge of what is allowed
TESTED_SEGMENTS = 3  # segments that the test of a comparison attacks


@validated
@dataclass(frozen=True)
class SufficiencySettings:
    """Settings of a test of a map.

    Args:
        tops: How many of the highest segments are attacked, one independent attack for each number.
        attack: The attack. `PGDSettings` is a white-box shortcut: some 30 times cheaper, and another attack.
        draws: How many random rankings are attacked in the same way; 0 omits the control.
        positive_only: Attack only segments with a score above 0, as the paper does for LIME; a map with fewer
            than the largest of `tops` has no result at all, as in its code.
        seed: Seed of the random segments; that of the attack's noise is its own.
    """

    tops: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2, 3)
    attack: NESSettings | PGDSettings = field(default_factory=lambda: NESSettings(iterations=ITERATIONS))
    draws: Annotated[int, Field(ge=0)] = 3
    positive_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if list(self.tops) != sorted(set(self.tops)):
            raise UserError("The numbers of segments must increase.", "Name each once, the smallest first: 1, 2, 3.")


def sufficiency_settings(
    seed: int = 0, *, shortcut: bool = False, tops: tuple[int, ...] = (1, 2, 3), draws: int = 3
) -> SufficiencySettings:
    """Return the usual test of a map: by NES, or by the white-box shortcut PGD, which sees the gradient."""
    if not shortcut:
        return SufficiencySettings(tops, NESSettings(iterations=ITERATIONS, seed=seed), draws, seed=seed)
    attack = nes.white_box_settings(NESSettings(iterations=SHORTCUT_STEPS, delta=SHORTCUT_DELTA, seed=seed))
    return SufficiencySettings(tops, attack, draws, seed=seed)


@dataclass(frozen=True)
class Sufficiency:
    """How far the score falls when only some segments may change.

    K is the number of `settings.tops`, D that of the random rankings. Where there were too few segments, values
    are NaN, masks are empty and images are the face itself.

    Args:
        predicted: What the detector says of the face: `fake` or `real`. Its score is what falls.
        p_before: Probability of fake of the face, in [0, 1].
        order: All segments from the highest score to the lowest, int64 (S,).
        masks: What each attack could change, bool (K, H, W).
        images: The attacked faces (K, 3, H, W).
        p_after: Their probabilities of fake (K,).
        values: Sufficiency@k (K,), in [-1, 1]: fall of the score of the predicted class.
        called_fake: Whether they are still called fake (K,), for accuracy@k; False where there is no result.
        random_masks: What the controls could change, bool (D, K, H, W), as many pixels as `masks`.
        random_p_after: Probabilities of fake after them (D, K).
        random_values: Sufficiency@k of the controls (D, K).
        iterations: Updates of each attack (K,).
        arbitrary: Whether all segments have the same score, so that their order means nothing.
        attack: `NES`, or `PGD` for the white-box shortcut.
        image_count: How many pictures the detector judged, in `call_count` batches.
    """

    predicted: Literal["fake", "real"]
    p_before: float
    order: Tensor
    masks: Tensor
    images: Tensor
    p_after: Tensor
    values: Tensor
    called_fake: Tensor
    random_masks: Tensor
    random_p_after: Tensor
    random_values: Tensor
    iterations: Tensor
    arbitrary: bool
    attack: Literal["NES", "PGD"]
    image_count: int
    call_count: int
    settings: SufficiencySettings
    detector: str
    seconds: float

    @property
    def already_real(self) -> bool:
        """Whether the face is below the threshold to begin with; nothing is attacked then."""
        return self.predicted == "real"

    @property
    def random_mean(self) -> Tensor:
        """Return the mean sufficiency@k of the controls (K,); NaN without any."""
        return self.random_values.mean(0)

    @property
    def lead(self) -> float | None:
        """How much further the score falls than on average in random places; None without a result or a control."""
        leads = (self.values.double() - self.random_mean.double())[~self.values.isnan()]
        return None if self.already_real or not self.settings.draws or not len(leads) else float(leads[-1])

    def record(self) -> dict[str, Any]:
        """Return values by number of segments and their cost, for JSON; values are None without a result."""
        controls = self.random_mean if self.settings.draws else self.values * math.nan
        values = zip(self.settings.tops, self.values.tolist(), controls.tolist(), strict=True)
        return {
            "sufficiency": [
                {"k": k, "value": None if math.isnan(value) else value, "random": None if math.isnan(mean) else mean}
                for k, value, mean in values
            ],
            "predicted": self.predicted,
            "attack": self.attack,
            "settings": asdict(self.settings),
            "images": self.image_count,
            "calls": self.call_count,
            "seconds": self.seconds,
            "summary": self.summary,
        }

    @property
    def summary(self) -> str:
        if self.already_real:
            return f"p_fake is {self.p_before:.2f}: the face is not called fake, so there is no verdict to attack."
        tested = (~self.p_after.isnan()).nonzero().flatten().tolist()
        if not tested:
            return "Too few segments speak for the verdict, so there is nothing to attack."
        last = tested[-1]
        top, fall = self.settings.tops[last], float(self.values[last])
        which = "highest segment" if top == 1 else f"{top} highest segments"
        share = float(self.masks[last].float().mean())
        before, after = self.p_before, float(self.p_after[last])
        parts = [
            f"Sufficiency@{top} is {fall:.2f} (from -1 to 1; higher is better for the map).",
            f"Only the {which} may change, {share:.0%} of the picture: p_fake goes from {before:.2f} to {after:.2f}.",
        ]
        if self.settings.draws:
            falls = self.random_values[:, last]
            parts.append(f"With as many pixels in random segments it falls by {float(falls.mean()):.2f} on average.")
            parts.append(_compared(fall, falls))
        if self.arbitrary:
            parts.append("All segments have the same score, so their order means nothing.")
        if self.attack == "PGD":
            parts.append("White-box shortcut: PGD saw the detector's gradient, so the numbers are not those of NES.")
        return " ".join(parts)


def measure_sufficiency(
    face: Tensor, detector: Detector, saliency: Tensor, labels: Tensor, settings: SufficiencySettings | None = None
) -> Job[Sufficiency]:
    """Attack the highest segments of a map, and random ones of the same size.

    All attacks start from the face, know nothing of each other, and share their batches.

    Args:
        face: (1, 3, H, W) in [0, 1].
        detector: Whose verdict the map explains.
        saliency: The map (H, W), higher where more speaks for the verdict.
        labels: Segments (H, W), from 0 without gaps.
        settings: Settings of the test.

    Raises:
        ValueError: There is more than one face, or sizes differ.
    """
    settings = settings or SufficiencySettings()
    if len(face) != 1 or face.shape[-2:] != labels.shape:
        raise ValueError(f"one face {tuple(face.shape)} with segments of its size {tuple(labels.shape)} is needed")
    started = time.perf_counter()
    labels, scores = labels.cpu(), segment_scores(saliency, labels)
    order = rank_scores(scores)
    usable = int((scores > 0).sum()) if settings.positive_only else len(scores)
    # Of the paper's LIME maps, those with fewer such segments than the largest k leave every mean.
    enough = max(settings.tops) <= usable or not settings.positive_only
    masks = torch.stack([top_mask(labels, order, k if enough and k <= usable else 0) for k in settings.tops])
    random = random_masks(labels, masks, settings.draws, settings.seed)
    regions = torch.cat([masks[None], random]).flatten(0, 1)
    judge = BatchedDetector(detector)
    p_before = float(torch.sigmoid(judge.logit_fake(face.detach().to(judge.device)))[0])
    images, p_after = face.detach().cpu().repeat(len(regions), 1, 1, 1), torch.full((len(regions),), p_before)
    iterations = torch.zeros(len(regions), dtype=torch.long)
    tested = regions.flatten(1).any(1)
    image_count, call_count = judge.images, judge.calls
    if p_before >= THRESHOLD and tested.any():
        attacked = yield from _attack(images[tested], detector, settings.attack, regions[tested][:, None])
        images[tested], p_after[tested], iterations[tested] = attacked.images, attacked.p_after, attacked.iterations
        image_count, call_count = image_count + attacked.image_count, call_count + attacked.call_count
    p_after = p_after.masked_fill(~tested, torch.nan).view(-1, len(masks))
    return Sufficiency(
        predicted="fake" if p_before >= THRESHOLD else "real",
        p_before=p_before,
        order=order,
        masks=masks,
        images=images[: len(masks)],
        p_after=p_after[0],
        values=p_before - p_after[0],  # a face below the threshold is not attacked: nothing falls
        called_fake=p_after[0] >= THRESHOLD,
        random_masks=random,
        random_p_after=p_after[1:],
        random_values=p_before - p_after[1:],
        iterations=iterations[: len(masks)],
        arbitrary=bool(scores.max() == scores.min()),
        attack="NES" if isinstance(settings.attack, NESSettings) else "PGD",
        image_count=image_count,
        call_count=call_count,
        settings=settings,
        detector=detector.card.name,
        seconds=time.perf_counter() - started,
    )


def random_masks(labels: Tensor, masks: Tensor, draws: int, seed: int) -> Tensor:
    """Draw unions of random segments, bool (draws, K, H, W), with as many pixels as the masks (K, H, W).

    One random ranking serves all masks of a draw, as one map does. Of the last segment that a mask needs, only the
    upper rows are taken where the whole would be too many pixels. `labels` (H, W) run from 0 without gaps.
    """
    generator = torch.Generator().manual_seed(seed)
    flat, sizes = labels.flatten(), masks.flatten(1).sum(1)
    unions = torch.zeros(draws, len(masks), flat.numel(), dtype=torch.bool)
    for union in unions:
        place = torch.randperm(int(flat.max()) + 1, generator=generator).argsort()
        pixels = place[flat].argsort(stable=True)  # segment by segment in the order drawn, row by row within each
        for mask, size in zip(union, sizes.tolist(), strict=True):
            mask[pixels[:size]] = True
    return unions.view(draws, len(masks), *labels.shape)


def _attack(images: Tensor, detector: Detector, settings: NESSettings | PGDSettings, masks: Tensor) -> Job[Attacked]:
    if isinstance(settings, NESSettings):
        return (yield from nes.attack(images, detector, settings, masks))
    return (yield from pgd.attack(images, detector, settings, masks))


def _compared(fall: float, random: Tensor) -> str:
    """Say what the controls (D,) mean for the map."""
    lead = fall - float(random.mean())
    if lead <= 0:
        return "The map does no better than chance on this face: do not trust it."
    beaten = f"The map does better than {int((random < fall).sum())} of {len(random)} random rankings"
    return f"{beaten}, but its lead is too small to count." if lead < LEAD else f"{beaten}."


class TestedMap(NamedTuple):
    """One map of a comparison.

    Args:
        explanation: The map.
        sufficiency: How far p_fake falls where it points; None for a map that was not tested.
        random: How far p_fake falls in random places of the same size; None likewise.
    """

    explanation: Explanation
    sufficiency: float | None
    random: float | None

    @classmethod
    def from_step(cls, step: Step, explanation: Explanation) -> "TestedMap":
        """Return the map that a step of `compare_with_tests` finished, with the test in the step's values."""
        return cls(explanation, step.values.get("sufficiency"), step.values.get("random"))


def quick_test_settings(seed: int) -> SufficiencySettings:
    """Return the settings of the quick test of every map in a comparison; eleven full ones would take minutes."""
    return sufficiency_settings(seed, shortcut=True, tops=(TESTED_SEGMENTS,), draws=1)


def compare_with_tests(crop: Tensor, detector: Detector, settings: ExplainSettings) -> Job[MapComparison]:
    """Compare all methods, and put the sufficiency of every finished map into the values of its step."""
    test = quick_test_settings(settings.seed)
    with Running(compare_methods(crop, detector, settings)) as running:
        for step in running:
            explanation = step.explanation if isinstance(step, MapFinished) else None
            if explanation is not None and _can_be_tested(explanation):
                testing = measure_sufficiency(crop, detector, explanation.saliency, explanation.labels, test)
                tested = yield from within(testing, step.number, step.total)
                values = {"sufficiency": float(tested.values[0]), "random": float(tested.random_mean[0])}
                yield replace(step, values=values)
            else:
                yield step
    return running.result


def _can_be_tested(explanation: Explanation) -> bool:
    return explanation.settings.towards == "fake" and explanation.explains_verdict and not explanation.degenerate
