"""LIME: a linear model of what single segments do to the answer (Ribeiro et al. 2016, arXiv 1602.04938).

Gives the numbers of the package `lime` 0.2.0.1 where both draw the same samples. Adv-XAI (2502.03957) puts the
adversarial image where LIME paints a hidden segment in its mean colour.
"""

import numpy as np
import torch

from backend.explain.base import Fill, Question, RawMap, register_explainer, segment_means
from backend.progress import Job

KERNEL_WIDTH = 0.25
RANKING_ALPHA, WEIGHT_ALPHA = 0.01, 1.0  # of the ridge regressions that rank and that weight the segments


@register_explainer(
    "lime",
    title="LIME",
    about="Hides random sets of segments and finds out how much each segment adds to the detector's answer.",
    signed=True,
    samples=(500, 2000),  # sets of hidden segments
    fill=Fill("each segment's mean colour", lambda face, labels, *_: segment_means(face, labels)),
    released_batch=10,
    double_softmax=True,
    order=10,
)
def lime(question: Question) -> Job[RawMap]:
    """Explain with one weight a segment: how much the answer rises when that segment shows the face."""
    masked = question.masked
    labels = question.labels.to(masked.device)
    shown = draw_samples(question.samples, int(labels.max()) + 1, question.seed)
    rows = torch.from_numpy(shown.astype(bool)).to(masked.device)
    answers = yield from masked.ask_all("LIME", len(rows), lambda batch: rows[batch][:, labels])
    weights = torch.from_numpy(fit_weights(shown, answers.double().numpy()))
    return RawMap(weights.float()[question.labels.cpu()], answers)


def draw_samples(samples: int, segments: int, seed: int) -> np.ndarray:
    """Draw which segments show the face, (samples, segments) of 0 and 1; the first row shows all of them.

    The package draws the same numbers from the same seed if its segmentation draws none.
    """
    shown = np.random.RandomState(seed).randint(0, 2, samples * segments).reshape(samples, segments)
    shown[0] = 1
    return shown


def fit_weights(shown: np.ndarray, answers: np.ndarray, keep: int | None = None) -> np.ndarray:
    """Fit the weighted linear model.

    Args:
        shown: (samples, segments) of 0 and 1, the first row all 1.
        answers: (samples,).
        keep: How many segments the model may use: those with the largest weights in a first regression; None for all.

    Returns:
        Weight of every segment (segments,), 0 for those not kept.
    """
    closeness = np.sqrt(np.exp(-(distances(shown) ** 2) / KERNEL_WIDTH**2))
    design = shown.astype(np.float64)
    kept = np.arange(shown.shape[1])
    if keep is not None and keep < len(kept):
        kept = np.argsort(-np.abs(_ridge(design, answers, closeness, RANKING_ALPHA)), kind="stable")[:keep]
    weights = np.zeros(shown.shape[1])
    weights[kept] = _ridge(design[:, kept], answers, closeness, WEIGHT_ALPHA)
    return weights


def distances(shown: np.ndarray) -> np.ndarray:
    """Return the cosine distance (samples,) of every row of 0 and 1 to the row of ones; 1 for a row of zeros."""
    return 1 - np.sqrt(shown.sum(1) / shown.shape[1])


def _ridge(design: np.ndarray, answers: np.ndarray, closeness: np.ndarray, alpha: float) -> np.ndarray:
    """Solve a weighted ridge regression with an intercept that is not penalised."""
    centred = design - np.average(design, axis=0, weights=closeness)
    targets = answers - np.average(answers, weights=closeness)
    weighted = centred * closeness[:, None]
    return np.linalg.solve(weighted.T @ centred + alpha * np.eye(design.shape[1]), weighted.T @ targets)
