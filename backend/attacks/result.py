"""What every attack returns."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Attacked:
    """Faces after an attack, with what one detector says of them.

    Args:
        images: Attacked faces (N, 3, H, W) in [0, 1] on the CPU. Attacks whose pictures are saved round them to 8
            bits wherever they were changed; NES does not, and as released it may leave [0, 1].
        p_before: Probability of fake (N,) in [0, 1] before the attack.
        p_after: Probability of fake (N,) in [0, 1] of `images`.
        flipped: Whether a face that was called fake is called real now (N,).
        already_real: Whether a face was called real to begin with (N,).
        iterations: How many updates each face went through (N,).
        image_count: How many pictures the detector was asked about.
        call_count: How many batches it was asked in.
        settings: Settings of the attack, its seed among them.
        seconds: How long it took.
        summary: What happened, one paragraph in plain words.
    """

    images: Tensor
    p_before: Tensor
    p_after: Tensor
    flipped: Tensor
    already_real: Tensor
    iterations: Tensor
    image_count: int
    call_count: int
    settings: Any
    seconds: float
    summary: str
