"""Other framing and colours of a training picture, so that few pictures of a kind are not learned by heart."""

from dataclasses import dataclass

import numpy as np

GREYS = 255.0


@dataclass(frozen=True)
class Variation:
    """How far pictures may change.

    Args:
        shift: Largest displacement in whole pixels, so that nothing is resampled; edges are mirrored.
        colours: Largest relative change of contrast, to which each channel adds up to half as much of its own, and
            largest change of brightness in shares of the grey levels, the same for all channels.
    """

    shift: int = 0
    colours: float = 0.0


UNVARIED = Variation()


def varied(picture: np.ndarray, randomness: np.random.Generator, variation: Variation) -> np.ndarray:
    """Return uint8 (S, S, 3) displaced and in other colours; the same randomness changes every picture alike."""
    if variation.shift:
        top, left = randomness.integers(0, 2 * variation.shift + 1, 2)
        height, width = picture.shape[:2]
        margin = ((variation.shift,) * 2, (variation.shift,) * 2, (0, 0))
        picture = np.pad(picture, margin, mode="reflect")[top : top + height, left : left + width]
    if variation.colours:
        most = variation.colours
        contrast = 1 + randomness.uniform(-most, most) + randomness.uniform(-most, most, 3) / 2
        brightness = GREYS * randomness.uniform(-most, most)
        values = (picture.astype(np.float32) - GREYS / 2) * contrast + GREYS / 2 + brightness
        picture = np.clip(np.rint(values), 0, GREYS).astype(np.uint8)
    return picture
