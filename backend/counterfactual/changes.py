"""What a counterfactual changed: the residual map, how far the codes moved, and which parts of the face."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from backend.counterfactual import search
from backend.faces import region_masks

RESIDUAL_GAINS = (100, 50, 20, 10, 5, 2, 1)
COVERED_PERCENT = 99.5  # of the pixels must not be clipped by the gain
RESIDUAL_COLOURS = "PuOr"  # orange and purple differ for every kind of colour vision
NOTABLE_DENSITY = 1.5  # times the average change of a pixel


@dataclass(frozen=True, eq=False)
class Residual:
    """Signed, amplified difference of two pictures.

    Args:
        values: Mean absolute change of the three colours, with the sign of their sum, float32 (H, W) in [-1, 1].
        picture: The same in colours, uint8 (H, W, 3): orange darker, white unchanged, purple brighter.
        gain: Factor by which `picture` exaggerates the change.
        largest: Largest absolute change of any one colour value, in 8-bit steps.
    """

    values: np.ndarray
    picture: np.ndarray
    gain: int
    largest: float

    @property
    def caption(self) -> str:
        if self.largest == 0:
            return "No pixel changed."
        return (
            f"Changes x {self.gain}: orange became darker on the whole, purple brighter, white stayed. "
            f"The largest change is {self.largest:.3g} of 255."
        )


@dataclass(frozen=True, eq=False)
class LatentChange:
    """Mean absolute change of codes, |w - w0| (Artifact-Eraser, appendix, figure 3)."""

    rows: Tensor  # (N, rows)
    levels: dict[str, Tensor]  # (N,) by level


def signed_residual(original: np.ndarray, counterfactual: np.ndarray) -> Residual:
    """Return counterfactual - original of two uint8 pictures (H, W, 3), with a gain that shows the difference."""
    # Unsigned subtraction would wrap around at 256.
    return amplify_difference(counterfactual.astype(np.int16) - original.astype(np.int16))


def amplify_difference(difference: np.ndarray, gains: Sequence[int] = RESIDUAL_GAINS) -> Residual:
    """Draw a signed difference (H, W, 3), in 8-bit steps, with the largest gain that clips little of it."""
    # The mean of signed changes would hide a pixel that changed its colour but kept its brightness.
    sign = np.where(difference.sum(axis=2) < 0, -1, 1)
    values = (sign * np.abs(difference).mean(axis=2) / 255).astype(np.float32)
    strong = float(np.percentile(np.abs(values), COVERED_PERCENT)) or float(np.abs(values).max())
    gain = next((gain for gain in gains if strong * gain <= 1), 1)
    shade = np.clip(values * gain, -1, 1) / 2 + 0.5
    import matplotlib as mpl  # imported here so that the app's page opens sooner

    colours = mpl.colormaps[RESIDUAL_COLOURS](shade)[..., :3]
    return Residual(values, np.rint(colours * 255).astype(np.uint8), gain, float(np.abs(difference).max()))


def measure_latent_change(start: Tensor, codes: Tensor) -> LatentChange:
    """Return how far codes (N, rows, 512) moved, by row and by level."""
    rows = (codes - start).abs().mean(dim=2)
    levels = {level: rows[:, search.rows_of_level(level, rows.shape[1])].mean(dim=1) for level in search.LEVELS}
    return LatentChange(rows, levels)


@dataclass(frozen=True)
class RegionChange:
    """How much of a change lies in one part of the face."""

    region: str  # one of `backend.regions.REGIONS`
    share: float  # of the total absolute change, in [0, 1]
    area: float  # share of the picture, in [0, 1]

    @property
    def density(self) -> float:
        """Mean change of a pixel of the region, divided by that of the whole picture."""
        return self.share / self.area if self.area else 0.0


def changed_regions(original: np.ndarray, counterfactual: np.ndarray, landmarks: np.ndarray) -> list[RegionChange]:
    """Return how the absolute change between two uint8 pictures (H, W, 3) is spread over the regions of the face.

    The order is by density, highest first: a large region collects much change without standing out.
    """
    change = np.abs(counterfactual.astype(np.int16) - original.astype(np.int16)).sum(axis=2).astype(np.float64)
    total = change.sum() or 1.0
    regions = [
        RegionChange(region, float(change[mask].sum() / total), float(mask.mean()))
        for region, mask in region_masks(landmarks, change.shape).items()
    ]
    return sorted(regions, key=lambda region: region.density, reverse=True)


def regions_in_words(changes: list[RegionChange]) -> str:
    if not any(change.share for change in changes):
        return "No pixel changed."
    notable = [change for change in changes if change.density >= NOTABLE_DENSITY and change.share >= 0.05]
    if notable:
        parts = [
            f"the {change.region} ({change.share:.0%} of the change on {change.area:.0%} of the picture)"
            for change in notable
        ]
        return f"The change gathers in {' and '.join(parts)}."
    largest = max(changes, key=lambda change: change.share)
    return (
        f"The change is spread over the picture; the largest part, {largest.share:.0%}, lies in the {largest.region}."
    )
