"""Remove the traces of one face of a photo: crop, TR-Net, back into the photo, and what all detectors say."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from backend import alignment, faces, images, made_with, verdicts
from backend.counterfactual import traces
from backend.detectors import registry
from backend.detectors.card import THRESHOLD, Verdict, verdict
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, device, frozen
from backend.trace_removal.network import TRNet
from backend.trace_removal.trnet import ENTRY, TRNetSettings, load, of_network
from backend.views import Source

__all__ = ["Removal", "load", "remove"]

SEEN = 0.97  # SSIM below which the change of a smooth face shows at the size of the page
SIMPLE = "This TR-Net adds to the picture; the published form draws it anew."
TOTAL = 4


@dataclass(frozen=True, eq=False)
class Removal:
    """What was done to one face, and what the detectors say; pictures are uint8 (H, W, 3).

    Args:
        photo: The photo.
        face_number: Which face was taken, from 1, the largest first.
        face_count: How many were found.
        problem: Why the result should not be trusted, one sentence, or None.
        aligned: The crop that was changed, and where it lies in the photo.
        original: The crop.
        removed: The crop after TR-Net.
        pasted: The photo with it.
        p_fake: By detector, the probability of fake in [0, 1] of crop and removal; none of them trained TR-Net.
        p_pasted: By detector, that of the face found and cut out anew in `pasted`; None where no face was found.
        difference: Signed difference, removed - original.
        metrics: `psnr` in dB (None where no pixel differs) and `ssim` of both crops.
        settings: Settings of the pass; they name the form of the network.
        weights: SHA-256 of the model files used, by registry name.
        versions: Versions of the packages that matter.
        seconds: Time taken.
    """

    photo: np.ndarray
    face_number: int
    face_count: int
    problem: str | None
    aligned: alignment.AlignedFace
    original: np.ndarray
    removed: np.ndarray
    pasted: np.ndarray
    p_fake: dict[str, tuple[float, float]]
    p_pasted: dict[str, float] | None
    difference: traces.Residual
    metrics: dict[str, float | None]
    settings: TRNetSettings
    weights: dict[str, str]
    versions: dict[str, str]
    seconds: float

    @property
    def turned(self) -> list[str]:
        """Return the detectors whose p_fake fell from the threshold or above to below it."""
        return [name for name, (before, after) in self.p_fake.items() if after < THRESHOLD <= before]

    @property
    def summary(self) -> str:
        """Tell what happened in one paragraph of plain words."""
        parts = []
        if self.face_count > 1:
            which = "the largest" if self.face_number == 1 else f"number {self.face_number}"
            parts.append(f"{self.face_count} faces were found; {which} was taken.")
        if self.problem:
            parts.append(self.problem)
        parts += [self._verdicts_in_words(), self._pasted_in_words(), self._change_in_words()]
        return " ".join(parts)

    def record(self) -> dict[str, Any]:
        """Return what a program reads and what a saved picture carries, as plain values for JSON."""
        return {
            "p_fake": {name: {"original": a, "removed": b} for name, (a, b) in self.p_fake.items()},
            "p_pasted": self.p_pasted,
            "turned": self.turned,
            "metrics": self.metrics,
            "gain": self.difference.gain,
            "face": {
                "number": self.face_number,
                "count": self.face_count,
                "box": [float(value) for value in self.aligned.face.box],
                "problem": self.problem,
                "resampled": self.aligned.resampled,
            },
            "settings": asdict(self.settings),
            "weights": self.weights,
            "versions": self.versions,
            "seconds": self.seconds,
            "summary": self.summary,
        }

    def _change_in_words(self) -> str:
        psnr, ssim = self.metrics["psnr"], self.metrics["ssim"]
        if psnr is None:
            return "TR-Net left the face as it was."
        said = (
            f"TR-Net changed the face by up to {self.difference.largest:.3g} of 255 levels: PSNR {psnr:.1f} dB, "
            f"SSIM {ssim:.3f} (1 = the same)."
        )
        if self.settings.strength != 1:
            said += f" The change is {self.settings.strength:g} times what TR-Net was trained to make."
        if ssim is not None and ssim < SEEN:
            said += " Look closely: a change of this size can be seen, so a turned verdict may be due to what you see."
        return f"{said} {SIMPLE}" if self.settings.residual else said

    def _verdicts_in_words(self) -> str:
        if not self.p_fake:
            return "There is no detector to ask."
        said = [(verdict(before), verdict(after)) for before, after in self.p_fake.values()]
        now = [after for before, after in said if before == "fake"]
        newly = sum(before != "fake" and after == "fake" for before, after in said)
        told = "No detector called the face fake to begin with."
        if now:
            told = _what_they_say_now(now)
        if newly:
            told += f" {newly} that did not call it fake before now {'does' if newly == 1 else 'do'}."
        return f"{told} TR-Net has seen none of the {len(self.p_fake)} detectors in training."

    def _pasted_in_words(self) -> str:
        if self.p_pasted is None:
            return "Put back into the photo, the face is not found again."
        said = [verdict(score) for score in self.p_pasted.values()]
        return (
            f"Put back into the photo, found and cut out anew, all {len(said)} detectors: {said.count('real')} real, "
            f"{said.count('uncertain')} uncertain and {said.count('fake')} fake."
        )


def _what_they_say_now(now: list[Verdict]) -> str:
    """Say what the detectors, at least one, that called a face fake say of it without traces."""
    still, real, uncertain = (now.count(word) for word in ("fake", "real", "uncertain"))
    if still == len(now):
        if still == 1:
            return "The 1 detector that called it fake still does: this verdict does not hang on what TR-Net removes."
        return f"All {still} detectors that called it fake still do: these verdicts do not hang on what TR-Net removes."
    which = "1 detector" if len(now) == 1 else f"{len(now)} detectors"
    return (
        f"Of {which} that called it fake, {still} still {'does' if still == 1 else 'do'}, {real} now "
        f"{'calls' if real == 1 else 'call'} it real and {uncertain} {'is' if uncertain == 1 else 'are'} uncertain."
    )


def remove(
    photo: np.ndarray, face_number: int | None = None, strength: float = 1.0, *, network: TRNet | None = None
) -> Job[Removal]:
    """Pass one face of a photo through TR-Net and ask all detectors before and after.

    Args:
        photo: uint8 (H, W, 3), RGB.
        face_number: Which face, from 1, the largest first; None takes the largest.
        strength: Factor on the network's change; it was trained for 1.
        network: The network; None takes the trained one.

    Raises:
        UserError: There is no face, no trained network, or the strength is out of range.
    """
    started = time.perf_counter()
    network = network or load()
    settings = of_network(network, strength)
    yield Step(0, TOTAL, "The face is looked for.")
    found = faces.find(photo)
    face = faces.choose(found, face_number)
    aligned = alignment.align(photo, face, verdicts.TEMPLATE, registry.EMBEDDED_SIZE)
    original = images.to_tensor(aligned.crop)
    yield Step(1, TOTAL, "The traces are removed.", original)
    with MODEL_LOCK, frozen(network):
        removed = images.to_array(network.remove(original.to(device()), strength))
    changed = images.to_tensor(removed)
    pasted = alignment.paste_back(photo, removed, aligned)
    yield Step(2, TOTAL, "The face is put back and looked for again.", changed)
    again = faces.find_again(pasted, face)
    crops, sources = [aligned.crop, removed], [Source(photo, aligned)] * 2
    if again is not None:
        sources.append(Source(pasted, alignment.align(pasted, again, verdicts.TEMPLATE, registry.EMBEDDED_SIZE)))
        crops.append(sources[-1].aligned.crop)
    yield Step(3, TOTAL, "All detectors are asked.", changed)
    scores = verdicts.p_fake(torch.cat([images.to_tensor(one) for one in crops]), sources=sources)
    yield Step(4, TOTAL, "All detectors have answered.", changed)
    return Removal(
        photo=photo,
        face_number=face_number or 1,
        face_count=len(found),
        problem=faces.problem(face, photo.shape),
        aligned=aligned,
        original=aligned.crop,
        removed=removed,
        pasted=pasted,
        p_fake={name: (values[0], values[1]) for name, values in scores.items()},
        p_pasted=None if again is None else {name: values[2] for name, values in scores.items()},
        difference=traces.residual(aligned.crop, removed),
        metrics=traces.likeness(aligned.crop, removed),
        settings=settings,
        weights=made_with.hashes([ENTRY, *scores]),
        versions=made_with.versions(),
        seconds=time.perf_counter() - started,
    )
