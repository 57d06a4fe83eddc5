"""Explain one face by one method or by all: settings, verdict, reference, method, and what the map is worth."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Annotated, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from backend.attacks import nes, pgd
from backend.attacks.base import Attacked, judge_attack
from backend.attacks.nes import NESSettings
from backend.attacks.pgd import PGDSettings
from backend.detectors.base import DIRECTION_WORDS, SCALE, THRESHOLD, Detector
from backend.detectors.inference import BatchedDetector
from backend.explain.base import (
    EXPLAINERS,
    Explainer,
    Inferences,
    MaskedFace,
    Precision,
    Preset,
    Question,
    RawMap,
    Reference,
    Towards,
)
from backend.explain.segments import rank_scores, segment_scores, slic_segments
from backend.progress import Job, Step, mapped
from backend.runtime import MODEL_LOCK, frozen
from backend.settings import validated

NAMED = 3  # segments that a summary names
LARGEST_SEED = 2**32 - 1  # of numpy
FLIP_SHARES = 32  # parts of the path from the face to the attacked face
CONSTANT_ANSWER = 1e-4  # answers that differ by less count as equal: the rest is rounding
PROGRESS = 1000  # steps of an explanation's progress bar
SHARE_OF_ATTACK = 0.4  # of its iterations, after which a face is called real on average: 23 of 80 in Adv-XAI
WHITE_BOX_PASSES = 120  # forward and backward passes of the shortcut
# The quick attack makes half the probes and stops after half as many iterations.
QUICK_PROBES, QUICK_ITERATIONS = 20, 40

NO_SIGNS_TO_EXPLAIN = "The detector's score is below its threshold, so it sees no signs of forgery to explain."
ONLY_SIGNS_TO_EXPLAIN = "The detector sees signs of forgery, so there is no answer without signs to explain."

T = TypeVar("T")


@validated
@dataclass(frozen=True)
class ExplainSettings:
    """Settings of an explanation.

    Args:
        method: A name in `EXPLAINERS`.
        reference: What a hidden part shows: the method's usual fill, or the face after an attack that takes
            it below the detector's threshold (Adv-XAI, 2502.03957). Methods that hide nothing ignore it.
        preset: How many samples; `as_released` also does what that paper's code does where its text says otherwise.
        seed: Seed of all random numbers.
        towards: The verdict to explain. Only Grad-CAM, Grad-CAM++ and XRAI explain one that the detector did not give.
        segments: About how many segments the face is cut into.
        batch: Pictures per forward pass; None takes the preset's, or as many as are fast and fit into memory.
        attack: Settings of the attack that makes the adversarial image; None takes the preset's.
        shortcut: Make the image with the white-box attack PGD in the same bounds, which is faster; results say so.
    """

    method: str = "lime"
    reference: Reference = "adversarial"
    preset: Preset = "quick"
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    towards: Towards = "fake"
    segments: Annotated[int, Field(ge=2)] = 50
    batch: Annotated[int, Field(ge=1)] | None = None
    attack: NESSettings | None = None
    shortcut: bool = False

    def __post_init__(self) -> None:
        EXPLAINERS.find(self.method)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a detector looked, as one method sees it.

    Args:
        saliency: float32 (H, W) on the CPU; all 0 where `degenerate`. The units are the method's own.
        signed: Whether values below 0 speak against the verdict; otherwise only their order has a meaning.
        degenerate: Whether there is nothing to explain.
        reason: Why, one sentence; empty otherwise.
        reference: `original` or `adversarial`; None for methods that hide nothing.
        reference_image: (1, 3, H, W) in [0, 1] on the CPU, what hidden parts showed, or None.
        reference_words: What that is, for people.
        reference_flipped: Whether the adversarial image is called real; None without one.
        attack_words: Which attack made it, for people; empty without one.
        p_fake: Probability of fake of the face, in [0, 1].
        p_reference: The same of the reference, or None.
        labels: Segment of every pixel, int64 (H, W) from 0.
        segment_scores: Mean of the map in every segment (S,).
        attack: Inferences of the attack.
        explanation: Inferences of the method.
        checks: All other inferences: for the verdict, the reference's, and the fast number format.
        precision: Number format of the forward passes.
        seconds: Time without that of the attack.
    """

    saliency: Tensor
    signed: bool
    degenerate: bool
    reason: str
    reference: Reference | None
    reference_image: Tensor | None
    reference_words: str
    reference_flipped: bool | None
    attack_words: str
    p_fake: float
    p_reference: float | None
    labels: Tensor
    segment_scores: Tensor
    attack: Inferences
    explanation: Inferences
    checks: Inferences
    precision: Precision | None
    attack_seconds: float
    seconds: float
    settings: ExplainSettings
    detector: str

    @property
    def explainer(self) -> Explainer:
        return EXPLAINERS[self.settings.method]

    @property
    def title(self) -> str:
        return f"{self.explainer.title}, {self.reference} reference" if self.reference else self.explainer.title

    @property
    def explains_verdict(self) -> bool:
        """Return whether the verdict explained is the one that the detector gave."""
        return self.settings.towards == ("fake" if self.p_fake >= THRESHOLD else "real")

    @property
    def inferences(self) -> Inferences:
        """Return the inferences of attack and method; the checks are left out, as papers leave them out."""
        return self.attack + self.explanation

    @property
    def caution(self) -> str:
        """Say why to trust the map less than others, or return an empty string."""
        if self.reference_flipped is not False:
            return ""
        return (
            f"The adversarial image is still called fake ({self.p_reference:.2f}), so hiding a part with it changes "
            "less than it should; trust this map less."
        )

    @property
    def top_segments(self) -> list[int]:
        """Return the segments that speak most for the verdict, at most `NAMED`, the strongest first."""
        if self.degenerate:
            return []
        best = rank_scores(self.segment_scores)[:NAMED].tolist()
        return [segment for segment in best if self.segment_scores[segment] > 0 or not self.signed]

    @property
    def summary(self) -> str:
        towards = self.settings.towards
        parts = [f"{self.title}: p_fake is {self.p_fake:.2f} {SCALE}."]
        if self.attack_words:
            parts.append(self.attack_words)
        if self.caution:
            parts.append(self.caution)
        if self.degenerate:
            parts.append(self.reason)
            return " ".join(parts)
        inferences = self.explanation
        parts.append(f"The detector was asked about {inferences.images} pictures in {inferences.calls} batches.")
        listed = ", ".join(str(segment) for segment in self.top_segments)
        parts.append(
            f"The segments that speak most {DIRECTION_WORDS[towards]}: {listed}, the strongest first."
            if listed
            else f"No segment speaks {DIRECTION_WORDS[towards]}; the map shows what does the opposite."
        )
        parts.append("A map shows what changes this detector's answer, which need not be what is fake.")
        return " ".join(parts)

    def record(self) -> dict[str, object]:
        return {
            "method": self.settings.method,
            "reference": self.reference,
            "preset": self.settings.preset,
            "detector": self.detector,
            "towards": self.settings.towards,
            "signed": self.signed,
            "degenerate": self.degenerate,
            "reason": self.reason,
            "p_fake": self.p_fake,
            "p_reference": self.p_reference,
            "reference_words": self.reference_words,
            "reference_flipped": self.reference_flipped,
            "attack": self.attack_words,
            "inferences": asdict(self.inferences)
            | {"attack": asdict(self.attack), "explanation": asdict(self.explanation), "checks": asdict(self.checks)},
            "precision": asdict(self.precision) if self.precision else None,
            "segment_scores": self.segment_scores.tolist(),
            "seed": self.settings.seed,
            "settings": asdict(self.settings),
            "attack_seconds": self.attack_seconds,
            "seconds": self.seconds,
            "summary": self.summary,
        }


def least_flip(face: Tensor, detector: Detector, bounds: PGDSettings) -> Job[Attacked]:
    """Attack with PGD until the face is below the threshold, and keep the least share of the change that suffices.

    The image is not rounded to 8 bits, as that of NES is not.

    Args:
        face: (1, 3, H, W) in [0, 1], called fake.
        detector: What is attacked; its gradient is used.
        bounds: Settings of PGD; it may stop after fewer steps.
    """
    started = time.perf_counter()
    face = face.detach().to(detector.mean.device)
    attacked_face, count, updates = face, 0, 0
    job = pgd.attack(face, detector, bounds)
    try:
        for step in job:
            count = step.number
            if step.values["p_fake"] < THRESHOLD:  # of the picture before this update
                break
            assert step.preview is not None
            attacked_face, updates = step.preview.to(face), count
            yield step
    finally:
        job.close()
    judge = BatchedDetector(detector)
    shares = torch.linspace(1 / FLIP_SHARES, 1, FLIP_SHARES, device=face.device)[:, None, None, None]
    path = face + shares * (attacked_face - face)
    real = (torch.sigmoid(judge.logit_fake_of_all(path)) < THRESHOLD).nonzero().flatten()
    least = path[int(real[0]) if len(real) else -1][None]
    yield Step(bounds.steps, bounds.steps, "Found the smallest change that is enough.", least.cpu())
    return judge_attack(
        "PGD",
        face,
        least,
        detector,
        bounds,
        started=started,
        iterations=updates,
        image_count=count + judge.images,
        call_count=count + judge.calls,
    )


def explain(
    face: Tensor,
    detector: Detector,
    settings: ExplainSettings | None = None,
    reference_image: Attacked | Tensor | None = None,
) -> Job[Explanation]:
    """Explain what a detector says of one face.

    Args:
        face: (1, 3, H, W) in [0, 1].
        detector: What is explained.
        settings: Settings of the explanation.
        reference_image: The adversarial image (1, 3, H, W) or the attack's result, if known; no attack is made then.

    Raises:
        ValueError: The face has another shape.
    """
    settings = settings or ExplainSettings()
    if face.ndim != 4 or face.shape[:2] != (1, 3):
        raise ValueError(f"one face (1, 3, H, W) is explained, not {tuple(face.shape)}")
    face = face.detach().to(detector.mean.device)
    with frozen(detector):
        return (yield from _ExplainJob(face, detector, settings).run(reference_image))


def start_attack(face: Tensor, detector: Detector, settings: ExplainSettings) -> Job[Attacked]:
    """Return the attack that makes the adversarial image, not yet started."""
    attack = attack_settings(settings)
    if settings.shortcut:
        return least_flip(face, detector, nes.white_box_settings(attack))
    return nes.attack(face, detector, attack)


def attack_settings(settings: ExplainSettings) -> NESSettings:
    """Return the settings of the attack: those given, or the preset's with the explanation's seed."""
    if settings.attack is not None:
        return settings.attack
    if settings.preset == "as_released":
        return replace(nes.AS_RELEASED, seed=settings.seed)
    if settings.preset == "quick":
        return NESSettings(probes=QUICK_PROBES, iterations=QUICK_ITERATIONS, seed=settings.seed)
    return NESSettings(seed=settings.seed)


def attack_passes(settings: ExplainSettings) -> float:
    """Estimate how many forward passes of a picture the attack costs."""
    if settings.shortcut:
        return WHITE_BOX_PASSES
    attack = attack_settings(settings)
    return SHARE_OF_ATTACK * attack.iterations * (2 * attack.probes + 1)


def stage_job(job: Job[T], first: int, last: int) -> Job[T]:
    """Pass a job's steps on as part of a longer job, from step `first` to `last`; closing this closes the job."""

    def rescaled(step: Step) -> Step:
        number = first + round((last - first) * min(1.0, step.number / max(1, step.total)))
        return replace(step, number=number, total=PROGRESS)

    return mapped(job, rescaled)


class _ExplainJob:
    """State of one explanation while it is computed."""

    def __init__(self, face: Tensor, detector: Detector, settings: ExplainSettings) -> None:
        self.face, self.detector, self.settings = face, detector, settings
        self.explainer: Explainer = EXPLAINERS.find(settings.method)
        self.reference = settings.reference if self.explainer.references else None
        self.started = time.perf_counter()
        self.attacked: Attacked | None = None
        self.attack_seconds = 0.0
        self.attack_inferences = Inferences()
        self.checks = Inferences()
        self.image: Tensor | None = None
        self.p_reference: float | None = None
        self.masked: MaskedFace | None = None
        self.labels = slic_segments(face[0], settings.segments).cpu()
        self.p_fake = self._p_fake(face)

    def run(self, reference_image: Attacked | Tensor | None) -> Job[Explanation]:
        verdict = "fake" if self.p_fake >= THRESHOLD else "real"
        if self.explainer.references and verdict != self.settings.towards:
            return self._nothing(NO_SIGNS_TO_EXPLAIN if verdict == "real" else ONLY_SIGNS_TO_EXPLAIN)
        begin = 0
        if self.reference == "adversarial":
            if self.settings.towards == "real":
                return self._nothing("An adversarial reference needs a face that is called fake; use the original one.")
            yield from self._find_adversarial(reference_image)
            begin = self.attack_share if reference_image is None else 0
        elif self.reference == "original" and self.explainer.fill is not None:
            released = self.settings.preset == "as_released"
            self.image = self.explainer.fill.paint(self.face, self.labels, self.detector, released)
        if self.image is not None:
            self.p_reference = self._p_fake(self.image)
            if torch.equal(self.image, self.face):
                return self._nothing("The reference is the face itself, so hiding a part changes nothing.")
        raw = yield from stage_job(self.explainer.run(self._question()), begin, PROGRESS)
        return self._judged(raw)

    @property
    def attack_share(self) -> int:
        """Steps of the progress bar that the attack takes, by what it costs beside the method."""
        attack = attack_passes(self.settings)
        return round(PROGRESS * attack / (attack + self.explainer.pictures(self.settings.preset)))

    def _find_adversarial(self, given: Attacked | Tensor | None) -> Job[None]:
        if isinstance(given, Tensor):
            self.image = given.detach().to(self.face)
            return
        self.attacked = given
        if self.attacked is None:
            started = time.perf_counter()
            job = start_attack(self.face, self.detector, self.settings)
            self.attacked = yield from stage_job(job, 0, self.attack_share)
            self.attack_seconds = time.perf_counter() - started
            self.attack_inferences = Inferences(self.attacked.image_count, self.attacked.call_count)
        self.image = self.attacked.images[:1].to(self.face)

    def _question(self) -> Question:
        released = self.settings.preset == "as_released"
        batch = self.settings.batch or (self.explainer.released_batch if released else None)
        self.masked = MaskedFace(
            self.face,
            self.face if self.image is None else self.image,
            self.detector,
            self.settings.towards,
            batch=batch,
            double_softmax=released and self.explainer.double_softmax,
            bfloat16=self.image is not None and not released,
        )
        return Question(
            self.masked,
            self.labels,
            self.explainer.samples[self.settings.preset],
            self.settings.seed,
            as_released=released,
        )

    def _judged(self, raw: RawMap) -> Explanation:
        if raw.empty:
            return self._nothing(raw.empty)
        if raw.answers is not None:
            spread = float(raw.answers.max() - raw.answers.min())
            noise = self.masked.precision.deviation if self.masked else 0.0
            if not spread > max(CONSTANT_ANSWER, 2 * noise):
                return self._nothing(
                    f"The detector's answer stays at {float(raw.answers[0]):.4f} whatever is hidden, so hiding parts "
                    "of this face explains nothing."
                )
        if not raw.saliency.isfinite().all():
            return self._nothing("The map contains values that are not numbers.")
        return self._explanation(raw.saliency, "")

    def _nothing(self, reason: str) -> Explanation:
        return self._explanation(torch.zeros(self.face.shape[2:]), reason)

    def _explanation(self, saliency: Tensor, reason: str) -> Explanation:
        flipped = None
        if self.reference == "adversarial" and self.p_reference is not None:
            flipped = self.p_reference < THRESHOLD
        checks = self.checks + (self.masked.checks if self.masked else Inferences())
        return Explanation(
            saliency=saliency.detach().float().cpu(),
            signed=self.explainer.signed and (self.settings.preset != "as_released" or self.explainer.released_signed),
            degenerate=bool(reason),
            reason=reason,
            reference=self.reference,
            reference_image=None if self.image is None else self.image.cpu(),
            reference_words=self._reference_words(),
            reference_flipped=flipped,
            attack_words=self._attack_words(),
            p_fake=self.p_fake,
            p_reference=self.p_reference,
            labels=self.labels,
            segment_scores=segment_scores(saliency.detach().float().cpu(), self.labels),
            attack=self.attack_inferences,
            explanation=self.masked.inferences if self.masked else Inferences(),
            checks=checks,
            precision=self.masked.precision if self.masked else None,
            attack_seconds=self.attack_seconds,
            seconds=time.perf_counter() - self.started - self.attack_seconds,
            settings=self.settings,
            detector=self.detector.card.name,
        )

    def _reference_words(self) -> str:
        if self.reference is None or self.image is None:
            return ""
        if self.reference == "adversarial":
            return "the face after an attack that should take it below the detector's threshold"
        fill = self.explainer.fill
        released = self.settings.preset == "as_released"
        return ((released and fill.released_words) or fill.words) if fill else ""

    def _attack_words(self) -> str:
        if self.attacked is None:
            return ""
        kind = "White-box shortcut instead of NES. " if isinstance(self.attacked.settings, PGDSettings) else ""
        return kind + self.attacked.summary

    def _p_fake(self, picture: Tensor) -> float:
        self.checks += Inferences(1, 1)
        with MODEL_LOCK, torch.inference_mode():
            return float(self.detector.p_fake(picture)[0])


@dataclass(frozen=True)
class MapFinished(Step):
    """A step with which one map is finished."""

    explanation: Explanation | None = None


@dataclass(frozen=True, eq=False)
class MapComparison:
    """All maps of one face.

    Args:
        done: One explanation for each method and reference, in the order of the table.
        attacked: The adversarial image that all of them share; None where the face is called real to begin with.
        attack: Inferences of the attack.
        seconds: Time with that of the attack.
        settings: What all maps have in common; its method and reference are not used.
    """

    done: tuple[Explanation, ...]
    attacked: Attacked | None
    attack: Inferences
    seconds: float
    settings: ExplainSettings
    detector: str

    @property
    def inferences(self) -> Inferences:
        return sum((explanation.explanation for explanation in self.done), self.attack)

    @property
    def summary(self) -> str:
        reasons = [explanation.reason for explanation in self.done if explanation.degenerate]
        parts = [f"{len(self.done) - len(reasons)} of {len(self.done)} maps show something."]
        if self.attacked is not None:
            parts.append(self.attacked.summary)
            if not bool(self.attacked.flipped[0]):
                parts.append("The adversarial image is still called fake; trust the maps that use it less.")
        return " ".join([*parts, *sorted(set(reasons))])


def map_variants(detector: Detector | None = None) -> list[tuple[str, Reference]]:
    """Return method and reference of every map, in order; the reference is `original` where there is no choice.

    Methods that cannot explain `detector` are left out.
    """
    return [
        (name, reference)
        for name, explainer in EXPLAINERS.items()
        if detector is None or explainer.can_explain(detector)
        for reference in explainer.references or ("original",)
    ]


def compare_methods(face: Tensor, detector: Detector, settings: ExplainSettings | None = None) -> Job[MapComparison]:
    """Explain one face with every method and every reference, with one adversarial image.

    Args:
        face: (1, 3, H, W) in [0, 1].
        detector: What is explained.
        settings: What all maps have in common; its method and reference are not used.

    Yields:
        One step for each batch, and a `MapFinished` for every map.
    """
    settings = settings or ExplainSettings()
    started = time.perf_counter()
    variants = map_variants(detector)
    costs = [attack_passes(settings), *(EXPLAINERS[name].pictures(settings.preset) for name, _ in variants)]
    ends = [round(PROGRESS * sum(costs[: place + 1]) / sum(costs)) for place in range(len(costs))]
    attacked: Attacked | None = None
    if settings.towards == "fake" and _called_fake(face, detector):
        attacked = yield from stage_job(start_attack(face.to(detector.mean.device), detector, settings), 0, ends[0])
    done: list[Explanation] = []
    for place, (name, reference) in enumerate(variants):
        variant = replace(settings, method=name, reference=reference)
        explanation = yield from stage_job(explain(face, detector, variant, attacked), ends[place], ends[place + 1])
        done.append(explanation)
        yield MapFinished(ends[place + 1], PROGRESS, f"{explanation.title} is done.", explanation=explanation)
    attack = Inferences(attacked.image_count, attacked.call_count) if attacked else Inferences()
    return MapComparison(tuple(done), attacked, attack, time.perf_counter() - started, settings, detector.card.name)


def _called_fake(face: Tensor, detector: Detector) -> bool:
    with frozen(detector), MODEL_LOCK, torch.inference_mode():
        return float(detector.p_fake(face.to(detector.mean.device))[0]) >= THRESHOLD
