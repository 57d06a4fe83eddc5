"""Name the parts of a face that changed most, from five landmarks."""

from dataclasses import dataclass

import numpy as np

REGIONS = ("eyes", "nose", "mouth", "skin", "surround")
# Half axes of the ellipses, along and across the line of the eyes, in eye distances: proportions of a frontal face.
EYE = (0.30, 0.20)
NOSE = (0.27, 0.38)
MOUTH_MARGIN, MOUTH_HEIGHT = 0.15, 0.24
FACE = (1.05, 1.50)
NOTABLE = 1.5  # times the average change of a pixel


@dataclass(frozen=True)
class RegionChange:
    """How much of a change lies in a part of the face.

    Args:
        region: One of `REGIONS`.
        share: Part of the total absolute change, in [0, 1].
        area: Part of the picture, in [0, 1].
    """

    region: str
    share: float
    area: float

    @property
    def density(self) -> float:
        """Change of a pixel of the region, relative to the average pixel of the picture."""
        return self.share / self.area if self.area else 0.0


def region_masks(landmarks: np.ndarray, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Draw the parts of a face; every pixel belongs to exactly one.

    Args:
        landmarks: (5, 2), x and y in crop pixels: left and right eye, nose, left and right corner of the mouth.
        shape: Height and width of the crop.

    Returns:
        Boolean (H, W) by region.
    """
    left, right, nose, mouth_left, mouth_right = landmarks.astype(np.float64)
    distance = float(np.linalg.norm(right - left)) or 1.0
    along = (right - left) / distance
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    half_mouth = float(np.linalg.norm(mouth_right - mouth_left)) / 2 / distance + MOUTH_MARGIN

    def ellipse(centre: np.ndarray, axes: tuple[float, float]) -> np.ndarray:
        x, y = np.arange(shape[1]) + 0.5 - centre[0], np.arange(shape[0])[:, None] + 0.5 - centre[1]
        lengthwise, crosswise = x * along[0] + y * along[1], y * along[0] - x * along[1]
        return (lengthwise / (axes[0] * distance)) ** 2 + (crosswise / (axes[1] * distance)) ** 2 <= 1

    drawn = {
        "eyes": ellipse(left, EYE) | ellipse(right, EYE),
        "nose": ellipse(0.7 * nose + 0.3 * eyes, NOSE),
        "mouth": ellipse(mouth, (half_mouth, MOUTH_HEIGHT)),
        "skin": ellipse((eyes + mouth) / 2, FACE),
        "surround": np.ones(shape, dtype=bool),
    }
    free = np.ones(shape, dtype=bool)
    masks = {}
    for region in REGIONS:  # a pixel goes to the first that claims it
        masks[region] = drawn[region] & free
        free &= ~drawn[region]
    return masks


def changed_regions(original: np.ndarray, counterfactual: np.ndarray, landmarks: np.ndarray) -> list[RegionChange]:
    """Return how the absolute change of two uint8 pictures (H, W, 3) spreads, the most changed region first.

    The order goes by change a pixel, for a large region collects much change without standing out.
    """
    change = np.abs(counterfactual.astype(np.int16) - original.astype(np.int16)).sum(axis=2).astype(np.float64)
    total = change.sum() or 1.0
    found = [
        RegionChange(region, float(change[mask].sum() / total), float(mask.mean()))
        for region, mask in region_masks(landmarks, change.shape).items()
    ]
    return sorted(found, key=lambda one: one.density, reverse=True)


def in_words(changes: list[RegionChange]) -> str:
    """Say in one sentence where the change lies."""
    if sum(one.share for one in changes) == 0:
        return "No pixel changed."
    notable = [one for one in changes if one.density >= NOTABLE and one.share >= 0.05]
    if notable:
        parts = [
            f"the {one.region} ({one.share:.0%} of the change on {one.area:.0%} of the picture)" for one in notable
        ]
        return f"The change gathers in {' and '.join(parts)}."
    largest = max(changes, key=lambda one: one.share)
    return (
        f"The change is spread over the picture; the largest part, {largest.share:.0%}, lies in the {largest.region}."
    )
