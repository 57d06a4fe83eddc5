"""Calibration of trained detectors (threshold, temperature), their error rates, and shortcut checks.

A shortcut check asks whether a detector judges the forgery or only the file. Packs of faces differ in sharpness, size
and JPEG quality, and a detector that learned this in place of the forgery would do well on paper. So fakes are
compared with photographs that went through the same, and photographs must not turn into fakes when they are saved,
blurred or resized.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backend.detectors.base import Card, Detector
from backend.evaluate.protocols import detectors
from backend.images import like_photographs
from backend.training import data
from backend.training.data import REAL, LabelledPictures
from backend.training.degradation import DefenceName

FALSE_ALARMS = 0.04  # share of calibration photographs that the threshold lets pass as fake

MORE_ALARMS = 0.025  # share that saving, blurring or resizing them may add; honesty.MOST_MORE with a margin

BALANCED_THRESHOLDS = {
    "nf"
}  # thresholds for the best balanced accuracy (Marra et al.), instead of a share of false alarms


@torch.no_grad()
def measure_log_odds(detector: Detector, pictures: Tensor, batch: int = 64) -> np.ndarray:
    """Return log-odds of fake (N,) of uint8 pictures."""
    device = detector.mean.device
    parts = [detector.logit_fake(part.to(device).float() / 255) for part in pictures.split(batch)]
    return torch.cat(parts).float().cpu().numpy() if parts else np.empty(0)


def choose_threshold(photographs: np.ndarray, *, false_alarms: float) -> float:
    """Choose the log-odds from which a picture is called fake, as this share of these photographs (N,) will be."""
    return float(np.quantile(photographs, 1 - false_alarms))


def choose_temperature(shifted: np.ndarray, fake: np.ndarray) -> float:
    """Choose what divides log-odds, shifted by their threshold: the log loss is least, both classes weighing alike."""
    signs = np.where(fake, 1.0, -1.0)
    weights = np.where(fake, 0.5 / max(1, fake.sum()), 0.5 / max(1, (~fake).sum()))
    candidates = np.geomspace(0.05, 20, 120) * float(np.abs(shifted).mean())  # scores may be correlations or logits
    losses = [float((weights * np.logaddexp(0, -signs * shifted / t)).sum()) for t in candidates]
    return float(candidates[int(np.argmin(losses))])


def choose_balanced_threshold(scores: np.ndarray, fake: np.ndarray) -> float:
    """Choose the log-odds from which a picture is called fake: the mean of both accuracies is largest there.

    Args:
        scores: Raw log-odds (N,).
        fake: Which are fake (N,).
    """
    order = np.argsort(scores)
    ordered, is_fake = scores[order], fake[order]
    # Above a threshold between places i and i + 1 everything is called fake.
    real_below = np.cumsum(~is_fake) / max(1, (~fake).sum())
    fake_above = 1 - np.cumsum(is_fake) / max(1, fake.sum())
    best = int(np.argmax((real_below + fake_above)[:-1]))
    return float((ordered[best] + ordered[best + 1]) / 2)


def measure_error_rates(
    detector: Detector, examples: LabelledPictures, against: Mapping[str, str]
) -> list[dict[str, float | str]]:
    """Measure false alarms and, per kind of fake, the miss rate and the AUC, all ending alike.

    Args:
        detector: Calibrated; 0.5 is its threshold.
        examples: Held-out pictures.
        against: Kind of fake to the kind of real pictures it is compared with; `real` where it is not named.
    """
    scores = measure_log_odds(detector, like_photographs(examples.pictures))
    rows: list[dict[str, float | str]] = []
    for kind in dict.fromkeys(examples.kinds.tolist()):
        own = scores[examples.kinds == kind]
        if kind == REAL or kind.endswith("_real"):
            rows.append({"kind": kind, "rate": round(float((own > 0).mean()), 4), "count": len(own)})
            continue
        other = scores[examples.kinds == against.get(kind, REAL)]
        auc = roc_auc_score([1] * len(own) + [0] * len(other), np.concatenate([own, other]))
        rows.append(
            {"kind": kind, "rate": round(float((own <= 0).mean()), 4), "count": len(own), "auc": round(float(auc), 4)}
        )
    return rows


SAME_SOURCES = {  # fakes by others, and the sources of photographs that they are compared with
    "stylegan_140k": ("ffhq",),
    "gan_celebahq_ffhq": ("celeba", "ffhq"),
    "ciplab_photoshop": ("ciplab_real",),
}

SHORTCUT_CHANGES = ("jpeg 75", "blur 1", "resize 0.5")

MOST_ADDED_ALARMS = 0.05  # share of photographs that a change may add to the false alarms of a shipped detector

UNCHANGED = "none"

NORMAL_QUANTILE = 1.96  # standard errors of a 95 % interval


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
        return self.auc - NORMAL_QUANTILE * self.error


def separation_of(auc: float, fakes: int, photographs: int) -> Separation:
    """Return an AUC with its standard error, from how many pictures it was measured on."""
    both_fake, both_real = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (fakes - 1) * (both_fake - auc**2) + (photographs - 1) * (both_real - auc**2)
    return Separation(auc, math.sqrt(max(0.0, auc * (1 - auc) + spread) / (fakes * photographs)))


def compare_like_for_like(detector: Detector, fakes: Tensor, photographs: Tensor) -> Separation:
    """Measure how well a detector tells fakes from photographs, both uint8 (N, 3, S, S) and with the same ending."""
    scores = [measure_log_odds(detector, pictures) for pictures in (fakes, photographs)]
    labels = np.repeat([1, 0], [len(fakes), len(photographs)])
    return separation_of(float(roc_auc_score(labels, np.concatenate(scores))), len(fakes), len(photographs))


def compare_same_source(detector: Detector, examples: LabelledPictures) -> dict[str, dict[str, float]]:
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
    for kind, sources in SAME_SOURCES.items():
        likes = torch.from_numpy(np.flatnonzero(real & np.isin(examples.sources, sources)))
        fakes = examples.of(kind)
        if len(fakes) and len(likes):
            told = compare_like_for_like(detector, like_photographs(fakes), like_photographs(examples.pictures[likes]))
            ends = {"low": told.low, "high": min(1.0, 2 * told.auc - told.low)}
            rounded = {name: round(value, 4) for name, value in ({"auc": told.auc} | ends).items()}
            found[kind] = rounded | {"photographs": len(likes)}
    return found


def change_photographs(photographs: Tensor, change: str) -> Tensor:
    """Return photographs, uint8 (N, 3, S, S), after a change in the words of `corruptions.parse`."""
    kind, strength = detectors.parse_corruption(change)
    made = [
        detectors.corrupt_picture(one.permute(1, 2, 0).numpy(), kind, strength, seed=0, name="") for one in photographs
    ]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def measure_false_alarms(
    detector: Detector, photographs: Tensor, changes: Sequence[str] = SHORTCUT_CHANGES
) -> dict[str, float]:
    """Return the share of photographs, uint8 (N, 3, S, S), called fake as they are and after each change.

    Args:
        detector: Calibrated; 0.5 is its threshold.
        photographs: Real pictures.
        changes: In the words of `corruptions.parse`.
    """
    return {
        change: round(float((measure_log_odds(detector, change_photographs(photographs, change)) > 0).mean()), 4)
        for change in (UNCHANGED, *changes)
    }


def choose_steady_threshold(threshold: float, scores: np.ndarray, after: Sequence[np.ndarray], more: float) -> float:
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


def save_like(picture: np.ndarray, original: bytes) -> np.ndarray:
    """Save a picture, uint8 (S, S, 3), with the tables and the subsampling of a JPEG file, and read it again."""
    with Image.open(io.BytesIO(original)) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        tables, subsampling = image.quantization, JpegImagePlugin.get_sampling(image)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", qtables=tables, subsampling=subsampling)
    with Image.open(io.BytesIO(buffer.getvalue())) as saved:
        return np.array(saved.convert("RGB"))


def calibrate_detector(
    network: nn.Module, card: Card, examples: data.LabelledPictures, architecture: str, defence: DefenceName
) -> dict[str, float]:
    """Return threshold and temperature; that of a defended detector holds for photographs saved again, too."""
    untuned, photographs = Detector(network, card).eval(), examples.of(data.REAL)
    fake = examples.kinds != data.REAL
    saved = measure_log_odds(untuned, like_photographs(examples.pictures))  # where fakes count, both classes end alike
    as_they_are = saved[~fake] if defence == "none" else measure_log_odds(untuned, photographs)
    if architecture in BALANCED_THRESHOLDS:
        threshold = choose_balanced_threshold(saved, fake)
    else:
        threshold = choose_threshold(as_they_are, false_alarms=FALSE_ALARMS)
    if defence != "none":
        after = [measure_log_odds(untuned, change_photographs(photographs, change)) for change in SHORTCUT_CHANGES]
        threshold = choose_steady_threshold(threshold, as_they_are, after, MORE_ALARMS)
    temperature = choose_temperature(saved - threshold, fake)
    return {"threshold": float(f"{threshold:.5g}"), "temperature": float(f"{temperature:.5g}")}
