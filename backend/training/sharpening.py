"""Sharpening of photographs before drawings are compared with them.

A drawing fitted to photographs is softer than they are: where a detail's place is uncertain, every distance of pixels
or features is smallest for less of it. Fitted to sharpened photographs, it is about as sharp as they are.
"""

from torch import Tensor

from backend.training.disturbances import blur

SPREAD = 1.2  # standard deviation of the blur in pixels, as unsharp masks use it
RADIUS = 3  # of the blur in pixels


def sharpen(pictures: Tensor, amount: float) -> Tensor:
    """Add `amount` times their difference to a Gaussian blur to pictures (N, C, S, S): an unsharp mask."""
    return pictures + amount * (pictures - blur(pictures, SPREAD, RADIUS))
