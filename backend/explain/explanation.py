"""The settings of an explanation, and its result."""

from dataclasses import asdict, dataclass

from torch import Tensor

from backend.attacks.nes import NESSettings
from backend.detectors.card import THRESHOLD
from backend.errors import UserError
from backend.explain import methods
from backend.explain.masking import Inferences, Precision, Towards
from backend.explain.methods import PRESETS, REFERENCES, Method, Preset, Reference
from backend.explain.segments import rank

NAMED = 3  # segments that a summary names
MOST_SEED = 2**32 - 1  # of numpy


@dataclass(frozen=True)
class ExplainSettings:
    """Settings of an explanation.

    Args:
        method: A name in `methods.METHODS`.
        reference: What a hidden part shows: the method's usual fill, or the face after an attack that makes the
            detector call it real (Adv-XAI, 2502.03957). Methods that hide nothing take no notice of it.
        preset: How many samples; `as_released` also does what that paper's code does where its text says otherwise.
        seed: Seed of everything that is drawn.
        towards: The verdict to explain. Only Grad-CAM, Grad-CAM++ and XRAI explain one that the detector did not give.
        segments: About how many segments the face is cut into.
        batch: Pictures a forward pass; None takes the preset's, or as many as are worth it and fit into the memory.
        attack: Settings of the attack that makes the adversarial image; None takes the preset's.
        shortcut: Make it with the white-box attack PGD within the same bounds, which is faster; the result says so.
    """

    method: str = "lime"
    reference: Reference = "adversarial"
    preset: Preset = "quick"
    seed: int = 0
    towards: Towards = "fake"
    segments: int = 50
    batch: int | None = None
    attack: NESSettings | None = None
    shortcut: bool = False

    def check(self) -> None:
        """Refuse what cannot be explained.

        Raises:
            UserError: A setting is out of its range.
        """
        methods.method(self.method)
        if self.reference not in REFERENCES:
            raise UserError(f"There is no reference {self.reference}.", f"Use one of: {', '.join(REFERENCES)}.")
        if self.preset not in PRESETS:
            raise UserError(f"There is no preset {self.preset}.", f"Use one of: {', '.join(PRESETS)}.")
        if self.towards not in ("fake", "real"):
            raise UserError(f"There is no verdict {self.towards}.", "Use fake or real.")
        if self.segments < 2:
            raise UserError("One segment cannot be compared with others.", "Use at least 2 segments.")
        if self.batch is not None and self.batch < 1:
            raise UserError("A batch holds at least one picture.", "Use a batch of 1 or more.")
        if not 0 <= self.seed <= MOST_SEED:
            raise UserError(f"There is no seed {self.seed}.", f"Use a whole number from 0 to {MOST_SEED}.")


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
        attack: What the attack asked of the detector.
        explanation: What the method asked of it.
        checks: What was asked besides: the verdict, the reference's, and the fast number format's.
        precision: Number format of the forward passes.
        attack_seconds: Time of the attack.
        seconds: Time of everything else.
        settings: The settings.
        detector: Name of the detector.
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
    def method(self) -> Method:
        """Return the method."""
        return methods.method(self.settings.method)

    @property
    def title(self) -> str:
        """Return the method's name, and the reference where there is a choice of it."""
        return f"{self.method.title}, {self.reference} reference" if self.reference else self.method.title

    @property
    def explains_verdict(self) -> bool:
        """Return whether the verdict explained is the one that the detector gave."""
        return self.settings.towards == ("fake" if self.p_fake >= THRESHOLD else "real")

    @property
    def inferences(self) -> Inferences:
        """Return what attack and method asked of the detector; the checks are left out, as papers leave them out."""
        return self.attack + self.explanation

    @property
    def caution(self) -> str:
        """Say why to trust the map less than others, or nothing."""
        if self.reference_flipped is not False:
            return ""
        return (
            f"The adversarial image is still called fake ({self.p_reference:.2f}), so hiding a part with it changes "
            "less than it should; trust this map less."
        )

    @property
    def summary(self) -> str:
        """Say in one paragraph what was done and found."""
        towards = self.settings.towards
        parts = [f"{self.title}: p_fake is {self.p_fake:.2f} (0 = real, 1 = fake)."]
        if self.attack_words:
            parts.append(self.attack_words)
        if self.caution:
            parts.append(self.caution)
        if self.degenerate:
            parts.append(self.reason)
            return " ".join(parts)
        asked = self.explanation
        parts.append(f"The detector was asked about {asked.images} pictures in {asked.calls} batches.")
        best = rank(self.segment_scores)[:NAMED].tolist()
        if self.signed:
            best = [segment for segment in best if self.segment_scores[segment] > 0]
        listed = ", ".join(str(segment) for segment in best)
        parts.append(
            f"The segments that speak most for {towards}: {listed}, the strongest first."
            if best
            else f"No segment speaks for {towards}; the map shows what speaks against it."
        )
        parts.append("A map shows what changes this detector's answer, which need not be what is fake.")
        return " ".join(parts)

    def record(self) -> dict[str, object]:
        """Return what a program reads, as plain values for JSON."""
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
            | {
                "attack": asdict(self.attack),
                "explanation": asdict(self.explanation),
                "checks": asdict(self.checks),
            },
            "precision": asdict(self.precision) if self.precision else None,
            "segment_scores": self.segment_scores.tolist(),
            "seed": self.settings.seed,
            "settings": asdict(self.settings),
            "attack_seconds": self.attack_seconds,
            "seconds": self.seconds,
            "summary": self.summary,
        }
