"""Whether an explanation points at what the detector uses.

Tsigos et al. (arXiv 2404.18649 and 2502.03957): attack the segments that the explanation ranks first, and see what
is left of the verdict.
"""

from collections.abc import Sequence

import numpy as np

from backend.evaluate.metrics.base import Estimate, mean_with_interval, proportion, register_metric

SOURCE = "Tsigos et al. 2024, arXiv 2404.18649, section 3; Adv-XAI, arXiv 2502.03957, section 4"


@register_metric(
    "accuracy_at_k",
    "Accuracy after attacking the top k segments",
    unit="share of pictures",
    better="lower",
    sentence="How often the detector still answers correctly after only the segments ranked first were attacked.",
    source=SOURCE,
)
def accuracy_at_k(correct: Sequence[bool | None]) -> Estimate:
    """Return the share of pictures still classified correctly; None (no k segments of positive weight) is left out."""
    kept = [bool(answer) for answer in correct if answer is not None]
    return proportion(sum(kept), len(kept))


@register_metric(
    "sufficiency_at_k",
    "Sufficiency of the top k segments",
    unit="probability",
    better="higher",
    sentence="How much of the verdict is lost when only the segments ranked first are attacked.",
    source=SOURCE,
)
def sufficiency_at_k(before: Sequence[float | None], after: Sequence[float | None]) -> Estimate:
    """Return the mean drop of the predicted class's probability after an attack on the top k segments.

    Args:
        before: Probability (N,) in [0, 1] of the class predicted on the original.
        after: Probability (N,) of that class on the attacked picture; None is left out.
    """
    pairs = zip(before, after, strict=True)
    return mean_with_interval(None if first is None or last is None else first - last for first, last in pairs)


@register_metric(
    "stability",
    "Stability",
    unit="Pearson correlation",
    better="higher",
    sentence="How alike the maps of a picture and of a hardly changed copy are.",
    source=SOURCE,
)
def map_stability(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the Pearson correlation in [-1, 1] of two maps (H, W); None if one of them is constant."""
    a, b = (values.astype(np.float64).ravel() - values.mean(dtype=np.float64) for values in (first, second))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / norm, -1, 1)) if norm > 0 else None


@register_metric(
    "curve_area",
    "Area under a deletion or insertion curve",
    unit="probability",
    better="neither",
    sentence="The mean score while a picture's pixels are removed (lower is better) or added (higher is better).",
    source="Petsiuk et al. 2018 (RISE), arXiv 1806.07421, section 4.2",
)
def curve_area(fractions: Sequence[float], scores: Sequence[float]) -> float:
    """Return the area by trapezoids under a deletion or insertion curve.

    Args:
        fractions: Share (M,) of the picture that was deleted or inserted, rising from 0 to 1.
        scores: Probability (M,) of the explained class.
    """
    from scipy.integrate import trapezoid  # numpy renamed its own in 2.0

    return float(trapezoid(np.asarray(scores, dtype=np.float64), np.asarray(fractions, dtype=np.float64)))
