"""Whether a map marks the part of a picture that was forged, where this part is known."""

import numpy as np
from sklearn.metrics import roc_auc_score

from backend.evaluate.metrics.base import register_metric

CELLS = 16  # a side; maps are compared with masks in so many parts


@register_metric(
    "mask_iou",
    "Overlap with the forged part",
    unit="intersection over union",
    better="higher",
    sentence="How well the highest places of a map, as many as were forged, overlap with what was forged.",
    source="Everingham et al. 2010 (PASCAL VOC), section 4.2, for equal areas",
)
def overlap_at_equal_area(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return intersection over union, in [0, 1], of the forged cells and as many of the map's highest ones.

    Args:
        saliency: The map (H, W), both sides multiples of `CELLS`.
        mask: Bool (H, W), what was forged; a cell counts as forged if half of it was.
    """
    forged = cell_means(mask.astype(np.float64)).ravel() >= 0.5
    count = int(forged.sum())
    if not count:
        raise ValueError("No cell was forged.")
    highest = np.zeros_like(forged)
    highest[np.argsort(-cell_means(saliency).ravel(), kind="stable")[:count]] = True
    return float((highest & forged).sum() / (highest | forged).sum())


@register_metric(
    "mask_auc",
    "Forged and other pixels told apart",
    unit="area under the ROC curve",
    better="higher",
    sentence="How often a forged pixel ranks above one that was not.",
    source="Fawcett 2006, over the pixels of a picture",
)
def pixel_auc(saliency: np.ndarray, mask: np.ndarray) -> float:
    """Return the area under the ROC curve of a map (H, W) over its pixels; `mask` is bool (H, W)."""
    return float(roc_auc_score(mask.ravel(), saliency.ravel()))


@register_metric(
    "pointing_game",
    "Pointing game",
    unit="share of pictures",
    better="higher",
    sentence="How often the highest place of a map lies within the forged part.",
    source="Zhang et al. 2018, arXiv 1608.00507, section 4.2, without a margin",
)
def points_at_mask(saliency: np.ndarray, mask: np.ndarray) -> bool:
    """Say whether the highest cell of a map (H, W) was forged; `mask` is bool (H, W)."""
    place = int(cell_means(saliency).argmax())
    return bool(cell_means(mask.astype(np.float64)).ravel()[place] >= 0.5)


def cell_means(values: np.ndarray) -> np.ndarray:
    """Return the means (CELLS, CELLS) of equal parts of (H, W)."""
    height, width = values.shape
    return values.reshape(CELLS, height // CELLS, CELLS, width // CELLS).mean((1, 3))
