"""Whether a detector judges the forgery or only the file: like compared with like, and photographs saved again.

Packs of faces differ in sharpness, size and JPEG quality, and a detector that learned this in place of the forgery
would do well on paper. So fakes are compared with photographs that went through the same, and photographs must
not turn into fakes when they are saved, blurred or resized.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from sklearn.metrics import roc_auc_score
from torch import Tensor

from backend.detectors.card import Detector
from backend.evaluate import corruptions
from backend.saving import like_photographs
from backend.training import measure
from backend.training.labelled import REAL, Examples

LIKES = {  # fakes by others, and the sources of photographs that they are compared with
    "stylegan_140k": ("ffhq",),
    "gan_celebahq_ffhq": ("celeba", "ffhq"),
    "ciplab_photoshop": ("ciplab_real",),
}
CHANGES = ("jpeg 75", "blur 1", "resize 0.5")
MOST_MORE = 0.05  # share of photographs that a change may add to the false alarms of a shipped detector
UNCHANGED = "none"
NORMAL = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True)
class Separation:
    """How well fakes are told from photographs.

    Args:
        auc: Area under the ROC curve.
        error: Its standard error (Hanley and McNeil 1982, equation 1).
    """

    auc: float
    error: float

    @property
    def low(self) -> float:
        """Return the lower end of the 95 % interval."""
        return self.auc - NORMAL * self.error


def separation(auc: float, fakes: int, photographs: int) -> Separation:
    """Return an AUC with its standard error, from how many pictures it was measured on."""
    both_fake, both_real = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (fakes - 1) * (both_fake - auc**2) + (photographs - 1) * (both_real - auc**2)
    return Separation(auc, math.sqrt(max(0.0, auc * (1 - auc) + spread) / (fakes * photographs)))


def like_for_like(detector: Detector, fakes: Tensor, photographs: Tensor) -> Separation:
    """Measure how well a detector tells fakes from photographs, both uint8 (N, 3, S, S) and with the same ending."""
    scores = [measure.log_odds(detector, pictures) for pictures in (fakes, photographs)]
    labels = np.repeat([1, 0], [len(fakes), len(photographs)])
    return separation(float(roc_auc_score(labels, np.concatenate(scores))), len(fakes), len(photographs))


def same_source(detector: Detector, examples: Examples) -> dict[str, dict[str, float]]:
    """Measure how well fakes by others are told from photographs of the source that theirs were made from.

    All end alike, in one JPEG.

    Args:
        detector: Its threshold does not matter.
        examples: Held-out pictures with their sources; kinds that are not there are left out.

    Returns:
        By kind of fake: `auc`, the ends `low` and `high` of its 95 % interval, and how many `photographs` there were.
    """
    assert examples.sources is not None
    real = np.array([kind == REAL or kind.endswith(f"_{REAL}") for kind in examples.kinds])
    found = {}
    for kind, sources in LIKES.items():
        likes = torch.from_numpy(np.flatnonzero(real & np.isin(examples.sources, sources)))
        fakes = examples.of(kind)
        if len(fakes) and len(likes):
            told = like_for_like(detector, like_photographs(fakes), like_photographs(examples.pictures[likes]))
            ends = {"low": told.low, "high": min(1.0, 2 * told.auc - told.low)}
            rounded = {name: round(value, 4) for name, value in ({"auc": told.auc} | ends).items()}
            found[kind] = rounded | {"photographs": len(likes)}
    return found


def changed(photographs: Tensor, change: str) -> Tensor:
    """Return photographs, uint8 (N, 3, S, S), after a change in the words of `corruptions.parse`."""
    kind, strength = corruptions.parse(change)
    made = [corruptions.corrupt(one.permute(1, 2, 0).numpy(), kind, strength, seed=0, name="") for one in photographs]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def false_alarms(detector: Detector, photographs: Tensor, changes: Sequence[str] = CHANGES) -> dict[str, float]:
    """Return the share of photographs, uint8 (N, 3, S, S), called fake as they are and after each change.

    Args:
        detector: Calibrated; 0.5 is its threshold.
        photographs: Real pictures.
        changes: In the words of `corruptions.parse`.
    """
    return {
        change: round(float((measure.log_odds(detector, changed(photographs, change)) > 0).mean()), 4)
        for change in (UNCHANGED, *changes)
    }


def steady_threshold(threshold: float, scores: np.ndarray, after: Sequence[np.ndarray], more: float) -> float:
    """Return the lowest threshold, at least the given one, at which no change adds more false alarms than `more`.

    Args:
        threshold: Log-odds from which a picture is called fake.
        scores: Log-odds of photographs as they are (N,).
        after: Log-odds of the same photographs after each change.
        more: Share of the photographs.
    """
    candidates = np.concatenate([[threshold], *(one[one > threshold] for one in after)])
    for candidate in np.sort(candidates):
        before = (scores > candidate).mean()
        if all((one > candidate).mean() <= before + more for one in after):
            return float(candidate)
    return threshold


def saved_like(picture: np.ndarray, original: bytes) -> np.ndarray:
    """Save a picture, uint8 (S, S, 3), with the tables and the subsampling of a JPEG file, and read it again."""
    with Image.open(io.BytesIO(original)) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        tables, subsampling = image.quantization, JpegImagePlugin.get_sampling(image)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", qtables=tables, subsampling=subsampling)
    with Image.open(io.BytesIO(buffer.getvalue())) as saved:
        return np.array(saved.convert("RGB"))
