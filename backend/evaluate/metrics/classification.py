"""How well a detector tells fake from real: accuracy, ranking, and false alarms.

Labels are 1 for fake and 0 for real; scores are p_fake in [0, 1], and 0.5 is the threshold.
"""

import math
from collections.abc import Sequence

import numpy as np

from backend.detectors.base import THRESHOLD
from backend.evaluate.metrics.base import Estimate, proportion, register_metric

BINS = 10
Labels = Sequence[int] | np.ndarray
Scores = Sequence[float] | np.ndarray
FAWCETT = "Fawcett 2006, Pattern Recognition Letters 27(8)"


@register_metric(
    "accuracy_real",
    "Accuracy on real pictures",
    unit="share of the real pictures",
    better="higher",
    sentence="How often a real photograph is not called fake.",
    source="TR-Net, arXiv 2203.11433, section 5",
)
def accuracy_real(labels: Labels, scores: Scores) -> Estimate:
    called = _scores_of_label(labels, scores, 0) < THRESHOLD
    return proportion(int(called.sum()), len(called))


@register_metric(
    "accuracy_fake",
    "Accuracy on fakes",
    unit="share of the fakes",
    better="higher",
    sentence="How often a fake is called fake.",
    source="TR-Net, arXiv 2203.11433, section 5",
)
def accuracy_fake(labels: Labels, scores: Scores) -> Estimate:
    called = _scores_of_label(labels, scores, 1) >= THRESHOLD
    return proportion(int(called.sum()), len(called))


@register_metric(
    "auc",
    "Area under the ROC curve",
    better="higher",
    sentence="How often a random fake scores above a random real photograph; 0.5 is guessing.",
    source=FAWCETT,
)
def area_under_roc(labels: Labels, scores: Scores) -> float | None:
    """Return the area in [0, 1]; None if a class is missing."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if _both_labels(labels) else None


@register_metric(
    "ap",
    "Average precision",
    better="higher",
    sentence="How purely the highest scores are fakes; it depends on how many of the pictures are fake.",
    source="scikit-learn, average_precision_score",
)
def average_precision(labels: Labels, scores: Scores) -> float | None:
    """Return the average precision in [0, 1]; None if a class is missing."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if _both_labels(labels) else None


def roc_points(labels: Labels, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return false-alarm rates and recalls (M,), both rising from 0 to 1."""
    from sklearn.metrics import roc_curve

    false_alarms, recalls, _ = roc_curve(labels, scores, drop_intermediate=True)
    return false_alarms, recalls


@register_metric(
    "eer",
    "Equal error rate",
    unit="share of pictures",
    better="lower",
    sentence="How often the detector errs at the threshold at which misses and false alarms are equally frequent.",
    source=FAWCETT,
)
def equal_error_rate(labels: Labels, scores: Scores) -> float | None:
    """Return the rate in [0, 1], interpolated linearly on the ROC curve; None if a class is missing."""
    if not _both_labels(labels):
        return None
    false_alarms, recalls = roc_points(labels, scores)
    gap = false_alarms - (1 - recalls)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    if gap[after] == 0:
        return float(false_alarms[after])
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(false_alarms[after - 1] + share * (false_alarms[after] - false_alarms[after - 1]))


@register_metric(
    "false_alarms",
    "False alarms at fixed recall",
    unit="share of the real pictures",
    better="lower",
    sentence="How many real photographs are accused if the threshold is set to catch this share of the fakes.",
    source=FAWCETT + "; interval: Wilson 1927",
)
def false_alarms_at_recall(labels: Labels, scores: Scores, recall: float) -> Estimate:
    """Return the share of real pictures called fake at the highest threshold that catches `recall` of the fakes.

    `recall` is in (0, 1]. Wilson's interval ignores that the threshold itself was set on few fakes.
    """
    fake, real = np.sort(_scores_of_label(labels, scores, 1))[::-1], _scores_of_label(labels, scores, 0)
    if not len(fake):
        return Estimate(None, 0)
    caught = math.ceil(recall * len(fake) - 1e-9)  # 0.9 * 10 is a little more than 9
    return proportion(int((real >= fake[caught - 1]).sum()), len(real))


@register_metric(
    "brier",
    "Brier score",
    better="lower",
    sentence="How far the stated probabilities are from the truth, squared; 0.25 is always saying one half.",
    source="Brier 1950, Monthly Weather Review 78(1)",
)
def brier_score(labels: Labels, scores: Scores) -> float | None:
    """Return the mean squared distance of p_fake from the label, in [0, 1]."""
    from sklearn.metrics import brier_score_loss

    return float(brier_score_loss(labels, scores, pos_label=1)) if len(labels) else None


def reliability_bins(labels: Labels, scores: Scores, bins: int = BINS) -> list[tuple[float, float, int]]:
    """Return the mean p_fake, the share of fakes and the number of pictures of every bin that is not empty."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    numbers = np.minimum((scores * bins).astype(int), bins - 1)
    masks = [numbers == number for number in np.unique(numbers)]
    return [(float(scores[mask].mean()), float(labels[mask].mean()), int(mask.sum())) for mask in masks]


@register_metric(
    "ece",
    "Expected calibration error",
    unit="probability",
    better="lower",
    sentence="By how much the stated probability of fake differs from the share of fakes among the pictures "
    "that got it.",
    source="Guo et al. 2017, arXiv 1706.04599, equation 3, of p_fake",
)
def calibration_error(labels: Labels, scores: Scores, bins: int = BINS) -> float | None:
    """Return the expected calibration error in [0, 1] over equally wide bins (Guo et al. 2017, equation 3)."""
    rows = reliability_bins(labels, scores, bins)
    total = sum(count for _, _, count in rows)
    return sum(count * abs(p_fake - share) for p_fake, share, count in rows) / total if total else None


def _scores_of_label(labels: Labels, scores: Scores, label: int) -> np.ndarray:
    return np.asarray(scores, dtype=np.float64)[np.asarray(labels) == label]


def _both_labels(labels: Labels) -> bool:
    return len(np.unique(np.asarray(labels))) == 2
