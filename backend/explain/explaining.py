"""Explain one face: the verdict, the reference, the method, and whether its map means anything."""

import time
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from backend.attacks import nes
from backend.attacks.nes import NESSettings
from backend.attacks.pgd import PGDSettings
from backend.attacks.result import Attacked
from backend.detectors.card import THRESHOLD, Detector
from backend.explain import methods
from backend.explain.explanation import ExplainSettings, Explanation
from backend.explain.masking import Inferences, MaskedFace
from backend.explain.methods import Method
from backend.explain.question import Question, RawMap
from backend.explain.segments import segment_scores, slic_segments
from backend.explain.shortcut import least_flip
from backend.progress import Job, Step, mapped
from backend.runtime import MODEL_LOCK, frozen

T = TypeVar("T")
CONSTANT = 1e-4  # answers that differ by less are one answer: what is left is rounding
PROGRESS = 1000  # steps of an explanation's progress bar
SHARE_OF_ATTACK = 0.4  # of its iterations, after which a face is called real on average: 23 of 80 in Adv-XAI
WHITE_BOX_PASSES = 120  # forward and backward passes of the shortcut
# The quick attack makes half the probes and stops after half as many iterations.
QUICK_PROBES, QUICK_ITERATIONS = 20, 40


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
        reference_image: The adversarial image (1, 3, H, W), or the attack's result, where it is known already; no
            attack is made then.

    Yields:
        One step a batch.

    Raises:
        UserError: A setting is out of its range.
        ValueError: The face has another shape.
    """
    settings = settings or ExplainSettings()
    settings.check()
    if face.ndim != 4 or face.shape[:2] != (1, 3):
        raise ValueError(f"one face (1, 3, H, W) is explained, not {tuple(face.shape)}")
    face = face.detach().to(detector.mean.device)
    with frozen(detector):
        return (yield from _Explaining(face, detector, settings).run(reference_image))


def attack_job(face: Tensor, detector: Detector, settings: ExplainSettings) -> Job[Attacked]:
    """Return the attack that makes the adversarial image, not yet begun."""
    chosen = attack_settings(settings)
    if settings.shortcut:
        return least_flip(face, detector, nes.white_box(chosen))
    return nes.attack(face, detector, chosen)


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
    """Return about how many forward passes of a picture the attack costs; seconds go with it."""
    if settings.shortcut:
        return WHITE_BOX_PASSES
    attack = attack_settings(settings)
    return SHARE_OF_ATTACK * attack.iterations * (2 * attack.probes + 1)


def staged(job: Job[T], first: int, last: int) -> Job[T]:
    """Pass a job's steps on as part of a longer one, from step `first` to `last`; closing this closes the job."""

    def placed(step: Step) -> Step:
        number = first + round((last - first) * min(1.0, step.number / max(1, step.total)))
        return replace(step, number=number, total=PROGRESS)

    return mapped(job, placed)


class _Explaining:
    """What is known while one face is explained."""

    def __init__(self, face: Tensor, detector: Detector, settings: ExplainSettings) -> None:
        self.face, self.detector, self.settings = face, detector, settings
        self.method: Method = methods.method(settings.method)
        self.reference = settings.reference if self.method.references else None
        self.started = time.perf_counter()
        self.attacked: Attacked | None = None
        self.attack_seconds = 0.0
        self.asked_by_attack = Inferences()
        self.checks = Inferences()
        self.image: Tensor | None = None
        self.p_reference: float | None = None
        self.masked: MaskedFace | None = None
        self.labels = slic_segments(face[0], settings.segments).cpu()
        self.p_fake = self._p_fake(face)

    def run(self, reference_image: Attacked | Tensor | None) -> Job[Explanation]:
        """Find the reference, run the method and judge its map."""
        if self.method.references and not self._verdict_matches():
            return self._nothing(
                f"The detector calls this face {self._verdict()}, so there is no verdict {self.settings.towards} "
                "to explain."
            )
        begun = 0
        if self.reference == "adversarial":
            if self.settings.towards == "real":
                return self._nothing("An adversarial reference needs a face that is called fake; use the original one.")
            yield from self._find_adversarial(reference_image)
            begun = self.attack_share if reference_image is None else 0
        elif self.reference == "original" and self.method.fill is not None:
            released = self.settings.preset == "as_released"
            self.image = self.method.fill.paint(self.face, self.labels, self.detector, released)
        if self.image is not None:
            self.p_reference = self._p_fake(self.image)
            if torch.equal(self.image, self.face):
                return self._nothing("The reference is the face itself, so hiding a part changes nothing.")
        raw = yield from staged(self.method.run(self._question()), begun, PROGRESS)
        return self._judged(raw)

    @property
    def attack_share(self) -> int:
        """Steps of the progress bar that the attack takes, by what it costs beside the method."""
        attack = attack_passes(self.settings)
        return round(PROGRESS * attack / (attack + self.method.pictures(self.settings.preset)))

    def _find_adversarial(self, given: Attacked | Tensor | None) -> Job[None]:
        if isinstance(given, Tensor):
            self.image = given.detach().to(self.face)
            return
        self.attacked = given
        if self.attacked is None:
            started = time.perf_counter()
            job = attack_job(self.face, self.detector, self.settings)
            self.attacked = yield from staged(job, 0, self.attack_share)
            self.attack_seconds = time.perf_counter() - started
            self.asked_by_attack = Inferences(self.attacked.image_count, self.attacked.call_count)
        self.image = self.attacked.images[:1].to(self.face)

    def _question(self) -> Question:
        released = self.settings.preset == "as_released"
        batch = self.settings.batch or (self.method.released_batch if released else None)
        self.masked = MaskedFace(
            self.face,
            self.face if self.image is None else self.image,
            self.detector,
            self.settings.towards,
            batch=batch,
            doubled=released and self.method.doubled,
            bfloat16=self.image is not None and not released,
        )
        return Question(
            self.masked,
            self.labels,
            self.method.samples[self.settings.preset],
            self.settings.seed,
            as_released=released,
        )

    def _judged(self, raw: RawMap) -> Explanation:
        if raw.empty:
            return self._nothing(raw.empty)
        if raw.answers is not None:
            spread = float(raw.answers.max() - raw.answers.min())
            noise = self.masked.precision.deviation if self.masked else 0.0
            if not spread > max(CONSTANT, 2 * noise):
                return self._nothing(
                    f"The detector's answer stays at {float(raw.answers[0]):.4f} whatever is hidden, so hiding parts "
                    "of this face explains nothing."
                )
        if not raw.saliency.isfinite().all():
            return self._nothing("The map holds values that are not numbers.")
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
            signed=self.method.signed and not (self.settings.preset == "as_released" and self.method.name == "shap"),
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
            attack=self.asked_by_attack,
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
            return "the face after an attack that should make the detector call it real"
        fill = self.method.fill
        if fill is None:
            return ""
        return fill.released_words if self.settings.preset == "as_released" else fill.words

    def _attack_words(self) -> str:
        if self.attacked is None:
            return ""
        kind = "White-box shortcut instead of NES. " if isinstance(self.attacked.settings, PGDSettings) else ""
        return kind + self.attacked.summary

    def _p_fake(self, picture: Tensor) -> float:
        self.checks += Inferences(1, 1)
        with MODEL_LOCK, torch.inference_mode():
            return float(self.detector.p_fake(picture)[0])

    def _verdict(self) -> str:
        return "fake" if self.p_fake >= THRESHOLD else "real"

    def _verdict_matches(self) -> bool:
        return self._verdict() == self.settings.towards
