"""Name the parts of a face that changed most, from five landmarks."""

from dataclasses import dataclass

import numpy as np

from backend.regions import region_masks

NOTABLE = 1.5  # times the average change of a pixel


@dataclass(frozen=True)
class RegionChange:
    """How much of a change lies in a part of the face.

    Args:
        region: One of `backend.regions.REGIONS`.
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
