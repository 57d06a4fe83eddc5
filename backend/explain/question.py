"""What every explanation method is given, and what it returns."""

from dataclasses import dataclass

from torch import Tensor

from backend.explain.masking import MaskedFace


@dataclass(frozen=True, eq=False)
class Question:
    """What to explain, and how thoroughly.

    Args:
        masked: Face, reference and detector.
        labels: Segment of every pixel, int64 (H, W) from 0 without gaps.
        samples: How many samples the method draws; what one is, `methods.py` says.
        seed: Seed of everything that is drawn.
        as_released: Do as the released code of Adv-XAI (2502.03957) does where that differs.
    """

    masked: MaskedFace
    labels: Tensor
    samples: int
    seed: int = 0
    as_released: bool = False


@dataclass(frozen=True, eq=False)
class RawMap:
    """A map before it is judged.

    Args:
        saliency: float32 (H, W) on the CPU.
        answers: What the detector answered to the masks (M,); all the same means that there is nothing to explain.
            None for methods that follow gradients.
        empty: Why there is no map, one sentence, where a method found out by itself.
    """

    saliency: Tensor
    answers: Tensor | None = None
    empty: str = ""


def stretched(saliency: Tensor) -> Tensor:
    """Scale a map to [0, 1] from its least to its largest value, as the released code does; 0 where it is even."""
    low, high = saliency.min(), saliency.max()
    return (saliency - low) / (high - low) if high > low else saliency * 0
