"""Sharpening of photographs before drawings are compared with them.

A drawing fitted to photographs is softer than they are: where a detail's place is uncertain, every distance of pixels
or features is smallest for less of it. Fitted to sharpened photographs, it is about as sharp as they are.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SPREAD = 1.2  # standard deviation of the blur in pixels, as unsharp masks use it
RADIUS = 3  # of the blur in pixels


def sharpen(pictures: Tensor, amount: float) -> Tensor:
    """Add `amount` times their difference to a Gaussian blur to pictures (N, C, S, S): an unsharp mask."""
    places = torch.arange(-RADIUS, RADIUS + 1, dtype=pictures.dtype, device=pictures.device)
    line = torch.exp(-places.square() / (2 * SPREAD**2))
    kernel = line[:, None] * line / line.sum().square()
    channels = pictures.shape[1]
    padded = F.pad(pictures, (RADIUS,) * 4, mode="reflect")
    blurred = F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)
    return pictures + amount * (pictures - blurred)
