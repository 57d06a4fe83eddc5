"""Calibration of trained detectors (threshold, temperature), their error rates, and shortcut checks.

A shortcut check asks whether a detector judges the forgery or only the file. Packs of faces differ in sharpness, size
and JPEG quality, and a detector that learned this in place of the forgery would do well on paper. So fakes are
compared with photographs that were processed alike, and photographs must not be called fake once they are saved,
blurred or resized.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from backend.detectors.base import Card, Detector
from backend.evaluate.protocols import detectors
from backend.images import like_photographs
from backend.training.data import REAL, LabelledPictures
from backend.training.degradation import DefenceName
from backend.training.forgeries import LEARN_FORGERIES

FALSE_ALARMS = 0.04  # share of calibration photographs that are called fake
ADDED_ALARMS = 0.025  # share that saving, blurring or resizing them may add; MAX_ADDED_ALARMS with a margin
# Thresholds for the best balanced accuracy (Marra et al.), instead of a share of false alarms.
BALANCED_THRESHOLDS = {"nf"}
SAME_SOURCES = {  # fakes by others, and the sources of photographs that they are compared with
    "stylegan_140k": ("ffhq",),
    "gan_celebahq_ffhq": ("celeba", "ffhq"),
    "ciplab_photoshop": ("ciplab_real",),
}
SHORTCUT_CHANGES = ("jpeg 75", "blur 1", "resize 0.5")
VIDEO_CHANGE = "h264 28"  # which a detector of blends can take for one
MAX_ADDED_ALARMS = 0.05  # share of photographs by which a change may raise the false alarms of a shipped detector
UNCHANGED = "none"
NORMAL_QUANTILE = 1.96  # standard errors of a 95 % interval


@torch.no_grad()
def measure_log_odds(detector: Detector, pictures: Tensor, batch: int = 64) -> np.ndarray:
    """Return log-odds of fake (N,) of uint8 pictures."""
    device = detector.mean.device
    parts = [detector.logit_fake(part.to(device).float() / 255) for part in pictures.split(batch)]
    return torch.cat(parts).float().cpu().numpy() if parts else np.empty(0)


def changes_for(architecture: str) -> tuple[str, ...]:
    """Return the changes of photographs under which a detector's false alarms must stay few."""
    return (*SHORTCUT_CHANGES, VIDEO_CHANGE) if architecture in LEARN_FORGERIES else SHORTCUT_CHANGES


def choose_threshold(photographs: np.ndarray, *, false_alarms: float) -> float:
    """Choose the threshold at which this share of photographs, given by their log-odds (N,), is called fake."""
    return float(np.quantile(photographs, 1 - false_alarms))


def choose_temperature(shifted: np.ndarray, fake: np.ndarray) -> float:
    """Choose the divisor of log-odds, shifted by their threshold, with the least class-balanced log loss."""
    signs = np.where(fake, 1.0, -1.0)
    weights = np.where(fake, 0.5 / max(1, fake.sum()), 0.5 / max(1, (~fake).sum()))
    candidates = np.geomspace(0.05, 20, 120) * float(np.abs(shifted).mean())  # scores may be correlations or logits
    losses = [float((weights * np.logaddexp(0, -signs * shifted / t)).sum()) for t in candidates]
    return float(candidates[int(np.argmin(losses))])


def choose_balanced_threshold(scores: np.ndarray, fake: np.ndarray) -> float:
    """Choose the threshold on log-odds (N,) at which the mean accuracy over photographs and fakes is largest."""
    order = np.argsort(scores)
    ordered, is_fake = scores[order], fake[order]
    # Above a threshold between places i and i + 1 everything is called fake.
    real_below = np.cumsum(~is_fake) / max(1, (~fake).sum())
    fake_above = 1 - np.cumsum(is_fake) / max(1, fake.sum())
    best = int(np.argmax((real_below + fake_above)[:-1]))
    return float((ordered[best] + ordered[best + 1]) / 2)


def calibrate_detector(
    network: nn.Module, card: Card, examples: LabelledPictures, architecture: str, defence: DefenceName
) -> dict[str, float]:
    """Return threshold and temperature; a defended detector's threshold also holds for changed photographs."""
    untuned, photographs = Detector(network, card).eval(), examples.of_kind(REAL)
    fake = examples.kinds != REAL
    saved = measure_log_odds(untuned, like_photographs(examples.pictures))  # alike, because fakes are among them
    as_they_are = saved[~fake] if defence == "none" else measure_log_odds(untuned, photographs)
    if architecture in BALANCED_THRESHOLDS:
        threshold = choose_balanced_threshold(saved, fake)
    else:
        threshold = choose_threshold(as_they_are, false_alarms=FALSE_ALARMS)
    if defence != "none":
        changes = changes_for(architecture)
        after = [measure_log_odds(untuned, change_photographs(photographs, change)) for change in changes]
        threshold = choose_steady_threshold(threshold, as_they_are, after, ADDED_ALARMS)
    temperature = choose_temperature(saved - threshold, fake)
    return {"threshold": float(f"{threshold:.5g}"), "temperature": float(f"{temperature:.5g}")}


def measure_error_rates(
    detector: Detector, examples: LabelledPictures, against: Mapping[str, str]
) -> list[dict[str, float | str]]:
    """Measure false alarms and, per kind of fake, the miss rate and the AUC, on pictures saved in the same way.

    The detector is calibrated. `against` maps a kind of fake to the kind of real pictures that it is compared with;
    other kinds are compared with `real`.
    """
    scores = measure_log_odds(detector, like_photographs(examples.pictures))
    rows: list[dict[str, float | str]] = []
    for kind in dict.fromkeys(examples.kinds.tolist()):
        of_kind = scores[examples.kinds == kind]
        is_real = kind == REAL or kind.endswith("_real")
        wrong = of_kind > 0 if is_real else of_kind <= 0
        rows.append({"kind": kind, "rate": round(float(wrong.mean()), 4), "count": len(of_kind)})
        if not is_real:
            real = scores[examples.kinds == against.get(kind, REAL)]
            rows[-1]["auc"] = round(fake_auc(of_kind, real), 4)
    return rows


def fake_auc(fake: np.ndarray, real: np.ndarray) -> float:
    """Return the area under the ROC curve of the scores of fakes (N,) against those of photographs (M,)."""
    return float(roc_auc_score(np.repeat([1, 0], [len(fake), len(real)]), np.concatenate([fake, real])))


@dataclass(frozen=True)
class Separation:
    auc: float  # area under the ROC curve
    standard_error: float  # of the AUC (Hanley and McNeil 1982, equation 1)

    @property
    def low(self) -> float:
        """Return the lower end of the 95 % interval."""
        return self.auc - NORMAL_QUANTILE * self.standard_error

    @property
    def high(self) -> float:
        """Return the upper end of the 95 % interval, at most 1."""
        return min(1.0, self.auc + NORMAL_QUANTILE * self.standard_error)


def separation_of(auc: float, fakes: int, photographs: int) -> Separation:
    """Return an AUC with its standard error, from the numbers of fakes and photographs."""
    both_fake, both_real = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (fakes - 1) * (both_fake - auc**2) + (photographs - 1) * (both_real - auc**2)
    return Separation(auc, math.sqrt(max(0.0, auc * (1 - auc) + spread) / (fakes * photographs)))


def compare_like_for_like(detector: Detector, fakes: Tensor, photographs: Tensor) -> Separation:
    """Measure how well a detector tells fakes from photographs, both uint8 (N, 3, S, S) and saved in the same way."""
    fake, real = (measure_log_odds(detector, pictures) for pictures in (fakes, photographs))
    return separation_of(fake_auc(fake, real), len(fakes), len(photographs))


def compare_same_source(detector: Detector, examples: LabelledPictures) -> dict[str, dict[str, float]]:
    """Measure how well fakes by others are told from photographs of the source that the fakes were made from.

    All are saved in the same way, as one JPEG. Kinds without fakes or photographs are left out.

    Returns:
        By kind of fake: `auc`, the ends `low` and `high` of its 95 % interval, and how many `photographs` there were.
    """
    assert examples.sources is not None
    real = np.array([kind == REAL or kind.endswith(f"_{REAL}") for kind in examples.kinds])
    separations = {}
    for kind, sources in SAME_SOURCES.items():
        indices = np.flatnonzero(real & np.isin(examples.sources, sources))
        fakes, photographs = examples.of_kind(kind), examples.pictures[torch.from_numpy(indices)]
        if len(fakes) and len(photographs):
            result = compare_like_for_like(detector, like_photographs(fakes), like_photographs(photographs))
            rounded = {name: round(getattr(result, name), 4) for name in ("auc", "low", "high")}
            separations[kind] = rounded | {"photographs": len(photographs)}
    return separations


def change_photographs(photographs: Tensor, change: str) -> Tensor:
    """Return photographs, uint8 (N, 3, S, S), after a change in the words of `detectors.parse_corruption`."""
    kind, strength = detectors.parse_corruption(change)
    arrays = photographs.permute(0, 2, 3, 1).numpy()
    changed = [detectors.corrupt_picture(array, kind, strength, seed=0, name="") for array in arrays]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)


def measure_false_alarms(
    detector: Detector, photographs: Tensor, changes: Sequence[str] = SHORTCUT_CHANGES
) -> dict[str, float]:
    """Return the share of photographs, uint8 (N, 3, S, S), called fake as they are and after each change.

    The detector is calibrated; the changes are in the words of `detectors.parse_corruption`.
    """
    return {
        change: round(float((measure_log_odds(detector, change_photographs(photographs, change)) > 0).mean()), 4)
        for change in (UNCHANGED, *changes)
    }


def choose_steady_threshold(threshold: float, scores: np.ndarray, after: Sequence[np.ndarray], limit: float) -> float:
    """Return the lowest threshold, at least the given one, at which no change adds more false alarms than `limit`.

    `scores` are the log-odds (N,) of photographs as they are, `after` those of the same photographs after each change;
    `limit` is a share of the photographs.
    """
    candidates = np.concatenate([[threshold], *(changed[changed > threshold] for changed in after)])
    for candidate in np.sort(candidates):
        before = (scores > candidate).mean()
        if all((changed > candidate).mean() <= before + limit for changed in after):
            return float(candidate)
    return threshold
