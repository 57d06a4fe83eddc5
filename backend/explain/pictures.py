"""Maps as pictures: colours that every kind of colour vision tells apart, outlines, and the scale in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from backend.explain.explanation import Explanation

if TYPE_CHECKING:
    from backend.counterfactual.traces import Residual

SEQUENTIAL = "cividis"
DIVERGING = "PuOr"  # orange against, white nothing, purple for
OPACITY = 0.6
SMALL_GAINS = (1000, 500, 200)  # for changes of less than one of 255 steps
NUMBER = 0.06  # height of a number in a picture, in sides of it
OUTLINE, UNDERLINE = (255, 255, 255), (0, 0, 0)  # white with a black edge shows on every picture


def relative(explanation: Explanation) -> np.ndarray:
    """Put a map on the one scale that all maps are drawn on.

    Returns:
        float32 (H, W): in [-1, 1] for signed maps, divided by the largest absolute value; in [0, 1] for others, from
        the least value to the largest; all 0 where there is nothing to show.
    """
    values = explanation.saliency.numpy().astype(np.float32)
    if explanation.degenerate:
        return np.zeros_like(values)
    if explanation.signed:
        largest = float(np.abs(values).max())
        return values / largest if largest else values
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def coloured(explanation: Explanation) -> np.ndarray:
    """Draw a map in colours, uint8 (H, W, 3)."""
    return np.rint(_colours(relative(explanation), signed=explanation.signed) * 255).astype(np.uint8)


def overlay(picture: np.ndarray, explanation: Explanation, opacity: float = OPACITY) -> np.ndarray:
    """Lay a map over a picture; where a signed map is 0, the picture stays as it is.

    Args:
        picture: uint8 (H, W, 3) of any size; the map is enlarged to it.
        explanation: The map.
        opacity: Of the map where it is strongest, in [0, 1].

    Returns:
        uint8 (H, W, 3); the picture itself where there is nothing to show.
    """
    if explanation.degenerate:
        return picture.copy()
    values = _enlarged(relative(explanation), picture.shape[:2])
    strength = np.abs(values) if explanation.signed else np.ones_like(values)
    share = (opacity * strength)[..., None]
    colours = _colours(values, signed=explanation.signed) * 255
    return np.rint((1 - share) * picture + share * colours).astype(np.uint8)


def outlined(picture: np.ndarray, labels: Tensor, segments: Sequence[int]) -> np.ndarray:
    """Outline segments in a picture, and number them from 1 in the order given.

    Args:
        picture: uint8 (H, W, 3) of any size.
        labels: Segment of every pixel (h, w).
        segments: Which to outline.

    Returns:
        uint8 (H, W, 3).
    """
    from skimage.segmentation import find_boundaries

    height, width = picture.shape[:2]
    chosen = np.isin(labels.numpy(), list(segments)) * (labels.numpy() + 1)
    sized = np.asarray(Image.fromarray(chosen.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST))
    drawn = picture.copy()
    drawn[find_boundaries(sized, mode="thick")] = UNDERLINE
    drawn[find_boundaries(sized, mode="inner")] = OUTLINE
    return _numbered(drawn, [sized == segment + 1 for segment in segments])


def _numbered(picture: np.ndarray, regions: Sequence[np.ndarray]) -> np.ndarray:
    """Write 1, 2, ... into regions (H, W), each where it is farthest from the region's edge."""
    from scipy.ndimage import distance_transform_edt

    drawn = Image.fromarray(picture)
    pen, size = ImageDraw.Draw(drawn), NUMBER * picture.shape[0]
    for number, region in enumerate(regions, start=1):
        inside = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        farthest = np.argwhere(inside == inside.max())
        row, column = farthest[len(farthest) // 2]
        pen.text(
            (int(column), int(row)),
            str(number),
            fill=OUTLINE,
            font=ImageFont.load_default(max(8.0, size)),
            anchor="mm",
            stroke_width=max(1, round(size / 8)),
            stroke_fill=UNDERLINE,
        )
    return np.asarray(drawn)


def scale_bar(*, signed: bool, width: int = 256, height: int = 16) -> np.ndarray:
    """Draw the scale of `relative` from left to right, uint8 (height, width, 3)."""
    values = np.linspace(-1.0 if signed else 0.0, 1.0, width, dtype=np.float32)
    return np.rint(np.repeat(_colours(values[None], signed=signed), height, axis=0) * 255).astype(np.uint8)


def scale_words(explanation: Explanation) -> str:
    """Say in one sentence what the colours mean, with the numbers at both ends."""
    if explanation.degenerate:
        return "There is no map to show."
    low, high = float(explanation.saliency.min()), float(explanation.saliency.max())
    if explanation.signed:
        largest = max(abs(low), abs(high))
        towards = explanation.settings.towards
        other = "real" if towards == "fake" else "fake"
        return (
            f"Purple speaks for {towards}, orange for {other}, unchanged parts for neither; full colour is "
            f"{largest:.2g} in this map's own units."
        )
    return f"Dark blue is this map's least value ({low:.2g}), yellow its largest ({high:.2g}), in its own units."


def reference_difference(face: Tensor, explanation: Explanation) -> "Residual | None":
    """Return what the adversarial image changes, amplified, with the gain; None without one.

    Args:
        face: (1, 3, H, W) in [0, 1].
        explanation: Holds the reference.
    """
    if explanation.reference != "adversarial" or explanation.reference_image is None:
        return None
    from backend.counterfactual.traces import GAINS, amplified  # imports what draws maps

    # Not rounded to 8 bits: an attack may change less than one step of them.
    change = 255 * (explanation.reference_image - face.cpu())[0].permute(1, 2, 0).numpy()
    return amplified(change, (*SMALL_GAINS, *GAINS))


def _colours(values: np.ndarray, *, signed: bool) -> np.ndarray:
    import matplotlib as mpl  # takes a while to import

    found: np.ndarray = mpl.colormaps[DIVERGING](values / 2 + 0.5) if signed else mpl.colormaps[SEQUENTIAL](values)
    return found[..., :3]


def _enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if values.shape == size:
        return values
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))
