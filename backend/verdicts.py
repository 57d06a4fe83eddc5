"""What every detector says about the faces of a photo; the first thing the app and the command line show."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from backend import alignment, faces, images, runtime
from backend.detectors import registry
from backend.detectors.card import THRESHOLD, Card, ErrorRate, Verdict, verdict
from backend.views import Source

WORDS = {"real": "Probably real", "fake": "Probably fake", "uncertain": "Uncertain"}
TEMPLATE = "embedded"
AT_ONCE = 16  # faces of a crowd that are judged together, between which others have their turn


@dataclass(frozen=True)
class JudgedFace:
    """One face of a photo with its verdicts.

    Args:
        number: From 1, the largest face first.
        aligned: The crop that the embedded detectors saw, and where it lies in the photo. One from the Hub sees a
            crop of the position and the size that its card names.
        problem: Why the verdicts should not be trusted, or None.
        p_fake: Probability of fake in [0, 1] by detector; 0.5 is the threshold.
    """

    number: int
    aligned: alignment.AlignedFace
    problem: str | None
    p_fake: dict[str, float]

    def verdicts(self) -> dict[str, Verdict]:
        """Return real, fake or uncertain by detector."""
        return {name: verdict(score) for name, score in self.p_fake.items()}


def judge(photo: np.ndarray, detectors: list[str] | None = None, *, template: str = TEMPLATE) -> list[JudgedFace]:
    """Find every face of a photo, largest first, and ask the detectors (all loadable ones by default).

    Args:
        photo: uint8 (H, W, 3) RGB.
        detectors: Names of the detectors to ask.
        template: How faces are aligned.
    """
    found = faces.find(photo)
    if not found:
        return []
    aligned = [alignment.align(photo, face, template, registry.EMBEDDED_SIZE) for face in found]
    judged = []
    for start in range(0, len(aligned), AT_ONCE):
        part = aligned[start : start + AT_ONCE]
        crops = torch.cat([images.to_tensor(one.crop) for one in part])
        scores = p_fake(crops, detectors, [Source(photo, one) for one in part])
        for index, one in enumerate(part):
            own = {name: values[index] for name, values in scores.items()}
            judged.append(JudgedFace(start + index + 1, one, faces.problem(one.face, photo.shape), own))
    return judged


@torch.no_grad()
def p_fake(
    crops: torch.Tensor, detectors: list[str] | None = None, sources: Source | Sequence[Source] | None = None
) -> dict[str, list[float]]:
    """Return the probability of fake of crops, by detector.

    Args:
        crops: (N, 3, H, W) in [0, 1].
        detectors: Names of the detectors to ask, by default all that can be loaded.
        sources: Where the crops come from: one photo for all, or one for each. A detector that wants another crop is
            then shown its own, cut from the photo, with what changed in ours; without it, every detector sees ours.
    """
    scores = {}
    crops = crops.to(runtime.device())
    with runtime.MODEL_LOCK:
        for name in detectors if detectors is not None else registry.loadable():
            detector = registry.load(name)
            seen = seen_by(detector.card, crops, sources)
            scores[name] = [round(value, 6) for value in detector.p_fake(seen).tolist()]
    return scores


def seen_by(card: Card, crops: torch.Tensor, sources: Source | Sequence[Source] | None) -> torch.Tensor:
    """Return what a detector sees of crops (N, 3, H, W) in [0, 1]; see `p_fake`."""
    if sources is None:
        return crops
    if isinstance(sources, Source):
        view = sources.view(card.template, card.input_size)
        return crops if view is None else view.to(crops.device).of(crops)
    return torch.cat([seen_by(card, crop[None], source) for crop, source in zip(crops, sources, strict=True)])


def by_crop(detectors: Sequence[str] | None = None) -> dict[tuple[str, int], list[str]]:
    """Return detectors (all that can be loaded by default) by the crop that they want: its position and its size."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in detectors if detectors is not None else registry.loadable():
        card = registry.card(name)
        groups.setdefault((card.template, card.input_size), []).append(name)
    return groups


def in_digits(score: float) -> str:
    """Return a probability of fake with two digits, or with more where two would read as another verdict."""
    digits = next(count for count in range(2, 17) if verdict(round(score, count)) == verdict(score))
    return f"{score:.{digits}f}"


def in_words(score: float) -> str:
    """Put a probability of fake into words with its scale."""
    return f"{WORDS[verdict(score)]}: {in_digits(score)} (0 = real, 1 = fake)"


def call(score: float, what: str = "the face") -> str:
    """Say what a detector does with `what` at this probability of fake, with the words of every verdict."""
    word = verdict(score)
    if word == "uncertain":
        return f"is uncertain about {what}, on the side of {'real' if score < THRESHOLD else 'fake'}"
    return f"calls {what} {word}"


def how_often_wrong(card: Card) -> str:
    """Say in one sentence how often a detector is wrong, and on what data."""
    alarm = card.false_alarm()
    if alarm is None:
        return "How often this detector is wrong was not measured here."
    misses = "; ".join(_share(rate) for rate in card.misses() if not rate.kind.endswith("_real"))
    others = "".join(f", and {_share(rate)}" for rate in card.errors if rate.kind.endswith("_real"))
    return (
        f"Calls {alarm.rate:.0%} of {alarm.count} real photographs fake{others}. Misses {misses}. "
        "On photographs from yet other sources it may be wrong more often."
    )


def how_often_wrong_in_short(card: Card) -> str:
    """Say the same in few words: the share of false alarms, and the smallest and the largest share of misses."""
    alarm = card.false_alarm()
    if alarm is None:
        return how_often_wrong(card)
    alarms = [rate.rate for rate in card.errors if rate.kind == "real" or rate.kind.endswith("_real")]
    least, most = f"{min(alarms):.0%}", f"{max(alarms):.0%}"
    said = f"Calls {least} of real photographs fake"
    if least != most:
        said = f"Calls {least} to {most} of real photographs fake, by source"
    misses = [rate.rate for rate in card.misses() if not rate.kind.endswith("_real")]
    return f"{said}; misses {min(misses):.0%} to {max(misses):.0%} of fakes, by kind." if misses else f"{said}."


def _share(rate: ErrorRate) -> str:
    return f"{rate.rate:.0%} of {rate.count} {KINDS.get(rate.kind, rate.kind)}"


KINDS = {
    "real": "real photographs",
    "ciplab_real": "real photographs of another source",
    "swap": "face swaps",
    "reconstruction": "generator renderings",
    "edit": "latent edits",
    "sample": "generated faces",
    "stylegan_140k": "StyleGAN faces",
    "gan_celebahq_ffhq": "other GAN faces",
    "ciplab_photoshop": "hand-edited photographs",
}
