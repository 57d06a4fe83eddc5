"""What a counterfactual changed: the residual map, how far codes moved, which parts of the face, and how they look."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.counterfactual import search
from backend.faces import region_masks
from backend.images import GREY
from backend.markup import join_in_words

RESIDUAL_GAINS = (100, 50, 20, 10, 5, 2, 1)
COVERED_PERCENT = 99.5  # of the pixels must not be clipped by the gain
RESIDUAL_COLOURS = "PuOr"  # orange and purple differ for every kind of colour vision
NOTABLE_DENSITY = 1.5  # times the average change of a pixel
FINE_FREQUENCY = 1 / 8  # of the sampling rate; above it, a change is texture rather than shape or shade
FINE_DEVIATION = 1.0  # pixels; what a blur of this size removes is fine detail
# From where on a look has changed: levels of 255, and doublings of the fine detail.
NOTABLE_SHADE, NOTABLE_COLOUR, NOTABLE_DETAIL = 2.0, 2.0, 0.2
LOOK_WORDS = {  # more, and less
    "shade": ("lighter", "darker"),
    "colour": ("more colourful", "paler"),
    "detail": ("sharper", "smoother"),
}
PLURAL_REGIONS = {"eyes"}
REGION_WORDS = {"skin": "the skin", "surround": "what surrounds the face"}


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


@dataclass(frozen=True)
class LookChange:
    """How one part of the face looks afterwards.

    Args:
        shade: Mean change of the brightness, in levels of 255; above 0 it is lighter.
        colour: Mean change of the distance between the strongest and the weakest colour, in levels of 255.
        detail: Change of the fine detail's root mean square, in doublings.
    """

    region: str  # one of `backend.faces.FACE_REGIONS`
    shade: float
    colour: float
    detail: float

    @property
    def words(self) -> list[str]:
        """Say what anybody can see of it; empty where nothing is notable."""
        limits = {"shade": NOTABLE_SHADE, "colour": NOTABLE_COLOUR, "detail": NOTABLE_DETAIL}
        return [
            LOOK_WORDS[name][0 if getattr(self, name) > 0 else 1]
            for name, limit in limits.items()
            if abs(getattr(self, name)) >= limit
        ]


def measure_looks(original: np.ndarray, counterfactual: np.ndarray, landmarks: np.ndarray) -> list[LookChange]:
    """Return how the regions of the face look in the second of two uint8 pictures (H, W, 3), beside the first."""
    shades, colours, details = zip(*(_look(picture) for picture in (original, counterfactual)), strict=True)
    looks = []
    for region, mask in region_masks(landmarks, original.shape[:2]).items():
        if not mask.any():
            continue
        shade, colour = (float((after - before)[mask].mean()) for before, after in (shades, colours))
        before, after = (float(np.sqrt(np.square(detail[mask]).mean())) for detail in details)
        looks.append(LookChange(region, shade, colour, float(np.log2((after + 1) / (before + 1)))))
    return looks


def _look(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return brightness, colourfulness and fine detail (H, W) of uint8 (H, W, 3), all in levels of 255."""
    from scipy.ndimage import gaussian_filter

    values = picture.astype(np.float64)
    shade = values @ np.array(GREY)
    return shade, values.max(2) - values.min(2), shade - gaussian_filter(shade, FINE_DEVIATION)


def looks_in_words(looks: Sequence[LookChange]) -> str:
    """Say in one sentence what became lighter, darker, sharper, smoother, more colourful or paler, and where."""
    changed: dict[tuple[str, ...], list[str]] = {}
    for look in looks:
        if look.words:
            changed.setdefault(tuple(look.words), []).append(REGION_WORDS.get(look.region, f"the {look.region}"))
    if not changed:
        return "No part of the face became visibly lighter, darker, sharper, smoother, more colourful or paler."
    parts = [f"{join_in_words(regions)} became {join_in_words(list(words))}" for words, regions in changed.items()]
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def fine_share(original: Tensor, counterfactual: Tensor) -> Tensor:
    """Return the share (N,) of a change's energy at more than an eighth of the sampling rate; NaN where none differs.

    Pictures are (N, 3, H, W); a frequency counts by the larger of its two directions.
    """
    energy = torch.fft.fft2((counterfactual - original).double()).abs().square().sum(1)
    down, across = (torch.fft.fftfreq(side, device=energy.device).abs() for side in energy.shape[-2:])
    fine = torch.maximum(down[:, None], across[None]) > FINE_FREQUENCY
    return (energy * fine).sum((1, 2)) / energy.sum((1, 2))


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
