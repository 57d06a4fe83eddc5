"""Ask detectors about faces: crops, verdicts and their words, the re-test, and a suggested detector."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backend import images, runtime
from backend.alignment import AlignedFace, CroppedPhoto, DetectorView, LocatedFace
from backend.detectors import base, combination, inference, registry
from backend.detectors.base import Card, Detector, Verdict, verdict
from backend.detectors.combination import CombinedAnswer
from backend.suitability import Suitability, check_suitability

RetestScores = dict[str, tuple[Tensor, Tensor]]
VERDICT_WORDS: Mapping[Verdict, str] = {
    "signs": "Signs of forgery",
    "unsure": "Unsure",
    "no_known_signs": "No signs that it knows",
}
EMBEDDED_TEMPLATE = "embedded"
FACES_AT_ONCE = 16  # faces of a crowd that are judged together; other requests get their turn in between


@dataclass(frozen=True)
class JudgedFace:
    """One face of a photo with its verdicts.

    Args:
        number: From 1, the largest face first.
        aligned: The crop that the embedded detectors saw and its place in the photo. Detectors from the Hub see crops
            of the position and size on their cards.
        problem: Why the verdicts should not be trusted, or None.
        p_fake: Probability of fake in [0, 1] by detector; 0.5 is the threshold.
        combined: What the detectors say together; None where no combination fits the installed weights.
        suitability: Whether the picture suits the detectors; None where this was not checked.
    """

    number: int
    aligned: AlignedFace
    problem: str | None
    p_fake: dict[str, float]
    combined: CombinedAnswer | None = None
    suitability: Suitability | None = None

    def verdicts(self) -> dict[str, Verdict]:
        return {name: verdict(score) for name, score in self.p_fake.items()}

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "box": [round(float(value), 1) for value in self.aligned.face.box],
            "problem": self.problem,
            "suitability": None if self.suitability is None else self.suitability.record(),
            "combined": None if self.combined is None else self.combined.record(),
            "verdicts": {name: {"p_fake": score, "verdict": verdict(score)} for name, score in self.p_fake.items()},
        }


def embedded_crop(located: LocatedFace) -> CroppedPhoto:
    """Return a photo with the crop that the embedded detectors see."""
    return located.cropped(EMBEDDED_TEMPLATE, registry.EMBEDDED_SIZE)


def judge_faces(located: Sequence[LocatedFace], detectors: list[str] | None = None) -> list[JudgedFace]:
    """Ask detectors (all loadable ones by default) about the faces of a photo, the largest first.

    The members of the combined answer are asked in any case.
    """
    judged = []
    combined = combination.read_combination()
    listed = list(detectors if detectors is not None else registry.loadable())
    asked = list(dict.fromkeys([*listed, *(() if combined is None else combined.names)]))
    for start in range(0, len(located), FACES_AT_ONCE):
        batch = located[start : start + FACES_AT_ONCE]
        sources = [embedded_crop(face) for face in batch]
        crops = torch.cat([images.to_tensor(source.aligned.crop) for source in sources])
        scores = predict_p_fake(crops, asked, sources)
        for index, (face, source) in enumerate(zip(batch, sources, strict=True)):
            p_fake = {name: values[index] for name, values in scores.items()}
            shown = {name: p_fake[name] for name in listed}
            answer = None if combined is None else combination.combine(p_fake, combined)
            suitable = check_suitability(face)
            judged.append(JudgedFace(face.number, source.aligned, face.facts.problem, shown, answer, suitable))
    return judged


@torch.no_grad()
def predict_p_fake(
    crops: torch.Tensor,
    detectors: list[str] | None = None,
    sources: CroppedPhoto | Sequence[CroppedPhoto] | None = None,
) -> dict[str, list[float]]:
    """Return the probability of fake of crops, by detector.

    Args:
        crops: (N, 3, H, W) in [0, 1].
        detectors: Names; by default all that can be loaded.
        sources: Photos of the crops: one for all, or one for each. A detector that needs another crop then sees its
            own, cut from the photo, with the changes of ours; without photos, every detector sees ours.
    """
    logit = _ask_once(crops.to(runtime.device()), detectors, sources)
    return {name: [round(value, 6) for value in answer.sigmoid().tolist()] for name, answer in logit.items()}


def _ask_once(
    crops: Tensor, detectors: Iterable[str] | None, sources: CroppedPhoto | Sequence[CroppedPhoto] | None
) -> dict[str, Tensor]:
    """Return the log-odds of fake (N,) of detectors that may see different views of the same crops."""
    questions, views = {}, {}
    for name in detectors if detectors is not None else registry.loadable():
        detector = registry.load(name)
        card = detector.card
        view = (card.template, card.input_size)
        if view not in views:
            views[view] = cut_for_detector(card, crops, sources)
        questions[name] = detector, views[view]
    return inference.ask_once(questions)


def cut_for_detector(
    card: Card, crops: torch.Tensor, sources: CroppedPhoto | Sequence[CroppedPhoto] | None
) -> torch.Tensor:
    """Return what a detector sees of crops (N, 3, H, W) in [0, 1]; see `predict_p_fake`."""
    if sources is None:
        return crops
    if isinstance(sources, CroppedPhoto):
        view = sources.view(card.template, card.input_size)
        return crops if view is None else view.to(crops.device).of(crops)
    return torch.cat([cut_for_detector(card, crop[None], source) for crop, source in zip(crops, sources, strict=True)])


def group_by_crop(detectors: Sequence[str] | None = None) -> dict[tuple[str, int], list[str]]:
    """Return detectors (by default all that can be loaded), grouped by the position and size of their crop."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in detectors if detectors is not None else registry.loadable():
        card = registry.card(name)
        groups.setdefault((card.template, card.input_size), []).append(name)
    return groups


def format_p_fake(score: float) -> str:
    """Return a probability of fake with two digits, or more where two would suggest another verdict."""
    digits = next(count for count in range(2, 17) if verdict(round(score, count)) == verdict(score))
    return f"{score:.{digits}f}"


def describe_p_fake(score: float) -> str:
    """Return the verdict in words and the probability of fake."""
    return f"{VERDICT_WORDS[verdict(score)]}: {format_p_fake(score)}"


def describe_call(score: float, what: str = "the face") -> str:
    """Say what a detector sees in `what` at this probability of fake, as a predicate."""
    return {
        "signs": f"sees signs of forgery in {what}",
        "unsure": f"is unsure about {what}",
        "no_known_signs": f"sees no signs of forgery that it knows in {what}",
    }[verdict(score)]


class OwnCropDetector(Detector):
    """A detector that sees its own view of a photo when asked about the generator's crop; it shares the network."""

    def __init__(self, detector: Detector, view: DetectorView) -> None:
        super().__init__(
            detector.network, detector.card, temperature=detector.temperature, threshold=detector.threshold
        )
        self.to(detector.mean.device)
        self.view = view.to(detector.mean.device)

    def logit_fake(self, images: Tensor) -> Tensor:
        """Return calibrated, differentiable log-odds of fake (N,) for changed crops (N, 3, C, C) in [0, 1]."""
        return super().logit_fake(self.view.of(images))


def suggest_detector(p_fake: Mapping[str, float]) -> str | None:
    """Return the first detector that calls the face fake, else the one nearest to it, else the most reliable one.

    Args:
        p_fake: Probability of fake in [0, 1] by detector.
    """
    fake = [name for name, score in p_fake.items() if verdict(score) == "signs"]
    leaning = sorted(
        (name for name, score in p_fake.items() if score >= base.THRESHOLD), key=lambda name: -p_fake[name]
    )
    reliable = sorted(p_fake, key=lambda name: mean_error(registry.card(name)))
    return next(iter(fake + leaning + reliable), None)


def mean_error(card: Card) -> float:
    """Return the mean of the false-alarm rate and the mean miss rate, in [0, 1]; 1 where they were not measured."""
    alarm, misses = card.false_alarm(), card.misses()
    if alarm is None or not misses:
        return 1.0
    return (alarm.rate + sum(miss.rate for miss in misses) / len(misses)) / 2


def retest(
    original: Tensor,
    counterfactual: Tensor,
    attacked: Collection[str],
    detectors: Iterable[str] | None = None,
    sources: CroppedPhoto | Sequence[CroppedPhoto] | None = None,
) -> RetestScores:
    """Return p_fake before and after by every other detector.

    Args:
        original: Faces (N, 3, H, W) in [0, 1].
        counterfactual: The same faces as they are saved.
        attacked: Names of the detectors that were searched against; they are left out.
        detectors: Names; by default all that can be loaded.
        sources: As in `predict_p_fake`.

    Returns:
        By name, p_fake (N,) of `original` and of `counterfactual`.
    """
    both = torch.cat([original, counterfactual]).to(runtime.device())
    twice = [*sources, *sources] if isinstance(sources, Sequence) else sources
    chosen = [name for name in (detectors if detectors is not None else registry.loadable()) if name not in attacked]
    scores = {name: logit.sigmoid().cpu() for name, logit in _ask_once(both, chosen, twice).items()}
    return {name: (p_fake[: len(original)], p_fake[len(original) :]) for name, p_fake in scores.items()}


def retest_in_words(scores: Mapping[str, tuple[float, float]]) -> str:
    """Say in one sentence how many of the other detectors changed their verdict too, for one face."""
    detected = [verdict(after) for before, after in scores.values() if verdict(before) == "signs"]
    if not scores:
        return "There is no other detector to ask."
    if not detected:
        return "No other detector saw signs of forgery to begin with."
    none, unsure = detected.count("no_known_signs"), detected.count("unsure")
    others = "1 other detector" if len(detected) == 1 else f"{len(detected)} other detectors"
    text = f"Of {others} that saw signs of forgery, {none} no longer {'does' if none == 1 else 'do'}"
    return f"{text} and {unsure} {'is' if unsure == 1 else 'are'} unsure now." if unsure else f"{text}."
