"""Deletion and insertion curves (Petsiuk et al. 2018, arXiv 1806.07421), and why they are misleading here."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from backend.detectors.base import THRESHOLD, Detector
from backend.detectors.inference import BatchedDetector
from backend.explain.segments import rank_scores, segment_scores
from backend.progress import Job, Step
from backend.settings import validated

PixelFill = Literal["mean", "black", "blur"]
FILL_WORDS: dict[PixelFill, str] = {"mean": "the face's mean colour", "black": "black", "blur": "the blurred face"}
BLUR = 0.045  # standard deviation of the blur in sides of the picture: RISE's 10 of 224 pixels
WHY_MISLEADING = (
    "These curves mislead for detectors of fakes. A face with grey, black or blurred parts is neither a real nor a "
    "fake face but one that the detector never saw in training; the fill and its edges are traces of their own, and "
    "the score may move, or stay, because of them. So a curve may say more of the fill than of the map."
)


@validated
@dataclass(frozen=True)
class CurveSettings:
    """Settings of the two curves.

    Args:
        fill: What a removed pixel shows: the face's mean colour, black, or the blurred face.
        steps: How many equal parts the picture is removed in.
        by_segment: Remove whole segments, the highest first; otherwise pixel by pixel.
        batch: Most pictures per forward pass; None takes what suits the device.
        seed: Recorded; nothing is drawn at random.
    """

    fill: PixelFill = "mean"
    steps: Annotated[int, Field(ge=1)] = 50
    by_segment: bool = False
    batch: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Curves:
    """The score of the predicted class while a map's highest pixels are removed, or inserted.

    Args:
        predicted: The class whose probability is followed: what the detector says of the face.
        fractions: Share of the pixels that were removed or inserted (P,), float32, from 0 to 1.
        deletion: Probabilities (P,) in [0, 1]; the first is that of the face.
        insertion: Probabilities (P,) in [0, 1]; the last is that of the face.
        deletion_auc: Area under the curve, in [0, 1]; a good map would have a low one.
        insertion_auc: Area under the curve, in [0, 1]; a good map would have a high one.
        image_count: How many pictures the detector judged, in `call_count` batches.
    """

    predicted: Literal["fake", "real"]
    fractions: Tensor
    deletion: Tensor
    insertion: Tensor
    deletion_auc: float
    insertion_auc: float
    image_count: int
    call_count: int
    settings: CurveSettings
    detector: str
    seconds: float

    @property
    def summary(self) -> str:
        return (
            f"Deletion: area {self.deletion_auc:.2f} (lower would be better). Insertion: area "
            f"{self.insertion_auc:.2f} (higher would be better). Removed pixels show {FILL_WORDS[self.settings.fill]}. "
            f"{WHY_MISLEADING}"
        )

    def record(self) -> dict[str, Any]:
        return {
            "deletion_auc": self.deletion_auc,
            "insertion_auc": self.insertion_auc,
            "fractions": self.fractions.tolist(),
            "deletion": self.deletion.tolist(),
            "insertion": self.insertion.tolist(),
            "fill": self.settings.fill,
            "images": self.image_count,
            "calls": self.call_count,
            "seconds": self.seconds,
            "summary": self.summary,
        }


def deletion_curves(
    face: Tensor,
    detector: Detector,
    saliency: Tensor,
    labels: Tensor | None = None,
    settings: CurveSettings | None = None,
) -> Job[Curves]:
    """Follow the score while the highest pixels of a map are removed, and while they are inserted.

    Args:
        face: (1, 3, H, W) in [0, 1].
        detector: Whose verdict the map explains.
        saliency: The map (H, W).
        labels: Segments (H, W) from 0, needed to go by segment.
        settings: Settings of the curves.

    Raises:
        ValueError: There is more than one face, sizes differ, or segments are missing.
    """
    settings = settings or CurveSettings()
    if len(face) != 1 or face.shape[-2:] != saliency.shape:
        raise ValueError(f"one face {tuple(face.shape)} with a map of its size {tuple(saliency.shape)} is needed")
    started = time.perf_counter()
    judge = BatchedDetector(detector, settings.batch)
    face = face.detach().to(judge.device)
    blank = fill_face(face, settings.fill)
    counts, removed = _removals(saliency, labels, settings)
    removed = removed.to(judge.device)
    logits: list[Tensor] = []
    total = 2 * len(removed)
    for inside, outside in ((blank, face), (face, blank)):  # deletion, insertion
        for masks in removed.split(judge.batch):
            logits.append(judge.logit_fake(torch.where(masks[:, None], inside, outside)))
            done = sum(map(len, logits))
            yield Step(done, total, f"Curves: {done} of {total} pictures.")
    logit = torch.cat(logits).cpu()
    predicted: Literal["fake", "real"] = "fake" if float(torch.sigmoid(logit[0])) >= THRESHOLD else "real"
    deletion, insertion = torch.sigmoid(logit if predicted == "fake" else -logit).chunk(2)
    fractions = counts / saliency.numel()
    return Curves(
        predicted=predicted,
        fractions=fractions,
        deletion=deletion,
        insertion=insertion,
        deletion_auc=float(torch.trapezoid(deletion, fractions)),
        insertion_auc=float(torch.trapezoid(insertion, fractions)),
        image_count=judge.images,
        call_count=judge.calls,
        settings=settings,
        detector=detector.card.name,
        seconds=time.perf_counter() - started,
    )


def fill_face(face: Tensor, fill: PixelFill) -> Tensor:
    """Return what stands in for removed pixels, (1, 3, H, W), for a face (1, 3, H, W) in [0, 1]."""
    if fill == "black":
        return torch.zeros_like(face)
    if fill == "mean":
        return face.mean((2, 3), keepdim=True).expand_as(face)
    from scipy import ndimage

    sigma = BLUR * max(face.shape[-2:])
    blurred = ndimage.gaussian_filter(face.cpu().double().numpy(), sigma, mode="mirror", truncate=3, axes=(2, 3))
    return torch.from_numpy(blurred).to(face)


def _removals(saliency: Tensor, labels: Tensor | None, settings: CurveSettings) -> tuple[Tensor, Tensor]:
    """Return how many pixels are removed at every point (P,), and which, bool (P, H, W)."""
    if settings.by_segment:
        if labels is None:
            raise ValueError("segments are needed to go by segment")
        labels = labels.cpu()
        places = rank_scores(segment_scores(saliency, labels)).argsort()[labels].flatten()
        order = places.argsort(stable=True)
        ends = torch.bincount(places).cumsum(0)
        points = torch.linspace(0, len(ends), min(settings.steps, len(ends)) + 1).round().long()
        counts = torch.cat([torch.zeros(1, dtype=torch.long), ends])[points]
    else:
        order = rank_scores(saliency.detach().cpu().flatten())
        counts = torch.linspace(0, saliency.numel(), settings.steps + 1, dtype=torch.float64).round().long()
    position = order.argsort().view(saliency.shape)
    return counts, position < counts[:, None, None]
